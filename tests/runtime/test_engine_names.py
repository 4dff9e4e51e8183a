"""Every name used of TensorRT, TensorRT for RTX and cuda-bindings exists in the installed packages.

Nothing here needs a GPU: the packages' interfaces are inspected, not called. `engine_names` finds the names.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib import util
from types import ModuleType
from typing import Any

import engine_names
import pytest
from engine_names import Report, Use, cuda_names

from runtime.packages import OWN, ROOT

BACKEND = "runtime/backends/trt_engine.py"
BUILDER, FACTS = "export/artifacts/engine_child.py", "benchmarks/gpu_facts.py"
DECLARED = {"severity": "ILogger.Severity"}
"""What the packages hand to callbacks."""
ANYTHING = {
    BACKEND: {"the parameter module"},
    "runtime/backends/cuda_device.py": {"_call()", "the parameter arguments", "the parameter error"},
}
"""What may be anything, on purpose: a module that a test gives; what is passed on to CUDA, and what that gives."""
RTX_ONLY = {
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
}
"""Of the backend, in `_runtime_config`, which TensorRT does not get to."""
BUILD_FOR_ANOTHER_GPU = {"ComputeCapability", "IBuilderConfig.num_compute_capabilities"}
BUILD_FOR_ANOTHER_GPU |= {"IBuilderConfig.set_compute_capability"}
"""Of the builder, where a compute capability is asked for, which TensorRT never is."""
LIBRARY_FUNCTIONS = (
    "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL createNvOnnxParser_INTERNAL "
    "createNvOnnxParserRefitter_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion getPluginRegistry "
    "initLibNvInferPlugins"
)
"""All that the bindings of TensorRT 11 want of its libraries; they are there, and never called here."""


def sources() -> dict[str, str]:
    return {
        str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
        for package in OWN
        for file in sorted((ROOT / package).rglob("*.py"))
    }


def report_of(module: str, file: str, source: str | None = None) -> Report:
    package = pytest.importorskip(module, reason=f"{module} is not installed, so its names are not checked")
    return engine_names.engine_names((ROOT / file).read_text("utf-8") if source is None else source, package, DECLARED)


def missing(report: Report) -> set[str]:
    return {use.name for use in report.uses if not use.there and not use.optional}


def without(report: Report, file: str) -> list[str]:
    """What was not followed, but for what may be anything."""
    return [line for line in report.unfollowed if not any(name in line for name in ANYTHING.get(file, ()))]


@pytest.fixture(scope="module")
def full_product(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """Reports over the bindings of the full TensorRT, whose libraries (gigabytes, of NVIDIA's own index) need not be
    there: in a process of its own the bindings get empty ones."""
    if util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings is not installed, so the names of TensorRT's builder are not checked")
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler here makes the empty libraries that TensorRT's bindings are given")
    folder = tmp_path_factory.mktemp("libraries")
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", folder / f"lib{library}.so.11"],
            input="".join(f"void {name}(void) {{}}\n" for name in LIBRARY_FUNCTIONS.split()),
            text=True,
            check=True,
        )
    files = [BACKEND, BUILDER]
    done = subprocess.run(
        [sys.executable, engine_names.__file__, "tensorrt_bindings", json.dumps(DECLARED), *files],
        cwd=ROOT,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if "undefined symbol" in done.stderr or "cannot open shared object" in done.stderr:
        pytest.skip(f"these bindings want more of TensorRT's libraries: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    reports: dict[str, Any] = json.loads(done.stdout)
    return {file: Report([Use(**use) for use in found["uses"]], found["unfollowed"]) for file, found in reports.items()}


@pytest.mark.parametrize(("file", "least"), [(BACKEND, 30), (BUILDER, 30), (FACTS, 1)])
def test_tensorrt_for_rtx_has_every_name(file: str, least: int) -> None:
    report = report_of("tensorrt_rtx", file)
    assert len(report.uses) >= least
    assert missing(report) == set()
    assert without(report, file) == []


def test_the_runtime_of_tensorrt_has_every_name_of_the_backend() -> None:
    report = report_of("tensorrt_lean", BACKEND)
    assert len(report.uses) > 30
    assert missing(report) == RTX_ONLY


def test_tensorrt_has_every_name_of_the_backend_and_the_builder(full_product: dict[str, Report]) -> None:
    assert missing(full_product[BACKEND]) == RTX_ONLY
    assert missing(full_product[BUILDER]) <= BUILD_FOR_ANOTHER_GPU
    assert without(full_product[BUILDER], BUILDER) == []


def test_an_optional_name_belongs_to_at_least_one_product(full_product: dict[str, Report]) -> None:
    reports = [report_of("tensorrt_rtx", BUILDER), full_product[BUILDER]]
    optional = {use.name for report in reports for use in report.uses if use.optional}
    there = {use.name for report in reports for use in report.uses if use.there}
    assert optional == {"PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10", "BuilderFlag.REQUIRE_USER_ALLOCATION"}
    assert optional <= there


def test_cuda_bindings_have_every_name() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed: its names are not checked")
    used = {}
    for file, source in sources().items():
        report = cuda_names(source)
        assert missing(report) == set(), file
        assert without(report, file) == [], file
        used[file] = len(report.uses)
    assert {file for file, uses in used.items() if uses} == {"runtime/host.py", "runtime/backends/cuda_device.py"}
    assert sum(used.values()) > 40


def test_all_files_that_use_tensorrt_are_checked() -> None:
    """The names are followed from `trt` and `_trt`: whatever gets the module otherwise would not be seen."""
    using = set()
    for file, source in sources().items():
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("tensorrt") for name in names), f"{file} imports it by itself"
            if getattr(node, "id", getattr(node, "attr", "")) in ("trt", "_trt"):
                using.add(file)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                assert file in (BACKEND, BUILDER, FACTS) or "tensorrt" not in source, f"{file} may import it"
    assert using == {BACKEND, BUILDER, FACTS}


@pytest.mark.parametrize(
    ("file", "right", "wrong", "found"),
    [
        (BACKEND, "self._trt.Runtime(", "self._trt.Runtyme(", "Runtyme"),
        (BACKEND, "Strategy.EAGER", "Strategy.EAGERLY", "DynamicShapesKernelSpecializationStrategy.EAGERLY"),
        (BACKEND, "config.cuda_graph_strategy =", "config.cuda_graphs =", "IRuntimeConfig.cuda_graphs"),
        (BACKEND, "context.set_input_shape", "context.set_shape", "IExecutionContext.set_shape"),
        (BACKEND, "context.execute_async_v3", "context.execute_async_v4", "IExecutionContext.execute_async_v4"),
        (BACKEND, "engine.num_io_tensors", "engine.num_tensors", "ICudaEngine.num_tensors"),
        (BACKEND, "self._cache.serialize", "self._cache.serialise", "IRuntimeCache.serialise"),
        (BACKEND, "Severity.WARNING", "Severity.WARN", "ILogger.Severity.WARN"),
        (BUILDER, "t.dtype.name", "t.dtype.title", "DataType.title"),
        (BUILDER, "t.dtype.name", "t.kind.name", "ITensor.kind"),
        (BUILDER, "network.get_output", "network.get_answer", "INetworkDefinition.get_answer"),
        (BUILDER, "parser.get_error(i).desc()", "parser.get_error(i).text()", "ParserError.text"),
        (BUILDER, "severity.name", "severity.title", "ILogger.Severity.title"),
        (BUILDER, "config.progress_monitor =", "config.monitor =", "IBuilderConfig.monitor"),
    ],
)
def test_a_misspelt_name_is_found(file: str, right: str, wrong: str, found: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    assert right in source
    assert found in missing(report_of("tensorrt_rtx", file, source.replace(right, wrong)))


def test_a_misspelt_name_of_cuda_is_found() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed: its names are not checked")
    planted = (
        "from cuda.bindings import runtime as cuda, driver\n"
        "error, properties = cuda.cudaGetDeviceProperties(0)\n"
        "cuda.cudaMallok(1)\n"
        "properties.mayor\n"
        "cuda.cudaMemcpyKind.cudaMemcpyHostToMoon\n"
        "driver.cuInit(0), driver.cuInnit(0)\n"
    )
    wrong = {"cudaMallok", "cudaDeviceProp.mayor", "cudaMemcpyKind.cudaMemcpyHostToMoon", "cuInnit"}
    assert missing(cuda_names(planted)) == wrong


def test_a_name_that_no_product_has_is_found_where_it_is_optional() -> None:
    planted = 'def main(trt):\n    getattr(trt.BuilderFlag, "REQUIRE_A_USER", None)\n'
    (use,) = (use for use in report_of("tensorrt_rtx", BUILDER, planted).uses if use.optional)
    assert (use.name, use.there) == ("BuilderFlag.REQUIRE_A_USER", False)


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("def run(thing: Any) -> None:\n    thing.execute()\n", "nothing tells what the parameter thing is"),
        ("def make() -> Any:\n    return other()\n", r"nothing tells what make\(\) gives"),
        ("a = trt.Builder(1)\na = trt.Runtime(1)\n", "a stands for two things"),
    ],
)
def test_an_expression_that_cannot_be_followed_is_reported(planted: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        assert report_of("tensorrt_rtx", BUILDER, planted).unfollowed == []


def test_results_follow_the_docstrings_of_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that gives classes which it does not have, as C++ names of bindings may be, is no blind spot."""

    class Engine:
        def make(self) -> None:
            """make(self: pkg.Engine) -> nvinfer1::IHidden"""

    module: Any = ModuleType("pkg")
    module.Engine = Engine
    monkeypatch.setitem(sys.modules, "pkg", module)
    report = engine_names.engine_names(
        "engine = trt.Engine()\nengine.make().go()\n", importlib.import_module("pkg"), {}
    )
    assert report.unfollowed == ["line 2: go of a nvinfer1::IHidden, which the module has not"]
