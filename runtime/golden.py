"""Golden frames: the export's answers, kept in the bundle, so that an engine proves itself where it runs.

`golden.safetensors` holds the frames as PNG files, one after the other, and the fp32 answers of the export. The
bundle's own recipe answers all frames; recipes that are made of it (`variants`) answer the first few. Answers depend on
the recipe's graph tensors alone, whose SHA-256 the file records, so a recalibrated bundle keeps its proof. The file
also holds verdicts, which are compared only while the whole recipe is unchanged.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as serialize_safetensors

from .backends import OUTPUTS, FakeBackend, Outputs
from .encoder import sha256_field
from .errors import BundleError, FrameError
from .files import read_bounded
from .frames import Prepared, read_frame
from .jsonfields import Fields, listed, parse_json
from .manifest import Encoder, Manifest
from .operating_point import OperatingPoint, same_name_key
from .pipeline import Job, Pipeline, Setup
from .prediction import Prediction
from .recipe import MAX_CLASSES, MAX_HEADER_BYTES, MIN_CLASSES, FrameOptions, Recipe
from .recipe import tensors_digest as tensors_digest
from .targets import STORED_PRECISIONS

FORMAT = "sem-clip-golden"
VERSION = 1
METADATA_KEY = "sem_clip_golden"
FILE_NAME = "golden.safetensors"
MAX_BYTES = 64 * 2**20
MIN_FRAMES, MAX_FRAMES = 2, 64
SOURCES = ("frames", "patterns")
"""Frames of the data set, or made-up patterns (`build --no-golden`), which prove less."""
REVERSED, MORE, FEWER = "reversed", "one class more", "one class fewer"
_PREFIX = {"": "", REVERSED: "reversed.", MORE: "more.", FEWER: "fewer."}
_PACKED = "frames"
_MAX_REGIONS = 1000

Frames = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Frames and their reference answers.

    frames: uint8 [n, height, width] of the encoder's input size. about: one word per frame: its class, for a tile that
        of its frame, or a pattern.
    source: one of SOURCES. reference: what answered, in words.
    answers: by the bundle's own recipe, [n, ...]. others: by its `variants`, to the first frames, by name.
    tolerance: by precision, as `agreement.Limits` takes it.
    verdicts: per frame {"verdict": text, "regions": [[x, y, width, height], ...]}, by the recipe whose file has
        `recipe_sha256`. tensors_sha256: of the graph tensors that gave the answers (`tensors_digest`).
    gflop_per_frame: 1e9 operations of the graph's matrix products; None in files of earlier builds.
    """

    frames: Frames
    about: tuple[str, ...]
    source: str
    reference: str
    answers: Outputs
    others: Mapping[str, Outputs]
    tolerance: Mapping[str, float]
    verdicts: tuple[Mapping[str, Any], ...]
    encoder_id: str
    recipe_sha256: str
    tensors_sha256: str
    gflop_per_frame: float | None = None

    def to_bytes(self) -> bytes:
        """The file's content."""
        packed = [png_file(frame) for frame in self.frames]
        header = {
            "format": FORMAT,
            "version": VERSION,
            "encoder_id": self.encoder_id,
            "recipe_sha256": self.recipe_sha256,
            "tensors_sha256": self.tensors_sha256,
            "source": self.source,
            "reference": self.reference,
            "about": list(self.about),
            "frame_bytes": [len(content) for content in packed],
            "tolerance": dict(self.tolerance),
            "gflop_per_frame": self.gflop_per_frame,
            "verdicts": [dict(verdict) for verdict in self.verdicts],
        }
        tensors: dict[str, NDArray[Any]] = {_PACKED: np.frombuffer(b"".join(packed), np.uint8)}
        for name, outputs in {"": self.answers, **self.others}.items():
            for part in OUTPUTS:
                tensors[_PREFIX[name] + part] = np.ascontiguousarray(getattr(outputs, part))
        return bytes(serialize_safetensors(tensors, metadata={METADATA_KEY: json.dumps(header, allow_nan=False)}))


def load_golden(folder: Path, manifest: Manifest, recipe: Recipe) -> Golden:
    """The bundle's golden frames. recipe: the bundle's own.

    Raises BundleError where it has none, or where they are missing, damaged, of another encoder or another recipe.
    """
    if manifest.golden is None:
        raise BundleError(folder, "has no golden frames, like all bundles of earlier builds: build it again")
    path = folder / manifest.golden.file
    if path.is_file() and not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(folder, f"{manifest.golden.file} is a link that leads out of the bundle")
    content = read_bounded(path, MAX_BYTES, BundleError)
    if hashlib.sha256(content).hexdigest() != manifest.golden.sha256:
        raise BundleError(
            folder,
            f"{manifest.golden.file} does not have the SHA-256 that the manifest records: copy the bundle again",
        )
    golden = read_golden(content, manifest.encoder, str(path))
    if golden.tensors_sha256 != tensors_digest(recipe):
        raise BundleError(
            path,
            "holds the answers of another recipe; the bundle's own was replaced since: put the old recipe back, or "
            "build the bundle again",
        )
    faults = _shape_faults(golden, manifest.encoder, recipe)
    if faults:
        raise BundleError(path, faults)
    return golden


