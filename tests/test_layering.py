"""Who may import whom, what an import may load, and what is public."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from places import ROOT

import runtime

PACKAGES = ("runtime", "calibration", "export", "benchmarks")
HEAVY = (
    *("torch", "onnx", "onnxruntime", "open_clip", "timm", "tensorrt", "tensorrt_rtx", "cuda", "scipy", "matplotlib"),
    *("pyarrow", "tritonclient", "grpc", "openvino", "starlette", "uvicorn", "jinja2"),
)
LIGHT = {"numpy", "PIL", "safetensors", "tifffile", "filelock"}
OPTIONAL = {"runtime.inflate": {"isal"}}
"""Packages that a module imports where they are installed, and does without elsewhere."""
FORBIDDEN = {
    "runtime": {"calibration", "export", "benchmarks", "tests"},
    "calibration": {"export", "benchmarks", "tests"},
    "export": {"benchmarks", "tests"},
    "benchmarks": {"tests"},
}
LAYERS = (
    {"runtime.errors", "runtime.fab", "runtime.kept", "runtime.serving"},
    {"runtime.terminal"},
    {"runtime.fab.lot_errors"},
    {
        "runtime.arguments",
        "runtime.fab.sem_bars",
        "runtime.fab.sem_makers",
        "runtime.fab.sem_sides",
        "runtime.fab.sem_tags",
        "runtime.fab.sem_units",
        "runtime.fab.sem_values",
        "runtime.files",
        "runtime.host",
        "runtime.inflate",
        "runtime.jsonfields",
        "runtime.packages",
        "runtime.pixels",
        "runtime.resize",
    },
    {
        "runtime.jsonlines",
        "runtime.jpeg",
        "runtime.line_log",
        "runtime.locking",
        "runtime.onnxfile",
        "runtime.serving.ray_session",
        "runtime.serving.stores",
        "runtime.targets",
        "runtime.telemetry",
        "runtime.verdict_file",
    },
    {"runtime.fab.lot_journal"},
    {"runtime.fab.klarf_tokens"},
    {"runtime.fab.klarf_model"},
    {"runtime.fab.klarf_rows"},
    {"runtime.fab.klarf_flat", "runtime.fab.klarf_nested"},
    {"runtime.fab.klarf", "runtime.fab.klarf_images", "runtime.fab.klarf_writing"},
    {"runtime.bmp", "runtime.changing", "runtime.onnxrecipe", "runtime.png", "runtime.strips"},
    {"runtime.tiff"},
    {"runtime.operating_point", "runtime.crew"},
    {"runtime.verdict", "runtime.lifetime", "runtime.frame_options"},
    {"runtime.fab.codes"},
    {"runtime.recipe"},
    {"runtime.fab.drift"},
    {"runtime.fab.lot_tally"},
    {"runtime.fab.report_svg"},
    {"runtime.encoder"},
    {"runtime.artifacts", "runtime.serving.served", "runtime.serving.triton_config"},
    {"runtime.manifest"},
    {"runtime.frames", "runtime.maps"},
    {"runtime.rows", "runtime.windows", "runtime.fab.sem_metadata"},
    {"runtime.prediction", "runtime.folders", "runtime.verdict_records"},
    {"runtime.parquet_index"},
    {"runtime.parquet", "runtime.verdict_rows"},
    {"runtime.fab.lot_fusion", "runtime.fab.lot_parquet", "runtime.verdict_writer"},
    {"runtime.fab.report", "runtime.verdict_lines"},
    {"runtime.fab.lot_plan", "runtime.verdict_store"},
    {"runtime.backends.base", "runtime.backends.buckets", "runtime.backends.cuda_device"},
    {"runtime.backends.trt_kernels", "runtime.backends.trt_slots", "runtime.backends.v2_model"},
    {"runtime.backends.trt_engine"},
    {
        "runtime.backends.fake",
        "runtime.backends.openvino",
        "runtime.backends.ort",
        "runtime.backends.triton",
        "runtime.backends.trt",
    },
    {"runtime.backends.choice"},
    {"runtime.backends", "runtime.serving.triton_repository"},
    {"runtime.pipeline"},
    {"runtime.stream", "runtime.batching", "runtime.agreement"},
    {"runtime.golden"},
    {"runtime.speed", "runtime.golden_renewal"},
    {"runtime.qualification"},
    {"runtime.predictor", "runtime.peak", "runtime.verification"},
    {"runtime.serving.answer_folder", "runtime.serving.frame_rows", "runtime.serving.verify_server"},
    {"runtime.serving.archive", "runtime.serving.ray_data"},
    {"runtime.fab.lot_run"},
    {"runtime.fab.lot_results"},
    {"runtime.fab.lot", "runtime.fab.lot_watch"},
    {"runtime.options", "runtime.describe", "runtime.recipe_history", "runtime.serving.server_options"},
    {"runtime.serving.ray_options"},
    {"runtime.recipes_command"},
    {"runtime.commands", "runtime.serving.ray_command", "runtime.serving.triton_command", "runtime.verify"},
    {"runtime.fab.lot_command"},
    {"runtime.cli"},
    {"runtime.watched"},
)
"""The modules of runtime from the bottom up; each imports its own layer and those below."""
PUBLIC = [
    "Backend",
    "BackendError",
    "BackendUnavailable",
    "BundleError",
    "EncodedFrame",
    "FailedFrame",
    "FakeBackend",
    "FrameError",
    "FrameOptions",
    "OperatingPoint",
    "Outputs",
    "Prediction",
    "Predictor",
    "PredictorError",
    "QueueFullError",
    "Recipe",
    "RecipeError",
    "Region",
    "RowError",
    "SemClipError",
    "TritonBackend",
    "__version__",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def statements(tree: ast.AST, *, inner: bool) -> Iterator[ast.AST]:
    """All nodes; without those inside functions unless `inner`, since they run later or never."""
    for node in ast.iter_child_nodes(tree):
        if inner or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from statements(node, inner=inner)


def imports(name: str, *, inner: bool) -> set[str]:
    """The modules that module `name` imports, by full name; `from package import module` counts as the module."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), inner=inner):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in MODULES else base)
    return found


