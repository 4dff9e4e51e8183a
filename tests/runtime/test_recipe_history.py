"""runtime.recipe_history and `sem-clip recipes`: accept, go back, and lose nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commandline import errors_in, files_in, sem_clip
from conftest import LinearBackend, make_encoder, make_golden, make_recipe, write_bundle

from runtime import golden_renewal, recipe_history
from runtime.changing import holding
from runtime.errors import BackendUnavailable, BundleError, RecipeError
from runtime.golden import judge, load_golden, verdict_of
from runtime.golden_renewal import renew, renewed_golden
from runtime.manifest import load_bundle, replace_recipe
from runtime.recipe import FrameOptions, Recipe
from runtime.recipe_history import FILE, FOLDER, UNJUDGED, accept, go_back, read_history, read_kept

MORE = ("good", "bridge", "hole", "scratch")


@pytest.fixture
def better() -> Recipe:
    return make_recipe(MORE)


def in_use(bundle: Path) -> str:
    return load_bundle(bundle, verify_all=True)[1].sha256()


def test_a_bundle_without_a_history_has_no_lines_and_no_folder(fake_bundle: Path) -> None:
    assert read_history(fake_bundle) == []
    assert not (fake_bundle / FOLDER).exists()


def test_accepting_keeps_the_recipe_before_and_going_back_is_a_further_line(fake_bundle: Path, better: Recipe) -> None:
    first = load_bundle(fake_bundle)[1]
    made = accept(fake_bundle, better, "scratches of lot 7", "eve")
    assert in_use(fake_bundle) == better.sha256()
    lines = read_history(fake_bundle)
    assert [(line.number, line.action, line.sha256, line.note) for line in lines] == [
        (1, "found", first.sha256(), ""),
        (2, "accepted", better.sha256(), "scratches of lot 7"),
    ]
    assert lines[1] == made
    assert (made.who, made.classes, made.back_to) == ("eve", MORE, None)
    back = go_back(fake_bundle, 1, "too much overkill")
    assert in_use(fake_bundle) == first.sha256()
    assert (back.number, back.action, back.back_to, back.sha256) == (3, "back", 1, first.sha256())
    assert [line.number for line in read_history(fake_bundle)] == [1, 2, 3]
    assert [read_kept(fake_bundle, line).sha256() for line in read_history(fake_bundle)] == [
        line.sha256 for line in read_history(fake_bundle)
    ]
    go_back(fake_bundle, 2)
    assert in_use(fake_bundle) == better.sha256()
    assert len(list((fake_bundle / FOLDER).glob("*.safetensors"))) == 2


def test_a_recipe_that_came_in_another_way_gets_a_line_before_it_is_replaced(fake_bundle: Path, better: Recipe) -> None:
    accept(fake_bundle, better, "one")
    calibrated = make_recipe(MORE, defect_threshold=0.9)
    replace_recipe(fake_bundle, calibrated)
    accept(fake_bundle, make_recipe(defect_threshold=0.7), "two")
    lines = read_history(fake_bundle)
    assert [line.action for line in lines] == ["found", "accepted", "found", "accepted"]
    go_back(fake_bundle, 3)
    assert in_use(fake_bundle) == calibrated.sha256()


def test_tiles_are_refused_by_a_bundle_that_resizes_in_its_graph(tmp_path: Path) -> None:
    encoder = make_encoder(input_size=(128, 128))
    bundle = write_bundle(tmp_path / "bundle", encoder=encoder, recipe=make_recipe(encoder=encoder))
    before = files_in(bundle)
    tiled = make_recipe(encoder=encoder, frame=FrameOptions(tile=64, overlap=16))
    for change in (lambda: accept(bundle, tiled, "note"), lambda: replace_recipe(bundle, tiled)):
        with pytest.raises(RecipeError, match=r"takes frames of 128x128 as a whole.*without --frame-size"):
            change()
    assert files_in(bundle) == before


def test_what_the_encoder_cannot_run_is_refused_and_nothing_is_written(fake_bundle: Path, tmp_path: Path) -> None:
    before = files_in(fake_bundle)
    foreign = make_recipe(encoder=make_encoder(id="ef" * 32))
    foreign.save(tmp_path / "foreign.safetensors")
    with pytest.raises(RecipeError, match="was taught on encoder"):
        accept(fake_bundle, tmp_path / "foreign.safetensors", "note")
    with pytest.raises(RecipeError, match="does not exist"):
        accept(fake_bundle, tmp_path / "absent.safetensors", "note")
    with pytest.raises(BundleError, match="holds this recipe already"):
        accept(fake_bundle, load_bundle(fake_bundle)[1], "note")
    for note in ("two\nlines", "x" * 1001):
        with pytest.raises(BundleError, match="a note is one line of 1000 characters"):
            accept(fake_bundle, make_recipe(MORE), note)
    with pytest.raises(BundleError, match="no recipe 1 to go back to: it has no history"):
        go_back(fake_bundle, 1)
    assert files_in(fake_bundle) == before


def test_a_change_waits_for_other_writers_of_the_bundle(
    fake_bundle: Path, better: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    replace = recipe_history.replace_recipe

    def watched(*given: object, **named: object) -> None:
        held.append((fake_bundle / ".lock").exists())
        replace(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(recipe_history, "replace_recipe", watched)
    accept(fake_bundle, better, "note")
    assert held == [True]
    with holding(fake_bundle):
        pass


def test_a_writer_that_dies_before_its_line_leaves_a_history_that_goes_on(
    fake_bundle: Path, better: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        """As if the process were gone."""

    replace = recipe_history.replace_recipe

    def dying(*given: object, **named: object) -> None:
        replace(*given, **named)  # type: ignore[arg-type]
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(recipe_history, "replace_recipe", dying)
        with pytest.raises(Died):
            accept(fake_bundle, better, "lost")
    assert in_use(fake_bundle) == better.sha256()
    accept(fake_bundle, make_recipe(defect_threshold=0.7), "next")
    assert [line.action for line in read_history(fake_bundle)] == ["found", "found", "accepted"]
    go_back(fake_bundle, 2)
    assert in_use(fake_bundle) == better.sha256()


def test_a_damaged_recipe_of_the_history_is_named_and_the_bundle_stays(fake_bundle: Path, better: Recipe) -> None:
    first = load_bundle(fake_bundle)[1]
    accept(fake_bundle, better, "note")
    kept = fake_bundle / FOLDER / f"{first.sha256()}.safetensors"
    kept.write_bytes(make_recipe(defect_threshold=0.6).to_bytes())
    with pytest.raises(BundleError, match="is not recipe 1 of the history"):
        go_back(fake_bundle, 1)
    kept.unlink()
    with pytest.raises(BundleError, match="recipe 1 of the history: does not exist"):
        go_back(fake_bundle, 1)
    with pytest.raises(BundleError, match="no recipe 3 to go back to: its lines are 1 to 2"):
        go_back(fake_bundle, 3)
    assert in_use(fake_bundle) == better.sha256()


@pytest.mark.parametrize(
    "changed", [{"sha256": "../../x"}, {"note": 7}, {"extra": 1}, {"who": ""}, {"classes": "all"}, {"back_to": 0}]
)
def test_a_line_that_means_nothing_is_a_fault_with_its_number(
    changed: dict[str, object], fake_bundle: Path, better: Recipe
) -> None:
    accept(fake_bundle, better, "note")
    path = fake_bundle / FOLDER / FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], json.dumps({**json.loads(lines[2]), **changed})]) + "\n")
    with pytest.raises(BundleError, match="line 3"):
        read_history(fake_bundle)


def test_a_history_that_is_a_link_out_of_the_bundle_is_refused(
    fake_bundle: Path, better: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (fake_bundle / FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="link that leads out of the bundle"):
        accept(fake_bundle, better, "note")
    assert in_use(fake_bundle) != better.sha256()


def test_a_copied_bundle_keeps_its_history(fake_bundle: Path, better: Recipe, tmp_path: Path) -> None:
    accept(fake_bundle, better, "note")
    shutil.copytree(fake_bundle, tmp_path / "copy")
    assert read_history(tmp_path / "copy") == read_history(fake_bundle)
    go_back(tmp_path / "copy", 1)
    assert in_use(fake_bundle) == better.sha256()


def test_golden_frames_get_the_answers_of_an_engine_that_agrees_with_them(
    golden_bundle: Path, better: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_renewal, "open_backend", lambda _, __, manifest, **___: LinearBackend(manifest.encoder))
    before = load_golden(golden_bundle, *load_bundle(golden_bundle))
    accept(golden_bundle, better, "note")
    manifest, recipe = load_bundle(golden_bundle, verify_all=True)
    golden = load_golden(golden_bundle, manifest, recipe)
    expected = make_golden(LinearBackend(manifest.encoder), manifest.encoder, better)
    assert (golden.answers.probabilities == expected.answers.probabilities).all()
    assert golden.others.keys() == expected.others.keys()
    assert (golden.frames == before.frames).all()
    assert golden.reference == "a test; then linear backend: numpy"
    assert golden.recipe_sha256 == better.sha256()
    assert golden.verdicts == tuple(
        verdict_of(one) for one in judge(manifest.encoder, manifest.smoothing_px, better, golden.answers)
    )
    go_back(golden_bundle, 1)
    assert load_golden(golden_bundle, *load_bundle(golden_bundle)).reference == "a test; then linear backend: numpy"
    assert len(list(golden_bundle.glob("golden*"))) == 1


def test_thresholds_alone_leave_the_golden_frames(golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_renewal, "open_backend", lambda *_, **__: pytest.fail("an engine was opened"))
    before = (golden_bundle / "golden.safetensors").read_bytes()
    accept(golden_bundle, make_recipe(defect_threshold=0.9), "note")
    assert (golden_bundle / "golden.safetensors").read_bytes() == before
    load_golden(golden_bundle, *load_bundle(golden_bundle))


def test_without_an_engine_golden_frames_stay_and_a_warning_says_so(
    golden_bundle: Path, better: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise BackendUnavailable('cpu needs onnxruntime: pip install "sem-clip[cpu]"')

    monkeypatch.setattr(golden_renewal, "open_backend", absent)
    accept(golden_bundle, better, "note")
    assert "keep the answers of another recipe" in caplog.text
    assert "sem-clip[cpu]" in caplog.text
    assert in_use(golden_bundle) == better.sha256()
    caplog.clear()
    go_back(golden_bundle, 1)  # of whose answers they are
    assert caplog.text == ""


def test_an_engine_that_disagrees_answers_for_no_other_recipe(golden_bundle: Path, better: Recipe) -> None:
    manifest, recipe = load_bundle(golden_bundle)
    golden = load_golden(golden_bundle, manifest, recipe)
    wrong = replace(golden.answers, defect_map=golden.answers.defect_map + 0.01)
    with pytest.raises(BundleError, match="does not agree with the golden frames"):
        renew(replace(golden, answers=wrong), LinearBackend(manifest.encoder), manifest, recipe, better, golden_bundle)


def test_a_real_engine_renews_the_golden_frames_of_a_real_bundle(toy_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    manifest, recipe = load_bundle(toy_bundle)
    other = replace(recipe, tensors={**recipe.tensors, "head_bias": recipe.tensors["head_bias"][::-1].copy()})
    content = renewed_golden(toy_bundle, manifest, recipe, other)
    assert content is not None
    assert renewed_golden(toy_bundle, manifest, recipe, recipe) is None


def test_the_command_lists_accepts_and_goes_back(
    fake_bundle: Path, better: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better.save(tmp_path / "better.safetensors")
    assert sem_clip(capsys, "recipes", fake_bundle)[0] == 0
    words = ["recipes", fake_bundle, "--accept", tmp_path / "better.safetensors"]
    status, stderr = sem_clip(capsys, *words)
    assert status == 2
    assert "--accept needs --note" in errors_in(stderr)[0]
    assert recipe_history_lines(capsys, *words, "--note", "scratches <b>") == [
        ("found", ""),
        ("accepted", "scratches <b>"),
    ]
    assert recipe_history_lines(capsys, "recipes", fake_bundle, "--back", 1)[-1] == ("back", "")
    status, stderr = sem_clip(capsys, "recipes", fake_bundle, "--note", "x")
    assert (status, "--note is of a change" in stderr) == (2, True)


def recipe_history_lines(capsys: pytest.CaptureFixture[str], *words: object) -> list[tuple[str, str]]:
    from runtime.cli import main

    capsys.readouterr()
    assert main([str(word) for word in (*words, "--json")]) == 0
    return [(line["action"], line["note"]) for line in json.loads(capsys.readouterr().out)]


def test_the_listing_names_what_is_in_use(
    fake_bundle: Path, better: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    from runtime.cli import main

    assert main(["recipes", str(fake_bundle)]) == 0
    assert "no other one was accepted yet" in capsys.readouterr().out
    accept(fake_bundle, better, "note", "eve")
    assert main(["recipes", str(fake_bundle)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "in use: recipe 2"
    assert "eve" in out[1]
    replace_recipe(fake_bundle, make_recipe(MORE, defect_threshold=0.9))
    assert main(["recipes", str(fake_bundle)]) == 0
    assert "came into the bundle in another way" in capsys.readouterr().out


def test_accepting_a_recipe_that_nothing_judged_warns(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from runtime.cli import main

    for teaching, said in (({UNJUDGED: "every frame taught"}, ["warning: every frame taught"]), ({"seed": 1}, [])):
        make_recipe(defect_threshold=0.3, teaching=teaching).save(tmp_path / "new.safetensors")
        words = ["recipes", fake_bundle, "--accept", tmp_path / "new.safetensors", "--note", "lot 7"]
        assert main(list(map(str, words))) == 0
        assert [line for line in capsys.readouterr().err.splitlines() if "every frame" in line] == said
