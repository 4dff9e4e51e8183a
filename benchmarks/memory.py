"""Peak memory, each figure from a child process (`benchmarks.speed.child`).

`sem-clip benchmark` reports the engines and streams of a bundle. Teaching has no bundle yet:

    python -m benchmarks.memory --arch vit_b_16_plus_240      # 70 frames, 7 classes of 10 shots, random weights
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, peak_memory_mb
from benchmarks.speed.child import run_child
from benchmarks.speed.engines import Subject


def engine_memory(subject: Subject, batch: int) -> list[dict[str, Any]]:
    """For each engine the peak of a process that opens the bundle and predicts two batches."""
    rows = []
    for name in subject.engines:
        arguments = {
            "bundle": str(subject.folder),
            "backend": name.backend,
            "precision": name.precision,
            "device": name.device,
            "threads": subject.threads,
            "frames": subject.frames,
            "batch": batch,
        }
        rows.append({"engine": str(name), "batch": batch, **run_child("benchmarks.memory:engine_probe", arguments)})
    return rows


def stream_memory(subject: Subject, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Peak of a process that streams `counts` frames with the fake engine; it must not grow with their number."""
    arguments = {"bundle": str(subject.folder), "frames": subject.frames}
    return [
        {"frames": count, **run_child("benchmarks.memory:stream_probe", {**arguments, "count": count})}
        for count in counts
    ]


def engine_probe(
    bundle: str,
    backend: str,
    precision: str | None,
    device: int | str | None,
    threads: int,
    frames: list[str],
    batch: int,
) -> dict[str, float]:
    """In a child: open, predict, and return the peak memory."""
    from runtime import Predictor

    paths = [frames[i % len(frames)] for i in range(2 * batch)]
    with Predictor(
        bundle, backend=backend, precision=precision, device=device, batch_size=batch, threads=threads
    ) as predictor:
        predictor.predict(paths)
    return {"peak_mb": peak_memory_mb()}


def stream_probe(bundle: str, frames: list[str], count: int) -> dict[str, float]:
    """In a child: stream `count` frames, repeated from `frames`, with the fake engine."""
    from runtime import Predictor

    def paths() -> Iterator[str]:
        for index in range(count):
            yield frames[index % len(frames)]

    with Predictor(bundle, backend="fake") as predictor:
        answered = sum(result.ok for result in predictor.stream(paths()))
    return {"peak_mb": peak_memory_mb(), "answered": answered}


def teach_probe(arch: str, data: str) -> dict[str, Any]:
    """In a child: teach a recipe of 10 shots with random weights."""
    from calibration.dataset import load_dataset
    from export.model.checkpoint import load_model
    from export.model.graph import SemClipGraph
    from export.progress import Stages
    from export.teach import TeachRequest, teach_recipe
    from export.teaching.prompts import load_prompts

    model = load_model(arch, random_seed=0)
    stages = Stages()
    request = TeachRequest(load_dataset(Path(data)), load_prompts(), shots=10)
    teach_recipe(model, SemClipGraph(model.encoder()), request, stages)
    return {"peak_mb": peak_memory_mb(), "frames": 70, "seconds": stages.seconds}


def main() -> int:
    """Measure teaching, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_b_16_plus_240", help="architecture with random weights")
    args = parser.parse_args()
    from export.synthetic import write_dataset

    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "data"
        write_dataset(data, per_class=10)
        report = run_child("benchmarks.memory:teach_probe", {"arch": args.arch, "data": str(data)})
    print(json.dumps({"arch": args.arch, "machine": describe_machine(), "teach": report}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
