"""The report as Markdown: one short table for each measured section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.terminal import markdown_text

Report = Mapping[str, Any]


def markdown(report: Report) -> str:
    """The whole report, measured sections only."""
    parts = [_head(report)]
    for name, write in _SECTIONS.items():
        if name in report["sections"]:
            parts.append(write(report["sections"][name]))
    skipped = report["skipped"]
    if skipped:
        parts.append(
            "## Left out\n\n" + "\n".join(f"- {item['name']}: {markdown_text(item['reason'])}" for item in skipped)
        )
    return "\n\n".join(parts) + "\n"


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers with three significant digits, None as a dash."""
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return markdown_text(value)


def _head(report: Report) -> str:
    machine, bundle, settings = report["machine"], report["bundle"], report["settings"]
    instructions = ", ".join(machine["instructions"]) or "unknown"
    versions = _pairs(machine["versions"])
    memory = "" if machine["memory_mb"] is None else f", {machine['memory_mb'] / 1e3:.0f} GB"
    engines = "; ".join(f"{name}: {markdown_text(text)}" for name, text in bundle["engines"].items())
    return "\n".join(
        [
            f"# Benchmark of {markdown_text(bundle['folder'])}",
            "",
            f"- bundle: {markdown_text(bundle['architecture'])}, weights: {markdown_text(bundle['weights'])}, "
            f"{bundle['classes']} classes",
            *_tiles(bundle),
            f"- engines: {engines}",
            f"- machine: {machine['processor']} ({instructions}), {machine['cores']} cores{memory}, "
            f"{machine['system']}",
            f"- load before {machine['load']}, after {report['load_after']}; thread limits "
            f"{_pairs(machine['thread_limits']) or 'none'}",
            f"- settings: {_pairs(settings)}",
            f"- versions: {versions}",
            f"- taken {report['taken']}, in {report['seconds']:.0f} s",
        ]
    )


def _tiles(bundle: Report) -> list[str]:
    tile = bundle.get("tile", 0)
    if not tile:
        return []
    return [
        f"- the recipe reads tiles of {tile} pixels: so do cold start, memory and soak; all else is of frames as a "
        "whole, and growth has tiles of its own"
    ]


def _pairs(values: Report) -> str:
    """`name value, name value`; lists with slashes, empty ones left out."""
    texts = {
        name.replace("_", " "): "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in values.items()
    }
    return ", ".join(f"{name} {text}" for name, text in texts.items() if text and text != "None")


def _latency(section: Report) -> str:
    keys = ("p50", "p90", "p95", "p99", "max", "n")
    warm = [
        [row["engine"], what, *(row[field][key] for key in keys)]
        for row in section["warm"]
        for what, field in (("engine", "run_ms"), ("PNG to Prediction", "predict_ms"))
    ]
    steps = ("interpreter_ms", "import_ms", "open_ms", "first_ms", "total_ms", "second_ms")
    cold = [[row["engine"], *(row[step] for step in steps)] for row in section["cold"]]
    found = section["import"]
    return "\n\n".join(
        [
            "## Latency at batch 1\n\nWarm, in ms:",
            table(["engine", "what", *keys], warm),
            f"Cold, in ms, each in a new process (median of {section['cold'][0]['repeats']}):",
            table(["engine", "interpreter", "import", "open", "first answer", "total", "second answer"], cold),
            f"`import runtime`: {found['median_ms']:.0f} ms (median of {found['repeats']} processes, "
            f"{found['min_ms']:.0f} to {found['max_ms']:.0f}).",
        ]
    )


def _throughput(rows: Sequence[Report]) -> str:
    body = [
        [row["engine"], row["batch"], row["frames_per_second"], row["best_frames_per_second"], row["times_base"]]
        for row in rows
    ]
    return (
        f"## Throughput\n\nRunners alternate; medians of {rows[0]['rounds']} rounds. The ratio is taken pair by pair "
        f"against {rows[0]['base']} at the same batch.\n\n"
        + table(["engine", "batch", "frames/s", "best round", "times base"], body)
    )


def _split(rows: Sequence[Report]) -> str:
    steps = list(rows[0]["ms"])
    body = [[row["engine"], row["batch"], *row["ms"].values(), row["overhead"]] for row in rows]
    return "## Where the time goes\n\nms per frame, one step after the other:\n\n" + table(
        ["engine", "batch", *(step.replace("_", " ") for step in steps), "share that is not compute"], body
    )


