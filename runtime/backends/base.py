"""The interface of inference engines: run one batch. Frames, maps and queues are handled above it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ..manifest import Artifact, Encoder, read_artifact
from ..onnxfile import MAX_BYTES, onnx_faults
from ..recipe import MEMORY_ROWS, SCALARS, TENSORS, Recipe

OUTPUTS = ("probabilities", "defect_map", "features")
"""The graph's outputs, in the order of the fields of Outputs."""


Signature: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]
"""Type ("float" has 32 bits) and shape by tensor name; -1 is a side that varies: the batch and K."""


def graph_inputs(encoder: Encoder) -> Signature:
    """Inputs of the encoder's graph: frames and the recipe's tensors."""
    sides = {"2": 2, str(len(SCALARS)): len(SCALARS), "K": -1, "M": MEMORY_ROWS, "m": len(encoder.levels)}
    sides |= {"D": encoder.width, "C": encoder.text_dim, "F": encoder.features}
    tensors = {name: ("float", tuple(sides[side] for side in shape)) for name, shape in TENSORS.items()}
    return {"frames": ("uint8", (-1, *encoder.input_size)), **tensors}


def graph_outputs(encoder: Encoder) -> Signature:
    """Outputs of the encoder's graph, by the names in OUTPUTS."""
    shapes = ((-1, -1), (-1, *encoder.grid), (-1, encoder.features))
    return {name: ("float", shape) for name, shape in zip(OUTPUTS, shapes, strict=True)}


def read_onnx(folder: Path, artifact: Artifact) -> bytes:
    """An ONNX file of a bundle, read once, hashed and checked. Raises BundleError."""
    content = read_artifact(folder, artifact, most_bytes=MAX_BYTES)
    wrong = onnx_faults(content)
    if wrong:
        raise BundleError(folder, [f"{artifact.file} {fault}" for fault in wrong])
    return content


def older(version: str, least: str) -> bool:
    """Whether a version, by its numbers, comes before `least`; False for one that begins with none."""
    found = re.match(r"\d+(\.\d+)+", version)
    return found is not None and tuple(map(int, found[0].split("."))) < tuple(map(int, least.split(".")))


def signature_faults(found: Mapping[str, tuple[str, tuple[Any, ...]]], encoder: Encoder) -> list[str]:
    """Where the inputs and outputs that an engine reports differ from those of the encoder's graph.

    found: type and shape by name; a name or a negative number stands for a side that varies.
    """
    needed = graph_inputs(encoder) | graph_outputs(encoder)
    return [
        f"{name} is {found.get(name, 'missing')}, not {wanted} of the bundle's format"
        for name, wanted in needed.items()
        if name not in found or not _agree(found[name], wanted)
    ]


def _agree(found: tuple[str, tuple[Any, ...]], needed: tuple[str, tuple[int, ...]]) -> bool:
    """Whether type, rank and every fixed side agree."""
    (kind, shape), (needed_kind, needed_shape) = found, needed
    sides = zip(shape, needed_shape, strict=False)
    known = [
        (side, needed_side) for side, needed_side in sides if isinstance(side, int) and min(side, needed_side) >= 0
    ]
    return kind == needed_kind and len(shape) == len(needed_shape) and all(a == b for a, b in known)


@dataclass(frozen=True, slots=True)
class Outputs:
    """One batch of answers, float32 on the host.

    probabilities: [batch, K]; defect_map: [batch, rows, columns] in [0, 1]; features: [batch, F].
    """

    probabilities: NDArray[np.float32]
    defect_map: NDArray[np.float32]
    features: NDArray[np.float32]


class Backend(ABC):
    """An opened engine.

    name: what the caller asks for ("cpu"). description: engine, version and artifact, for people.
    precision: what it computes in, one of PRECISIONS; it bounds how far answers may differ from the export's.
    max_batch: the most frames that one `run` takes. `run` may be called from several threads.
    why: why "auto" skipped each backend before it, one per line; empty if this one was named.
    in_flight: how many concurrent calls of `run` keep the engine busy: 1 if one call uses all of it, more if copies
        overlap with its work.
    """

    name: str
    description: str
    precision: str = "fp32"
    max_batch: int
    why: str = ""
    in_flight: int = 1

    @abstractmethod
    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        """Answer one batch: uint8 [batch, height, width], 1 <= batch <= max_batch.

        Raises BackendError in place of any error of the engine.
        """

    def check_encoder(self, encoder: Encoder) -> None:  # noqa: B027 - optional: for those opened without the bundle
        """Compare the engine with the encoder of the bundle that it is to run. Raises BackendUnavailable."""

    def warm_up(self, recipe: Recipe) -> None:  # noqa: B027 - optional: not every engine has anything to prepare
        """Prepare for a recipe, so that its first batches do not wait.

        Raises BackendError; BackendUnavailable for a recipe that this engine does not run.
        """

    def close(self) -> None:  # noqa: B027 - optional: not every engine holds something
        """Free the engine. Later calls of `run` are not allowed; closing twice is."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
