"""Which engine this host can run: the exact difference and the command that mends it, and what "auto" takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from runtime import Predictor, backends
from runtime.backends import ENGINES, FakeBackend, choice, obstacles, open_backend
from runtime.backends.choice import engine_artifact, precisions_held
from runtime.cli import main
from runtime.errors import BackendError, BackendUnavailable, BundleError
from runtime.host import Gpu, find_gpu, operating_system
from runtime.manifest import Artifact, Manifest, load_bundle
from runtime.targets import ENGINE_PRODUCTS

RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0", 24 * 2**30, "0000:01:00.0")
PRODUCT, VERSION = "tensorrt-rtx", "1.7.1"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.util, "find_spec", lambda name: object())


@pytest.fixture
def manifest(fake_bundle: Path) -> Manifest:
    found, _ = load_bundle(fake_bundle)
    onnx = replace(found.artifacts[0], precision="fp16", file="model.fp16.onnx", sha256="12" * 32)
    return replace(found, artifacts=(*found.artifacts, onnx))


def with_engine(manifest: Manifest, **changes: str) -> Manifest:
    target = {"product": PRODUCT, "version": VERSION, "compute_capability": "8.9", "os": operating_system()}
    target |= {"onnx_sha256": "12" * 32, **changes}
    name = f"{len(manifest.artifacts)}.plan"
    engine = Artifact(name, "engine", "fp16", "34" * 32, 10, {}, {}, target)
    return replace(manifest, artifacts=(*manifest.artifacts, engine))


def choose(manifest: Manifest, *, gpu: Gpu | None = RTX_4090, why: str = "", **more: Any) -> Artifact:
    return engine_artifact(
        PRODUCT, Path("bundle"), manifest, version_of=lambda name: VERSION, gpu=lambda device: (gpu, why), **more
    )


def test_the_engine_built_for_this_host_is_taken(manifest: Manifest) -> None:
    held = with_engine(with_engine(with_engine(manifest, compute_capability="8.6")), version="1.6.0")
    assert choose(held).file == "3.plan"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "1.6.0"}, "was built by tensorrt-rtx 1.6.0, here is 1.7.1"),
        (
            {"compute_capability": "8.6"},
            "was built for compute capability 8.6, the GPU here (NVIDIA GeForce RTX 4090) has 8.9",
        ),
        ({"gpu": "NVIDIA L40S"}, "was built on NVIDIA L40S, here is NVIDIA GeForce RTX 4090"),
        ({"os": "windows-amd64"}, f"was built for windows-amd64, this is {operating_system()}"),
        ({"onnx_sha256": "ff" * 32}, "was built from another fp16 ONNX file than the bundle's"),
        (
            {"os": "windows-amd64", "version": "1.6.0"},
            "was built by tensorrt-rtx 1.6.0, here is 1.7.1; it was built for windows-amd64, this is "
            + operating_system(),
        ),
    ],
)
def test_an_engine_for_another_host_is_refused_with_the_difference(
    manifest: Manifest, changes: dict[str, str], says: str
) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        choose(with_engine(manifest, **changes))
    command = "build one on this machine with: sem-clip build-engine bundle --engine tensorrt-rtx"
    assert str(caught.value) == f"bundle: 2.plan {says}; {command}"


def test_an_8_bit_engine_runs_only_where_it_is_asked_for(manifest: Manifest) -> None:
    """And the 8-bit ONNX file that it was built from is none that ONNX Runtime is given."""
    onnx = Artifact("8.onnx", "onnx", "int8", "56" * 32, 10, {}, {}, {"engine": "tensorrt"})
    held = with_engine(replace(manifest, artifacts=(*manifest.artifacts, onnx)), onnx_sha256="56" * 32)
    held = replace(held, artifacts=(*held.artifacts[:-1], replace(held.artifacts[-1], precision="int8")))
    with pytest.raises(BackendUnavailable, match="holds no fp16 engine"):
        choose(held)
    assert choose(held, precision="int8") is held.artifacts[-1]
    with pytest.raises(BackendUnavailable, match="--engine tensorrt-rtx --precision int8"):
        choose(manifest, precision="int8")
    with pytest.raises(BackendUnavailable, match="holds no int8 ONNX artifact"):
        choice.onnx_artifact(Path("bundle"), held, "int8")


def test_of_several_unfit_engines_the_nearest_is_reported(manifest: Manifest) -> None:
    held = with_engine(with_engine(manifest, os="x", version="y"), version="1.6.0")
    with pytest.raises(BackendUnavailable, match=r"3\.plan was built by tensorrt-rtx 1\.6\.0"):
        choose(held)


def test_without_an_engine_a_gpu_or_the_product(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BackendUnavailable, match="holds no fp16 engine of tensorrt-rtx; build one on this machine with"
    ):
        choose(manifest)
    with pytest.raises(BackendUnavailable, match='"tensorrt-rtx" cannot run here: no NVIDIA driver was found'):
        choose(with_engine(manifest), gpu=None, why="no NVIDIA driver was found")
    with pytest.raises(BackendUnavailable, match="runs fp16 and int8 engines, not fp32"):
        choose(with_engine(manifest), precision="fp32")
    monkeypatch.setattr(choice.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install \"sem-clip\[tensorrt-rtx\]\""):
        choose(with_engine(manifest))

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    with pytest.raises(BackendUnavailable, match="needs tensorrt-rtx, which is not installed"):
        engine_artifact(PRODUCT, Path("bundle"), manifest, version_of=absent, gpu=lambda device: (RTX_4090, ""))


# ---- auto ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> Callable[..., list[str]]:
    """Lets only some backends run; the names that were tried."""

    def make(*running: str, failing: Exception | None = None) -> list[str]:
        tried: list[str] = []

        def opened(name: str, *arguments: Any) -> FakeBackend:
            tried.append(name)
            if failing is not None and name == tried[0]:
                raise failing
            if name not in running:
                raise BackendUnavailable(f"{name} is not for this host")
            backend = FakeBackend(manifest.encoder)
            backend.name = name
            return backend

        monkeypatch.setattr(backends, "_open", opened)
        return tried

    return make


@pytest.mark.parametrize("running", [ENGINES[i:] for i in range(len(ENGINES))])
def test_auto_takes_the_fastest_that_runs_and_logs_why_others_were_skipped(
    pretend: Callable[..., list[str]], manifest: Manifest, running: tuple[str, ...]
) -> None:
    tried = pretend(*running)
    backend = open_backend("auto", Path("bundle"), manifest)
    assert backend.name == running[0]
    assert tuple(tried) == ENGINES[: ENGINES.index(running[0]) + 1]
    assert backend.why.splitlines() == [f"not {name}: {name} is not for this host" for name in tried[:-1]]


def test_on_a_cpu_auto_takes_onnx_runtime_where_both_are_installed(
    pretend: Callable[..., list[str]], manifest: Manifest
) -> None:
    """The rule is fixed: no measurement, and no precision but the one that is asked for."""
    pretend("openvino", "cpu")
    assert open_backend("auto", Path("bundle"), manifest).name == "cpu"
    pretend("openvino")
    backend = open_backend("auto", Path("bundle"), manifest)
    assert backend.name == "openvino"
    assert "not cpu: cpu is not for this host" in backend.why.splitlines()


def test_where_nothing_runs_auto_says_what_the_embedded_engine_lacks(
    pretend: Callable[..., list[str]], manifest: Manifest
) -> None:
    tried = pretend()
    with pytest.raises(BackendUnavailable, match=r"^cpu is not for this host$"):
        open_backend("auto", Path("bundle"), manifest)
    assert tuple(tried) == ENGINES


def test_each_backend_runs_what_the_bundle_holds_a_file_for(manifest: Manifest) -> None:
    held = {name: precisions_held(name, manifest) for name in ENGINES}
    none = dict.fromkeys(ENGINE_PRODUCTS, ())
    assert held == {**none, "cuda": ("fp16", "fp32"), "cpu": ("fp32",), "openvino": ("fp32", "bf16")}
    eight = replace(manifest, artifacts=(replace(manifest.artifacts[0], precision="int8"),))
    assert precisions_held("openvino", eight) == ("int8", "int8-bf16")
    assert precisions_held("tensorrt-rtx", with_engine(manifest)) == ("fp16",)


@pytest.mark.parametrize("error", [BackendError("the GPU has 0.1 of 24 GB free"), BundleError("bundle", "damaged")])
def test_auto_does_not_pass_over_a_fault(
    pretend: Callable[..., list[str]], manifest: Manifest, error: Exception
) -> None:
    tried = pretend("cpu", failing=error)
    with pytest.raises(type(error)):
        open_backend("auto", Path("bundle"), manifest)
    assert tried == ["tensorrt"]


def test_a_named_backend_never_falls_back(pretend: Callable[..., list[str]], manifest: Manifest) -> None:
    tried = pretend("cpu")
    with pytest.raises(BackendUnavailable, match="cuda is not for this host"):
        open_backend("cuda", Path("bundle"), manifest)
    assert tried == ["cuda"]


@pytest.mark.skipif(find_gpu()[0] is not None, reason="there is a GPU")
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "cuda"])
def test_a_gpu_backend_without_a_gpu_is_an_error_by_name(
    toy_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(BackendUnavailable, match=f'backend "{name}" (needs|cannot run here)'):
        Predictor(toy_bundle, backend=name)


def test_inspect_says_what_runs_here(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = obstacles(toy_bundle, load_bundle(toy_bundle)[0])
    assert tuple(found) == ENGINES
    assert found["cpu"] == ""
    assert main(["inspect", str(toy_bundle)]) == 0
    said = capsys.readouterr().out
    assert "runs here   cpu: yes" in said
    for name in ENGINES[:-1]:
        assert f"runs here   {name}: {'no, ' + found[name] if found[name] else 'yes'}" in said
