"""Judge one lot: its images through the Predictor, its defects into a journal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..errors import FrameError
from ..maps import SIZES_NM
from ..prediction import FailedFrame, Prediction
from ..predictor import Predictor
from ..verdict_records import Site
from ..verdict_writer import VerdictWriter
from .codes import NO_IMAGE
from .lot_fusion import Fusion
from .lot_journal import Journal
from .lot_plan import Entry, Lot, Stamp

_NM_PER_MM = 1e6
FORMAT = 1
"""Rises when the lines of a journal change, so that no older one is taken up."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What answers depend on, apart from the frame.

    batch: frames of an engine run. options: of frames, instead of the recipe's: JSON-ready, None where not given.
    Answers may differ in the last digit with the size of the batch, so a run is taken up with the same batches.
    """

    encoder_id: str
    recipe_sha256: str
    backend: str
    batch: int
    options: Mapping[str, Any]

    @classmethod
    def of(cls, predictor: Predictor, batch_size: int, options: Mapping[str, Any]) -> Engine:
        """That of an open Predictor, which was made with this batch size and these options of frames."""
        batch = min(batch_size, predictor.backend.max_batch)
        backend = predictor.backend.description
        return cls(predictor.manifest.encoder.id, predictor.recipe.sha256(), backend, batch, options)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "encoder_id": self.encoder_id,
            "recipe_sha256": self.recipe_sha256,
            "backend": self.backend,
            "batch": self.batch,
            **self.options,
        }


def journal_header(lot: Lot, engine: Engine, stamps: Mapping[str, Stamp]) -> dict[str, Any]:
    """What the answers of a lot depend on: its content and how its texts are read, its images as they are now, the
    engine and the types chosen."""
    digest = hashlib.sha256()
    for file, stamp in stamps.items():
        digest.update(f"{file!r} {stamp}\n".encode("utf-8", "surrogatepass"))
    return {
        "sem_clip_lot_journal": FORMAT,
        "klarf_sha256": lot.sha256,
        "encoding": lot.file.encoding,
        "images": digest.hexdigest(),
        "types": list(lot.types),
        **engine.to_dict(),
    }


def judge(
    lot: Lot, predictor: Predictor, engine: Engine, journal: Journal, store: VerdictWriter | None = None
) -> Iterator[Entry]:
    """Answer the defects that the journal does not hold yet, and yield each that is answered.

    All images of the lot are one stream, so that batches are full. A run that is taken up begins with the batch in
    which the first of its images lies; answers that are known are dropped. The store has the answers of a defect before
    the journal has them, so that none is missing there after a kill. Raises BackendError, StoreError.
    """
    skipped = sum(_judged_images(entry) for entry in islice(lot.entries(), journal.resumed))
    start = skipped // engine.batch * engine.batch
    results = predictor.stream(islice(_paths(lot), start, None))
    for _ in range(skipped - start):
        next(results)
    for entry in islice(lot.entries(), journal.resumed, None):
        fusion = Fusion()
        for image in entry.images:
            if image.fault:
                fusion.fail(image.name, image.type, image.fault)
                _keep(store, lot, entry, FailedFrame(image.name, FrameError(image.name, image.fault)), None)
                continue
            result = next(results)
            _keep(store, lot, entry, result, image.path)
            if isinstance(result, FailedFrame):
                fusion.fail(image.name, image.type, result.error)
            else:
                fusion.add(image.name, image.type, result)
        if store is not None:
            store.flush()
        journal.add(record_of(lot, entry, fusion, engine))
        yield entry


def _keep(
    store: VerdictWriter | None, lot: Lot, entry: Entry, result: Prediction | FailedFrame, path: str | None
) -> None:
    if store is None:
        return
    defect, diameter = entry.defect, lot.file.wafers[entry.wafer].diameter_nm
    site = Site(
        lot.name,
        defect.wafer,
        str(defect.id),
        defect.x_nm,
        defect.y_nm,
        None if diameter is None else diameter / _NM_PER_MM,
    )
    store.add(result, site, path)


def _judged_images(entry: Entry) -> int:
    return sum(not image.fault for image in entry.images)


def _paths(lot: Lot) -> Iterator[str]:
    """The frames to judge, in order."""
    for entry in lot.entries():
        for image in entry.images:
            if not image.fault:
                yield image.path


def record_of(lot: Lot, entry: Entry, fusion: Fusion, engine: Engine) -> dict[str, Any]:
    """The line of one defect: its names, its verdict and what that was made of. JSON-ready."""
    defect = entry.defect
    verdict, reason = fusion.verdict()
    if verdict == NO_IMAGE and entry.left_out:
        reason = f"none of its {entry.left_out} images is of the types chosen"
    image, best = fusion.best or (None, None)
    return {
        "lot": lot.name,
        "wafer": defect.wafer,
        "slot": lot.file.wafers[entry.wafer].slot,
        "defect_id": defect.id,
        "test": defect.test,
        "verdict": verdict,
        "reason": reason,
        "label": best and best.label,
        "confidence": best and best.confidence,
        "score": best and best.score,
        "novelty": best and best.novelty,
        "probabilities": best and dict(best.probabilities),
        "image": image,
        "x_nm": defect.x_nm,
        "y_nm": defect.y_nm,
        **_sizes(best),
        "images": fusion.images,
        "encoder_id": engine.encoder_id,
        "recipe_sha256": engine.recipe_sha256,
    }


def _sizes(best: Prediction | None) -> dict[str, float | None]:
    """The strongest region of the deciding image in nanometres; None where there is none, or its scale is unknown."""
    width, height = (best and best.pixel_size_nm) or (None, None)
    region = best.regions[0] if best is not None and best.regions else None
    return {
        "pixel_width_nm": width,
        "pixel_height_nm": height,
        **{name: None if region is None else getattr(region, name) for name in SIZES_NM},
    }
