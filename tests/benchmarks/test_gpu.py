"""Tests that need a GPU: `pytest -m gpu`. Skipped, with the reason, where there is none.

Each backend that can run here is tested; which ones those are stands in the output of `sem-clip inspect`.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.dataset import load_dataset
from runtime import Predictor
from runtime.backends import Backend, obstacles, open_backend
from runtime.errors import BackendUnavailable
from runtime.frames import prepare
from runtime.host import Gpu, find_gpu
from runtime.manifest import load_bundle
from runtime.packages import child_environment
from runtime.recipe import FrameOptions, Recipe
from runtime.targets import GPU_BACKENDS

GPU, WHY = find_gpu()
SECOND, WHY_NO_SECOND = find_gpu(1)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPU is None, reason=f"needs a GPU: {WHY}")]

NAMES = GPU_BACKENDS
CALLS = 10_000
GROWTH_MB = 16.0
TOLERANCE = 1e-2


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with an engine of each installed product that builds for this GPU."""
    import shutil

    from export.artifacts.to_engine import Builder, EngineTarget, add_engine
    from export.errors import ExportError

    folder = Path(shutil.copytree(toy_bundle, tmp_path_factory.mktemp("gpu") / "bundle"))
    for product in ("tensorrt", "tensorrt-rtx"):
        try:
            add_engine(folder, Builder.find(EngineTarget(product, batch=(1, 8, 16))))
        except ExportError as exc:
            print(f"no {product} engine: {exc}")
    return folder


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Backend]:
    manifest, _ = load_bundle(bundle)
    why = obstacles(bundle, manifest)[request.param]
    if why:
        pytest.skip(why)
    try:
        opened = open_backend(request.param, bundle, manifest)
    except BackendUnavailable as exc:
        pytest.skip(str(exc))
    with opened:
        yield opened


@pytest.fixture(scope="module")
def recipe(bundle: Path) -> Recipe:
    return load_bundle(bundle)[1]


@pytest.fixture(scope="module")
def frames(bundle: Path, toy_frames: Path) -> NDArray[np.uint8]:
    manifest, options = load_bundle(bundle)[0], FrameOptions()
    samples = load_dataset(toy_frames).samples
    return np.stack([prepare(s.read(options), manifest.encoder, options, str(s.path)) for s in samples])


def free_mb(index: int) -> float:
    """Free memory of a GPU."""
    from runtime.backends.cuda_device import CudaDevice

    device = CudaDevice(index)
    with device.current():
        return device.memory()[0] / 1e6


def other(recipe: Recipe) -> Recipe:
    """A recipe with the classes in another order, and so with other answers."""
    order = [0, *range(len(recipe.classes) - 1, 0, -1)]
    swapped = {name: recipe.tensors[name][order] for name in ("text_cls", "head_weight", "head_bias")}
    return replace(recipe, tensors={**recipe.tensors, **swapped})


def test_answers_agree_with_the_cpu(backend: Backend, bundle: Path, recipe: Recipe, frames: NDArray[np.uint8]) -> None:
    with open_backend("cpu", bundle, load_bundle(bundle)[0]) as cpu:
        for asked in (recipe, other(recipe)):
            expected = cpu.run(frames, asked)
            for count in (1, 3, len(frames)):
                found = backend.run(frames[:count], asked)
                np.testing.assert_allclose(found.probabilities, expected.probabilities[:count], atol=TOLERANCE)
                np.testing.assert_allclose(found.defect_map, expected.defect_map[:count], atol=TOLERANCE)


def test_ten_thousand_calls_leave_memory_unchanged(backend: Backend, recipe: Recipe, frames: NDArray[np.uint8]) -> None:
    from runtime.host import resident_memory_mb

    second = other(recipe)
    backend.warm_up(recipe)

    def some(calls: int) -> tuple[float, float]:
        for call in range(calls):
            backend.run(frames[: 1 + call % 5], recipe if call % 100 else second)
        gc.collect()
        return free_mb(0), resident_memory_mb()

    free, resident = some(500)
    free_after, resident_after = some(CALLS)
    assert free - free_after < GROWTH_MB
    assert resident_after - resident < GROWTH_MB


