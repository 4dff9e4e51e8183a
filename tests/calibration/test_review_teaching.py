"""Teaching again from the review page, the recipes that came of it, and judging again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")

from conftest import make_recipe
from review_pages import Desk, make_store, opened, paint, six_frames

from calibration.corrections import default_path
from calibration.review import workshop
from runtime.manifest import load_bundle
from runtime.recipe import Recipe
from runtime.recipe_history import accept
from runtime.verdict_store import Query

REPORT = {"frames": 4, "before": {"accuracy": {"value": 0.5}}, "after": {"accuracy": {"value": 0.75}}}
TEACH = """
import json, pathlib, shutil, sys
words = sys.argv[1:]
print("encoding <b>supports</b>", flush=True)
print("words:", json.dumps(words), file=sys.stderr, flush=True)
out = pathlib.Path(words[words.index("--out") + 1])
shutil.copy({candidate!r}, out)
pathlib.Path(words[words.index("--json") + 1]).write_text(json.dumps(dict(judged={report!r}, warning="few")))
"""


@pytest.fixture
def desk(tmp_path: Path, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A page that can teach: torch counts as there, and a script stands in for `sem-clip teach`."""
    monkeypatch.setattr(workshop, "find_spec", lambda name: object())
    make_recipe(defect_threshold=0.25).save(tmp_path / "candidate.safetensors")
    script(monkeypatch, TEACH.format(candidate=str(tmp_path / "candidate.safetensors"), report=REPORT))
    store = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames"))
    with opened(store, fake_bundle, tmp_path / "frames") as page:
        yield page