def _host(section: Report) -> str:
    limit, fake, real = section["limit"], section["fake"], section["end_to_end"]
    ms = limit["cpu_ms_per_frame"]
    height, width = limit["frame_size"]
    return "\n\n".join(
        [
            f"## Host side\n\nPNG frames of {height}x{width}, {limit['png_bytes'] / 1e3:.0f} KB. CPU time of one core: "
            f"decoding takes {ms['decode']:.2f} ms per frame (Pillow alone {ms['pillow_decode']:.2f}), resizing "
            f"{ms['resize']:.2f} and post-processing {ms['postprocess']:.2f}: "
            f"{limit['frames_per_second_per_core']:.0f} frames/s per core.",
            "`stream` with the fake engine:",
            table(
                ["batch", "decoders", "cores", "frames/s", "best round", "CPU ms per frame"],
                [
                    [
                        r["batch"],
                        r["decoders"],
                        r["cores"],
                        r["frames_per_second"],
                        r["best_frames_per_second"],
                        r["cpu_ms_per_frame"],
                    ]
                    for r in fake
                ],
            ),
            "The same with several Predictors, each drawn from by a thread or a process of its own:",
            table(
                ["processes", "Predictors in each", "decoders of each", "frames/s", "times one"],
                [
                    [r["processes"], r["predictors"], r["decoders"], r["frames_per_second"], r["times_one"]]
                    for r in section["feeding"]
                ],
            ),
            "`stream` over the files, and the engine alone on prepared frames:",
            table(
                ["engine", "batch", "engine alone, frames/s", "stream, frames/s", "stream / engine"],
                [
                    [
                        r["engine"],
                        r["batch"],
                        r["engine_frames_per_second"],
                        r["stream_frames_per_second"],
                        r["stream_over_engine"],
                    ]
                    for r in real
                ],
            ),
        ]
    )


def _memory(section: Report) -> str:
    engines = [[row["engine"], row["batch"], row["peak_mb"]] for row in section["engines"]]
    streams = [[row["frames"], row["peak_mb"]] for row in section["stream"]]
    return "\n\n".join(
        [
            "## Memory\n\nPeak of a child process, in MB:",
            table(["engine", "batch", "peak MB"], engines),
            "`stream` with the fake engine, by the number of frames:",
            table(["frames", "peak MB"], streams),
        ]
    )


def _growth(section: Report) -> str:
    parts = [
        "## How cost grows",
        table(
            ["engine", "threads", "frames/s", "times one thread"],
            [[r["engine"], r["threads"], r["frames_per_second"], r["times_one_thread"]] for r in section["threads"]],
        ),
    ]
    if section["frame_sizes"]:
        rows = [
            [r["engine"], "x".join(map(str, r["frame_size"])), r["prepare_ms"], r["frames_per_second"]]
            for r in section["frame_sizes"]
        ]
        parts.append(table(["engine", "frame (height x width)", "decode and resize, ms", "frames/s"], rows))
    if section["tiles"]:
        height, width = section["tiles"][0]["frame_size"]
        rows = [
            [r["engine"], r["tile"] or "none", r["tiles"], r["frames_per_second"], r["tiles_per_second"]]
            for r in section["tiles"]
        ]
        header = ["engine", "tile, pixels", f"tiles of a frame of {height} x {width}", "frames/s", "tiles/s"]
        parts.append(table(header, rows))
    rows = [[r["engine"], r["classes"], r["frames_per_second"]] for r in section["classes"]]
    parts.append(table(["engine", "classes", "frames/s"], rows))
    return "\n\n".join(parts)


def _roofline(section: Report) -> str:
    flops, peak = section["flops"], section["peak"]
    counted = ", ".join(f"{name} {count / 1e9:.2f}" for name, count in flops["by_operator"].items())
    rows = [[row["engine"], row["batch"], row["gflops"], row["share_of_fp32_peak"]] for row in section["reached"]]
    return (
        f"## Roofline\n\n{flops['gflop_per_frame']:.2f} GFLOP per frame, counted in {flops['file']} ({counted}). Peak "
        f"of fp32 MatMuls: {peak['gflops']:.0f} GFLOP/s ({peak['library']}, {peak['size']} x {peak['size']}). "
        "int8 arithmetic has a higher peak, which is not measured; its share may exceed 1.\n\n"
        + table(["engine", "batch", "GFLOP/s", "share of the fp32 peak"], rows)
    )


def _soak(section: Report) -> str:
    return (
        f"## Soak\n\n{section['minutes']:g} minutes of `stream` on {section['engine']}: "
        f"{section['frames_per_second']:.3g} frames/s, drift {section['drift_percent_per_minute']:+.2f} % per minute, "
        f"last window over first {section['last_over_first']:.3f}; memory {section['growth_mb']:+.1f} MB "
        f"({section['growth_mb_per_minute']:+.2f} MB per minute).\n\n"
        + table(
            ["minute", "frames/s", "resident MB"],
            [[w["minute"], w["frames_per_second"], w["resident_mb"]] for w in section["windows"]],
        )
    )


_SECTIONS: Mapping[str, Callable[[Any], str]] = {
    "latency": _latency,
    "throughput": _throughput,
    "split": _split,
    "host": _host,
    "memory": _memory,
    "growth": _growth,
    "roofline": _roofline,
    "soak": _soak,
}
