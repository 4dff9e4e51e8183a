"""The recipe: everything that few-shot teaching learned, in one safetensors file (format: docs/bundle-format.md).

A recipe holds the graph's recipe inputs and the supports' features as float32 tensors. One JSON string in the
safetensors metadata holds class names, operating point, frame options, and how the recipe was taught and calibrated.
One encoder serves any number of recipes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as serialize_safetensors

from .errors import RecipeError
from .files import read_bounded, write_atomically
from .frame_options import FRAME_OPTION_RANGES as FRAME_OPTION_RANGES
from .frame_options import FrameOptions as FrameOptions
from .jsonfields import Fields, listed, parse_json
from .operating_point import OperatingPoint, is_verdict, same_name_key, unprintable
from .verdict import unit_rows

FORMAT = "sem-clip-recipe"
VERSION = 2
METADATA_KEY = "sem_clip_recipe"
MAX_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 8 * 2**20
MIN_CLASSES, MAX_CLASSES = 2, 64
SCALARS = ("alpha", "lambda_v", "lambda_m", "tau", "tau_v", "tau_s")
"""The six entries of the `scalars` tensor: the class mix (eq. 23), the shares of V path and memory bank in the map, and
the three logit scales (map, V map, text classes)."""
MEMORY_ROWS = 128
"""Patches of good supports in the memory bank of one level."""
TENSORS: Mapping[str, tuple[str, ...]] = {
    "text_seg": ("2", "C"),
    "text_cls": ("K", "C"),
    "transform_weight": ("m", "D", "C"),
    "transform_bias": ("m", "C"),
    "memory": ("m", "M", "D"),
    "memory_scale": ("m", "2"),
    "head_weight": ("K", "F"),
    "head_bias": ("K",),
    "scalars": ("6",),
}
"""Recipe inputs of the graph and their shapes: K classes, m levels, D width, C text dimension, F features, M
MEMORY_ROWS."""
SUPPORT_FEATURES = "support_features"
MOST_FEATURE, LEAST_FEATURE = 1e15, 1e-9
"""Bounds between which squares neither overflow nor vanish in float32. Real encoders give features of 0.01 to 100."""
_STORED: Mapping[str, tuple[str, ...]] = {**TENSORS, SUPPORT_FEATURES: ("S", "F")}
"""All tensors of the file. The features of the S supports are no input of the graph: the host uses them for novelty."""


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What was taught. Immutable; arrays are read-only.

    classes: K class names, `good` first.
    tensors: float32 arrays by the names and shapes in `TENSORS`.
    support_features: float32 [S, F], the graph's `features` of every support frame, S >= 1.
    encoder_id: the encoder whose features it was taught on (`manifest.Encoder.id`).
    operating_point: thresholds and temperature; the part that calibration chooses and people edit.
    text: "tower" when the text vectors come from prompts, "anchors" when there was no text tower.
    teaching: provenance (shots, seed, support list, prompts, settings); informative only.
    calibration: how the operating point was chosen and what it promises; empty if it was not; informative only.
    unit_supports: the support features with rows of unit length, computed.
    """

    classes: tuple[str, ...]
    tensors: Mapping[str, NDArray[np.float32]]
    support_features: NDArray[np.float32]
    encoder_id: str
    operating_point: OperatingPoint
    text: str
    frame: FrameOptions = field(default_factory=FrameOptions)
    teaching: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    unit_supports: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._require_types()
        stored = self._stored()
        faults = _tensor_faults(self.classes, stored) + self.operating_point.faults(self.classes)
        if faults:
            raise RecipeError("recipe", faults)
        object.__setattr__(self, "unit_supports", unit_rows(self.support_features))
        for array in (*stored.values(), self.unit_supports):
            array.setflags(write=False)

    @property
    def lambda_v(self) -> float:
        """The V path's share of the map (eq. 17), >= 0; 0 where the recipe does not use that path."""
        return float(self.tensors["scalars"][SCALARS.index("lambda_v")])

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor, so that the arrays of a copy are read-only too.
        return type(self), tuple(getattr(self, part.name) for part in fields(self) if part.init)

    def _require_types(self) -> None:
        """Check the fields' types, on which all other code relies. Raises RecipeError."""
        classes = self.classes
        sound = {
            "classes": isinstance(classes, tuple | list) and all(isinstance(name, str) for name in classes),
            "tensors": isinstance(self.tensors, Mapping)
            and all(isinstance(array, np.ndarray) for array in self.tensors.values()),
            "support_features": isinstance(self.support_features, np.ndarray),
            "encoder_id": isinstance(self.encoder_id, str),
            "operating_point": isinstance(self.operating_point, OperatingPoint)
            and isinstance(self.operating_point.confidence_thresholds, Mapping),
            "text": self.text in ("tower", "anchors") if isinstance(self.text, str) else False,
            "frame": isinstance(self.frame, FrameOptions),
            "teaching": isinstance(self.teaching, Mapping),
            "calibration": isinstance(self.calibration, Mapping),
        }
        wrong = [
            f"{name} is not what it must be: {getattr(self, name)!r:.60}" for name, fine in sound.items() if not fine
        ]
        if wrong:
            raise RecipeError("recipe", wrong)
        object.__setattr__(self, "classes", tuple(classes))

    def _stored(self) -> dict[str, NDArray[np.float32]]:
        return {**self.tensors, SUPPORT_FEATURES: self.support_features}

    def save(self, path: str | Path) -> None:
        """Write the recipe; an interrupted write leaves an older file whole. Equal recipes give equal bytes."""
        write_atomically(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The file's content."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "encoder_id": self.encoder_id,
            "classes": list(self.classes),
            "operating_point": self.operating_point.to_dict(),
            "text": self.text,
            "frame": self.frame.to_dict(),
            "teaching": dict(self.teaching),
            "calibration": dict(self.calibration),
        }
        # One metadata key: safetensors does not promise an order for several, and equal recipes must be equal bytes.
        stored = self._stored()
        tensors = {name: np.ascontiguousarray(stored[name]) for name in _STORED}
        return bytes(serialize_safetensors(tensors, metadata={METADATA_KEY: json.dumps(header, allow_nan=False)}))

    def sha256(self) -> str:
        """Hex SHA-256 of `to_bytes()`: that of the file that `save` writes. Files of earlier versions may differ.

        Raises RecipeError where `teaching` or `calibration` holds what JSON cannot.
        """
        try:
            return hashlib.sha256(self.to_bytes()).hexdigest()
        except (TypeError, ValueError) as exc:
            raise RecipeError("recipe", f"cannot be written, and so has no digest ({exc})") from exc

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe.

        Raises RecipeError with all faults if the file is missing, too large, damaged, of another version or not sound.
        """
        if not isinstance(path, str | os.PathLike):
            raise RecipeError("recipe", f"must be read from a path, not {path!r:.60}")
        return cls.from_bytes(read_bounded(Path(path), MAX_BYTES, RecipeError), where=str(path))

    @classmethod
    def from_bytes(cls, content: bytes, where: str = "recipe") -> Recipe:
        """The inverse of `to_bytes`; errors as `load`."""
        if not isinstance(content, bytes):
            raise RecipeError(where, f"must be bytes, not {type(content).__name__}")
        faults: list[str] = []
        try:
            metadata = _read_metadata(content, faults)
            parsed = dict(deserialize(content))  # type: ignore[no-untyped-call]
        except (SafetensorError, ValueError, RecursionError) as exc:
            raise RecipeError(where, f"is not a readable safetensors file ({exc}); copy or teach it again") from exc
        header = _read_header(metadata, where, faults)
        fields = Fields(header, "recipe", faults)
        fields.text("format")
        fields.whole("version", VERSION, VERSION)
        options = FrameOptions.read(fields.inner("frame"))
        encoder_id = fields.text("encoder_id")
        classes = fields.texts("classes")
        point = OperatingPoint.read(fields.inner("operating_point"), classes)
        text = fields.text("text")
        teaching = fields.mapping("teaching")
        calibration = fields.mapping("calibration")
        if text and text not in ("tower", "anchors"):
            fields.fault("text", f'must be "tower" or "anchors", not "{text}"')
        fields.finish()
        tensors = _read_tensors(parsed, faults)
        faults.extend(fault for fault in _tensor_faults(classes, tensors) if fault not in faults)
        if faults:
            raise RecipeError(where, listed(faults))
        supports = tensors.pop(SUPPORT_FEATURES)
        return cls(classes, tensors, supports, encoder_id, point, text, options, teaching, calibration)


def tensors_digest(recipe: Recipe) -> str:
    """SHA-256 of a recipe's graph tensors. Thresholds and support features do not change it."""
    digest = hashlib.sha256()
    for name in TENSORS:
        array = recipe.tensors[name]
        digest.update(f"{name} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array, "<f4").tobytes())
    return digest.hexdigest()


def _read_metadata(content: bytes, faults: list[str]) -> Mapping[str, str]:
    """The metadata of a safetensors file, whose own header is bounded first. Raises ValueError, RecursionError."""
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header is {length:,} bytes, more than the {MAX_HEADER_BYTES:,} allowed here")
    header = parse_json(content[8 : 8 + length], faults)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _read_header(metadata: Mapping[str, str], where: str, faults: list[str]) -> object:
    try:
        header = parse_json(metadata[METADATA_KEY], faults)
    except KeyError:
        raise RecipeError(where, f"has no {METADATA_KEY} metadata: it is not a recipe") from None
    except (ValueError, RecursionError) as exc:
        raise RecipeError(where, f"has unreadable {METADATA_KEY} metadata ({exc})") from exc
    if isinstance(header, dict):
        if header.get("format") != FORMAT:
            raise RecipeError(where, f'has the format "{header.get("format")}", expected "{FORMAT}"')
        version = header.get("version")
        if isinstance(version, int) and version > VERSION:
            raise RecipeError(
                where, f"has format version {version}, this reader knows up to {VERSION}: update sem-clip"
            )
        if isinstance(version, int) and not isinstance(version, bool) and version < VERSION:
            raise RecipeError(where, f"has format version {version}, this reader takes {VERSION}: teach it again")
    return header


def _read_tensors(parsed: Mapping[str, Any], faults: list[str]) -> dict[str, NDArray[np.float32]]:
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, entry in parsed.items():
        if name not in _STORED:
            faults.append(f"tensor {name} is not known to this version")
        elif entry["dtype"] != "F32":
            faults.append(f"tensor {name} must be F32, not {entry['dtype']}")
        else:
            try:
                tensors[name] = np.frombuffer(entry["data"], np.float32).reshape(entry["shape"])
            except ValueError:  # more sides than an array can have, or none of its elements and sides beyond all bounds
                faults.append(f"tensor {name} has a shape that no array has")
    return tensors


def _tensor_faults(classes: tuple[str, ...], tensors: Mapping[str, NDArray[np.float32]]) -> list[str]:
    """All faults of class names and tensors, and between them."""
    return [*_class_faults(classes), *_shape_faults(len(classes), tensors), *_value_faults(tensors)]


def _class_faults(classes: tuple[str, ...]) -> list[str]:
    faults = []
    if not MIN_CLASSES <= len(classes) <= MAX_CLASSES:
        faults.append(f"classes must be {MIN_CLASSES} to {MAX_CLASSES}, not {len(classes)}")
    if len(set(classes)) != len(classes):
        faults.append("classes holds one name twice")
    elif len({same_name_key(name) for name in classes}) != len(classes):
        faults.append(f"classes holds names that differ in case, blanks or Unicode form alone: {_twins(classes)}")
    if not classes or classes[0] != "good":
        faults.append('classes must begin with "good"')
    faults.extend(f'no class may be called "{name}": that is a verdict' for name in classes if is_verdict(name))
    faults.extend(f"no class may be called {name!a}: it cannot be printed" for name in classes if unprintable(name))
    return faults


def _shape_faults(classes: int, tensors: Mapping[str, NDArray[np.float32]]) -> list[str]:
    """Tensors that are missing, of a wrong shape or type, or not finite."""
    faults = []
    sizes: dict[str, int] = {"K": classes, "M": MEMORY_ROWS, "2": 2, "6": len(SCALARS)}
    for name, dims in _STORED.items():
        array = tensors.get(name)
        if array is None:
            faults.append(f"tensor {name} is missing")
            continue
        expected = ", ".join(str(sizes.get(dim, dim)) for dim in dims)
        if array.ndim != len(dims) or any(
            sizes.setdefault(dim, size) != size for dim, size in zip(dims, array.shape, strict=True)
        ):
            faults.append(f"tensor {name} has shape {list(array.shape)}, expected [{expected}]")
        elif array.dtype != np.float32:
            faults.append(f"tensor {name} must be float32, not {array.dtype}")
        elif not np.isfinite(array).all():
            faults.append(f"tensor {name} holds values that are not finite")
    return faults


def _value_faults(tensors: Mapping[str, NDArray[np.float32]]) -> list[str]:
    """Supports, scalars and memory scales out of range, where their shapes are right."""
    faults = []
    supports = tensors.get(SUPPORT_FEATURES)
    if supports is not None and supports.ndim == 2 and len(supports) == 0:
        faults.append(f"tensor {SUPPORT_FEATURES} holds no support")
    elif supports is not None and supports.ndim == 2 and supports.size and directionless(supports).any():
        faults.append(f"tensor {SUPPORT_FEATURES} holds a support of a size at which float32 has no direction left")
    scalars = tensors.get("scalars")
    if scalars is not None and scalars.shape == (len(SCALARS),):
        alpha, lambda_v, lambda_m, *taus = scalars.tolist()
        if not 0 <= alpha <= 1:
            faults.append(f"alpha must lie in [0, 1], not {alpha:g}")
        shares = {"lambda_v": lambda_v, "lambda_m": lambda_m}
        faults.extend(f"{n} must not be negative, not {v:g}" for n, v in shares.items() if not v >= 0)
        faults.extend(f"{n} must be positive, not {v:g}" for n, v in zip(SCALARS[3:], taus, strict=True) if not v > 0)
    scale = tensors.get("memory_scale")
    if scale is not None and scale.ndim == 2 and scale.shape[1:] == (2,) and not (scale[:, 1] > 0).all():
        faults.append("memory_scale holds a spread that is not positive")
    return faults


def directionless(features: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows [n, F] so large or small that float32 cannot hold their length; a row of zeros is fine."""
    largest = np.maximum(features.max(axis=1), -features.min(axis=1))
    return np.asarray((largest > MOST_FEATURE) | ((largest > 0) & (largest < LEAST_FEATURE)))


def _twins(classes: tuple[str, ...]) -> str:
    keys = [same_name_key(name) for name in classes]
    return ", ".join(f"{name!a}" for name, key in zip(classes, keys, strict=True) if keys.count(key) > 1)
