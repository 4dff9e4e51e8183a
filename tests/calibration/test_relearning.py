"""calibration.relearning and calibration.before_after: who teaches, who judges, and what changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibration_frames import mask, paint
from conftest import make_recipe, write_bundle
from PIL import Image

from calibration.before_after import compare_recipes
from calibration.contents import content_sha256, judged_content
from calibration.corrections import CorrectionLog
from calibration.dataset import Dataset, load_dataset
from calibration.errors import CorrectionError
from calibration.relearning import CORRECTED, HELD, LEAST, Known, Relearning, is_held_out, name_in, plan_relearning
from runtime import Predictor
from runtime.errors import FrameError
from runtime.frames import checksum_of, read_frame
from runtime.recipe import FrameOptions, Recipe

SUPPORTS = 2
OPTIONS = FrameOptions()


class Case:
    """A data folder of three classes, a recipe taught on its first frames, and a lot of frames to correct."""

    def __init__(self, folder: Path) -> None:
        self.data, self.lot = folder / "data", folder / "lot"
        for label, name in enumerate(("good", "bridge", "hole")):
            for number in range(6):
                paint(self.data / "images" / name / f"{number}.png", 3 * number + label, 40 + 60 * label + number)
            if name != "good":
                mask(self.data / "masks" / name / "0.png")
        self.log = CorrectionLog(folder / "c.jsonl")
        self.recipe = self.taught([f"images/{name}/{n}.png" for name in ("good", "bridge", "hole") for n in range(2)])

    @property
    def dataset(self) -> Dataset:
        return load_dataset(self.data)

    def taught(self, names: Sequence[str], **more: object) -> Recipe:
        digests = [content_sha256(self.data / name) for name in names]
        return make_recipe(teaching={"seed": 0, "supports": list(names), "support_sha256": digests, **more})

    def frame(self, number: int, *, held_out: bool = False) -> Path:
        """A frame of the lot, whose content is held out or not."""
        for shade in range(200, 256):
            path = paint(self.lot / f"{number}.png", number, shade)
            if is_held_out(content_sha256(path)) == held_out:
                return path
        raise AssertionError("one in five is held out")

    def plan(self, recipe: Recipe | None = None) -> Relearning:
        return plan_relearning(recipe or self.recipe, self.dataset, self.log, OPTIONS)

    def faults(self, recipe: Recipe | None = None) -> str:
        with pytest.raises(CorrectionError) as caught:
            self.plan(recipe)
        return str(caught.value)

    def names(self, frames: Sequence[Known]) -> list[str]:
        return [name_in(self.data, known.sample) for known in frames]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_supports_are_the_old_ones_and_the_corrected_frames_and_the_rest_judges(case: Case) -> None:
    teaches, judges = case.frame(90), case.frame(91, held_out=True)
    case.log.add(teaches, "hole", "scratch")
    case.log.add(judges, "hole", "bridge")
    plan = case.plan()
    assert plan.classes == ("good", "bridge", "hole", "scratch")
    assert plan.shots() == {"good": 2, "bridge": 2, "hole": 2, "scratch": 1}
    assert case.names(plan.supports) == [*case.recipe.teaching["supports"], str(teaches)]
    assert [known.sample.label for known in plan.supports] == [*(n for n in plan.classes[:3] for _ in "ab"), "scratch"]
    assert case.names(plan.judged) == [
        str(judges),
        *(f"images/{name}/{n}.png" for name in ("good", "bridge", "hole") for n in range(2, 6)),
    ]
    assert [known.corrected for known in plan.judged] == [True] + [False] * 12
    assert plan.judged[0].sample.label == "bridge"
    assert "1 corrected frames teach, 1 are held out to judge" in plan.notes


def test_a_correction_of_a_support_or_of_a_frame_of_the_folder_counts_there(case: Case) -> None:
    case.log.add(case.data / "images/hole/0.png", "hole", "bridge")
    free = next(
        path for path in sorted((case.data / "images/hole").iterdir())[2:] if not is_held_out(content_sha256(path))
    )
    case.log.add(free, "hole", "good")
    plan = case.plan()
    assert plan.shots() == {"good": 3, "bridge": 3, "hole": 1}
    moved = next(known.sample for known in plan.supports if known.sample.path.match("hole/0.png"))
    assert (moved.label, moved.mask) == ("bridge", case.data / "masks/hole/0.png")
    assert free not in [known.sample.path for known in plan.judged]
    assert any("1 supports of the old recipe were corrected or confirmed" in note for note in plan.notes)


def test_a_drawn_mask_comes_with_the_frame(case: Case) -> None:
    marked = np.zeros((64, 64), np.bool_)
    marked[:9, :9] = True
    made = case.log.add(case.frame(90), "good", "hole", mask=marked)
    (found,) = [known.sample for known in case.plan().supports if known.corrected]
    assert found.mask == case.log.mask_path(made)
    truth = found.read_mask((64, 64))
    assert truth is not None
    assert (truth == marked).all()


def test_a_copy_is_the_same_frame(case: Case) -> None:
    copy = case.lot / "copy.png"
    copy.parent.mkdir()
    copy.write_bytes((case.data / "images/hole/0.png").read_bytes())
    case.log.add(copy, "hole", "bridge")
    plan = case.plan()
    assert plan.shots() == {"good": 2, "bridge": 3, "hole": 1}
    assert "images/hole/0.png" in case.names(plan.supports)
    case.log.add(case.data / "images/hole/0.png", "hole", "good")
    assert "both are one picture: correct one of them" in case.faults()


def test_what_is_held_out_stays_so_and_what_taught_before_never_judges(case: Case) -> None:
    judges = [case.frame(number, held_out=True) for number in (91, 92)]
    for path in judges:
        case.log.add(path, "hole", "bridge")
    case.log.add(case.data / "images/good/0.png", "hole", "good")
    first = case.plan()
    again = case.taught(case.names(first.supports), corrected=first.record(case.data))
    case.log.add(case.frame(93), "hole", "bridge")
    second = case.plan(again)
    for plan in (first, second):
        assert [str(known.sample.path) for known in plan.judged if known.corrected] == list(map(str, judges))
    held = case.data / "images/hole/0.png"  # a support, whatever its content
    case.log.add(held, "hole", "hole")
    assert held in [known.sample.path for known in case.plan(again).supports]


def test_a_class_that_nothing_else_would_teach_is_taught_by_a_held_out_frame(case: Case) -> None:
    for number in (91, 92):
        case.log.add(case.frame(number, held_out=True), "hole", "scratch")
    plan = case.plan()
    assert plan.shots()["scratch"] == 1
    assert [known.sample.label for known in plan.judged if known.corrected] == ["scratch"]
    # It taught, so it goes on teaching.
    taught = [known for known in plan.supports if known.sample.label == "scratch"]
    again = case.taught(case.names(plan.supports), corrected=plan.record(case.data))
    case.log.add(case.frame(93), "hole", "scratch")
    found = [known for known in case.plan(again).supports if known.sample.label == "scratch"]
    assert {known.content for known in taught} < {known.content for known in found}


def test_masks_are_found_again_from_another_folder(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case.log.add(case.frame(90), "good", "hole", mask=np.eye(64, dtype=np.bool_))
    case.log.close()
    monkeypatch.chdir(tmp_path)
    with CorrectionLog("c.jsonl", write=False) as log:
        entries = plan_relearning(case.recipe, case.dataset, log, OPTIONS).record(case.data)
    assert [Path(entry["mask"]).parent for entry in entries] == [tmp_path / "c.masks"]


def test_corrected_supports_of_an_earlier_round_need_not_be_in_this_file(case: Case, tmp_path: Path) -> None:
    marked = np.zeros((64, 64), np.bool_)
    marked[:9, :9] = True
    outside, inside = case.frame(90), case.data / "images/hole/1.png"
    case.log.add(outside, "good", "hole", mask=marked)
    case.log.add(inside, "hole", "bridge")
    first = case.plan()
    record = json.loads(json.dumps(first.record(case.data)))
    again = case.taught(case.names(first.supports), **{CORRECTED: record})
    case.log.close()
    case.log = CorrectionLog(tmp_path / "other.jsonl")
    case.log.add(case.frame(91), "hole", "good")
    second = case.plan(again)
    found = {name: known.sample for name, known in zip(case.names(second.supports), second.supports, strict=True)}
    kept = found[str(outside)]
    assert (kept.label, kept.mask) == ("hole", next(Path(entry["mask"]) for entry in record if entry["mask"]))
    assert found["images/hole/1.png"].label == "bridge"
    outside.unlink()
    assert f"{outside}, which taught the old recipe, cannot be read" in case.faults(again)


def test_a_correction_that_was_taken_back_teaches_no_more(case: Case) -> None:
    outside = case.frame(90)
    case.log.add(outside, "good", "hole")
    first = case.plan()
    again = case.taught(case.names(first.supports), corrected=first.record(case.data))
    case.log.undo()
    plan = case.plan(again)
    assert str(outside) not in case.names(plan.supports)
    assert any("1 supports of the old recipe are left out" in note for note in plan.notes)


def test_all_faults_of_supports_and_corrections_are_named(case: Case) -> None:
    (case.data / "images/good/0.png").unlink()
    (case.data / "images/bridge/0.png").rename(case.data / "images/bridge/moved.png")
    (case.data / "masks/bridge/0.png").unlink()
    paint(case.data / "images/hole/1.png", 200, 3)
    case.log.add(case.lot / "absent.png", "hole", "good")
    changed = case.frame(90)
    case.log.add(changed, "hole", "good", checksum=checksum_of(read_frame(changed)) ^ 1)
    found = case.faults()
    for part in (
        "images/good/0.png, which taught the old recipe, is not in",
        f"the same picture is {case.data / 'images/bridge/moved.png'} now",
        "images/hole/1.png is not the picture that taught the old recipe",
        f"{case.lot / 'absent.png'}: cannot be read",
        f"{changed}: is not the picture that was judged",
    ):
        assert part in found


@pytest.mark.parametrize("teaching", [{}, {"supports": ["a"], "support_sha256": []}, {"supports": 7}])
def test_a_recipe_that_records_no_supports_is_refused(teaching: dict[str, object], case: Case) -> None:
    assert "does not record which frames taught it" in case.faults(make_recipe(teaching=teaching))


def test_classes_that_lose_all_supports_or_would_be_twins_are_refused(case: Case) -> None:
    for number in range(2):
        case.log.add(case.data / f"images/hole/{number}.png", "hole", "Bridge")
    found = case.faults()
    assert "no frame is left that teaches hole" in found
    assert '"Bridge" and "bridge" would be two classes' in found


def test_of_ten_corrected_frames_one_is_held_out_and_stays_so(case: Case) -> None:
    lone = case.frame(80)
    case.log.add(lone, "hole", "scratch")  # its class can spare none
    frames = [case.frame(90 + number) for number in range(LEAST - 2)]
    for path in frames:
        case.log.add(path, "hole", "bridge")
    first = case.plan()
    assert first.held == ()
    assert "no corrected frame judges" in first.warning
    frames.append(case.frame(120))
    case.log.add(frames[-1], "hole", "bridge")
    second = case.plan()
    lowest = min(frames, key=content_sha256)
    assert [known.sample.path for known in second.judged if known.corrected] == [lowest]
    assert second.warning == ""
    again = case.taught(case.names(second.supports), corrected=second.record(case.data), **{HELD: list(second.held)})
    case.log.add(case.frame(130, held_out=True), "hole", "bridge")
    third = case.plan(again)
    assert lowest in [known.sample.path for known in third.judged]
    assert set(second.held) < set(third.held)
    case.log.add(lowest, "hole", "dent")  # a class that nothing else teaches
    last = case.plan(again)
    assert "dent" not in last.classes
    assert "nothing teaches dent: its frames are held out, so correct one more" in last.notes


def test_where_every_frame_taught_the_plan_warns(case: Case) -> None:
    for name in ("good", "bridge", "hole"):
        for number in range(2, 6):
            (case.data / f"images/{name}/{number}.png").unlink()
    case.log.add(case.frame(90), "hole", "bridge")
    plan = case.plan()
    assert plan.judged == ()
    assert "nothing to compare the recipes on" in plan.warning


def test_one_corrected_frame_in_five_is_held_out() -> None:
    contents = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" + "0" * 48 for number in range(2000)]
    assert 0.17 < sum(map(is_held_out, contents)) / len(contents) < 0.23


def test_a_page_of_a_stack_has_a_content_of_its_own(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (1, 2)]
    pages[0].save(tmp_path / "s.tif", save_all=True, append_images=pages[1:])
    names = [f"{tmp_path}/s.tif#{page}" for page in (1, 2)]
    assert len({content_sha256(name) for name in names}) == 2
    assert judged_content(names[1], checksum_of(np.full((8, 8), 2, np.uint8)), OPTIONS) == content_sha256(names[1])
    with pytest.raises(FrameError, match="is not the picture that was judged"):
        judged_content(names[0], checksum_of(np.full((8, 8), 2, np.uint8)), OPTIONS)


def test_before_and_after_name_every_frame_that_changed(case: Case, tmp_path: Path) -> None:
    case.log.add(case.frame(91, held_out=True), "hole", "bridge")
    plan = case.plan()
    bundle = write_bundle(tmp_path / "bundle", recipe=case.recipe)
    point = replace(case.recipe.operating_point, defect_threshold=1.0)
    blind = replace(case.recipe, operating_point=point)  # calls every frame good
    with Predictor(bundle, backend="fake") as predictor:
        found = compare_recipes(predictor, blind, case.recipe, plan.judged)
        results = [one.verdict for one in predictor.predict([known.sample.path for known in plan.judged])]
        assert compare_recipes(predictor, blind, case.recipe, []) is None
    assert found is not None
    assert (found.frames, found.corrected) == (13, 1)
    truth = [known.sample.label for known in plan.judged]
    right = sum(a == b for a, b in zip(results, truth, strict=True))
    assert found.after["accuracy"] == {"value": right / 13, "count": right, "of": 13}
    assert found.before["underkill"]["of"] == sum(label != "good" for label in truth)
    assert {change.frame for change in found.changed} == {
        str(known.sample.path) for known, verdict in zip(plan.judged, results, strict=True) if verdict != "good"
    }
    lines = found.lines()
    assert lines[0].startswith("13 frames, 1 of them corrected")
    assert f"{len(found.changed)} frames changed" in "\n".join(lines)
    assert json.loads(json.dumps(found.to_dict()))["changed"][0].keys() == {"frame", "truth", "before", "after"}
