"""runtime.backends.openvino: the answers of the export in every precision, from many threads, and typed errors."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from places import ROOT

from runtime import Predictor
from runtime.agreement import Limits, compare
from runtime.backends import Backend, obstacles, open_backend, openvino
from runtime.backends.base import Outputs
from runtime.backends.openvino import FILES, LEAST_VERSION, MOST_FRAMES, OpenVinoBackend, stored_precision
from runtime.errors import BackendError, BackendUnavailable, BundleError
from runtime.golden import MORE, variants
from runtime.manifest import Manifest, load_bundle
from runtime.recipe import Recipe

pytestmark = pytest.mark.slow

FP32 = Limits.of("fp32", 1e-4)


def manifest_of(folder: Path) -> Manifest:
    return load_bundle(folder)[0]


def in_every_precision(manifest: Manifest) -> Manifest:
    """As if the fp32 file were the 8-bit one, too: which file is opened, and in what the rest is computed."""
    single = next(artifact for artifact in manifest.artifacts if artifact.precision == "fp32")
    return replace(manifest, artifacts=(single, replace(single, precision="int8")))


def changed(folder: Path, content: bytes) -> Manifest:
    """The manifest of a bundle whose fp32 file is another."""
    manifest = manifest_of(folder)
    (folder / "changed.onnx").write_bytes(content)
    single = next(artifact for artifact in manifest.artifacts if artifact.precision == "fp32")
    digest = hashlib.sha256(content).hexdigest()
    return replace(manifest, artifacts=(replace(single, file="changed.onnx", sha256=digest, bytes=len(content)),))


def pictures(manifest: Manifest, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *manifest.encoder.input_size), np.uint8)


# ---- without OpenVINO ------------------------------------------------------------------------------------------------


def test_without_openvino_the_extra_to_install_is_named(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    manifest = manifest_of(fake_bundle)
    expected = 'backend "openvino" needs OpenVINO, which is not installed: pip install "sem-clip[openvino]"'
    with pytest.raises(BackendUnavailable) as caught:
        open_backend("openvino", fake_bundle, manifest)
    assert str(caught.value) == expected
    assert obstacles(fake_bundle, manifest)["openvino"] == expected


def test_an_openvino_that_is_too_old_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "import_openvino", lambda: SimpleNamespace())
    monkeypatch.setattr(openvino.metadata, "version", lambda name: "2025.4.1")
    with pytest.raises(BackendUnavailable) as caught:
        openvino.check_openvino()
    assert f'here is 2025.4.1: pip install --upgrade "openvino>={LEAST_VERSION}"' in str(caught.value)
    monkeypatch.setattr(openvino.metadata, "version", lambda name: f"{LEAST_VERSION}.0")
    openvino.check_openvino()


def test_an_openvino_that_cannot_be_imported_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("libopenvino.so: cannot open shared object file", name="openvino._pyopenvino")

    monkeypatch.setattr(openvino, "import_openvino", broken)
    with pytest.raises(BackendUnavailable, match=r"installed and cannot be imported \(libopenvino\.so: cannot open"):
        openvino.check_openvino()


def test_the_least_version_is_that_of_the_extra() -> None:
    assert f'openvino = ["openvino>={LEAST_VERSION}"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_file_of_each_precision(fake_bundle: Path) -> None:
    assert {name: stored_precision(name) for name in FILES} == FILES
    with pytest.raises(BackendUnavailable, match="runs fp32, bf16, int8, int8-bf16, not fp16"):
        open_backend("openvino", fake_bundle, manifest_of(fake_bundle), precision="fp16")
    with pytest.raises(BackendUnavailable, match="holds no int8 ONNX artifact"):
        open_backend("openvino", fake_bundle, manifest_of(fake_bundle), precision="int8-bf16")


@pytest.mark.parametrize(("precision", "instead"), [("bf16", "fp32"), ("int8-bf16", "int8")])
def test_a_processor_without_bf16_is_told_so_and_what_to_take(
    precision: str, instead: str, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8"])
    monkeypatch.setattr(openvino, "check_openvino", lambda: SimpleNamespace(Core=lambda: core))
    with pytest.raises(BackendUnavailable, match=rf"has none: take --precision {instead}$"):
        open_backend("openvino", fake_bundle, in_every_precision(manifest_of(fake_bundle)), precision=precision)


# ---- with OpenVINO ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(toy_bundle: Path) -> Path:
    pytest.importorskip("openvino")
    return toy_bundle


@pytest.fixture
def opened(bundle: Path) -> Iterator[Backend]:
    with open_backend("openvino", bundle, manifest_of(bundle), threads=2) as backend:
        yield backend


@pytest.fixture
def wanted(bundle: Path) -> Outputs:
    """What ONNX Runtime answers to 19 frames."""
    pytest.importorskip("onnxruntime")
    manifest, recipe = load_bundle(bundle)
    with open_backend("cpu", bundle, manifest, threads=1) as reference:
        return reference.run(pictures(manifest, 19), recipe)


def test_it_answers_as_onnx_runtime_does_at_every_batch_size(bundle: Path, opened: Backend, wanted: Outputs) -> None:
    manifest, recipe = load_bundle(bundle)
    frames = pictures(manifest, 19)
    for batch in (1, 2, 3, 8, 19):
        found = opened.run(frames[:batch], recipe)
        part = Outputs(wanted.probabilities[:batch], wanted.defect_map[:batch], wanted.features[:batch])
        assert compare(part, found, FP32).passed, batch
    assert opened.run(frames[::2], recipe).probabilities.shape[0] == 10  # not contiguous


def test_another_recipe_counts_and_another_number_of_classes(bundle: Path, opened: Backend) -> None:
    """Without care the engine keeps the recipe of the file, and answers one of other classes with nothing at all."""
    pytest.importorskip("onnxruntime")
    manifest, recipe = load_bundle(bundle)
    frames = pictures(manifest, 3)
    with open_backend("cpu", bundle, manifest, threads=1) as reference:
        for other in (*variants(recipe).values(), recipe):
            assert compare(reference.run(frames, other), opened.run(frames, other), FP32).passed
    more = variants(recipe)[MORE]
    assert opened.run(frames, more).probabilities.shape == (3, len(recipe.classes) + 1)


def test_it_answers_many_threads_at_a_time(bundle: Path, opened: Backend) -> None:
    manifest, recipe = load_bundle(bundle)
    frames = pictures(manifest, 24)
    sizes = [1, 5, 8, 3, 24, 2] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda size: opened.run(frames[:size], recipe), sizes))
    whole = opened.run(frames, recipe)
    for size, found in zip(sizes, answers, strict=True):
        part = Outputs(whole.probabilities[:size], whole.defect_map[:size], whole.features[:size])
        assert compare(part, found, FP32).passed


FIRST_BATCHES = """
import sys, threading
from pathlib import Path
import numpy as np
from runtime.backends import open_backend
from runtime.manifest import load_bundle

