"""benchmarks.speed.engines: which engines are compared, and when a missing one is an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed import engines
from benchmarks.speed.engines import EngineName, opened_engines
from runtime import BackendUnavailable, FakeBackend
from runtime.backends import Backend
from runtime.manifest import Manifest, load_bundle


@pytest.fixture
def host(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Manifest, list[FakeBackend]]:
    """A bundle with fp32 and int8 on a host that runs cpu/fp32, vector/fp32 and vector/int8, and no gpu."""
    manifest, _ = load_bundle(fake_bundle)
    manifest = replace(manifest, artifacts=(*manifest.artifacts, replace(manifest.artifacts[0], precision="int8")))
    opened: list[FakeBackend] = []

    def open_backend(name: str, folder: Path, found: Manifest, *, precision: str | None, **more: Any) -> Backend:
        if (name, precision) not in {("cpu", "fp32"), ("vector", "fp32"), ("vector", "int8"), ("fake", None)}:
            raise BackendUnavailable(f"{name} cannot run {precision} here")
        opened.append(FakeBackend(found.encoder))
        return opened[-1]

    monkeypatch.setattr(engines, "open_backend", open_backend)
    monkeypatch.setattr(engines, "NAMES", ("auto", "cpu", "vector", "gpu", "fake"))
    return fake_bundle, manifest, opened


def chosen(
    host: tuple[Path, Manifest, list[FakeBackend]], backends: tuple[str, ...], precisions: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    with opened_engines(host[0], host[1], backends, precisions, 0) as (opened, skipped):
        return [str(name) for name in opened], [item.name for item in skipped]


def test_by_default_all_engines_that_run_are_opened_and_the_others_listed(
    host: tuple[Path, Manifest, list[FakeBackend]],
) -> None:
    assert chosen(host, (), ()) == (["cpu/fp32", "vector/int8", "vector/fp32"], ["cpu/int8", "gpu/int8", "gpu/fp32"])
    assert all(backend.closed for backend in host[2])


def test_a_named_backend_runs_with_the_precisions_it_can(host: tuple[Path, Manifest, list[FakeBackend]]) -> None:
    assert chosen(host, ("cpu",), ()) == (["cpu/fp32"], ["cpu/int8"])
    assert chosen(host, (), ("int8",)) == (["vector/int8"], ["cpu/int8", "gpu/int8"])


def test_the_fake_engine_is_taken_only_when_named(host: tuple[Path, Manifest, list[FakeBackend]]) -> None:
    assert chosen(host, ("fake",), ()) == (["fake"], [])


@pytest.mark.parametrize(
    ("backends", "precisions", "message"),
    [
        (("cpu", "gpu"), (), "gpu cannot run"),
        ((), ("fp16",), "cannot run fp16"),
        (("cpu", "vector"), ("int8",), "cpu cannot run int8"),
        (("gpu",), (), "gpu cannot run"),
    ],
)
def test_a_named_engine_that_cannot_run_is_an_error(
    host: tuple[Path, Manifest, list[FakeBackend]],
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(BackendUnavailable, match=message):
        chosen(host, backends, precisions)
    assert all(backend.closed for backend in host[2])


def test_a_host_without_any_engine_is_refused_with_the_reasons(
    host: tuple[Path, Manifest, list[FakeBackend]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "NAMES", ("auto", "gpu", "fake"))
    with pytest.raises(BackendUnavailable, match="no engine of this bundle runs on this host: gpu cannot run int8"):
        chosen(host, (), ())


def test_engines_are_called_as_the_predictor_calls_them() -> None:
    assert str(EngineName("cpu", "fp32")) == "cpu/fp32"
    assert str(EngineName("fake", None)) == "fake"


def test_openvino_is_tried_in_what_it_computes_from_the_files_there_are(
    host: tuple[Path, Manifest, list[FakeBackend]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "NAMES", ("auto", "cpu", "openvino", "fake"))
    _, skipped = chosen(host, (), ())
    assert skipped == ["cpu/int8", *(f"openvino/{name}" for name in ("fp32", "bf16", "int8", "int8-bf16"))]
