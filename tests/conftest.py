"""Shared fixtures: a bundle without an engine (fast), and one really taught and exported (once a run)."""

from __future__ import annotations

import ast
import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray
from places import SHARED

from runtime import inflate
from runtime.agreement import joined
from runtime.backends import Backend, Outputs
from runtime.golden import Golden, judge, tensors_digest, variants, verdict_of
from runtime.manifest import Artifact, Encoder, GoldenFile, Manifest, load_bundle
from runtime.operating_point import OperatingPoint
from runtime.recipe import MEMORY_ROWS, SCALARS, FrameOptions, Recipe

CLASSES = ("good", "bridge", "hole")
BEYOND_RUNTIME = {"export", "benchmarks", "torch", "onnx", "scipy", "sklearn", "matplotlib"}
BEYOND_RUNTIME |= {"fake_gpu", "simulated_engine"}
"""Where torch is not installed, as under `make lowest`, a file of tests that imports one of these is left out, and a
test whose fixture teaches is skipped: what is left is tests of the runtime and of calibration."""


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what cannot be imported without torch."""
    if collection_path.suffix != ".py" or find_spec("torch") is not None:
        return None
    tree = ast.parse(collection_path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return True if {name.split(".")[0] for name in names} & BEYOND_RUNTIME else None


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands that teach keep encoded supports in the user's cache folder; those of tests do not belong there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def make_encoder(**changes: Any) -> Encoder:
    """The record of a 64 px encoder with 4 x 4 patches."""
    encoder = Encoder(
        id="ab" * 32,
        architecture="toy",
        weights="random, seed 0",
        trained=False,
        checkpoint_sha256="cd" * 32,
        image_size=(64, 64),
        input_size=(64, 64),
        patch_size=(16, 16),
        grid=(4, 4),
        layers=4,
        heads=2,
        levels=(1, 2, 3, 4),
        width=32,
        text_dim=24,
        features=385,
        redundancy="cls_weight",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        value_path=True,
    )
    return replace(encoder, **changes)


def make_recipe(classes: tuple[str, ...] = CLASSES, encoder: Encoder | None = None, **changes: Any) -> Recipe:
    """A recipe of random tensors that fits `encoder` (the one of make_encoder by default) and uses all that it has.

    changes: of the recipe's fields or of its operating point's.
    """
    encoder = encoder or make_encoder()
    rng = np.random.default_rng(0)
    levels, width, dim = len(encoder.levels), encoder.width, encoder.text_dim
    shapes = {
        "text_seg": (2, dim),
        "text_cls": (len(classes), dim),
        "transform_weight": (levels, width, dim),
        "transform_bias": (levels, dim),
        "memory": (levels, MEMORY_ROWS, width),
        "head_weight": (len(classes), encoder.features),
        "head_bias": (len(classes),),
    }
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("text_seg", "text_cls"):
        tensors[name] /= np.linalg.norm(tensors[name], axis=1, keepdims=True)
    tensors["memory"] /= np.linalg.norm(tensors["memory"], axis=2, keepdims=True)
    tensors["memory_scale"] = np.tile(np.array([0.5, 0.1], np.float32), (levels, 1))
    tensors["scalars"] = np.array([0.8, float(encoder.value_path), 0.3, 10.0, 10.0, 10.0], np.float32)
    point = OperatingPoint.taught(classes, 0.5, 0.5)
    moved = {name: changes.pop(name) for name in list(changes) if name in OperatingPoint.__dataclass_fields__}
    values: dict[str, Any] = {
        "classes": classes,
        "tensors": tensors,
        "support_features": rng.standard_normal((4, encoder.features)).astype(np.float32),
        "encoder_id": encoder.id,
        "operating_point": replace(point, **moved),
        "text": "anchors",
        "frame": FrameOptions(),
        "teaching": {"seed": 0},
    }
    return Recipe(**{**values, **changes})


def with_scalars(recipe: Recipe, **changes: float) -> Recipe:
    """The recipe with some of its scalars changed."""
    scalars = dict(zip(SCALARS, recipe.tensors["scalars"].tolist(), strict=True)) | changes
    return replace(recipe, tensors={**recipe.tensors, "scalars": np.array(list(scalars.values()), np.float32)})


class LinearBackend(Backend):
    """An engine of a few lines of numpy, whose every output follows frames and recipe."""

    name = "linear"
    description = "linear backend: numpy"
    max_batch = 8

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        rows, columns = encoder.grid
        self._spread = np.random.default_rng(7).standard_normal((rows * columns, encoder.features)).astype(np.float32)

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        """As `Backend.run`."""
        answers = [self._answer(frame, recipe) for frame in frames]
        return Outputs(*(np.stack(part).astype(np.float32) for part in zip(*answers, strict=True)))

    def _answer(self, frame: NDArray[np.uint8], recipe: Recipe) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        (rows, columns), (height, width) = self.encoder.grid, frame.shape
        tiles = frame.reshape(rows, height // rows, columns, width // columns).mean((1, 3)) / 255
        features = (tiles.ravel() - 0.4) @ self._spread
        logits = 0.05 * recipe.tensors["head_weight"] @ features + recipe.tensors["head_bias"]
        powers = np.exp(logits - logits.max())
        good, defect = recipe.tensors["text_seg"][:, 0]
        return powers / powers.sum(), 1 / (1 + np.exp(-20 * (defect - good) * (tiles - 0.5))), features


def make_golden(backend: Backend, encoder: Encoder, recipe: Recipe, count: int = 11, **changes: Any) -> Golden:
    """Golden frames, bright and dark in places, with the answers of a backend."""
    blocks = np.random.default_rng(3).integers(0, 256, (count, *encoder.grid))
    frames = np.kron(blocks, np.ones((1, 16, 16))).astype(np.uint8)
    answers = joined([backend.run(frames[i : i + 1], recipe) for i in range(count)])
    few = frames[:4]
    golden = Golden(
        frames=frames,
        about=("made",) * count,
        source="frames",
        reference="a test",
        answers=answers,
        others={name: backend.run(few, other) for name, other in variants(recipe).items()},
        tolerance={"fp32": 1e-4, "fp16": 1e-2, "int8": 0.2},
        verdicts=tuple(verdict_of(prediction) for prediction in judge(encoder, 4.0, recipe, answers)),
        encoder_id=encoder.id,
        recipe_sha256=hashlib.sha256(recipe.to_bytes()).hexdigest(),
        tensors_sha256=tensors_digest(recipe),
    )
    return replace(golden, **changes)


def put_golden(folder: Path, content: bytes) -> None:
    """Make `content` the golden file of a bundle, and the manifest say so."""
    (folder / "golden.safetensors").write_bytes(content)
    manifest = load_bundle(folder)[0]
    golden = GoldenFile("golden.safetensors", hashlib.sha256(content).hexdigest())
    (folder / "manifest.json").write_text(replace(manifest, golden=golden).to_json(), encoding="utf-8")


def write_bundle(folder: Path, *, encoder: Encoder | None = None, recipe: Recipe | None = None) -> Path:
    """A bundle whose ONNX file is not one: enough for the fake backend and for everything above the engines."""
    encoder = encoder or make_encoder()
    recipe = recipe or make_recipe(encoder=encoder)
    folder.mkdir(parents=True, exist_ok=True)
    onnx = b"\x12\x0dno real graph"  # a message of Protocol Buffers that names its producer and holds nothing else
    (folder / "model.onnx").write_bytes(onnx)
    (folder / "recipe.safetensors").write_bytes(recipe.to_bytes())
    manifest = Manifest(
        encoder=encoder,
        artifacts=(
            Artifact(
                "model.onnx", "onnx", "fp32", hashlib.sha256(onnx).hexdigest(), len(onnx), {"Attention": 8}, {}, {}
            ),
        ),
        recipe_file="recipe.safetensors",
        recipe_sha256=hashlib.sha256(recipe.to_bytes()).hexdigest(),
        smoothing_px=4.0,
        tools={"python": "3"},
        notes=("made for tests",),
    )
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


@pytest.fixture
def fake_bundle(tmp_path: Path) -> Path:
    """A bundle folder for `Predictor(fake_bundle, backend="fake")`."""
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def golden_bundle(fake_bundle: Path) -> Path:
    """`fake_bundle` with golden frames, whose answers are those of LinearBackend."""
    manifest, recipe = load_bundle(fake_bundle)
    golden = make_golden(LinearBackend(manifest.encoder), manifest.encoder, recipe)
    put_golden(fake_bundle, golden.to_bytes())
    return fake_bundle


@pytest.fixture(params=["isal", "zlib"])
def inflating(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What inflates PNG and deflated TIFF frames in this test: ISA-L, then zlib as where isal is not installed."""
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr(inflate, "_igzip", None)
        for name in ("adler32", "crc32"):
            monkeypatch.setattr(inflate, name, getattr(zlib, name))
    library: str = request.param
    return library


