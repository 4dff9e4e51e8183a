"""`sem-clip predict --engine ray`: the answers of `predict`, once each whatever dies; a second run completes them."""

from __future__ import annotations

import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import ray_programs
from commandline import errors_in, files_in, predict, program, write_frame

from runtime.parquet import read_rows

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
RUN = "sys.exit(predict(*sys.argv[2:]))"
DYING = """
class Dying(ray_data.Judge):
    def __call__(self, block):
        for number, table in enumerate(super().__call__(block)):
            {die}
            yield table
ray_data.Judge, ray_data.ROWS_TOGETHER = Dying, 8
"""


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Forty frames of the fake backend's three classes, one of them empty."""
    for number in range(40):
        write_frame(tmp_path / "frames" / f"{number:02}.png", number, defect=number % 3 == 1)
    (tmp_path / "frames" / "07.png").write_bytes(b"")
    return tmp_path / "frames"


def rows(place: Path) -> list[dict[str, Any]]:
    """All rows of a file or folder by their source, without what differs between runs."""
    files = [place] if place.is_file() else sorted(place.glob("*.parquet"))
    found = [row for file in files for row in read_rows(file)]
    return sorted(({**row, "timings_ms": None} for row in found), key=lambda row: row["source"])


def expected(bundle: Path, *paths: object, to: Path) -> list[dict[str, Any]]:
    """The rows of `predict --parquet`."""
    predict(bundle, *paths, "--parquet", to)
    return rows(to)


@pytest.mark.slow
def test_answers_equal_those_of_predict_and_a_second_run_adds_what_is_missing(
    fake_bundle: Path, frames: Path, tmp_path: Path
) -> None:
    out, wanted = tmp_path / "out", expected(fake_bundle, frames, to=tmp_path / "wanted.parquet")
    done = ray_programs.run(fake_bundle, RUN, frames / "01.png", frames / "07.png", "--parquet", out, "--workers", 1)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1:] == [
        "2 frames",
        "  good                0",
        "  bridge              1",
        "  hole                0",
        "  unknown             0",
        "  cannot decide       0",
        "  not read            1",
        f"  {frames / '07.png'}: is empty (0 bytes)",
    ]
    again = ray_programs.run(fake_bundle, RUN, frames, "--parquet", out, "--workers", 2)
    assert again.returncode == 1
    assert again.stderr.startswith(
        f"{out} holds the answers of 1 of these frames; 1 that were not read are tried again\nRay "
    )
    assert "39 frames\n" in again.stderr
    assert rows(out) == wanted


