"""From model.fp16.onnx or its 8-bit form to a serialized engine ("plan") of TensorRT or TensorRT for RTX.

    add_engine(Path("bundle"), EngineTarget("tensorrt-rtx", "8.9", batch=(1, 32, 64)))

Networks are strongly typed: precision is what the ONNX file says, and a builder asked for nothing else gives nothing
else. TensorRT for RTX builds for a GPU that is not there; TensorRT builds for the one that is. A plan is tied to the
product's full version, the GPU's compute capability and the operating system; all of it, with the batch profile and the
hash of the ONNX file, is the plan's key in the manifest. What has the same key is not built again.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path
from threading import Thread
from typing import Any

from runtime.backends.base import Signature, graph_inputs, graph_outputs
from runtime.backends.trt import MODULES
from runtime.files import sha256_of
from runtime.host import find_gpu, operating_system
from runtime.manifest import Artifact, Encoder, Manifest, check_artifact, load_bundle
from runtime.packages import child_command, child_environment
from runtime.recipe import TENSORS

from ..errors import ExportError

PRECISIONS = ("fp16", "int8")
ACCUMULATE = ("fp32", "fp16")
FOLDER = "engines"
MOST_CLASSES = 64
MOST_BATCH = 1024
CHILD = "export.artifacts.engine_child"
LOG_LINES = 12
CODE_BYTES = 48 * 2**20
"""What a plan may hold beside weights: kernels, graphs."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EngineTarget:
    """What an engine is built for.

    product: "tensorrt" or "tensorrt-rtx". compute_capability: such as "8.9" (RTX 4090); None: that of this machine's
    GPU, the only one TensorRT builds for. batch: least, usual and most frames. most_classes: of a recipe. accumulate:
    "fp32", matrix products of fp16 numbers are summed in fp32; "fp16", they may be summed in fp16, which GeForce cards
    do at up to twice the rate. Attention is summed as the product's fused kernel does it, either way.
    precision: "fp16", or "int8", from the bundle's 8-bit form for TensorRT.
    Raises ExportError for what cannot be.
    """

    product: str
    compute_capability: str | None = None
    batch: tuple[int, int, int] = (1, 32, 64)
    most_classes: int = MOST_CLASSES
    accumulate: str = "fp32"
    precision: str = "fp16"

    def __post_init__(self) -> None:
        if self.product not in MODULES:
            raise ExportError(f'there is no engine "{self.product}"; choose {" or ".join(MODULES)}')
        least, usual, most = self.batch
        if not 1 <= least <= usual <= most <= MOST_BATCH:
            raise ExportError(
                f"batch {least},{usual},{most} cannot be: it is least, usual and most frames, 1 to {MOST_BATCH}"
            )
        if not 2 <= self.most_classes <= 1024:
            raise ExportError(f"an engine for up to {self.most_classes} classes cannot be: 2 to 1024")
        if self.accumulate not in ACCUMULATE:
            raise ExportError(f'sums in "{self.accumulate}" are not offered; choose {" or ".join(ACCUMULATE)}')
        if self.precision not in PRECISIONS:
            raise ExportError(f'engines of "{self.precision}" are not built; choose {" or ".join(PRECISIONS)}')
        if self.compute_capability is not None:
            if self.product == "tensorrt":
                raise ExportError(
                    "tensorrt builds for the GPU of this machine only: leave --compute-capability out, or choose "
                    "tensorrt-rtx, which builds for others"
                )
            if not re.fullmatch(r"\d{1,2}\.\d", self.compute_capability):
                raise ExportError(f'"{self.compute_capability}" is no compute capability; write it as 8.9 (RTX 4090)')


