"""The report of a lot: one HTML file with drawings inside, without scripts and without anything from elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..operating_point import VERDICTS
from ..terminal import Reasons
from .codes import NO_IMAGE, NOT_READ, Codes
from .drift import Change, Drift
from .lot_fusion import GOOD
from .lot_tally import Tally
from .report_svg import COLOURS, OTHERS, colours, pareto_chart, text, wafer_map

MOST_WAFERS, MOST_PAIRS = 50, 200
"""Wafers drawn, and rows of the agreement with manual classes."""
_STYLE = """
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #1c2833; }
h2 { margin-top: 1.8em; border-bottom: 1px solid #ccd1d1; }
table { border-collapse: collapse; margin: .6em 0; }
th, td { padding: .15em .8em; text-align: right; border-bottom: 1px solid #e5e8e8; }
th:first-child, td:first-child { text-align: left; }
.alarm { background: #fdedec; border-left: 4px solid #c0392b; padding: .5em 1em; }
.maps { display: flex; flex-wrap: wrap; gap: 1em; } figure { margin: 0; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .5em; }
svg text { font: 11px sans-serif; } .grid { stroke: #d5d8dc; } .line { fill: none; stroke: #1c2833; stroke-width: 1.5; }
.wafer { fill: #fbfcfc; stroke: #85929e; } .dots { stroke-width: 2.6; stroke-linecap: round; fill: none; }
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the head of a report says. Pairs of a name and a value; None is unknown.

    lot: for the title. class_names: names of the file's own class lookup, by number.
    """

    lot: str
    about: Sequence[tuple[str, str | None]]
    class_names: Mapping[int, str]
    image_types: Sequence[str]


def report_html(facts: Facts, tally: Tally, codes: Codes, drift: Drift) -> str:
    """The whole file. Every text of a lot, a bundle or a file of codes is escaped."""
    colour = colours([name for name, _ in tally.pareto()], (GOOD,))
    parts = [
        *_head(facts),
        *_drift(drift),
        *_rates(tally),
        *_pareto(tally, codes, colour),
        *_maps(tally, colour),
        *_agreement(facts, tally, codes),
        *_listed("Images that could not be read", tally.unread),
        *_listed("Warnings", tally.warnings),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>Lot {text(facts.lot)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _head(facts: Facts) -> list[str]:
    rows = [(name, "unknown" if value is None else value) for name, value in facts.about]
    types = ", ".join(facts.image_types) or "all"
    cells = "".join(f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in rows)
    return [
        f"<h1>Lot {text(facts.lot)}</h1>",
        f"<table>{cells}<tr><td>image types</td><td>{text(types)}</td></tr></table>",
    ]


def _drift(drift: Drift) -> list[str]:
    found = ["<h2>Drift against calibration</h2>"]
    if drift.why_not:
        return [*found, f"<p>Not tested: {text(drift.why_not)}.</p>"]
    sentences = drift.sentences()
    if sentences:
        listed = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
        found.append(f'<div class="alarm"><p>This lot is unlike the calibration frames:</p><ul>{listed}</ul></div>')
    else:
        found.append(f"<p>None found at these counts of frames ({len(drift.changes)} tests).</p>")
    rows = [
        (change.label, change.what, _short(change, change.before), _short(change, change.here), change.frames,
         f"{change.p:.2g}")
        for change in drift.changes
    ]  # fmt: skip
    found.append(_table(("class", "what", "calibration", "this lot", "frames", "p"), rows))
    if drift.untested:
        found.append(f"<p>Not tested: {text('; '.join(drift.untested))}.</p>")
    return found


def _short(change: Change, value: float) -> str:
    return f"{value:.1%}" if change.what == "rejects" else f"{value:.4g}"


def _rates(tally: Tally) -> list[str]:
    rows: list[tuple[object, ...]] = [
        (name, tally.verdicts[name], _share(tally.verdicts[name], tally.judged)) for name in VERDICTS
    ]
    rows.append(("rejected in all", tally.rejected, _share(tally.rejected, tally.judged)))
    out = [
        "<h2>Rejects</h2>",
        f"<p>{tally.defects} defects, {tally.judged} of them judged, {tally.verdicts[NOT_READ]} not read, "
        f"{tally.verdicts[NO_IMAGE]} without an image to judge. Shares are of the judged.</p>",
        _table(("verdict", "defects", "share"), rows),
    ]
    if len(tally.wafers) > 1:
        per_wafer = []
        for facts, counts in zip(tally.wafers, tally.by_wafer, strict=True):
            judged = counts.total() - counts[NOT_READ] - counts[NO_IMAGE]
            rejected = sum(counts[name] for name in VERDICTS)
            per_wafer.append((facts.id, facts.slot or "", judged, rejected, _share(rejected, judged)))
        out.append(_table(("wafer", "slot", "judged", "rejected", "share"), per_wafer))
    return out


def _pareto(tally: Tally, codes: Codes, colour: Mapping[str, str]) -> list[str]:
    rows, so_far = [], 0
    for name, count in tally.pareto():
        so_far += count
        rows.append((name, codes.numbers[name], count, _share(count, tally.judged), _share(so_far, tally.judged)))
    table = _table(("class", "code", "defects", "share", "cumulative"), rows, colour)
    return ["<h2>Pareto by class</h2>", pareto_chart(tally.pareto(), colour), table]


def _maps(tally: Tally, colour: Mapping[str, str]) -> list[str]:
    drawn = []
    for index, facts in enumerate(tally.wafers[:MOST_WAFERS]):
        picture = wafer_map(tally, index, colour)
        label = f"{text(facts.id)}{f', slot {text(facts.slot)}' if facts.slot else ''}"
        what = f"{tally.by_wafer[index].total()} defects" if picture else "no places known"
        drawn.append(f"<figure>{picture}<figcaption>{label}: {what}</figcaption></figure>")
    more = len(tally.wafers) - MOST_WAFERS
    note = f"<p>{more} more wafers are not drawn.</p>" if more > 0 else ""
    grey = f" Classes beyond the first {len(COLOURS)} are grey." if OTHERS in colour.values() else ""
    return [
        "<h2>Wafer maps by class</h2>",
        f"<p>Colours as in the table above.{grey} One dot may stand for several defects.</p>",
        f'<div class="maps">{"".join(drawn)}</div>{note}',
    ]


def _agreement(facts: Facts, tally: Tally, codes: Codes) -> list[str]:
    total = tally.manual.total()
    if not total:
        return []
    rows = [
        (f"{manual} {facts.class_names.get(manual, '')}".strip(), name, codes.numbers[name], count)
        for (manual, name), count in sorted(tally.manual.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    more = f"<p>{len(rows) - MOST_PAIRS} rarer pairs are left out.</p>" if len(rows) > MOST_PAIRS else ""
    return [
        "<h2>Agreement with manual classes</h2>",
        f"<p>{total} judged defects have a manual class (other than 0 and -1); "
        f"{tally.agreed} of them have the same code here ({_share(tally.agreed, total)}).</p>",
        "<p>Accuracy is the share of a manual class that has its code here; purity the share of a code that people "
        "gave too. A reject has a code of its own.</p>",
        _table(("code", "manual", "here", "both", "accuracy", "purity"), _rates_by_code(tally, codes)[:MOST_PAIRS]),
        _table(("manual", "here", "code", "defects"), rows[:MOST_PAIRS]),
        more,
    ]


def _rates_by_code(tally: Tally, codes: Codes) -> list[tuple[object, ...]]:
    """Of each code: defects that people gave it, that have it here, and both; of those with a manual class alone."""
    by_hand, here, both = Counter[int](), Counter[int](), Counter[int]()
    for (manual, verdict), count in tally.manual.items():
        by_hand[manual] += count
        here[codes.numbers[verdict]] += count
        both[manual] += count if manual == codes.numbers[verdict] else 0
    return [
        (
            f"{code} {codes.names.get(code, '')}".strip(),
            by_hand[code],
            here[code],
            both[code],
            _share(both[code], by_hand[code]),
            _share(both[code], here[code]),
        )
        for code in sorted({*by_hand, *here}, key=lambda code: (-by_hand[code], code))
    ]


def _listed(title: str, reasons: Reasons) -> list[str]:
    if not reasons.count:
        return []
    lines = reasons.lines("", "; the side file names all")
    return [f"<h2>{title}</h2>", f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"]


def _table(names: Sequence[str], rows: Sequence[Sequence[object]], colour: Mapping[str, str] | None = None) -> str:
    """colour: of the first cell of a row."""
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    body = ""
    for first, *rest in rows:
        key = f'<span class="key" style="background:{colour[str(first)]}"></span>' if colour else ""
        body += f"<tr><td>{key}{text(first)}</td>{''.join(f'<td>{text(cell)}</td>' for cell in rest)}</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else "-"
