"""The files that a judged lot becomes: side files, report, and last the KLARF file with its codes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import KlarfError
from ..files import OutputFile, sha256_of, write_atomically
from ..jsonfields import parse_json
from ..recipe import Recipe
from .codes import NOT_READ, Codes
from .drift import Drift, find_drift, read_reference
from .klarf_writing import with_classes
from .lot_errors import LotError
from .lot_journal import Journal, Key
from .lot_parquet import LotRows
from .lot_plan import Entry, Lot, Stamp, manual_class, stamp
from .lot_run import Engine
from .lot_tally import Tally
from .report import Facts, report_html

FORMAT, VERSION = "sem-clip-lot", 1
MAX_SUMMARY = 1 << 24
CHANGED = "changed while the lot was judged; judge it again when its writer is done (--force)"


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files of one lot in a folder, all named after the lot's file."""

    klarf: Path
    lines: Path
    parquet: Path | None
    report: Path
    summary: Path
    journal: Path

    @classmethod
    def of(cls, name: str, folder: Path, *, parquet: bool) -> Outputs:
        """name: of the lot's file. parquet: whether to write that one."""
        return cls(
            klarf=folder / name,
            lines=folder / f"{name}.jsonl",
            parquet=folder / f"{name}.parquet" if parquet else None,
            report=folder / f"{name}.html",
            summary=folder / f"{name}.lot.json",
            journal=folder / f"{name}.journal",
        )

    def results(self) -> list[Path]:
        """The files for the user, in the order in which they appear; the summary comes after them."""
        return [self.lines, *([self.parquet] if self.parquet else []), self.report, self.klarf]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a lot. judged_before: by an earlier run, whose files are there. status: 0, or 1 where some images
    were not read."""

    status: int
    lines: Sequence[str]
    warnings: Sequence[str]
    judged_before: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """What to make of a lot's answers. columns: those that take the codes. lookup: whether to add codes to it.

    store_id: of the store that takes the answers too; None without one.
    """

    recipe: Recipe
    engine: Engine
    codes: Codes
    columns: tuple[str, ...]
    lookup: bool
    store_id: str | None = None

    def settings(self, lot: Lot, outputs: Outputs) -> dict[str, Any]:
        """What the results depend on, apart from the images: kept in the summary, to know them again."""
        return {
            "klarf_sha256": lot.sha256,
            "encoding": lot.file.encoding,
            "types": list(lot.types),
            **self.engine.to_dict(),
            "codes_sha256": self.codes.sha256,
            "columns": list(self.columns),
            "lookup": self.lookup,
            "parquet": outputs.parquet is not None,
            **({} if self.store_id is None else {"store": self.store_id}),
        }


def read_summary(outputs: Outputs) -> dict[str, Any] | None:
    """The summary of an earlier run, if all of its files are there; None otherwise, and where it cannot be read."""
    try:
        if not all(path.is_file() for path in (*outputs.results(), outputs.summary)):
            return None
        if outputs.summary.stat().st_size > MAX_SUMMARY:
            return None
        found = parse_json(outputs.summary.read_bytes(), [])
    except (OSError, ValueError, RecursionError):
        return None
    sound = isinstance(found, dict) and found.get("format") == FORMAT and found.get("version") == VERSION
    return found if sound and {"settings", "status"} <= found.keys() and found["status"] in (0, 1) else None


def same_settings(before: Any, now: Mapping[str, Any]) -> bool:
    """Whether an earlier run had these settings, perhaps with a store that is not asked for now."""
    if not isinstance(before, dict):
        return False
    return {name: value for name, value in before.items() if name != "store" or name in now} == now


def write_results(lot: Lot, outputs: Outputs, journal: Journal, order: Order, stamps: Mapping[str, Stamp]) -> Done:
    """Write all files; each is whole or absent, and the KLARF file comes last but for the summary.

    stamps: of the images before they were judged. Raises LotError if the lot's own file has changed since it was read;
    KlarfError where codes cannot be written; OSError.
    """
    changed = {file for file, before in stamps.items() if before is not None and stamp(file) != before}
    tally = Tally(lot.wafers, order.recipe.classes)
    shared = {code: dict.fromkeys(order.columns, code) for code in order.codes.names}  # by 200,000 defects
    cells: dict[Key, Mapping[str, int]] = {}
    with ExitStack() as stack:
        lines = stack.enter_context(OutputFile(outputs.lines))
        rows = LotRows(stack.enter_context(OutputFile(outputs.parquet))) if outputs.parquet else None
        for entry, record in _coded(lot, journal, order.codes, changed, tally):
            lines.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            if rows is not None:
                rows.add(record)
            if record["code"] is not None:
                cells[entry.defect.key] = shared[record["code"]]
        if rows is not None:
            rows.finish()
        used = {cell[order.columns[0]] for cell in cells.values()}
        names = {code: order.codes.names[code] for code in sorted(used)}
        content = with_classes(lot.file, cells, names if order.lookup and lot.file.lookups else None)
        if not lot.path.is_file() or sha256_of(lot.path) != lot.sha256:
            raise LotError(lot.path, CHANGED)
    drift = find_drift(tally.frames.groups(), read_reference(order.recipe))
    settings = order.settings(lot, outputs)
    page = report_html(_facts(lot, settings, order), tally, order.codes, drift)
    write_atomically(outputs.report, page.encode("utf-8", "backslashreplace"))
    write_atomically(outputs.klarf, content)
    status = 1 if tally.unread.count else 0
    _write_summary(outputs, tally, drift, settings, status)
    return Done(status, [*tally.lines(), drift.line(lot.name)], _warnings(lot, tally, drift, order))


def _coded(
    lot: Lot, journal: Journal, codes: Codes, changed: set[str], tally: Tally
) -> Iterator[tuple[Entry, dict[str, Any]]]:
    """Each defect with its line of the side file; the tally takes it in."""
    for entry, record in zip(lot.entries(), journal.records(), strict=True):
        touched = sorted({image.name for image in entry.images if image.file in changed})
        if touched:
            _void(record, touched)
        verdict, manual = record["verdict"], None
        try:
            manual = manual_class(entry.defect)
        except KlarfError as exc:
            tally.warnings.add(f"manual class not read: {exc}")
        ordered = {}
        for name, value in record.items():
            ordered[name] = value
            if name == "reason":
                ordered |= {"code": codes.numbers.get(verdict), "manual": manual}
        tally.add(entry.wafer, ordered, manual)
        yield entry, ordered


def _void(record: dict[str, Any], touched: Sequence[str]) -> None:
    """The defect was judged by images that changed meanwhile: it counts as not read."""
    answers = ("label", "confidence", "score", "novelty", "probabilities", "image")
    sizes = [name for name in record if name.endswith(("_nm", "_nm2")) and name not in ("x_nm", "y_nm")]
    record |= dict.fromkeys((*answers, *sizes))
    record |= {
        "verdict": NOT_READ,
        "reason": f"{NOT_READ}: {', '.join(touched)}: {CHANGED}",
        "images": [
            {"image": image["image"], "type": image["type"], "error": CHANGED} if image["image"] in touched else image
            for image in record["images"]
        ],
    }


def _facts(lot: Lot, settings: Mapping[str, Any], order: Order) -> Facts:
    file = lot.file
    about = [
        ("file", lot.path.name),
        ("KLARF version", file.version),
        ("device", file.device),
        ("step", file.step),
        ("inspection tool", " ".join(file.station) or None),
        ("result time", file.result_time),
        ("wafers", str(len(file.wafers))),
        ("classes of the recipe", ", ".join(order.recipe.classes)),
        ("recipe SHA-256", settings["recipe_sha256"]),
        ("encoder id", settings["encoder_id"]),
        ("engine", settings["backend"]),
        ("columns written", ", ".join(settings["columns"])),
    ]
    names: dict[int, str] = {}
    for wafer in file.wafers:
        names |= wafer.class_names
    return Facts(lot.name, about, names, lot.types)


def _warnings(lot: Lot, tally: Tally, drift: Drift, order: Order) -> list[str]:
    """Lines for stderr."""
    found = list(lot.file.warnings)
    if order.lookup and not lot.file.lookups:
        found.append("the file has no class lookup, so the codes are written without their names")
    if lot.is_elsewhere:
        found.append(f"no image of the lot is in {lot.folder.folder}: --images is likely the wrong folder")
    found += tally.unread.lines("not read: ", " images not read; the side file names all")
    found += tally.warnings.lines("", " warnings; the side file has all")
    return found + [f"lot {lot.name} drifts: {text}" for text in drift.sentences()]


def _write_summary(outputs: Outputs, tally: Tally, drift: Drift, settings: Mapping[str, Any], status: int) -> None:
    summary = {
        "format": FORMAT,
        "version": VERSION,
        "settings": dict(settings),
        "status": status,
        "defects": tally.defects,
        "verdicts": {
            name: tally.verdicts[name] for name in (*tally.classes, *sorted(set(tally.verdicts) - {*tally.classes}))
        },
        "images_not_read": tally.unread.count,
        "manual": {"classified": tally.manual.total(), "agreed": tally.agreed},
        "drift": drift.to_dict(),
        "files": {path.name: sha256_of(path) for path in outputs.results()},
    }
    write_atomically(outputs.summary, (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
