"""What `predict --engine ray` makes of what Ray gives and of what a cluster has, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commandline import errors_in, sem_clip, write_frame

from runtime import BackendError, BundleError

pa = pytest.importorskip("pyarrow")
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
ray_command = pytest.importorskip("runtime.serving.ray_command")
Capture = pytest.CaptureFixture[str]
Given = Callable[[list[Any]], Iterator[Any]]


class RayError(Exception):
    """As Ray's, with what a worker raised."""

    def __init__(self, text: str, cause: Exception | None = None) -> None:
        self.cause = cause
        super().__init__(text)


class RayTaskError(RayError):
    """An error of the worker's own code."""


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a dataset in Ray's place: a function of the tables that the worker answers. cpus: of each machine."""

    def put(given: Given, cpus: tuple[int, ...] = (8,), gpus: int = 0) -> None:
        nodes = [{"Alive": True, "Resources": {"CPU": count, "GPU": gpus}} for count in cpus]
        ray = SimpleNamespace(
            __version__="0",
            data=SimpleNamespace(from_arrow=list),
            exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError),
            nodes=lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64, "GPU": 8}}],
            cluster_resources=lambda: {"CPU": float(sum(cpus)), "GPU": float(gpus)},
        )

        @contextmanager
        def session(*_: object) -> Iterator[Any]:
            yield ray

        def judged(blocks: list[Any], options: Any, *, workers: int, features: bool) -> Any:
            from runtime.serving.ray_data import Judge

            worker = Judge(options, features)
            tables = [table for block in blocks for table in worker(block)]
            return SimpleNamespace(iter_batches=lambda **_: given(tables))

        monkeypatch.setattr(ray_command, "ray_session", session)
        monkeypatch.setattr(ray_command, "judged", judged)

    return put


@pytest.fixture
def words(fake_bundle: Path, tmp_path: Path) -> list[object]:
    """A command on forty frames."""
    for number in range(40):
        write_frame(tmp_path / "frames" / f"{number:02}.png", number)
    out = ["--engine", "ray", "--backend", "fake", "--parquet", tmp_path / "out"]
    return ["predict", fake_bundle, tmp_path / "frames", *out]


def test_all_answers_are_counted(answering: Any, words: list[object], capsys: Capture) -> None:
    answering(iter)
    status, err = sem_clip(capsys, *words, "--address", "auto")
    assert status == 0
    assert err.splitlines()[:3] == [
        "Ray 0; workers: 3; backend: fake; threads: 1",
        "40 frames",
        "  good               40",
    ]


def test_a_frame_without_an_answer_is_an_error_and_judged_by_the_next_run(
    answering: Any, words: list[object], capsys: Capture
) -> None:
    answering(lambda tables: iter(tables[1:]))
    status, err = sem_clip(capsys, *words)
    assert status == 2
    assert errors_in(err) == ["16 frames got no answer: run the same command again, which judges them alone"]
    answering(iter)
    status, err = sem_clip(capsys, *words)
    assert status == 0
    assert "holds the answers of 24 of these frames\n" in err


def test_answers_that_come_twice_are_an_error(answering: Any, words: list[object], capsys: Capture) -> None:
    answering(lambda tables: iter([*tables, tables[0]]))
    status, err = sem_clip(capsys, *words)
    assert (status, errors_in(err)) == (2, ["Ray gave 56 answers to 40 frames: judge them into another folder"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RayTaskError("traceback", BundleError("a worker on vm: b\nFailed to apply UDF transform", "is gone")),
            "a worker on vm: b",
        ),
        (RayTaskError("traceback", BackendError("it failed\nFailed to apply UDF after 1/1")), "it failed"),
        (
            RayError("The actor died.\n\n  many words\n  by signal 9"),
            "Ray gave up (RayError: The actor died. ... by signal 9). ",
        ),
    ],
)
def test_what_ray_raises_is_told_in_own_words_and_answers_before_it_are_kept(
    error: Exception, message: str, answering: Any, words: list[object], capsys: Capture
) -> None:
    def given(tables: list[Any]) -> Iterator[Any]:
        yield tables[0]
        raise error

    answering(given)
    status, err = sem_clip(capsys, *words)
    assert status == 2
    assert errors_in(err)[0].startswith(message)
    assert "Failed to apply" not in err
    answering(iter)
    assert "holds the answers of 16 of these frames\n" in sem_clip(capsys, *words)[1]


def test_a_bug_in_a_worker_keeps_its_traceback(answering: Any, words: list[object], capsys: Capture) -> None:
    def given(tables: list[Any]) -> Iterator[Any]:
        raise RayTaskError("traceback", ZeroDivisionError())
        yield

    answering(given)
    with pytest.raises(RayTaskError):
        sem_clip(capsys, *words)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--threads", "9"], "no machine of the cluster has 9 CPUs for a worker: lower --threads"),
        (["--backend", "cuda"], "no machine of the cluster has a GPU for the backend cuda"),
    ],
)
def test_a_cluster_without_room_for_a_worker_is_an_error(
    more: list[str], message: str, answering: Any, words: list[object], capsys: Capture
) -> None:
    answering(iter, cpus=(8, 4))
    status, err = sem_clip(capsys, *words, "--address", "auto", *more)
    assert (status, errors_in(err)) == (2, [message])


def test_auto_is_refused_where_ray_would_hide_its_gpus(answering: Any, words: list[object], capsys: Capture) -> None:
    answering(iter, gpus=2)
    status, err = sem_clip(capsys, *words, "--backend", "auto")
    assert status == 2
    assert errors_in(err)[0].startswith('backend "auto" cannot choose where Ray has GPUs')


@pytest.mark.parametrize(("frames", "workers", "batch", "rows"), [(40, 2, 8, 16), (10**6, 4, 8, 512), (400, 2, 30, 60)])
def test_blocks_are_of_whole_batches(frames: int, workers: int, batch: int, rows: int) -> None:
    assert ray_command._rows_of_a_block(frames, workers, batch) == rows


@pytest.mark.parametrize(
    ("backend", "there", "workers"),
    [
        ("cpu", {"CPU": 8.0, "GPU": 2.0}, 4),
        ("cuda", {"CPU": 8.0, "GPU": 2.0}, 2),
        ("cuda", {"CPU": 8.0, "GPU": 9.0}, 4),
    ],
)
def test_as_many_workers_as_there_are_cpus_and_gpus_for(backend: str, there: dict[str, float], workers: int) -> None:
    ray = SimpleNamespace(cluster_resources=lambda: there)
    assert ray_command._workers(ray, SimpleNamespace(backend=backend, threads=2), "auto") == workers
