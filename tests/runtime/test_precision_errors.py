"""A precision that a backend does not compute in is refused with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import BackendUnavailable
from runtime.backends import open_backend
from runtime.manifest import load_bundle


@pytest.mark.parametrize("name", ["auto", "cpu", "openvino", "cuda", "tensorrt"])
def test_a_precision_that_is_none_is_refused_as_by_the_command(name: str, fake_bundle: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r'^there is no precision "fp8"; choose from fp32, fp16, bf16, int8, '):
        open_backend(name, fake_bundle, load_bundle(fake_bundle)[0], precision="fp8")


@pytest.mark.parametrize("name", ["cpu", "cuda", "tensorrt"])
@pytest.mark.parametrize("precision", ["bf16", "int8-bf16"])
def test_bf16_leads_to_the_backend_that_computes_in_it(name: str, precision: str, fake_bundle: Path) -> None:
    told = f'^backend "{name}" does not compute in {precision}: take --backend openvino, which does$'
    with pytest.raises(BackendUnavailable, match=told):
        open_backend(name, fake_bundle, load_bundle(fake_bundle)[0], precision=precision)


def test_auto_says_why_openvino_does_not_compute_in_bf16_here(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BackendUnavailable("no bf16 here")

    monkeypatch.setattr("runtime.backends.OpenVinoBackend", refuse)
    with pytest.raises(BackendUnavailable, match=r"^no bf16 here$"):
        open_backend("auto", fake_bundle, load_bundle(fake_bundle)[0], precision="bf16")
