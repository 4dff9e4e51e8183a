"""The worker that Ray starts, and what is asked of Ray. Runs of Ray itself: test_ray_command."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commandline import write_frame
from conftest import make_encoder, make_recipe

from runtime import BackendError, BackendUnavailable, BundleError, Predictor, PredictorError, RecipeError
from runtime.manifest import replace_recipe

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("runtime.parquet")
ray_data = pytest.importorskip("runtime.serving.ray_data")


def options_of(bundle: Path, **changes: Any) -> Any:
    return ray_data.worker_options(bundle, **{"backend": "fake", **changes})[0]


def judged_by(options: Any, block: Any, *, features: bool = False) -> list[dict[str, Any]]:
    """Rows of a worker in this process, without what differs between runs."""
    tables = list(ray_data.Judge(pickle.loads(pickle.dumps(options)), features)(block))
    for table in tables:
        parquet.check_schema(table.schema, "answers")
    return [without_times(row) for table in tables for row in table.to_pylist(maps_as_pydicts="strict")]


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "timings_ms": None}


@pytest.fixture
def block(tmp_path: Path) -> Any:
    """Seven frames by their paths, the third of them empty."""
    paths = [write_frame(tmp_path / f"{number}.png", number, defect=number % 2 == 1) for number in range(7)]
    paths[2].write_bytes(b"")
    return pa.table({"path": [str(path) for path in paths]})


@pytest.mark.parametrize("features", [False, True])
def test_a_worker_gives_the_rows_of_a_predictor_in_order(features: bool, fake_bundle: Path, block: Any) -> None:
    with Predictor(fake_bundle, backend="fake", threads=1) as predictor:
        results = list(predictor.stream(block.column("path").to_pylist()))
    wanted = [without_times(r.to_row(features=features) if r.ok else r.to_row()) for r in results]
    assert judged_by(options_of(fake_bundle), block, features=features) == wanted


def test_answers_are_handed_over_in_parts(fake_bundle: Path, block: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_data, "ROWS_TOGETHER", 3)
    tables = list(ray_data.Judge(options_of(fake_bundle), False)(block))
    assert [table.num_rows for table in tables] == [3, 3, 1]


def test_a_block_of_unreadable_frames_has_the_schema_too(fake_bundle: Path) -> None:
    rows = judged_by(options_of(fake_bundle), pa.table({"path": ["/none/a.png", "b.png"]}))
    assert [row["error"] for row in rows] == [
        "no such file",
        "is a relative path, which leads elsewhere on a worker: give the absolute path",
    ]


def test_a_recipe_of_the_caller_goes_to_the_workers(fake_bundle: Path, block: Any) -> None:
    recipe = make_recipe(defect_threshold=0.75)
    rows = judged_by(options_of(fake_bundle, recipe=recipe), block)
    assert {row["recipe_sha256"] for row in rows if row["error"] is None} == {recipe.sha256()}
    assert {row["defect_threshold"] for row in rows if row["error"] is None} == {0.75}


def test_frame_options_of_the_caller_go_to_the_workers(fake_bundle: Path, block: Any) -> None:
    rows = judged_by(options_of(fake_bundle, white_level=4095, pixel_size_nm=(2.0, 3.0)), block)
    found = [
        (row["white_level"], row["pixel_width_nm"], row["pixel_height_nm"]) for row in rows if row["error"] is None
    ]
    assert found == [(4095, 2.0, 3.0)] * 6


def test_a_worker_without_the_bundle_says_so_and_where_at_its_first_block(fake_bundle: Path, block: Any) -> None:
    worker = ray_data.Judge(replace(options_of(fake_bundle), bundle="/nowhere"), False)
    with pytest.raises(
        BundleError, match=r"a worker on .+: /nowhere: is not a bundle folder; build one with"
    ) as caught:
        list(worker(block))
    assert caught.value.faults == ("is not a bundle folder; build one with: sem-clip build --out FOLDER",)


def test_a_worker_refuses_another_bundle_than_the_drivers(fake_bundle: Path, block: Any) -> None:
    options = options_of(fake_bundle)
    replace_recipe(fake_bundle, make_recipe(defect_threshold=0.75))
    with pytest.raises(BundleError, match="is another bundle than the one that this run began with: copy that one"):
        list(ray_data.Judge(options, False)(block))


def test_a_worker_without_the_engine_names_its_machine(fake_bundle: Path, block: Any) -> None:
    worker = ray_data.Judge(replace(options_of(fake_bundle), backend="tensorrt"), False)
    with pytest.raises(BackendUnavailable, match=r"a worker on .+: "):
        list(worker(block))


def test_an_engine_that_fails_names_its_machine(fake_bundle: Path, block: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise BackendError("the engine failed")

    monkeypatch.setattr("runtime.backends.fake.FakeBackend.run", fail)
    worker = ray_data.Judge(options_of(fake_bundle), False)
    with pytest.raises(BackendError, match=r"a worker on .+: the engine failed"):
        list(worker(block))


def test_a_dataset_without_frames_is_refused(fake_bundle: Path) -> None:
    with pytest.raises(PredictorError, match="the dataset has the columns number; frames need a column path"):
        judged_by(options_of(fake_bundle), pa.table({"number": [1]}))


def test_the_digest_follows_every_file_of_the_bundle(fake_bundle: Path) -> None:
    before = options_of(fake_bundle)
    assert options_of(fake_bundle) == before
    replace_recipe(fake_bundle, make_recipe(defect_threshold=0.75))
    assert options_of(fake_bundle).digest != before.digest


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bundle": "/nowhere"}, BundleError, "is not a bundle folder"),
        ({"recipe": make_recipe(encoder=make_encoder(id="ef" * 32))}, RecipeError, "encoder"),
        ({"backend": "magic"}, BackendUnavailable, 'there is no backend "magic"'),
        ({"threads": 0}, ValueError, "threads must lie in"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"workers": 0}, ValueError, "workers must be at least 1"),
    ],
)
def test_faults_are_found_before_any_worker_starts(
    changes: dict[str, Any], error: type[Exception], message: str, fake_bundle: Path
) -> None:
    with pytest.raises(error, match=message):
        ray_data.judge(object(), **{"bundle": fake_bundle, "backend": "fake", **changes})


def ray_of(cpus: int, gpus: int = 0) -> Any:
    """A Ray that runs on a cluster with so many CPUs; none: it does not run yet."""
    return SimpleNamespace(
        data=SimpleNamespace(ActorPoolStrategy=dict),
        is_initialized=lambda: bool(cpus),
        cluster_resources=lambda: {"CPU": float(cpus), "GPU": float(gpus)},
    )


@pytest.mark.parametrize(("cpus", "fault"), [(0, ""), (7, ""), (6, "3 workers of 2 threads take 6 CPUs, .* has 6: ")])
def test_workers_leave_a_cpu_to_what_reads_the_dataset(
    cpus: int, fault: str, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_data, "import_ray", lambda: ray_of(cpus))
    dataset = SimpleNamespace(map_batches=lambda *_, **__: "answers")
    with pytest.raises(PredictorError, match=fault) if fault else nullcontext():
        assert ray_data.judge(dataset, fake_bundle, backend="fake", workers=3, threads=2) == "answers"


def test_auto_is_refused_where_ray_would_hide_its_gpus(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_data, "import_ray", lambda: ray_of(cpus=7, gpus=1))
    with pytest.raises(BackendUnavailable, match="name one of tensorrt, tensorrt-rtx, cuda, for a GPU each, or cpu"):
        ray_data.judge(SimpleNamespace(), fake_bundle)


@pytest.mark.parametrize(("backend", "gpus"), [("fake", 0), ("cuda", 1), ("tensorrt", 1), ("cpu", 0)])
def test_each_worker_has_its_threads_and_its_gpu(
    backend: str, gpus: int, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    stub = ray_of(cpus=7)
    monkeypatch.setattr(ray_data, "import_ray", lambda: stub)
    dataset = SimpleNamespace(map_batches=lambda kind, **kwargs: asked.update(kwargs, kind=kind))
    ray_data.judge(dataset, fake_bundle, backend=backend, workers=3, threads=2)
    assert (asked["kind"], asked["compute"]["size"]) == (ray_data.Judge, 3)
    assert (asked["num_cpus"], asked["num_gpus"]) == (2, gpus)
    assert asked["max_restarts"] == ray_data.MOST_RESTARTS