@pytest.mark.slow
def test_uris_and_parquet_files_of_bytes_give_the_answers_of_files(
    fake_bundle: Path, frames: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    files = sorted(frames.iterdir())
    table = pa.table({"path": [file.name for file in files], "bytes": [file.read_bytes() for file in files]})
    parquet.write_table(table, tmp_path / "packed.parquet", row_group_size=15)
    uri, out = frames.as_uri(), tmp_path / "out"
    done = ray_programs.run(fake_bundle, RUN, uri, tmp_path / "packed.parquet", "--parquet", out, "--workers", 1)
    assert done.returncode == 1
    found = rows(out)
    assert [row["source"] for row in found] == sorted([f"{uri}/{f.name}" for f in files] + [f.name for f in files])
    wanted = {Path(row["source"]).name: row for row in expected(fake_bundle, frames, to=tmp_path / "wanted.parquet")}
    assert found == [{**wanted[Path(row["source"]).name], "source": row["source"]} for row in found]


@pytest.mark.slow
def test_a_real_engine_answers_to_the_bit_as_in_one_process(toy_bundle: Path, toy_frames: Path, tmp_path: Path) -> None:
    out, one = tmp_path / "out", tmp_path / "one.parquet"
    words = ["--backend", "cpu", "--threads", 1]
    done = ray_programs.run(toy_bundle, RUN, toy_frames, *words, "--engine", "ray", "--parquet", out, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert program("predict", toy_bundle, toy_frames, *words, "--parquet", one).returncode == 0
    assert len(rows(one)) == 28
    assert rows(out) == rows(one)


@pytest.mark.slow
def test_a_dataset_of_the_caller_is_judged(fake_bundle: Path, frames: Path, tmp_path: Path) -> None:
    code = """
    import ray
    ray.init("local", num_cpus=3, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    frames = ray.data.read_binary_files(sys.argv[2], include_paths=True)
    answers = ray_data.judge(frames, sys.argv[1], backend="fake", features=True)
    rows = list(answers.iter_rows())
    print(sorted((os.path.basename(row["source"]), row["verdict"], len(row["features"] or ())) for row in rows))
    try:
        ray_data.judge(ray.data.range(1), sys.argv[1], backend="fake").take_all()
    except ray_command.PredictorError as exc:
        print(str(exc.cause).splitlines()[0])
    ray.shutdown()
    """
    done = ray_programs.run(fake_bundle, code, frames, words_of_ray=True)
    assert done.returncode == 0, done.stderr
    answered, refused = done.stdout.splitlines()
    wanted = expected(fake_bundle, frames, to=tmp_path / "wanted.parquet")
    found = [(Path(row["source"]).name, row["verdict"], 0 if row["error"] else 385) for row in wanted]
    assert answered == str(found)
    assert refused.startswith("the dataset has the columns id; frames need a column path")


@pytest.mark.slow
@pytest.mark.parametrize(
    "die",
    [
        pytest.param("if number and first(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)", id="one worker"),
        pytest.param(
            "if number and (first(sys.argv[2]) or first(sys.argv[2] + '2')): os.kill(os.getpid(), signal.SIGKILL)",
            id="all workers",
        ),
    ],
)
def test_workers_that_die_lose_no_frame_and_answer_none_twice(
    die: str, fake_bundle: Path, frames: Path, tmp_path: Path
) -> None:
    code = (
        DYING.format(die=die.replace("sys.argv[2]", repr(str(tmp_path / "died"))))
        + "\nsys.exit(predict(*sys.argv[2:]))"
    )
    out = tmp_path / "out"
    done = ray_programs.run(fake_bundle, code, frames, "--parquet", out, "--workers", 2)
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "died").exists()
    assert rows(out) == expected(fake_bundle, frames, to=tmp_path / "wanted.parquet")


@pytest.mark.slow
def test_a_node_that_dies_loses_no_frame_and_answers_none_twice(
    fake_bundle: Path, frames: Path, tmp_path: Path
) -> None:
    code = """
    import shutil, tempfile, threading
    from ray.cluster_utils import Cluster
    began, gone = sys.argv[2] + "/began", sys.argv[2] + "/gone"
    folder = tempfile.mkdtemp(prefix="scr", dir="/tmp")  # its sockets have long names
    cluster = Cluster(initialize_head=True, head_node_args={**small, "temp_dir": folder})
    lost = cluster.add_node(**small, resources={"lost": 1})

    class Dying(ray_data.Judge):
        def __call__(self, block):
            import ray
            there = ray.get_runtime_context().get_node_id() == node
            for number, table in enumerate(super().__call__(block)):
                if there and number and first(began):
                    wait_for(gone + "-never")
                if not there:
                    wait_for(gone)  # so that the other node has work when it dies
                yield table

    node = lost.node_id
    # Seven blocks, more than one worker takes ahead.
    ray_data.Judge, ray_data.ROWS_TOGETHER, ray_command.LEAST_ROWS = Dying, 2, 1

    def kill():
        wait_for(began)
        cluster.remove_node(lost, allow_graceful=False)
        Path(gone).touch()

    threading.Thread(target=kill, daemon=True).start()
    status = predict(*sys.argv[3:], "--address", cluster.address)
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(status)
    """
    out = tmp_path / "out"
    words = [frames, "--parquet", out, "--workers", 2, "--batch-size", 2]
    done = ray_programs.run(fake_bundle, code, tmp_path, *words)
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "gone").exists()
    assert rows(out) == expected(fake_bundle, frames, to=tmp_path / "wanted.parquet")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [("SIGKILL", -9), ("SIGINT", 130), ("SIGTERM", 143)])
