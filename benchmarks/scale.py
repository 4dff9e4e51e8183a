"""Ray with one worker against `Predictor.stream` with the same threads, alternating in one run.

    python -m benchmarks.scale bundle --count 5000 --rounds 3

`rate`, in frames per second, is of all frames after the first block of answers: neither side pays for its start.
`whole` is of all frames and all of the time, with opening the bundle on both sides and starting the worker on Ray's.
Starting Ray itself comes once and is `start_s`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.speed.frames import SIZE, write_frames
from runtime.options import add_bundle_argument, add_engine_arguments, at_least

_FILES = 500
"""Different frames; they are judged again and again."""


def rates(counts: Iterable[int], began: float) -> dict[str, float]:
    """Frames per second, `whole` since `began` and `rate` after the first of several blocks. counts: frames of each
    block of answers, drawn while the clock runs."""
    total = first = 0
    first_at = last_at = began
    for count in counts:
        last_at = time.perf_counter()
        if not total:
            first, first_at = count, last_at
        total += count
    steady = last_at - first_at
    return {"rate": (total - first) / steady if steady else 0.0, "whole": total / (last_at - began)}


def of_stream(bundle: Path, paths: Sequence[str], block: int, options: dict[str, Any]) -> dict[str, float]:
    """Rates of `Predictor.stream`, with as many decoders as threads; blocks of `block` answers."""
    from runtime import Predictor

    began = time.perf_counter()
    with Predictor(bundle, **options) as predictor:
        return rates(_blocks(predictor.stream(paths, decoders=options["threads"]), block), began)


def of_ray(ray: Any, bundle: Path, paths: Sequence[str], block: int, options: dict[str, Any]) -> dict[str, float]:
    """Rates of one worker of Ray."""
    import pyarrow as pa

    from runtime.serving.ray_data import judge

    began = time.perf_counter()
    tables = [pa.table({"path": paths[start : start + block]}) for start in range(0, len(paths), block)]
    answers = judge(ray.data.from_arrow(tables), bundle, workers=1, **options)
    blocks = answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    return rates((table.num_rows for table in blocks), began)


def measure(args: argparse.Namespace, paths: Sequence[str]) -> dict[str, Any]:
    """All rounds, the stream first in each."""
    from runtime.serving.ray_command import MOST_ROWS
    from runtime.serving.ray_session import ray_session

    options = {
        "backend": args.backend,
        "precision": args.precision,
        "batch_size": args.batch_size,
        "threads": args.threads or 1,
    }
    rounds = []
    began = time.perf_counter()
    with ray_session(None, options["threads"]) as ray:
        start_s = time.perf_counter() - began
        for number in range(args.rounds):
            stream = of_stream(args.bundle, paths, MOST_ROWS, options)
            worker = of_ray(ray, args.bundle, paths, MOST_ROWS, options)
            ratio = {name: worker[name] / stream[name] for name in stream}
            rounds.append({"stream": stream, "ray": worker, "ratio": ratio})
            print(f"round {number + 1}: ray / stream {ratio['rate']:.2f}, whole {ratio['whole']:.2f}", file=sys.stderr)
    medians = {name: statistics.median(one["ratio"][name] for one in rounds) for name in ("rate", "whole")}
    return {"frames": len(paths), **options, "start_s": start_s, "ratio": medians, "rounds": rounds}


def _blocks(results: Iterable[object], size: int) -> Iterator[int]:
    count = 0
    for _ in results:
        count += 1
        if count == size:
            yield count
            count = 0
    if count:
        yield count


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bundle_argument(parser)
    parser.add_argument("--count", type=at_least(1), default=5000, metavar="N", help="frames (default: 5000)")
    parser.add_argument("--rounds", type=at_least(1), default=3, metavar="N", help="rounds (default: 3)")
    add_engine_arguments(parser).add_argument(
        "--batch-size", type=at_least(1), default=8, metavar="N", help="frames per engine run (default: 8)"
    )
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as work:
        files = write_frames(Path(work), _FILES, SIZE)
        paths = [files[number % len(files)] for number in range(args.count)]
        report = measure(args, paths)
    print(json.dumps({"machine": describe_machine(), **report}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
