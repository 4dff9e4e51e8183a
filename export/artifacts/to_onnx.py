"""From the graph module to ONNX files (opset 23), with the default recipe as overridable initializers."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from runtime.backends import OUTPUTS
from runtime.recipe import TENSORS

from ..errors import ExportError
from ..model.graph import SemClipGraph

OPSET = 23
_CLASS_INPUTS = ("text_cls", "head_weight", "head_bias")


def onnx_from_graph(graph: SemClipGraph, recipe: Mapping[str, NDArray[np.float32]], path: Path) -> dict[str, int]:
    """Write `graph` to `path`, self-contained, with `recipe` as default values of its recipe inputs.

    Returns the operator census. Raises ExportError if the file does not have the signature of the bundle format.
    """
    # Batch 2: the exporter would silently make an example batch of 1 a constant.
    frames = torch.zeros((2, *graph.input_size), dtype=torch.uint8)
    batch, classes = torch.export.Dim("batch", min=1), torch.export.Dim("classes", min=2)
    dynamic = {name: {0: classes} if name in _CLASS_INPUTS else None for name in TENSORS}
    with quiet_exporter():
        program = torch.onnx.export(
            graph,
            (frames, *(torch.from_numpy(np.array(recipe[name])) for name in TENSORS)),
            input_names=["frames", *TENSORS],
            output_names=list(OUTPUTS),
            dynamic_shapes={"frames": {0: batch}, **dynamic},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _check_signature(model, graph)
    for name in TENSORS:
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(recipe[name]), name))
    _strip_provenance(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def _check_signature(model: onnx.ModelProto, graph: SemClipGraph) -> None:
    """Raise ExportError for a wrong signature: the exporter specializes shapes silently."""
    found = {value.name: _shape(value) for value in (*model.graph.input, *model.graph.output)}
    height, width = graph.input_size
    rows, columns = graph.encoder.grid
    expected: dict[str, list[str | int]] = {
        "frames": ["batch", height, width],
        "probabilities": ["batch", "classes"],
        "defect_map": ["batch", rows, columns],
        "text_cls": ["classes", graph.encoder.text_dim],
    }
    wrong = [
        f"{name} is {found.get(name)}, not {shape}" for name, shape in expected.items() if found.get(name) != shape
    ]
    wrong += [f"{name} is missing" for name in (*TENSORS, *OUTPUTS) if name not in found]
    if wrong:
        raise ExportError("the exported graph has a wrong signature: " + "; ".join(wrong))


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _strip_provenance(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold local paths, and would make equal models differ in bytes."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the exporter's progress text and warnings about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
