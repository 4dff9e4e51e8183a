"""Corrections as manual classes of a lot's KLARF file: only on request, since a manual class is a person's word."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from runtime.errors import KlarfError
from runtime.fab.codes import MAX_BYTES, NOT_READ, Codes
from runtime.fab.klarf import read_klarf
from runtime.fab.klarf_model import Defect, KlarfFile
from runtime.fab.klarf_writing import Key, is_manual, with_classes
from runtime.fab.lot_errors import LotError
from runtime.fab.lot_tally import UNCLASSIFIED
from runtime.files import read_bounded
from runtime.operating_point import VERDICTS

from .corrections import Correction, CorrectionLog
from .errors import CorrectionError

MANUAL_COLUMN = "MANSEMCLASS"


def klarf_with_corrections(
    log: CorrectionLog,
    lot: Path,
    codes: Path,
    *,
    column: str = MANUAL_COLUMN,
    replace: bool = False,
    lookup: bool = True,
    encoding: str | None = None,
) -> tuple[bytes, int]:
    """The lot's file with the corrections of its defects in `column`, and how many these are.

    Every other byte stays. codes: the file that `classify-lot` takes. replace: whether a manual class may
    take the place of another one. lookup: whether codes that the file does not name are added to its class lookup.
    encoding: of the lot's texts; None to find it.
    Raises CorrectionError with all faults: corrections of the lot whose defect is not clear, classes without a code,
    cells that hold another class; KlarfError, LotError.
    """
    file = read_klarf(lot, encoding=encoding)
    name = file.lot or lot.name
    mine = [made for made in log.current().values() if made.lot == name]
    faults: list[str] = []
    if not mine:
        faults.append(f"no correction is of lot {name}, the lot of {lot}")
    known = _codes(codes)
    numbers = known.numbers
    faults += [f'"{label}" has no code in {codes}' for label in sorted({made.new for made in mine} - numbers.keys())]
    if is_manual(column):
        faults += [
            f'the code of "{label}" is {numbers[label]}, which as a manual class means that nobody decided: '
            "give it another"
            for label in sorted({made.new for made in mine} & numbers.keys())
            if numbers[label] in UNCLASSIFIED
        ]
    wanted = _wanted(file, mine, faults)
    if faults:
        raise CorrectionError(log.path, faults)
    cells = {key: {column: numbers[made.new]} for key, (_, made) in wanted.items()}
    names = {numbers[made.new]: known.names[numbers[made.new]] for _, made in wanted.values()}
    content = with_classes(file, cells, names if lookup and file.lookups else None, manual=True)
    if is_manual(column) and not replace:
        faults = _overwritten(column, wanted.values(), numbers)
    if faults:
        raise CorrectionError(log.path, faults)
    return content, len(cells)


def _codes(codes: Path) -> Codes:
    """The codes of a file, for whatever classes it names. Raises LotError."""
    content = read_bounded(codes, MAX_BYTES, LotError)
    try:
        table = tomllib.loads(content.decode()).get("codes")
    except (ValueError, RecursionError) as exc:
        raise LotError(codes, f"is not readable TOML ({exc})") from exc
    others = (*VERDICTS, NOT_READ)
    return Codes.load(codes, [label for label in table or () if label not in others])


def _wanted(file: KlarfFile, mine: Iterable[Correction], faults: list[str]) -> dict[Key, tuple[Defect, Correction]]:
    """The defect of each correction, which must be the only one of its wafer and DEFECTID."""
    by_name: defaultdict[tuple[str, str], list[Defect]] = defaultdict(list)
    for defect in file.defects:
        by_name[defect.wafer, str(defect.id)].append(defect)
    found: dict[Key, tuple[Defect, Correction]] = {}
    for made in mine:
        if made.wafer is None or made.defect_id is None:
            faults.append(f"{made.frame}: its correction does not say which defect it is")
            continue
        defects = by_name.get((made.wafer, made.defect_id), [])
        if len(defects) != 1:
            how = "is not in the file" if not defects else f"is there {len(defects)} times"
            faults.append(f"{made.frame}: defect {made.defect_id} of wafer {made.wafer} {how}")
            continue
        other = found.setdefault(defects[0].key, (defects[0], made))[1]
        if other.new != made.new:
            faults.append(
                f"defect {made.defect_id} of wafer {made.wafer} is {other.new} by {other.frame}, and {made.new} by "
                f"{made.frame}"
            )
    return found


def _overwritten(column: str, wanted: Iterable[tuple[Defect, Correction]], numbers: Mapping[str, int]) -> list[str]:
    """Faults: cells that hold another class by now."""
    faults = []
    for defect, made in wanted:
        try:
            there = defect.whole(column)
        except KlarfError as exc:
            faults.append(str(exc))
            continue
        if there not in (*UNCLASSIFIED, numbers[made.new]):
            faults.append(
                f"defect {defect.id} of wafer {defect.wafer} has class {there} in {column}, and the correction is "
                f"{numbers[made.new]}: --replace-classes writes it"
            )
    return faults