@dataclass(frozen=True, slots=True)
class Builder:
    """An installed builder and the GPU it will build for; found before any long work begins.

    version: the product's full version. compute_capability: such as "8.9", of the GPU of this machine where none was
    asked for. gpu: its model, where the engine is tied to that too: TensorRT picks kernels by timing them on the GPU,
    and warns of engines from another model of the same capability, as H100 and H200 are.
    """

    target: EngineTarget
    version: str
    compute_capability: str
    gpu: str = ""

    @classmethod
    def find(cls, target: EngineTarget) -> Builder:
        """Raise ExportError if the product is not installed, or a GPU is needed and there is none."""
        module = MODULES[target.product]
        try:
            version = metadata.version(target.product)
        except metadata.PackageNotFoundError:
            version = ""
        if not version or util.find_spec(module) is None:
            raise ExportError(
                f"{target.product} is not installed; install it with: pip install 'sem-clip[{target.product}]'"
            )
        if target.compute_capability is not None:
            return cls(target, version, target.compute_capability)
        gpu, why = find_gpu()
        if gpu is None:
            advice = (
                "name one with --compute-capability, such as 8.9 for an RTX 4090"
                if target.product == "tensorrt-rtx"
                else "build on the machine that will run the engine (sem-clip build-engine BUNDLE), or use tensorrt-rtx"
            )
            raise ExportError(f"{target.product} has no GPU here to build for ({why}): {advice}")
        return cls(target, version, gpu.compute_capability, gpu.name if target.product == "tensorrt" else "")

    def describe(self, onnx_sha256: str) -> dict[str, Any]:
        """The manifest's record of the target; equal records mean equal engines. `key` is its hash."""
        record: dict[str, Any] = {
            "product": self.target.product,
            "version": self.version,
            "compute_capability": self.compute_capability,
            **({"gpu": self.gpu} if self.gpu else {}),
            "os": operating_system(),
            "precision": self.target.precision,
            "batch": list(self.target.batch),
            "most_classes": self.target.most_classes,
            "accumulate": self.target.accumulate,
            "onnx_sha256": onnx_sha256,
        }
        record["key"] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        return record


def add_engine(
    bundle: Path, builder: Builder, *, force: bool = False, progress: Progress | None = None
) -> tuple[Artifact, bool]:
    """Build an engine of the bundle's fp16 or 8-bit graph and add it; the artifact, and whether it had to be built.

    An engine with the same key is left as it is, unless `force`. The bundle is changed as a whole, or stays as it was.
    Raises BundleError, ExportError.
    """
    from ..bundle import changing_bundle, with_artifact, write_manifest
    from ..versions import tool_versions

    manifest, recipe = load_bundle(bundle)
    if len(recipe.classes) > builder.target.most_classes:
        raise ExportError(
            f"the bundle's recipe has {len(recipe.classes)} classes, the engine is asked for "
            f"{builder.target.most_classes} at most: raise --most-classes"
        )
    source = source_artifact(bundle, manifest, builder.target.precision)
    there = _of_key(manifest, builder.describe(source.sha256)["key"])
    if there is not None and not force:
        check_artifact(bundle, there)
        return there, False
    with changing_bundle(bundle) as (folder, manifest):
        source = source_artifact(bundle, manifest, builder.target.precision)  # as it is now that nobody changes it
        onnx_file = check_artifact(bundle, source)
        record = builder.describe(source.sha256)
        file = f"{FOLDER}/{_file_name(record)}"
        plan = folder / file
        plan.parent.mkdir(exist_ok=True)
        built = build_plan(
            onnx_file, plan, builder, manifest.encoder, usual_classes=len(recipe.classes), progress=progress
        )
        parity = {"measured": False, "why": "the engine was built, not run; its ONNX file was compared with torch"}
        target = {**record, **built}
        precision = builder.target.precision
        artifact = Artifact(file, "engine", precision, sha256_of(plan), plan.stat().st_size, {}, parity, target)
        changed = with_artifact(manifest, artifact, instead_of=_of_key(manifest, record["key"]))
        write_manifest(folder, replace(changed, tools={**manifest.tools, **tool_versions()}))
    return load_bundle(bundle)[0].artifacts[-1], True


def _of_key(manifest: Manifest, key: str) -> Artifact | None:
    return next((artifact for artifact in manifest.artifacts if artifact.target.get("key") == key), None)


def source_artifact(bundle: Path, manifest: Manifest, precision: str) -> Artifact:
    """The ONNX file that an engine of this precision is built from. Raises ExportError."""
    for artifact in manifest.artifacts:
        for_engines = artifact.target.get("engine") == "tensorrt" if precision == "int8" else not artifact.target
        if (artifact.kind, artifact.precision) == ("onnx", precision) and for_engines:
            return artifact
    advice = (
        f"sem-clip quantize {bundle} FRAMES --for tensorrt" if precision == "int8" else "build it without --no-fp16"
    )
    raise ExportError(f"{bundle} holds no {precision} ONNX artifact to build an engine from; {advice}")


