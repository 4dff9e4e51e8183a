"""Lots of a fab: KLARF files and their images in, the same files with class codes out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..files import require_folder
from ..locking import locked
from ..predictor import Predictor
from ..terminal import printable, progress_bar
from ..verdict_writer import VerdictWriter
from .codes import Codes
from .klarf_writing import with_classes
from .lot_errors import LotError
from .lot_journal import Journal, same_header
from .lot_plan import Lot
from .lot_results import Done, Order, Outputs, read_summary, same_settings, write_results
from .lot_run import Engine, journal_header, judge

COLUMN = "CLASSNUMBER"


@dataclass(frozen=True, slots=True, eq=False)
class LotClassifier:
    """Classifies lots one after the other with an open Predictor.

    engine: what `Engine.of` says of it. codes: of the same recipe. columns: those that take the codes.
    images: the folder in which the lots' image files lie. types: image types to judge; all of them if empty.
    out: the folder of the results. parquet: whether to write that side file. force: replace results that are there.
    encoding: of the lots' texts; None to find it from their bytes. lookup: whether to add codes to the class lookup.
    store: takes the answers of all images as well. A lot that was judged without it is not taken for done.
    """

    predictor: Predictor
    engine: Engine
    codes: Codes
    images: Path
    out: Path
    columns: tuple[str, ...] = (COLUMN,)
    types: tuple[str, ...] = ()
    parquet: bool = True
    force: bool = False
    encoding: str | None = None
    lookup: bool = True
    store: VerdictWriter | None = None

    def open(self, path: Path) -> Lot:
        """Read a lot and find its images. Raises KlarfError, LotError."""
        return Lot.open(path, self.images, self.types, self.encoding)

    def classify(self, path: Path) -> Done:
        """Judge one lot and write its files. A lot that a killed run began is taken up where that stopped.

        A lot whose results are there, of the same content and settings, is not judged again.
        Raises KlarfError for a file that cannot be read or take the codes; LotError for results of another lot of that
        name, and for a lot that changes while it is judged; BundleError if another process judges it; BackendError;
        OSError.
        """
        lot = self.open(path)
        outputs = Outputs.of(path.name, self.out, parquet=self.parquet)
        if os.path.realpath(outputs.klarf) == os.path.realpath(path):
            raise LotError(path, "would be replaced by its results: choose another folder with --out")
        self._require_writable(lot)
        require_folder(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        order = Order(self.predictor.recipe, self.engine, self.codes, self.columns, self.lookup, self._store_id())
        settings = order.settings(lot, outputs)
        with locked(self.out / f".{path.name}.lock", path):
            before = None if self.force else read_summary(outputs)
            if before is not None and same_settings(before["settings"], settings):
                outputs.journal.unlink(missing_ok=True)  # of a run that was killed at its very end
                return _done_before(outputs, before["status"])
            return self._judge(lot, outputs, order)

    def _judge(self, lot: Lot, outputs: Outputs, order: Order) -> Done:
        stamps = lot.stamps()
        header = journal_header(lot, self.engine, stamps) | ({} if self.store is None else {"store": self.store.id})
        there = [path for path in (*outputs.results(), outputs.summary) if path.exists()]
        if there and not self.force and not same_header(outputs.journal, header):
            raise LotError(
                there[0],
                "exists, and is of another lot of that name or of other settings: choose another folder with --out, or "
                "add --force to replace it",
            )
        outputs.summary.unlink(missing_ok=True)  # until all files are of this run
        keys = (defect.key for defect in lot.file.defects)
        with Journal(outputs.journal, header, keys) as journal:
            _say_where_it_begins(lot, journal)
            left = sum(len(wafer.defects) for wafer in lot.file.wafers) - journal.resumed
            try:
                for _ in progress_bar(judge(lot, self.predictor, self.engine, journal, self.store), left):
                    pass
            except BaseException:
                with suppress(OSError, ValueError):
                    print(f"{printable(lot.path)}: what was judged is kept; the same command goes on", file=sys.stderr)
                raise
            done = write_results(lot, outputs, journal, order, stamps)
            journal.remove()
        return done

    def _store_id(self) -> str | None:
        return None if self.store is None else self.store.id

    def _require_writable(self, lot: Lot) -> None:
        """Raise KlarfError before any image is judged if a cell cannot take a code, or a code has another name."""
        cells = dict.fromkeys(self.columns, next(iter(self.codes.numbers.values())))
        judged = {entry.defect.key: cells for entry in lot.entries() if entry.images}
        with_classes(lot.file, judged, self.codes.names if self.lookup and lot.file.lookups else None)


def lots_of_one_name(paths: Sequence[Path]) -> list[str]:
    """Faults: lots whose results would have one name."""
    first: dict[str, Path] = {}
    faults = []
    for path in paths:
        other = first.setdefault(path.name.casefold(), path)
        if other is not path:
            faults.append(f"{other} and {path} have one name: classify them into folders of their own")
    return faults


def _done_before(outputs: Outputs, status: int) -> Done:
    note = "" if status == 0 else "; some of its images were not read: --force judges it again"
    return Done(status, (f"was judged before, with the same settings: {outputs.klarf}{note}",), (), True)


def _say_where_it_begins(lot: Lot, journal: Journal) -> None:
    name = printable(lot.path)
    if journal.other:
        print(
            f"{name}: images or settings differ from those of the run that was cut off; it begins anew", file=sys.stderr
        )
    if journal.resumed:
        print(
            f"{name}: {journal.resumed} defects were judged by a run that was cut off; it goes on there",
            file=sys.stderr,
        )