def read_golden(content: bytes, encoder: Encoder, where: str = FILE_NAME) -> Golden:
    """The inverse of `Golden.to_bytes`. Raises BundleError with all faults; also for frames of another encoder."""
    faults: list[str] = []
    header, parsed = _parsed(content, where, faults)
    fields = Fields(header, "golden", faults)
    _require_own(fields, encoder, where)
    sizes, tolerance = fields.wholes("frame_bytes", 1, MAX_BYTES), fields.inner("tolerance")
    allowed = {name: tolerance.number(name, 0, 1) for name in STORED_PRECISIONS}
    tolerance.finish()
    texts = {name: fields.text(name) for name in ("source", "reference")}
    digests = {name: sha256_field(fields, name) for name in ("recipe_sha256", "tensors_sha256")}
    about = fields.texts("about", MAX_FRAMES)
    known = isinstance(header, dict) and "gflop_per_frame" in header
    gflop = fields.number_or_none("gflop_per_frame", 0, 1e9) if known else None
    verdicts = tuple(_read_verdict(Fields(v, "golden.verdicts", faults)) for v in fields.items("verdicts", MAX_FRAMES))
    fields.finish()
    if texts["source"] not in SOURCES:
        fields.fault("source", f"must be one of {', '.join(SOURCES)}")
    if not len(sizes) == len(about) == len(verdicts):
        fields.fault("about", "must have an entry for each frame, as frame_bytes and verdicts")
    if not MIN_FRAMES <= len(sizes) <= MAX_FRAMES:
        fields.fault("frame_bytes", f"must be of {MIN_FRAMES} to {MAX_FRAMES} frames")
    tensors = _read_tensors(parsed, faults)
    if faults:
        raise BundleError(where, listed(faults))
    frames = _unpacked(tensors.pop(_PACKED).tobytes(), sizes, encoder.input_size, where)
    outputs = {
        name: Outputs(*(tensors[prefix + part] for part in OUTPUTS))
        for name, prefix in _PREFIX.items()
        if prefix + OUTPUTS[0] in tensors
    }
    answers = outputs.pop("")
    return Golden(
        frames=frames,
        about=about,
        answers=answers,
        others=outputs,
        tolerance=allowed,
        verdicts=verdicts,
        encoder_id=encoder.id,
        gflop_per_frame=gflop,
        **texts,
        **digests,
    )