def build_plan(
    onnx_file: Path,
    plan: Path,
    builder: Builder,
    encoder: Encoder,
    *,
    usual_classes: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a plan for an ONNX file of the bundle format; what is known of it beyond what was asked for.

    The recipe's default values are taken out first, which makes plain inputs of them. Raises ExportError, with the last
    lines of the builder's log, if the builder refuses or dies, and if the plan cannot be what was asked for.
    """
    inputs, outputs = _as_json(graph_inputs(encoder)), _as_json(graph_outputs(encoder))
    with tempfile.TemporaryDirectory(prefix="sem-clip-engine-") as folder:
        stripped = Path(folder) / "model.onnx"
        weights = _write_network(onnx_file, stripped, builder.target)
        request = {
            "module": MODULES[builder.target.product],
            "onnx": str(stripped),
            "plan": str(plan),
            # TensorRT looks at the GPU itself; TensorRT for RTX would build for a list of its own.
            "compute_capability": None
            if builder.target.product == "tensorrt"
            else "SM" + builder.compute_capability.replace(".", ""),
            "profile": _profile(inputs, builder.target, usual_classes),
            "inputs": inputs,
            "outputs": outputs,
        }
        (Path(folder) / "request.json").write_text(json.dumps(request), encoding="utf-8")
        done, log = _run_child(Path(folder) / "request.json", builder, progress)
    if done["version"] != builder.version:
        raise ExportError(
            f"{builder.target.product} says it is {done['version']}, its package {builder.version}: install it again"
        )
    size = plan.stat().st_size
    if not 0.95 * weights <= size <= 1.1 * weights + CODE_BYTES:
        raise ExportError(
            f"the engine is {size:,} bytes for {weights:,} bytes of weights: it is not of the precision that was asked "
            f"for.\n{_last_lines(log)}"
        )
    activations = [re.search(r"Total Activation Memory: (\d+) bytes", line) for line in log]
    found = [int(match[1]) for match in activations if match]
    return {"layers": done["layers"], "weight_bytes": weights, "activation_bytes": found[-1] if found else None}


def _run_child(request: Path, builder: Builder, progress: Progress | None) -> tuple[dict[str, Any], list[str]]:
    """Run the builder in a process of its own; what it did, and its log."""
    process = subprocess.Popen(
        child_command(CHILD, str(request)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=child_environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    log: deque[str] = deque(maxlen=1000)
    errors = process.stderr
    reader = Thread(target=lambda: log.extend(line.rstrip() for line in errors), daemon=True)
    reader.start()
    answer: dict[str, Any] = {}
    try:
        for line in process.stdout:
            answer = json.loads(line)
            if progress is not None and "step" in answer:
                progress(answer["step"], answer["of"])
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        errors.close()
    product = f"{builder.target.product} {builder.version}"
    if "error" in answer:
        raise ExportError(f"{product} built no engine: {answer['error']}\n{_last_lines(log)}")
    if code or "done" not in answer:
        end = f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
        raise ExportError(f"{product} built no engine: the builder {end}. The last it said:\n{_last_lines(log)}")
    return answer["done"], list(log)


def _last_lines(log: deque[str] | list[str]) -> str:
    return "\n".join(f"  {line}" for line in list(log)[-LOG_LINES:]) or "  (nothing)"


def _as_json(signature: Signature) -> dict[str, list[Any]]:
    """As the child process, which speaks JSON, gives it back."""
    return {name: [kind, list(shape)] for name, (kind, shape) in signature.items()}


def _profile(inputs: dict[str, list[Any]], target: EngineTarget, usual_classes: int) -> dict[str, list[list[int]]]:
    ranges = {"frames": target.batch}
    classes = (2, min(usual_classes, target.most_classes), target.most_classes)
    return {
        name: [[side if side >= 0 else value for side in shape] for value in ranges.get(name, classes)]
        for name, (_, shape) in inputs.items()
        if -1 in shape
    }


def _write_network(onnx_file: Path, network: Path, target: EngineTarget) -> int:
    """Write the graph without default values of its recipe inputs; the bytes of the weights that are left.

    Raises ExportError if none of them is of the target's precision: the engine would not be either.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load(onnx_file)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in TENSORS]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    wanted = {"fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}[target.precision]
    if not any(tensor.data_type == wanted and len(tensor.dims) == 2 for tensor in kept):
        raise ExportError(f"{onnx_file.name} holds no {target.precision} weights, so no engine of it would be that")
    _spell_out_fp32_attention(model)
    if target.accumulate == "fp32":
        _sum_in_fp32(model)
    onnx.save(model, network)
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in kept)