@pytest.fixture
def threads_left() -> Callable[[], list[str]]:
    """Names of the runtime's threads that were started in this test and still run."""
    before = set(threading.enumerate())
    return lambda: [t.name for t in threading.enumerate() if t not in before and t.name.startswith("sem-clip")]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that all processes of a test run read: the first of them makes it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name.replace('/', '-')}.done"
    with FileLock(done.with_suffix(".lock")):
        if not done.exists():
            folder.parent.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def toy_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of generated frames, 4 of each of 7 classes, 96 x 96. Do not change it."""
    pytest.importorskip("torch")
    from export.synthetic import write_dataset

    return made_once(tmp_path_factory, "data/frames", lambda to: write_dataset(to, per_class=4, size=(96, 96), seed=1))


@pytest.fixture(scope="session")
def toy_bundle(toy_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle taught and exported by the main job: the toy encoder, 7 classes, 2 shots. Do not change it.

    Its random weights align no text, so its graphs leave the V path out.
    """
    pytest.importorskip("torch")
    from runtime.cli import main

    def build(to: Path) -> None:
        words = ["build", "--arch", "toy", "--random-weights", "--data", str(toy_frames), "--shots", "2"]
        assert main([*words, "--out", str(to)]) == 0

    return made_once(tmp_path_factory, "toy/bundle", build)


@pytest.fixture(scope="session")
def dual_bundle(toy_bundle: Path, toy_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with the V path in its graphs: its recipe gives that path half of the map."""
    from calibration.dataset import load_dataset
    from export.model.checkpoint import load_model
    from export.model.graph import SemClipGraph
    from export.progress import Stages
    from export.teach import build_bundle, parity_samples

    def build(to: Path) -> None:
        model, samples = load_model("toy", random_seed=0), parity_samples(load_dataset(toy_frames))
        recipe = with_scalars(load_bundle(toy_bundle)[1], lambda_v=1.0)
        build_bundle(model, SemClipGraph(model.encoder()), recipe, samples, to, Stages())

    return made_once(tmp_path_factory, "dual/bundle", build)


@pytest.fixture(params=["toy_bundle", "dual_bundle"])
def either_bundle(request: pytest.FixtureRequest) -> Path:
    """A bundle without the V path, then one with it."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real frames and weights beside the project; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real frames and weights is not beside the project")
    return SHARED
