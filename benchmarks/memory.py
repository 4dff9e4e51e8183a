"""Peak memory, each figure from a process of its own.

    python -m benchmarks.memory --arch vit_b_16_plus_240

predictor: open the fp32 bundle and predict at batch 8. stream: the same over 50 and over 2,000 frames, fake engine and
real PNG files. teach: 70 frames, 7 classes of 10 shots, at full size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import describe_machine, peak_memory_mb

PROBES = ("predictor", "stream-50", "stream-2000", "teach")
_FRAMES = 50


def probe(what: str, arch: str, folder: Path) -> dict[str, Any]:
    """Do one thing in this process and say how much memory it took at most."""
    if what == "predictor":
        return _predictor(folder)
    if what.startswith("stream"):
        return _stream(folder, int(what.split("-")[1]))
    return _teach(arch, folder)


def _predictor(folder: Path) -> dict[str, Any]:
    from runtime import Predictor

    with Predictor(folder, batch_size=8) as predictor:
        height, width = predictor.manifest.encoder.input_size
        frames = np.random.default_rng(0).integers(0, 256, (16, height, width), dtype=np.uint8)
        predictor.predict(list(frames))
        file_mb = predictor.manifest.artifacts[0].bytes / 1e6
    return {"peak_mb": peak_memory_mb(), "file_mb": file_mb, "allowed_mb": 1.5 * file_mb + 500}


def _stream(folder: Path, count: int) -> dict[str, Any]:
    from runtime import Predictor

    def paths() -> Iterator[Path]:
        for index in range(count):
            yield folder / "frames" / f"{index % _FRAMES}.png"

    with Predictor(folder, backend="fake") as predictor:
        answered = sum(result.ok for result in predictor.stream(paths()))
    return {"peak_mb": peak_memory_mb(), "frames": answered}


def _teach(arch: str, folder: Path) -> dict[str, Any]:
    from calibration.dataset import load_dataset
    from export.checkpoint import load_model
    from export.graph import SemClipGraph
    from export.progress import Stages
    from export.prompts import load_prompts
    from export.teach import TeachRequest, teach_recipe

    model = load_model(arch, random_seed=0)
    stages = Stages()
    request = TeachRequest(load_dataset(folder / "data"), load_prompts(), shots=10)
    teach_recipe(model, SemClipGraph(model.encoder()), request, stages)
    return {"peak_mb": peak_memory_mb(), "frames": 70, "seconds": stages.seconds}


def main() -> int:
    """Prepare files, run each probe in a child process, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_b_16_plus_240", help="architecture with random weights")
    parser.add_argument(
        "--only", nargs="+", default=list(PROBES), choices=PROBES, help="some of the probes (default: all)"
    )
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        print(json.dumps(probe(args.probe, args.arch, args.folder)))
        return 0
    report: dict[str, Any] = {"arch": args.arch, "machine": describe_machine()}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        _prepare(args.arch, folder)
        for what in args.only:
            command = [sys.executable, "-m", "benchmarks.memory", "--arch", args.arch, "--probe", what]
            done = subprocess.run([*command, "--folder", work], stdout=subprocess.PIPE, check=True)
            report[what] = json.loads(done.stdout)
    print(json.dumps(report, indent=1))
    return 0


def _prepare(arch: str, folder: Path) -> None:
    from benchmarks.bundles import random_bundle
    from export.synthetic import write_dataset

    random_bundle(arch, None, folder)
    write_dataset(folder / "data", per_class=10)
    (folder / "frames").mkdir()
    rng = np.random.default_rng(0)
    for index in range(_FRAMES):
        Image.fromarray(rng.integers(0, 256, (480, 480), dtype=np.uint8)).save(folder / "frames" / f"{index}.png")


if __name__ == "__main__":
    sys.exit(main())
