"""From model.fp16.onnx or its 8-bit form to a serialized engine ("plan") of TensorRT or TensorRT for RTX.

    add_engine(Path("bundle"), Builder.find(EngineTarget("tensorrt-rtx", "8.9", batch=(1, 32, 64))))

Networks are strongly typed: the ONNX file alone decides the precision. TensorRT for RTX builds for any GPU; TensorRT
builds for the GPU of this machine. A plan is tied to the product's full version, the GPU's compute capability and the
operating system. These, the batch profile and the hash of the ONNX file make the plan's key in the manifest. An engine
whose key is there already is not built again.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

from runtime.backends.base import Signature, graph_inputs, graph_outputs
from runtime.backends.trt import MODULES
from runtime.files import sha256_of
from runtime.manifest import Artifact, Encoder, Manifest, check_artifact, load_bundle
from runtime.packages import child_command, child_environment

from ..errors import ExportError
from ..progress import Progress
from .engine_network import write_network
from .engine_target import Builder, EngineTarget, file_name

FOLDER = "engines"
CHILD = "export.artifacts.engine_child"
LOG_LINES = 12
CODE_BYTES = 48 * 2**20
"""Most bytes of a plan besides its weights: kernels, graphs."""


def add_engine(
    bundle: Path, builder: Builder, *, force: bool = False, progress: Progress | None = None
) -> tuple[Artifact, bool]:
    """Build an engine of the bundle's fp16 or 8-bit graph and add it. Returns the artifact, and whether it was built.

    An engine with the same key is kept, unless `force`. The bundle is changed as a whole, or stays as it was.
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
        source = source_artifact(bundle, manifest, builder.target.precision)  # again, now that the bundle is locked
        onnx_file = check_artifact(bundle, source)
        record = builder.describe(source.sha256)
        file = f"{FOLDER}/{file_name(record)}"
        plan = folder / file
        plan.parent.mkdir(exist_ok=True)
        built = build_plan(
            onnx_file, plan, builder, manifest.encoder, usual_classes=len(recipe.classes), progress=progress
        )
        parity = {"measured": False, "why": "the engine was built, not run; its ONNX file was compared with torch"}
        precision, target = builder.target.precision, {**record, **built}
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
    """Write a plan for an ONNX file of the bundle format.

    Returns layers, weight_bytes and activation_bytes (None if the builder does not log them). The recipe's default
    values are removed first, so that its tensors are plain inputs. Raises ExportError, with the last lines of the
    builder's log, if the builder refuses or dies, or if the plan's size does not fit its precision.
    """
    inputs, outputs = _as_json(graph_inputs(encoder)), _as_json(graph_outputs(encoder))
    with tempfile.TemporaryDirectory(prefix="sem-clip-engine-") as folder:
        stripped = Path(folder) / "model.onnx"
        weights = write_network(onnx_file, stripped, builder.target)
        request = {
            "module": MODULES[builder.target.product],
            "onnx": str(stripped),
            "plan": str(plan),
            # TensorRT detects the GPU itself; TensorRT for RTX would build for a default list.
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
            f"{builder.target.product} reports version {done['version']}, its package {builder.version}: reinstall it"
        )
    size = plan.stat().st_size
    if not 0.95 * weights <= size <= 1.1 * weights + CODE_BYTES:
        raise ExportError(
            f"the engine is {size:,} bytes for {weights:,} bytes of weights: it does not have the precision that was "
            f"asked for.\n{_last_lines(log)}"
        )
    activations = [re.search(r"Total Activation Memory: (\d+) bytes", line) for line in log]
    found = [int(match[1]) for match in activations if match]
    return {"layers": done["layers"], "weight_bytes": weights, "activation_bytes": found[-1] if found else None}


def _run_child(request: Path, builder: Builder, progress: Progress | None) -> tuple[dict[str, Any], list[str]]:
    """Run the builder in a process of its own; returns its answer and its log."""
    process = subprocess.Popen(
        child_command(CHILD, str(request)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # CUDA shows the builder this GPU alone, as its first.
        env=child_environment() | ({"CUDA_VISIBLE_DEVICES": builder.uuid} if builder.uuid else {}),
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
        raise ExportError(f"{product} built no engine: the builder {end}. Its last lines:\n{_last_lines(log)}")
    return answer["done"], list(log)


def _last_lines(log: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in list(log)[-LOG_LINES:]) or "  (nothing)"


def _as_json(signature: Signature) -> dict[str, list[Any]]:
    """A signature in the form that the child process reads."""
    return {name: [kind, list(shape)] for name, (kind, shape) in signature.items()}


def _profile(inputs: dict[str, list[Any]], target: EngineTarget, usual_classes: int) -> dict[str, list[list[int]]]:
    """Least, usual and largest shape of every input with a dynamic side."""
    ranges = {"frames": target.batch}
    classes = (2, min(usual_classes, target.most_classes), target.most_classes)
    return {
        name: [[side if side >= 0 else value for side in shape] for value in ranges.get(name, classes)]
        for name, (_, shape) in inputs.items()
        if -1 in shape
    }