def _parsed(content: bytes, where: str, faults: list[str]) -> tuple[object, dict[str, Any]]:
    """The file's header and its tensors, unchecked. Raises BundleError."""
    try:
        length = int.from_bytes(content[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header is {length:,} bytes, more than the {MAX_HEADER_BYTES:,} allowed here")
        metadata = parse_json(content[8 : 8 + length], faults).get("__metadata__", {})
        return parse_json(metadata[METADATA_KEY], faults), dict(deserialize(content))  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise BundleError(where, f"is no readable file of golden frames ({exc}): copy the bundle again") from exc


def _require_own(fields: Fields, encoder: Encoder, where: str) -> None:
    """Raise BundleError for a file of another format or version, or of another encoder."""
    if fields.text("format") != FORMAT or fields.whole("version", 1, 10**6) != VERSION:
        raise BundleError(where, f"is not {FORMAT} of version {VERSION}, which this reader knows: update sem-clip")
    found = fields.text("encoder_id")
    if found != encoder.id:
        raise BundleError(
            where, f"is of encoder {found[:12]}, but this bundle holds {encoder.id[:12]} ({encoder.architecture})"
        )


def png_file(frame: Frames) -> bytes:
    """A frame as a PNG file, which loses nothing."""
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "PNG", optimize=True)
    return content.getvalue()


def variants(recipe: Recipe) -> dict[str, Recipe]:
    """Recipes made of one, with other answers: the classes reversed, one class more, one class fewer.

    The first also exchanges the two texts of the map. A variant with too many or too few classes is left out.
    """
    tensors, classes = recipe.tensors, recipe.classes
    by_class = ("text_cls", "head_weight", "head_bias")

    def made(names: tuple[str, ...], rows: list[int], **changed: NDArray[np.float32]) -> Recipe:
        taken = {name: np.array(tensors[name][rows]) for name in by_class}
        point = OperatingPoint.taught(names, 0.5, 0.5, recipe.operating_point.class_share)
        return replace(
            recipe, classes=names, tensors={**tensors, **taken, **changed}, operating_point=point, calibration={}
        )

    every = list(range(len(classes)))
    found = {REVERSED: made(classes, every[::-1], text_seg=np.array(tensors["text_seg"][::-1]))}
    if len(classes) < MAX_CLASSES:
        found[MORE] = made((*classes, _new_name(classes)), [*every, 0])
    if len(classes) > MIN_CLASSES:
        found[FEWER] = made(classes[:-1], every[:-1])
    return found


def _new_name(classes: Sequence[str]) -> str:
    taken = {same_name_key(name) for name in classes}
    return next(name for name in map("class {}".format, range(MAX_CLASSES + 1)) if same_name_key(name) not in taken)


def judge(encoder: Encoder, smoothing_px: float, recipe: Recipe, outputs: Outputs) -> list[Prediction]:
    """The host's predictions from an engine's outputs, for frames of the encoder's input size."""
    setup = Setup(recipe, FrameOptions())
    blank: Frames = np.zeros((1, 1), np.uint8)  # the engine has read the pixels already
    count = len(outputs.probabilities)
    jobs = [Job(Prepared(blank, encoder.input_size, f"golden frame {i}", None), setup) for i in range(count)]
    return Pipeline(encoder, smoothing_px, FakeBackend(encoder), count).finish(jobs, outputs, 0.0)


def verdict_of(prediction: Prediction) -> dict[str, Any]:
    """The part of a Prediction that the file keeps."""
    regions = [[region.x, region.y, region.width, region.height] for region in prediction.regions]
    return {"verdict": prediction.verdict, "regions": regions[:_MAX_REGIONS]}


def _read_verdict(fields: Fields) -> dict[str, Any]:
    regions = fields.items("regions", _MAX_REGIONS)
    if not all(isinstance(box, list) and len(box) == 4 and all(type(n) is int for n in box) for box in regions):
        fields.fault("regions", "must be lists of four whole numbers")
    found = {"verdict": fields.text("verdict"), "regions": regions}
    fields.finish()
    return found


def _read_tensors(parsed: Mapping[str, Any], faults: list[str]) -> dict[str, NDArray[Any]]:
    known = {_PACKED: "U8", **{prefix + part: "F32" for prefix in _PREFIX.values() for part in OUTPUTS}}
    tensors: dict[str, NDArray[Any]] = {}
    for name, entry in parsed.items():
        if known.get(name) != entry["dtype"]:
            faults.append(f"tensor {name} of {entry['dtype']} is not known to this version")
            continue
        try:
            kind = np.uint8 if name == _PACKED else np.float32
            tensors[name] = np.frombuffer(entry["data"], kind).reshape(entry["shape"])
        except ValueError:
            faults.append(f"tensor {name} has a shape that no array has")
    whole = [[prefix + part for part in OUTPUTS] for prefix in _PREFIX.values()]
    needed = [_PACKED, *whole[0], *(name for names in whole[1:] if tensors.keys() & set(names) for name in names)]
    faults.extend(f"tensor {name} is missing" for name in needed if name not in tensors)
    faults.extend(
        f"tensor {name} holds values that are not finite"
        for name, array in tensors.items()
        if array.dtype != np.uint8 and not np.isfinite(array).all()
    )
    return tensors


def _unpacked(packed: bytes, sizes: Sequence[int], shape: tuple[int, int], where: str) -> Frames:
    """uint8 [n, height, width] from PNG files one after the other. Raises BundleError."""
    if sum(sizes) != len(packed):
        raise BundleError(where, f"holds {len(packed):,} bytes of frames, and frame_bytes adds up to {sum(sizes):,}")
    frames, start = [], 0
    for index, size in enumerate(sizes):
        content, start = packed[start : start + size], start + size
        # The header first: a frame of another size is not inflated.
        sides = int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")
        if sides != shape:
            raise BundleError(where, f"frame {index} is {list(sides)}, this encoder takes {list(shape)}")
        try:
            frames.append(np.asarray(read_frame(content, name=f"golden frame {index}")))
        except FrameError as exc:
            raise BundleError(where, str(exc)) from exc
    return np.stack(frames)


def _shape_faults(golden: Golden, encoder: Encoder, recipe: Recipe) -> list[str]:
    known = variants(recipe)
    faults = [f'has answers of a recipe "{name}" that this one does not make' for name in golden.others.keys() - known]
    faults += [f'lacks the answers of the recipe "{name}"' for name in known.keys() - golden.others]
    for name, outputs in {"": golden.answers, **golden.others}.items():
        if name not in {"", *known}:
            continue
        count = len(golden.frames) if name == "" else len(outputs.probabilities)
        classes = len(known[name].classes if name else recipe.classes)
        shapes = ((count, classes), (count, *encoder.grid), (count, encoder.features))
        for part, shape in zip(OUTPUTS, shapes, strict=True):
            found = getattr(outputs, part).shape
            if found != shape or not 1 <= count <= len(golden.frames):
                faults.append(f"tensor {_PREFIX[name]}{part} has shape {list(found)}, expected {list(shape)}")
    return faults