def _spell_out_fp32_attention(model: Any) -> None:
    """Write Attention on fp32 numbers as its products and softmax: the products' fused kernels take fp16 alone.

    Such layers are those whose scores are too large for fp16 (`DualPathEncoder.half_precision`): with trained weights,
    most. Q, K, V are [B, heads, N, d]; neither mask nor cache occurs in the bundle's graphs. Raises ExportError if one
    does.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    inferred = shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type for value in inferred.value_info}
    nodes = []
    for node in model.graph.node:
        query = types.get(node.input[0]) if node.op_type == "Attention" else None
        if query is None or query.elem_type != TensorProto.FLOAT:
            nodes.append(node)
            continue
        set_otherwise = [a.name for a in node.attribute if helper.get_attribute_value(a)]
        depth = query.shape.dim[-1].dim_value
        if len(node.input) != 3 or len(node.output) != 1 or set_otherwise or len(query.shape.dim) != 4 or not depth:
            raise ExportError(f"{node.name} is no plain attention, so it cannot be written for an engine")
        (q, k, v), out = node.input, node.output[0]
        model.graph.initializer.append(numpy_helper.from_array(np.array(depth**-0.5, np.float32), f"{out}_scale"))
        for operator, inputs, output, more in (
            ("Mul", [q, f"{out}_scale"], f"{out}_query", {}),
            ("Transpose", [k], f"{out}_key", {"perm": [0, 1, 3, 2]}),
            ("MatMul", [f"{out}_query", f"{out}_key"], f"{out}_scores", {}),
            ("Softmax", [f"{out}_scores"], f"{out}_shares", {"axis": -1}),
            ("MatMul", [f"{out}_shares", v], out, {}),
        ):
            nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}_node", **more))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _sum_in_fp32(model: Any) -> None:
    """Put casts around every matrix product of fp16 numbers: fp32 in, fp16 out. 8-bit products add in 32 bits anyway.

    TensorRT takes the pattern for what is meant, one product that reads and writes fp16 and sums in fp32: weights stay
    fp16 in the plan, and no fp32 copies are made.
    """
    from onnx import TensorProto, helper, shape_inference

    inferred = shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    nodes = []
    for node in model.graph.node:
        halves = node.op_type in ("MatMul", "Gemm") and types.get(node.output[0]) == TensorProto.FLOAT16
        if not halves or dequantized.issuperset(node.input):
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            wide = f"{node.output[0]}_input{index}_fp32"
            nodes.append(helper.make_node("Cast", [name], [wide], name=wide, to=TensorProto.FLOAT))
            node.input[index] = wide
        narrow = node.output[0]
        node.output[0] = f"{narrow}_fp32"
        cast = helper.make_node("Cast", [node.output[0]], [narrow], name=f"{narrow}_fp16", to=TensorProto.FLOAT16)
        nodes += [node, cast]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _file_name(record: dict[str, Any]) -> str:
    batch = "-".join(map(str, record["batch"]))
    capability = record["compute_capability"].replace(".", "")
    model = re.sub(r"[^a-z0-9]+", "-", record.get("gpu", "").lower()).strip("-")
    place = f"sm{capability}{f'-{model}' if model else ''}_{record['os']}"
    return (
        f"{record['product']}-{record['version']}_{place}_{record['precision']}_b{batch}"
        f"_k{record['most_classes']}_sum{record['accumulate']}.plan"
    )
