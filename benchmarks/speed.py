"""Speed side by side in one run, alternating: torch eager, the bare ONNX Runtime session, and `Predictor.predict`.

    python -m benchmarks.speed --arch vit_b_16_plus_240 --batch 8 --rounds 7

The graph is the same in all three: dual path with heads, fp32, on the CPU. Ratios are pair by pair, so they hold
while the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bundles import random_bundle
from benchmarks.machine import describe_machine, peak_memory_mb
from export.parity import torch_outputs
from runtime import Predictor


def alternate(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, after one warm-up of each; the order turns from round to round."""
    for call in runs.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def measure(arch: str, weights: Path | None, batch: int, rounds: int, threads: int) -> dict[str, Any]:
    """All figures of one architecture and batch size."""
    if threads:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as work:
        graph, bundle = random_bundle(arch, weights, Path(work))
        with Predictor(bundle, batch_size=batch, threads=threads) as predictor:
            height, width = predictor.manifest.encoder.input_size
            frames = np.random.default_rng(0).integers(0, 256, (batch, height, width), dtype=np.uint8)
            recipe, listed = predictor.recipe, list(frames)
            architecture = predictor.manifest.encoder.architecture
            seconds = alternate(
                {
                    "torch eager": lambda: torch_outputs(graph, frames, recipe),
                    "session": lambda: predictor.backend.run(frames, recipe),
                    "predict": lambda: predictor.predict(listed),
                },
                rounds,
            )
    frames_per_second = {name: batch / statistics.median(values) for name, values in seconds.items()}
    return {
        "architecture": architecture,
        "weights": str(weights.name) if weights else "random, seed 0",
        "batch": batch,
        "rounds": rounds,
        "threads": threads or torch.get_num_threads(),
        "frames_per_second": frames_per_second,
        "session_over_torch": _ratio(seconds["torch eager"], seconds["session"]),
        "predict_over_session_cost": _ratio(seconds["predict"], seconds["session"]) - 1,
        "peak_memory_mb": peak_memory_mb(),
        "machine": describe_machine(),
    }


def _ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def main() -> int:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_b_16_plus_240", help="architecture or open_clip configuration file")
    parser.add_argument("--weights", type=Path, help="weights file; random weights if left out")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0 for all cores")
    args = parser.parse_args()
    print(json.dumps(measure(args.arch, args.weights, args.batch, args.rounds, args.threads), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
