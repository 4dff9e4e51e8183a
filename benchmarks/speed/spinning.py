"""What it costs that idle threads spin: ONNX Runtime and OpenVINO on an idle host and on a busy one.

    python -m benchmarks.speed.spinning bundle

On the busy host, as many processes as there are cores do nothing but count. Figures alternate in rounds; the ratio is
against ONNX Runtime as it comes, which spins for milliseconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.speed.timing import alternate, per_second, ratio
from runtime.backends import Backend
from runtime.backends.choice import onnx_artifact
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import SPIN_US, OrtCpuBackend
from runtime.host import usable_cores
from runtime.manifest import Manifest, load_bundle

INTRA = "session.intra_op"
WAITS: Mapping[str, tuple[int, tuple[str, str]]] = {
    "as it comes": (0, (f"{INTRA}.allow_spinning", "1")),
    "no spinning": (0, (f"{INTRA}.allow_spinning", "0")),
    f"{SPIN_US} us": (0, (f"{INTRA}.spin_duration_us", str(SPIN_US))),
    "1 thread": (1, (f"{INTRA}.allow_spinning", "1")),
}
"""ONNX Runtime's number of threads, 0 for all, and how they wait."""


def main() -> int:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="bundle folder, as `sem-clip build` writes it")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of alternating runs (default: 5)")
    args = parser.parse_args()
    manifest, recipe = load_bundle(args.bundle)
    frames = np.random.default_rng(0).integers(0, 256, (8, *manifest.encoder.input_size), np.uint8)
    print("| host | batch | threads wait | frames/s | ratio | CPU ms per frame |\n|---|---|---|---|---|---|")
    with ExitStack() as stack:
        engines = {name: stack.enter_context(backend) for name, backend in _engines(args.bundle, manifest).items()}
        for host, load in (("idle", 0), ("busy", usable_cores())):
            with busy(load):
                for batch in (1, 8):
                    cpu: dict[str, list[float]] = {name: [] for name in engines}
                    runs: dict[str, Callable[[], object]] = {
                        name: partial(_timed, partial(backend.run, frames[:batch], recipe), cpu[name])
                        for name, backend in engines.items()
                    }
                    seconds = alternate(runs, args.rounds)
                    base = next(iter(seconds.values()))
                    for name, taken in seconds.items():
                        own = 1e3 * float(np.median(cpu[name])) / batch
                        rate = per_second(batch, taken)
                        print(f"| {host} | {batch} | {name} | {rate:.2f} | {ratio(base, taken):.2f} | {own:.0f} |")
    return 0


def _engines(folder: Path, manifest: Manifest) -> dict[str, Backend]:
    artifact = onnx_artifact(folder, manifest, "fp32")
    found: dict[str, Backend] = {
        f"ONNX Runtime, {name}": OrtCpuBackend(folder, artifact, manifest.encoder, threads=threads, spin=spin)
        for name, (threads, spin) in WAITS.items()
    }
    return {**found, "OpenVINO": OpenVinoBackend(folder, artifact, manifest.encoder)}


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that count, until the end."""
    with ExitStack() as stack:
        for _ in range(processes):
            counting = stack.enter_context(subprocess.Popen(["sh", "-c", "while :; do :; done"]))
            stack.callback(counting.kill)
        yield


def _timed(call: Callable[[], object], cpu: list[float]) -> None:
    """Call it; its CPU seconds, of all threads, go to `cpu`."""
    began = time.process_time()
    call()
    cpu.append(time.process_time() - began)


if __name__ == "__main__":
    sys.exit(main())