def test_a_run_that_is_ended_leaves_no_process_and_is_continued(
    number: str, status: int, fake_bundle: Path, frames: Path, tmp_path: Path
) -> None:
    code = """
    class Waiting(ray_data.Judge):
        def __call__(self, block):
            yield from super().__call__(block)
            if not first(began):
                wait_for(began + "-never")

    began, *words = sys.argv[2:]
    ray_data.Judge, answer_folder.FILE_S = Waiting, -1.0
    sys.exit(predict(*words))
    """
    out = tmp_path / "out"
    words = [tmp_path / "began", frames, "--parquet", out, "--workers", 1]
    started = ray_programs.start(fake_bundle, code, *words, start_new_session=True)
    try:
        until = time.monotonic() + ray_programs.LIMIT_S
        while not (out / "part-000001.parquet").exists():
            assert time.monotonic() < until
            assert started.poll() is None
            time.sleep(0.1)
        if number == "SIGINT":  # as a terminal does, to all of them
            os.killpg(started.pid, signal.SIGINT)
        else:
            started.send_signal(getattr(signal, number))
        _, err = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == status
    assert "Traceback" not in err
    ray_programs.assert_all_ended(fake_bundle)
    before = rows(out)
    assert 0 < len(before) < 40
    again = ray_programs.run(fake_bundle, RUN, frames, "--parquet", out, "--workers", 1)
    read = sum(row["error"] is None for row in before)
    assert f"{out} holds the answers of {read} of these frames" in again.stderr
    assert rows(out) == expected(fake_bundle, frames, to=tmp_path / "wanted.parquet")


@pytest.mark.slow
def test_a_worker_that_cannot_judge_ends_the_run_with_its_reason(
    fake_bundle: Path, frames: Path, tmp_path: Path
) -> None:
    code = """
    from dataclasses import replace
    whole = ray_data.Judge

    class Missing(whole):
        def __init__(self, options, features):
            super().__init__(replace(options, bundle="/nowhere"), features)

    class Other(whole):
        def __init__(self, options, features):
            super().__init__(replace(options, digest="0" * 64), features)

    class Broken(whole):
        def __call__(self, block):
            from runtime import BackendError
            raise BackendError("the engine failed")
            yield

    class Poisoned(whole):
        def __call__(self, block):
            os.kill(os.getpid(), signal.SIGKILL)

    ray_data.MOST_RESTARTS = 2
    for ray_data.Judge in (Missing, Other, Broken, Poisoned):
        print(predict(*sys.argv[2:]), file=sys.stderr)
    """
    out = tmp_path / "out"
    done = ray_programs.run(fake_bundle, code, frames, "--parquet", out, "--workers", 1)
    missing, other, broken, poisoned = errors_in(done.stderr)
    assert missing.startswith("a worker on ")
    assert missing.endswith(": /nowhere: is not a bundle folder; build one with: sem-clip build --out FOLDER")
    assert other.endswith(
        f": {fake_bundle}: is another bundle than the one that this run began with: copy that one here, and run again"
    )
    assert broken == "the engine failed"
    assert poisoned.startswith("Ray gave up (ActorDiedError: ")
    assert files_in(out) == ["_sem_clip.json"]


@pytest.mark.slow
def test_on_one_machine_ray_is_closed_to_others_and_reports_nothing(
    fake_bundle: Path, frames: Path, tmp_path: Path
) -> None:
    code = """
    import socket, struct

    class Listing(ray_data.Judge):
        def __call__(self, block):
            Path(listing).write_text(os.environ["RAY_USAGE_STATS_ENABLED"] + " " + os.environ["RAY_AUTH_MODE"] + "\\n")
            sockets = {link for folder in Path("/proc").glob("[0-9]*/fd") for link in links(folder)}
            with open(listing, "a") as file:
                for table in ("/proc/net/tcp", "/proc/net/tcp6"):
                    for line in Path(table).read_text().splitlines()[1:]:
                        words = line.split()
                        if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                            file.write(words[1].rpartition(":")[0] + "\\n")
            yield from super().__call__(block)

    def links(folder):
        try:
            if mark not in (folder.parent / "environ").read_bytes():
                return []
            return [os.readlink(link) for link in folder.iterdir()]
        except OSError:
            return []

    mark, listing = ("SEM_CLIP_TEST_RUN=" + sys.argv[1]).encode(), sys.argv[2]
    ray_data.Judge = Listing
    sys.exit(predict(*sys.argv[3:]))
    """
    words = [tmp_path / "listing", frames, "--parquet", tmp_path / "out", "--workers", 1]
    assert ray_programs.run(fake_bundle, code, *words).returncode == 1
    first, *addresses = (tmp_path / "listing").read_text().splitlines()
    assert first == "0 token"
    assert len(addresses) > 3
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F"}