def top(name: str) -> str:
    return name.split(".")[0]


def outside(names: set[str]) -> set[str]:
    """Third-party packages among `names`."""
    return {top(name) for name in names} - set(sys.stdlib_module_names) - set(PACKAGES)


def test_the_reader_of_imports_sees_what_is_there() -> None:
    assert "runtime.recipe" in imports("runtime.manifest", inner=False)
    assert "runtime.backends.base" in imports("runtime.backends", inner=False)
    assert "runtime.errors" in imports("runtime.backends.ort", inner=False)
    assert "onnxruntime" not in imports("runtime.telemetry", inner=False)
    assert "onnxruntime" in imports("runtime.telemetry", inner=True)
    assert outside(imports("runtime.frames", inner=True)) == {"numpy", "PIL"}


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) in ("runtime", "calibration")])
def test_runtime_and_calibration_load_only_light_packages(name: str) -> None:
    assert outside(imports(name, inner=False)) <= LIGHT | OPTIONAL.get(name, set())


@pytest.mark.parametrize("name", MODULES)
def test_no_package_imports_one_above_it(name: str) -> None:
    assert {top(used) for used in imports(name, inner=True)} & FORBIDDEN[top(name)] == set()


def test_every_module_of_runtime_has_its_layer() -> None:
    named = [name for layer in LAYERS for name in layer]
    assert len(named) == len(set(named))
    assert {*named, "runtime"} == {name for name in MODULES if top(name) == "runtime"}


@pytest.mark.parametrize("name", [name for layer in LAYERS for name in sorted(layer)])
def test_a_module_imports_only_its_own_layer_and_those_below(name: str) -> None:
    height = {module: number for number, layer in enumerate(LAYERS) for module in layer}
    used = {module for module in imports(name, inner=True) if top(module) == "runtime"}
    # Opening an engine is the one thing that `backends` does late, and it still looks down.
    assert used <= set(height), "the package itself is above all of its modules"
    assert {module for module in used if height[module] > height[name]} == set()


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_blocked_package_cannot_be_imported() -> None:
    done = run_python("import sys\nsys.modules['scipy'] = None\nimport scipy.ndimage")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize("blocked", [True, False], ids=["blocked", "free"])
def test_runtime_and_calibration_import_without_any_engine(blocked: bool) -> None:
    done = run_python(f"""
import sys
heavy = {HEAVY!r}
if {blocked}:
    sys.modules.update(dict.fromkeys(heavy))
import runtime, runtime.cli, runtime.commands, calibration.commands, calibration.review.command
loaded = [name for name, module in sys.modules.items() if module is not None and name.split(".")[0] in heavy]
assert loaded == [], loaded
print(runtime.Predictor.__name__)
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Predictor\n", "")


def test_the_public_names_are_exactly_these() -> None:
    assert runtime.__all__ == PUBLIC
    for name in PUBLIC[:-1]:
        assert getattr(runtime, name).__name__ == name


def test_the_version_is_that_of_the_installed_project_and_read_when_asked_for() -> None:
    assert runtime.__version__ == metadata.version("sem-clip")
    done = run_python("import runtime; print('__version__' in vars(runtime)); print(runtime.__version__)")
    assert done.stdout == f"False\n{runtime.__version__}\n"


def test_the_package_has_no_other_lazy_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Predicter'"):
        runtime.Predicter  # noqa: B018


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) in ("runtime", "calibration")])
def test_every_light_module_imports_and_says_what_it_is(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_every_command_of_the_project_file_is_there_and_has_an_example() -> None:
    """Read from the file, because what is installed may be older."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    commands = project["project"]["entry-points"]["sem_clip.commands"]
    assert {"inspect", "predict", "teach", "build", "calibrate", "operating-point"} <= set(commands)
    for name, place in commands.items():
        module, _, kind = place.partition(":")
        command = getattr(importlib.import_module(module), kind)
        assert command.help
        assert command.example.startswith(f"sem-clip {name} ")


def test_the_packages_that_are_installed_are_those_on_disk() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    folders = [path.parent for path in ROOT.glob("*/__init__.py")]
    found = {module_name(init) for folder in folders for init in folder.rglob("__init__.py")}
    assert len(listed) == len(set(listed))
    assert set(listed) == found
    assert not any(top(name) == "tests" for name in listed)
    assert project["tool"]["setuptools"]["py-modules"] == [path.stem for path in ROOT.glob("*.py")]
    # A folder of modules without __init__.py would be left out of the wheel.
    assert {name.rpartition(".")[0] or name for name in MODULES} <= set(listed)