def script(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(workshop, "child_command", lambda _, *words: [sys.executable, "-c", code, *words])


def ended(desk: Desk) -> dict[str, Any]:
    """The job, once it runs no more."""
    until = time.monotonic() + 60
    while (job := desk.get("/api/teach").json())["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.02)
    return job


def taught(desk: Desk) -> dict[str, Any]:
    assert desk.correct(2, "hole").status == 200
    assert desk.post("/api/teach", {"note": "lot 7"}).json() == {"job": 1}
    return ended(desk)


def test_teaching_needs_bundle_data_and_torch(
    tmp_path: Path, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "frames"))
    with opened(store, fake_bundle) as page:
        facts = page.get("/api/facts").json()
        assert facts["can_teach"] is False
        assert "--data DIR" in facts["why_not"]
        page.correct(2, "hole")
        assert page.post("/api/teach", {"note": ""}).status == 409
    monkeypatch.setattr(workshop, "find_spec", lambda name: None)
    with opened(store, fake_bundle, tmp_path / "frames") as page:
        assert 'pip install "sem-clip[export]"' in page.get("/api/facts").json()["why_not"]


def test_teaching_without_corrections_is_refused(desk: Desk) -> None:
    reply = desk.post("/api/teach", {"note": ""})
    assert reply.status == 409
    assert "nothing is corrected" in reply.json()["error"]


def test_a_candidate_waits_and_the_bundle_keeps_its_recipe(desk: Desk, fake_bundle: Path) -> None:
    before = load_bundle(fake_bundle)[1].sha256()
    job = taught(desk)
    assert (job["state"], job["what"], job["before_after"]) == ("done", "teach", REPORT)
    assert job["warning"] == "few"
    assert job["lines"][0] == "encoding <b>supports</b>"
    words = json.loads(job["lines"][1].removeprefix("words: "))
    assert words[:3] == ["teach", str(fake_bundle), "--data"]
    assert words[words.index("--corrections") + 1] == str(desk.log.path)
    assert load_bundle(fake_bundle)[1].sha256() == before
    assert Recipe.load(words[words.index("--out") + 1]).operating_point.defect_threshold == 0.25


def test_accepting_changes_the_bundle_and_keeps_a_history_to_go_back(desk: Desk, fake_bundle: Path) -> None:
    before = load_bundle(fake_bundle)[1].sha256()
    taught(desk)
    assert desk.post("/api/teach/accept", {"note": ""}).status == 200
    assert load_bundle(fake_bundle)[1].operating_point.defect_threshold == 0.25
    assert desk.get("/api/facts").json()["operating_point"]["defect_threshold"] == 0.25
    assert desk.get("/api/teach").json()["state"] == "idle"
    assert not list(desk.log.path.parent.glob("*.taught.*"))
    recipes = desk.get("/api/recipes").json()["recipes"]
    assert [(one["note"], one["current"]) for one in recipes] == [("", False), ("lot 7", True)]
    assert desk.post("/api/recipes/back", {"number": 1}).status == 200
    assert load_bundle(fake_bundle)[1].sha256() == before
    assert [one["current"] for one in desk.get("/api/recipes").json()["recipes"]] == [False, False, True]
    for number in (0, 9, "1", True, None):
        assert desk.post("/api/recipes/back", {"number": number}).status in (400, 409)


def test_a_candidate_can_be_discarded_and_accepted_once(desk: Desk, fake_bundle: Path) -> None:
    for path in ("/api/teach/accept", "/api/teach/discard"):
        assert desk.post(path, {}).status == 409
    before = load_bundle(fake_bundle)[1].sha256()
    taught(desk)
    assert desk.post("/api/teach/discard", {}).status == 200
    assert desk.post("/api/teach/accept", {}).status == 409
    assert not list(desk.log.path.parent.glob("*.taught.*"))
    assert load_bundle(fake_bundle)[1].sha256() == before


def test_the_recipe_stays_while_a_candidate_that_follows_it_waits(desk: Desk, fake_bundle: Path) -> None:
    before = accept(fake_bundle, make_recipe(defect_threshold=0.75), "by the command").sha256
    taught(desk)
    for path, body in (("/api/judge", {}), ("/api/recipes/back", {"number": 1})):
        reply = desk.post(path, body)
        assert (reply.status, reply.json()["error"]) == (409, "a candidate waits: accept or discard it first")
    assert load_bundle(fake_bundle)[1].sha256() == before
    assert desk.post("/api/teach/discard", {}).status == 200
    assert desk.post("/api/recipes/back", {"number": 1}).status == 200


def test_teaching_that_fails_says_how(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "import sys; print('error: no weights', file=sys.stderr); sys.exit(2)")
    job = taught(desk)
    assert job["state"] == "failed"
    assert job["lines"] == ["error: no weights", "error: teaching ended with status 2"]
    assert desk.post("/api/teach/accept", {}).status == 409


def test_a_failure_leaves_no_candidate_of_before(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    taught(desk)
    script(monkeypatch, "pass")
    assert desk.post("/api/teach", {"note": ""}).status == 200
    assert ended(desk)["state"] == "failed"
    assert desk.post("/api/teach/accept", {}).status == 409


def test_one_job_runs_at_a_time_and_ends_with_the_server(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "import time; print('long', flush=True); time.sleep(600)")
    desk.correct(2, "hole")
    assert desk.post("/api/teach", {"note": ""}).status == 200
    for path, body in (("/api/teach", {"note": ""}), ("/api/judge", {}), ("/api/recipes/back", {"number": 1})):
        reply = desk.post(path, body)
        assert reply.status == 409, path
        assert "a job is running" in reply.json()["error"]
    until = time.monotonic() + 30
    while not desk.get("/api/teach").json()["lines"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    desk.workshop.close()
    assert ended(desk)["state"] == "failed"


def test_long_lines_are_cut_and_old_ones_dropped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    script(
        monkeypatch, "print('x' * 100_000); print(*range(1000), sep='\\n'); print(chr(27) + '[2J'); raise SystemExit(1)"
    )
    lines = taught(desk)["lines"]
    assert len(lines) == workshop.MOST_LINES
    assert lines[-3] == "999"
    assert max(map(len, lines)) <= 2000


def test_judging_again_adds_answers_and_the_verdict_changes(desk: Desk) -> None:
    assert {entry.verdict for entry in desk.store.entries(Query())} == {"good", "bridge", "hole"}
    make_recipe(defect_threshold=1.0).save(desk.log.path.parent / "candidate.safetensors")
    taught(desk)
    assert desk.post("/api/teach/accept", {"note": "all good"}).status == 200
    before = desk.get("/api/facts").json()["changed"]
    assert desk.post("/api/judge", {}).status == 200
    job = ended(desk)
    assert (job["what"], job["state"]) == ("judge", "done"), job
    assert "6 frames judged, 0 not read; 4 verdicts changed" in job["lines"][-1]
    facts = desk.get("/api/facts").json()
    assert facts["changed"] > before
    assert (facts["verdicts"], facts["frames"], facts["corrected"]) == ({"good": 6}, 6, 1)
    assert desk.store.entry(2).verdict == "bridge"  # the old answer stays


def test_judging_keeps_the_size_of_a_pixel_and_says_what_was_not_read(tmp_path: Path, fake_bundle: Path) -> None:
    from dataclasses import replace

    frames = [paint(tmp_path / f"{number}.png", number, defect=True) for number in (1, 2)]
    store = make_store(
        tmp_path, fake_bundle, frames, change=lambda _, result: replace(result, pixel_size_nm=(2.0, 3.0))
    )
    frames[1].unlink()
    with opened(store, fake_bundle) as page:
        assert page.post("/api/judge", {}).status == 200
        job = ended(page)
        assert "1 frames judged, 1 not read" in job["lines"][-1], job
        first, second = page.store.entries(Query())
        assert page.store.result(first.id).pixel_size_nm == (2.0, 3.0)
        assert first.id > 2
        assert "no such file" in (second.error or "")


def test_frames_of_several_white_levels_are_not_judged_by_one(tmp_path: Path, fake_bundle: Path) -> None:
    from dataclasses import replace

    from runtime.recipe import FrameOptions

    frames = [paint(tmp_path / f"{number}.png", number, defect=True) for number in (1, 2)]
    levels = [FrameOptions(white_level=4095), FrameOptions()]
    store = make_store(
        tmp_path, fake_bundle, frames, change=lambda index, result: replace(result, frame_options=levels[index])
    )
    with opened(store, fake_bundle) as page:
        assert page.post("/api/judge", {}).status == 200
        job = ended(page)
        assert job["state"] == "failed"
        assert "several white levels (4095, 65535)" in job["lines"][-1]


def test_a_process_that_began_while_the_server_ends_is_ended_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "import time; time.sleep(600)")
    desk.workshop.close()
    assert desk.correct(2, "hole").status == 200
    assert desk.post("/api/teach", {"note": ""}).status == 200
    assert ended(desk)["state"] == "failed"


def test_frames_are_judged_again_by_the_recipe_that_the_bundle_holds_by_now(desk: Desk, fake_bundle: Path) -> None:
    accept(fake_bundle, make_recipe(defect_threshold=0.25), "by the command")
    assert desk.post("/api/judge", {}).status == 200
    assert ended(desk)["state"] == "done"
    assert desk.store.runs()[-1].recipe_sha256 == load_bundle(fake_bundle)[1].sha256()


def left_behind(store: Path, old: str, new: Recipe) -> Path:
    """A candidate beside the corrections of a store, as a server that was killed leaves it."""
    beside = default_path(store)
    new.save(beside.with_suffix(".taught.safetensors"))
    document = {"old_recipe": old, "new_recipe": new.sha256(), "judged": REPORT}
    beside.with_suffix(".taught.json").write_text(json.dumps(document))
    return beside.with_suffix(".taught.safetensors")


def test_a_candidate_of_an_earlier_run_is_offered(tmp_path: Path, fake_bundle: Path) -> None:
    store, new = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "f")), make_recipe(defect_threshold=0.25)
    file = left_behind(store, load_bundle(fake_bundle)[1].sha256(), new)
    with opened(store, fake_bundle, tmp_path / "f") as page:
        job = page.get("/api/teach").json()
        assert (job["what"], job["state"], job["before_after"], job["recipe"]) == ("teach", "done", REPORT, file.name)
        assert "earlier run" in job["lines"][0]
        assert page.post("/api/teach/accept", {"note": ""}).status == 200
    assert load_bundle(fake_bundle)[1].sha256() == new.sha256()
    assert not file.exists()


@pytest.mark.parametrize("old", ["0" * 64, None])
def test_a_candidate_that_follows_another_recipe_is_named_and_not_offered(
    old: Any, tmp_path: Path, fake_bundle: Path
) -> None:
    store = make_store(tmp_path, fake_bundle, six_frames(tmp_path / "f"))
    file = left_behind(store, old, make_recipe(defect_threshold=0.25))
    with opened(store, fake_bundle, tmp_path / "f") as page:
        job = page.get("/api/teach").json()
        assert job["state"] == "idle"
        assert file.name in job["lines"][0]
        assert "not offered" in job["lines"][1]
        assert page.post("/api/teach/accept", {"note": ""}).status == 409


def test_the_child_that_teaches_is_watched(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def command(module: str, *words: str) -> list[str]:
        seen.append(module)
        return [sys.executable, "-c", "import select, sys; sys.exit(7 if select.select([0], [], [], 1)[0] else 8)"]

    monkeypatch.setattr(workshop, "child_command", command)
    assert taught(desk)["lines"][-1].endswith("status 8")  # stdin stays open while the server lives
    assert seen == ["runtime.watched"]