def test_four_threads_get_right_answers_while_recipes_change(
    backend: Backend, recipe: Recipe, frames: NDArray[np.uint8]
) -> None:
    recipes = (recipe, other(recipe))
    expected = [backend.run(frames, asked) for asked in recipes]

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            which, count = int(rng.integers(2)), int(rng.integers(1, len(frames) + 1))
            found = backend.run(frames[:count], recipes[which])
            np.testing.assert_allclose(found.probabilities, expected[which].probabilities[:count], atol=TOLERANCE)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, seed) for seed in range(4)]:
            future.result()


def test_a_stream_gives_the_answers_of_single_calls(backend: Backend, bundle: Path, toy_frames: Path) -> None:
    paths = [str(sample.path) for sample in load_dataset(toy_frames).samples] * 3
    with Predictor(bundle, backend=backend, batch_size=4) as predictor:
        streamed = list(predictor.stream(paths))
        assert [answer.path for answer in streamed] == paths
        for path, answer in zip(paths[:5], streamed, strict=False):
            alone = predictor(path)
            assert answer.label == alone.label
            assert answer.score == pytest.approx(alone.score, abs=TOLERANCE)


def test_auto_takes_a_gpu(bundle: Path) -> None:
    with Predictor(bundle) as predictor:
        assert predictor.backend.name != "cpu", predictor.backend.why


def test_opening_and_closing_gives_the_memory_back(bundle: Path, recipe: Recipe) -> None:
    manifest, _ = load_bundle(bundle)
    names = [name for name, why in obstacles(bundle, manifest).items() if not why and name != "cpu"]
    free = []
    for _ in range(4):
        for name in names:
            with open_backend(name, bundle, manifest) as opened:
                opened.warm_up(recipe)
        gc.collect()
        free.append(free_mb(0))
    assert free[1] - free[-1] < GROWTH_MB


# ---- two GPUs --------------------------------------------------------------------------------------------------------

two_gpus = pytest.mark.skipif(SECOND is None, reason=f"needs two GPUs: {WHY_NO_SECOND}")


def memory_used_mb(*gpus: Gpu) -> list[float]:
    """As the driver counts it, over all processes."""
    return [gpu.memory / 1e6 - free_mb(gpu.index) for gpu in gpus]


@two_gpus
@pytest.mark.parametrize("name", NAMES)
def test_two_gpus_answer_at_once_as_one_does(
    bundle: Path, recipe: Recipe, frames: NDArray[np.uint8], name: str
) -> None:
    """From the same threads, which move from one GPU to the other."""
    assert GPU is not None
    assert SECOND is not None
    manifest, _ = load_bundle(bundle)
    if why := obstacles(bundle, manifest)[name]:
        pytest.skip(why)
    if GPU.name != SECOND.name and name != "cuda":
        pytest.skip(f"an engine for {GPU.name} does not run on {SECOND.name}")
    recipes = (recipe, other(recipe))
    with (
        open_backend(name, bundle, manifest, device=0) as first,
        open_backend(name, bundle, manifest, device=SECOND.uuid) as second,
    ):
        assert SECOND.label in second.description
        expected = [first.run(frames, asked) for asked in recipes]

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for turn in range(100):
                which, count = int(rng.integers(2)), int(rng.integers(1, len(frames) + 1))
                found = (first, second)[turn % 2].run(frames[:count], recipes[which])
                np.testing.assert_allclose(found.probabilities, expected[which].probabilities[:count], atol=TOLERANCE)
                np.testing.assert_allclose(found.defect_map, expected[which].defect_map[:count], atol=TOLERANCE)

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, seed) for seed in range(4)]:
                future.result()


@two_gpus
def test_a_predictor_on_the_second_gpu_takes_no_memory_of_the_first(bundle: Path, toy_frames: Path) -> None:
    """Not even a context of CUDA's, which takes hundreds of MB. In a process of its own: this one has them all."""
    code = """
import sys
from runtime import Predictor
with Predictor(sys.argv[1], device=1) as predictor:
    predictor.predict([sys.argv[2]] * 3)
    print("ready", flush=True)
    sys.stdin.read()
"""
    assert GPU is not None
    assert SECOND is not None
    frame = str(load_dataset(toy_frames).samples[0].path)
    before = memory_used_mb(GPU, SECOND)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(bundle), frame],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        grown = [after - used for after, used in zip(memory_used_mb(GPU, SECOND), before, strict=True)]
    finally:
        child.communicate("", timeout=60)
    assert grown[0] < GROWTH_MB
    assert grown[1] > GROWTH_MB
