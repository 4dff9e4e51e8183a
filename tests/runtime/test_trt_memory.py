"""TensorRT on a simulated GPU: device memory, and compiled kernels on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_gpu import Cache, FakeDevice, recipe_of
from simulated_engine import Opened, check, frames

from runtime.backends.trt import RESERVE
from runtime.errors import BackendError


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


def test_compiled_kernels_are_kept_next_to_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[bytes] = []
    monkeypatch.setattr(Cache, "deserialize", lambda self, content: loaded.append(content) or True)
    Opened(tmp_path, "tensorrt-rtx").backend.warm_up(recipe_of(3))
    assert loaded == []
    (file,) = (tmp_path / "bundle.cache").iterdir()
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["engine.plan"]
    Opened(tmp_path, "tensorrt-rtx").backend.warm_up(recipe_of(3))
    assert loaded == [b"kernels"]
    file.write_bytes(file.read_bytes()[:-1])
    Opened(tmp_path, "tensorrt-rtx").backend.warm_up(recipe_of(3))
    assert loaded == [b"kernels"], "a damaged file is compiled anew"
    Opened(tmp_path, "tensorrt-rtx")
    assert loaded == [b"kernels"] * 2, "and was replaced"


def test_a_folder_that_may_not_be_written_costs_only_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bundle.cache").write_bytes(b"a file where the folder should be")
    opened = Opened(tmp_path, "tensorrt-rtx")
    opened.backend.warm_up(recipe_of(3))
    check(opened.backend, frames(1), recipe_of(3))
    assert "kernels are compiled at each start" in caplog.text


def test_with_little_memory_batches_are_smaller_and_a_warning_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = Opened(tmp_path)
    (needed,) = (len(block) for block in full.device.blocks.values())
    assert full.backend.max_batch == 8
    assert caplog.text == ""
    small = Opened(tmp_path, device=FakeDevice(room=needed + RESERVE - 1))
    assert small.backend.max_batch == 4
    assert "batches of 4 because memory is short (the engine takes 8)" in small.backend.description
    assert small.backend.description in caplog.text
    check(small.backend, frames(*range(21)), recipe_of(3))


def test_a_failed_allocation_makes_batches_smaller(tmp_path: Path) -> None:
    (needed,) = (len(block) for block in Opened(tmp_path).device.blocks.values())
    device = FakeDevice(room=needed - 1)
    device.memory = lambda: (1 << 40, 1 << 40)  # type: ignore[method-assign]
    assert Opened(tmp_path, device=device).backend.max_batch == 4


def test_without_memory_the_error_names_the_bytes_needed(tmp_path: Path) -> None:
    device = FakeDevice(room=1000)
    with pytest.raises(BackendError, match=r"GB free, batches of 1 need .* GB in addition to the weights: .*--batch"):
        Opened(tmp_path, device=device)
    assert device.closed


def test_kernels_that_are_not_given_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Cache, "serialize", lambda cache: None)
    opened = Opened(tmp_path, "tensorrt-rtx")
    opened.backend.warm_up(recipe_of(3))
    assert "gave no kernels" in caplog.text
    assert not (tmp_path / "bundle.cache").exists()
