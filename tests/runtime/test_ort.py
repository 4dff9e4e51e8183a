"""runtime.backends.ort: how ONNX Runtime's threads wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.backends import open_backend
from runtime.backends.ort import SPIN_US, spinning
from runtime.errors import BundleError
from runtime.manifest import load_bundle


@pytest.mark.parametrize(("version", "known"), [("1.24.1", False), ("1.25.9", False), ("1.26.0", True), ("2.0", True)])
def test_threads_without_work_leave_their_core_to_others(version: str, known: bool) -> None:
    """By default they spin for milliseconds: on a shared host the engine is then slower, and all else too."""
    bounded = "session.intra_op.spin_duration_us", str(SPIN_US)
    assert spinning(version) == (bounded if known else ("session.intra_op.allow_spinning", "0"))


def test_the_engine_is_told_so(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    told: list[str] = []
    name, value = spinning(onnxruntime.__version__)

    def open_session(content: bytes, options: Any, **more: object) -> None:
        told.append(options.get_session_config_entry(name))
        raise RuntimeError("enough")

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    with pytest.raises(BundleError, match="enough"):
        open_backend("cpu", fake_bundle, load_bundle(fake_bundle)[0])
    assert told == [value]
