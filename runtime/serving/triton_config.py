"""The text of a Triton model's config.pbtxt, which is a `ModelConfig` in the text format of Protocol Buffers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_TYPES = {"uint8": "TYPE_UINT8", "float": "TYPE_FP32"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """kind: "uint8" or "float". sides: without the batch where the server makes batches; -1 varies."""

    name: str
    kind: str
    sides: tuple[int, ...]
    optional: bool = False

    def text(self) -> str:
        """As an entry of `input` or `output`."""
        optional = " optional: true" if self.optional else ""
        return f"{{ name: {_quoted(self.name)} data_type: {_TYPES[self.kind]} dims: {list(self.sides)}{optional} }}"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the server must know of one model.

    backend: "onnxruntime" or "tensorrt". max_batch: up to so many frames of several requests are put together; 0: each
    request is a batch as it comes. delay_us: how long the oldest frame waits for others, in microseconds.
    gpu: else on the CPU. instances: copies that run at the same time, on each GPU.
    parameters: texts by name. files: model file by compute capability, for engines of one GPU.
    """

    name: str
    backend: str
    max_batch: int
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    parameters: Mapping[str, str]
    gpu: bool = False
    instances: int = 1
    delay_us: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    comment: str = ""

    def text(self) -> str:
        """The content of config.pbtxt, ASCII."""
        lines = [
            *([f"# {self.comment}"] if self.comment else []),
            f"name: {_quoted(self.name)}",
            f"backend: {_quoted(self.backend)}",
            f"max_batch_size: {self.max_batch}",
            *(f"input {tensor.text()}" for tensor in self.inputs),
            *(f"output {tensor.text()}" for tensor in self.outputs),
            # By default only the highest version is loaded.
            "version_policy { all { } }",
            f"instance_group {{ kind: {'KIND_GPU' if self.gpu else 'KIND_CPU'} count: {self.instances} }}",
        ]
        if self.max_batch:
            lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {self.delay_us} }}")
        for capability, file in sorted(self.files.items()):
            lines.append(f"cc_model_filenames {{ key: {_quoted(capability)} value: {_quoted(file)} }}")
        for name, value in self.parameters.items():
            lines.append(f"parameters {{ key: {_quoted(name)} value: {{ string_value: {_quoted(value)} }} }}")
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """ValueError where the text is not ASCII: JSON and this format escape other characters differently."""
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"not printable ASCII: {text!a:.60}")
    return json.dumps(text)