folder = Path({folder!r})
manifest, recipe = load_bundle(folder)
with open_backend("openvino", folder, manifest, threads=2) as backend:
    sys.setswitchinterval(1e-6)
    together = threading.Barrier(4)

    def first_batch():
        together.wait()
        backend.run(np.zeros((1, *manifest.encoder.input_size), np.uint8), recipe)

    threads = [threading.Thread(target=first_batch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_first_batches_of_many_threads_end(bundle: Path, tmp_path: Path) -> None:
    """In every other process they waited for each other for ever, in OpenVINO's binding; run_python bounds the wait."""
    for time in range(4):
        run_python(FIRST_BATCHES.format(folder=str(bundle)), tmp_path / f"home{time}")


@pytest.mark.parametrize("threads", [1, 2])
def test_it_has_a_stream_for_each_thread(bundle: Path, threads: int) -> None:
    with open_backend("openvino", bundle, manifest_of(bundle), threads=threads) as backend:
        assert backend.in_flight == min(threads, os.cpu_count() or 1)
        assert f"model.onnx (fp32, streams: {backend.in_flight})" in backend.description
        assert (backend.name, backend.precision) == ("openvino", "fp32")


def test_a_batch_is_shared_out_over_the_streams() -> None:
    backend = OpenVinoBackend.__new__(OpenVinoBackend)
    for streams, frames, piece in ((2, 1, 1), (2, 2, 1), (2, 7, 4), (2, 64, MOST_FRAMES), (16, 8, 1), (1, 3, 3)):
        backend.in_flight = streams
        assert backend._piece(frames) == piece


def test_bf16_is_computed_only_where_it_is_asked_for(bundle: Path, wanted: Outputs) -> None:
    manifest, recipe = load_bundle(bundle)
    held = in_every_precision(manifest)
    frames = pictures(manifest, 19)
    has_bf16 = "BF16" in openvino.check_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision in FILES:
        if precision.endswith("bf16") and not has_bf16:
            with pytest.raises(BackendUnavailable, match="instructions for bf16"):
                open_backend("openvino", bundle, held, precision=precision)
            continue
        with open_backend("openvino", bundle, held, precision=precision, threads=1) as backend:
            found = compare(wanted, backend.run(frames, recipe), FP32)
        assert (found.features > 1e-4) == precision.endswith("bf16"), precision


def test_no_thread_is_tied_to_a_core(bundle: Path) -> None:
    """Two processes of one thread each would share a core and leave the other one idle."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not report it")
    manifest, recipe = load_bundle(bundle)
    with open_backend("openvino", bundle, manifest, threads=1) as backend:
        backend.run(pictures(manifest, 2), recipe)
        allowed = os.sched_getaffinity(0)
        assert all(os.sched_getaffinity(int(task.name)) == allowed for task in Path("/proc/self/task").iterdir())


def test_a_predictor_streams_through_it(bundle: Path, toy_frames: Path) -> None:
    pytest.importorskip("onnxruntime")
    paths = sorted(toy_frames.rglob("images/*/*.png"))[:10]
    verdicts = []
    for name in ("cpu", "openvino"):
        with Predictor(bundle, backend=name, threads=2) as predictor:
            verdicts.append([(p.source, p.verdict, len(p.regions)) for p in predictor.stream(paths)])
    assert verdicts[0] == verdicts[1]
    assert len(verdicts[0]) == 10


def test_what_is_no_graph_of_this_encoder_is_a_fault_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    manifest = manifest_of(bundle)
    height, width = manifest.encoder.input_size
    other = replace(manifest.encoder, input_size=(height // 2, width), grid=(1, 1))
    with pytest.raises(BundleError) as caught:
        open_backend("openvino", bundle, replace(manifest, encoder=other))
    assert [fault.split(" is ")[0] for fault in caught.value.faults] == ["model.onnx: frames", "model.onnx: defect_map"]


def test_damage_is_a_fault_of_the_bundle(fake_bundle: Path) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(BundleError, match="is no ONNX file, or is cut off"):
        open_backend("openvino", fake_bundle, changed(fake_bundle, b"not onnx"))
    with pytest.raises(BundleError, match=r"changed\.onnx holds 0 graphs, not one"):
        open_backend("openvino", fake_bundle, changed(fake_bundle, b"\x08\x0a"))
    manifest = changed(fake_bundle, b"\x08\x0a")
    (fake_bundle / "changed.onnx").write_bytes(b"\x08\x0b")
    with pytest.raises(BundleError, match="does not have the SHA-256"):
        open_backend("openvino", fake_bundle, manifest)


def test_an_operator_that_openvino_does_not_know_is_a_fault_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    model = onnx.load_model(folder / "model.onnx")
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Unheard"
    with pytest.raises(BundleError, match=r"changed\.onnx cannot be opened by OpenVINO: .*Unheard") as caught:
        open_backend("openvino", folder, changed(folder, model.SerializeToString()))
    assert "\n" not in str(caught.value)


def test_an_engine_that_fails_raises_and_runs_again(bundle: Path, opened: Backend) -> None:
    """A request that failed must not be lost: two streams are free again."""
    manifest, recipe = load_bundle(bundle)
    frames = pictures(manifest, 8)
    odd = SimpleNamespace(tensors={**recipe.tensors, "head_bias": np.zeros(3, np.float32)}, classes=recipe.classes)
    for _ in range(3):
        with pytest.raises(BackendError, match="OpenVINO failed on a batch of 8: "):
            opened.run(frames, cast(Recipe, odd))
    assert opened.run(frames, recipe).probabilities.shape == (8, len(recipe.classes))


def test_an_answer_of_another_shape_is_an_error(bundle: Path, opened: Backend) -> None:
    manifest, recipe = load_bundle(bundle)
    short = SimpleNamespace(tensors=recipe.tensors, classes=recipe.classes[:-1])
    with pytest.raises(BackendError, match=r"answered probabilities of shape \(2, \d\), not"):
        opened.run(pictures(manifest, 2), cast(Recipe, short))


def test_a_closed_engine_says_so(bundle: Path) -> None:
    manifest, recipe = load_bundle(bundle)
    backend = open_backend("openvino", bundle, manifest, threads=1)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run(pictures(manifest, 1), recipe)


def test_closing_waits_for_nobody_and_harms_nobody(bundle: Path) -> None:
    manifest, recipe = load_bundle(bundle)
    backend = open_backend("openvino", bundle, manifest, threads=1)
    frames = pictures(manifest, 32)
    started, answers = threading.Event(), []

    def work() -> None:
        started.set()
        answers.append(backend.run(frames, recipe))

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    try:
        backend.close()
    finally:
        thread.join()
    assert all(answer.probabilities.shape[0] == 32 for answer in answers)


# ---- telemetry -------------------------------------------------------------------------------------------------------

QUIET = """
import json, sys
from runtime.telemetry import import_openvino
import_openvino()
sent = [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module is not None]
print(json.dumps(sent))
"""
EARLY = """
import logging, sys, types
logging.basicConfig(format="%(message)s")
sys.modules["openvino"] = types.ModuleType("openvino")
sys.modules["openvino_telemetry"] = types.ModuleType("openvino_telemetry")
from runtime.telemetry import import_openvino
import_openvino(), import_openvino()
"""


def run_python(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    home.mkdir()
    kept: dict[str, Any] = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_nothing_is_sent_and_no_id_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    done = run_python(QUIET, tmp_path / "home")
    assert json.loads(done.stdout) == []
    assert list((tmp_path / "home").iterdir()) == []


def test_a_program_that_imported_it_before_is_warned_once(tmp_path: Path) -> None:
    done = run_python(EARLY, tmp_path / "home")
    assert done.stderr.count("OpenVINO was imported before this package") == 1
