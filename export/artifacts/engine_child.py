"""The process that builds an engine: `python -m export.artifacts.engine_child REQUEST.json`, started by `to_engine`.

A separate process, because a builder may end its process when it cannot handle a graph. Imports only the builder.
stdout: one JSON object per line, {"step", "of"} while it builds, then {"done": ...} or {"error": ...}. stderr: the
builder's log.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Build the plan that `request` asks for; returns {"done": {"version", "layers"}} or {"error": ...}.

    request: module ("tensorrt" or "tensorrt_rtx"), onnx and plan (paths), compute_capability ("SM89", or None for the
    GPU of this machine), profile ({input: [min, opt, max]} shapes of the inputs with dynamic sides), inputs and outputs
    ({name: [type, shape]}, -1 for a dynamic side) that the network must have.
    """
    trt = importlib.import_module(request["module"])
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        faults = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return {"error": f"the graph cannot be parsed: {'; '.join(faults)}"}
    wrong = _differences(network, request)
    if wrong:
        return {"error": f"the network is not that of the bundle format: {'; '.join(wrong)}"}
    wanted = request["compute_capability"]
    if wanted is not None and not hasattr(trt.ComputeCapability, wanted):
        return {"error": f"it offers no {wanted}, but {', '.join(_capabilities(trt))}"}
    config = _config(trt, builder, wanted)
    profile = builder.create_optimization_profile()
    for name, shapes in request["profile"].items():
        profile.set_shape(name, *map(tuple, shapes))
    config.add_optimization_profile(profile)
    config.progress_monitor = _monitor(trt)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"error": "the builder gave no engine"}
    with Path(request["plan"]).open("wb") as stream:
        stream.write(memoryview(plan))
    return {"done": {"version": trt.__version__, "layers": network.num_layers}}


def _config(trt: Any, builder: Any, compute_capability: str | None) -> Any:
    """The builder's options. TensorRT lacks some of TensorRT for RTX, and the reverse."""
    config = builder.create_builder_config()
    # A context then reports the memory of the shapes that are set, not of the largest; TensorRT for RTX always does.
    resize = getattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)
    if resize is not None:
        config.set_preview_feature(resize, True)
    # No kernels that a CUDA graph cannot hold.
    no_allocation = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if no_allocation is not None:
        config.set_flag(no_allocation)
    if compute_capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, compute_capability), 0)
    return config


def _differences(network: Any, request: dict[str, Any]) -> list[str]:
    """Inputs and outputs of the network that are not those of the request, as lines for people."""
    found = {}
    for kind, count, get in (
        ("inputs", network.num_inputs, network.get_input),
        ("outputs", network.num_outputs, network.get_output),
    ):
        tensors = [get(i) for i in range(count)]
        found[kind] = {t.name: [t.dtype.name.lower(), list(t.shape)] for t in tensors}
    return [
        f"{name} is {found[kind].get(name)}, not {request[kind].get(name)}"
        for kind in found
        for name in sorted({*found[kind], *request[kind]})
        if found[kind].get(name) != request[kind].get(name)
    ]


def _capabilities(trt: Any) -> list[str]:
    return [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.INFO:
                print(f"{severity.name.lower()}: {message}", file=sys.stderr, flush=True)

    return Log()


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Reports the steps of the largest phase only, not of the many short ones within it."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.shown = ""

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.steps[name] = steps
            if steps > self.steps.get(self.shown, 1):
                self.shown = name

        def step_complete(self, name: str, step: int) -> bool:
            if name == self.shown:
                _send({"step": step + 1, "of": self.steps[name]})
            return True

        def phase_finish(self, name: str) -> None:
            pass

    return Monitor()


def _send(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    _send(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
