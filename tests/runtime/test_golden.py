"""The file of golden frames: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LinearBackend, make_encoder, make_golden, make_recipe, put_golden
from safetensors import safe_open
from safetensors.numpy import save

from runtime import Predictor
from runtime.agreement import Limits, compare
from runtime.errors import BundleError
from runtime.golden import MAX_BYTES, METADATA_KEY, Golden, load_golden, read_golden, tensors_digest, variants
from runtime.manifest import Manifest, load_bundle, replace_recipe

ENCODER, RECIPE = make_encoder(), make_recipe()


def golden(**changes: Any) -> Golden:
    return make_golden(LinearBackend(ENCODER), ENCODER, RECIPE, **changes)


def edited(content: bytes, tmp_path: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """A golden file with its header and tensors changed."""
    file = tmp_path / "one.safetensors"
    file.write_bytes(content)
    with safe_open(file, "np") as opened:
        header = json.loads(opened.metadata()[METADATA_KEY])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    edit(header, tensors)
    return bytes(save(tensors, metadata={METADATA_KEY: json.dumps(header)}))


def test_a_golden_file_survives_writing_and_reading() -> None:
    before = golden()
    after = read_golden(before.to_bytes(), ENCODER)
    np.testing.assert_array_equal(after.frames, before.frames)
    assert compare(before.answers, after.answers, Limits(0, 0, 0)).passed
    assert set(after.others) == {"reversed", "one class more", "one class fewer"}
    for name, outputs in before.others.items():
        assert compare(outputs, after.others[name], Limits(0, 0, 0)).passed
    for name in ("about", "source", "reference", "tolerance", "encoder_id", "recipe_sha256", "tensors_sha256"):
        assert getattr(after, name) == getattr(before, name)
    assert [dict(v) for v in after.verdicts] == [dict(v) for v in before.verdicts]
    assert after.to_bytes() == before.to_bytes()


def test_a_golden_file_of_an_earlier_build_has_no_count_of_operations(tmp_path: Path) -> None:
    assert read_golden(golden(gflop_per_frame=1.5).to_bytes(), ENCODER).gflop_per_frame == 1.5
    earlier = edited(golden().to_bytes(), tmp_path, lambda header, tensors: header.pop("gflop_per_frame"))
    assert read_golden(earlier, ENCODER).gflop_per_frame is None


def test_variants_have_one_class_more_and_one_fewer_within_bounds() -> None:
    found = variants(RECIPE)
    assert {name: len(recipe.classes) for name, recipe in found.items()} == {
        "reversed": 3,
        "one class more": 4,
        "one class fewer": 2,
    }
    assert "one class fewer" not in variants(make_recipe(("good", "class 0")))
    assert variants(make_recipe(("good", "CLASS 0")))["one class more"].classes == ("good", "CLASS 0", "class 1")
    many = make_recipe(("good", *(f"d{i}" for i in range(63))))
    assert set(variants(many)) == {"reversed", "one class fewer"}


def test_the_digest_follows_what_the_graph_reads_and_nothing_else() -> None:
    point = replace(RECIPE.operating_point, defect_threshold=0.9)
    assert tensors_digest(replace(RECIPE, operating_point=point, calibration={"a": 1})) == tensors_digest(RECIPE)
    bias = {**RECIPE.tensors, "head_bias": RECIPE.tensors["head_bias"] + 1}
    assert tensors_digest(replace(RECIPE, tensors=bias)) != tensors_digest(RECIPE)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("is of encoder", lambda h, t: h.update(encoder_id="99" * 32)),
        ("of version 1", lambda h, t: h.update(version=2)),
        ("of version 1", lambda h, t: h.update(format="sem-clip-recipe")),
        ("is not known", lambda h, t: h.update(more=1)),
        ("frame_bytes adds up to", lambda h, t: h["frame_bytes"].__setitem__(0, 5)),
        ("entry for each frame", lambda h, t: h["about"].pop()),
        ("four whole numbers", lambda h, t: h["verdicts"][0].update(regions=[[1, 2, 3]])),
        ("must be one of frames, patterns", lambda h, t: h.update(source="dreams")),
        ("must lie in", lambda h, t: h["tolerance"].update(fp16=2)),
        ("gflop_per_frame must lie in", lambda h, t: h.update(gflop_per_frame=-1)),
        ("tensor features is missing", lambda h, t: t.pop("features")),
        ("tensor reversed.features is missing", lambda h, t: t.pop("reversed.features")),
        ("tensor extra of F32 is not known", lambda h, t: t.update(extra=np.zeros(3, np.float32))),
        ("not finite", lambda h, t: t["defect_map"].__setitem__(0, np.nan)),
        ("frame 0 is", lambda h, t: t["frames"].__setitem__(19, 65)),
        ("golden frame 0", lambda h, t: t["frames"].__setitem__(40, t["frames"][40] ^ 255)),
    ],
)
def test_a_faulty_file_is_one_typed_error(
    tmp_path: Path, name: str, edit: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    with pytest.raises(BundleError, match=name):
        read_golden(edited(golden().to_bytes(), tmp_path, edit), ENCODER)


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_a_truncated_file_is_one_typed_error(keep: int) -> None:
    with pytest.raises(BundleError, match="no readable file of golden frames"):
        read_golden(golden().to_bytes()[:keep], ENCODER)


def test_a_header_beyond_all_bounds_is_not_read() -> None:
    with pytest.raises(BundleError, match="more than the"):
        read_golden((2**40).to_bytes(8, "little") + b"{}", ENCODER)


def test_answers_of_another_shape_are_refused(fake_bundle: Path) -> None:
    made = golden()
    for wrong in (
        replace(made, answers=replace(made.answers, defect_map=made.answers.defect_map[:, :3])),
        replace(made, answers=replace(made.answers, probabilities=made.answers.probabilities[:, :2])),
        replace(made, others={**made.others, "reversed": made.others["one class fewer"]}),
    ):
        put_golden(fake_bundle, wrong.to_bytes())
        manifest, recipe = load_bundle(fake_bundle)
        with pytest.raises(BundleError, match="has shape"):
            load_golden(fake_bundle, manifest, recipe)


@pytest.mark.parametrize("name", ["reversed", "one class more"])
def test_answers_of_every_variant_must_be_there(fake_bundle: Path, name: str) -> None:
    made = golden()
    put_golden(fake_bundle, replace(made, others={k: v for k, v in made.others.items() if k != name}).to_bytes())
    manifest, recipe = load_bundle(fake_bundle)
    with pytest.raises(BundleError, match=f'lacks the answers of the recipe "{name}"'):
        load_golden(fake_bundle, manifest, recipe)


def spoil(folder: Path, how: str) -> None:
    file = folder / "golden.safetensors"
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "a folder":
        file.unlink()
        file.mkdir()
    elif how == "of another hash":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "of another encoder":
        encoder = make_encoder(id="77" * 32)
        put_golden(folder, make_golden(LinearBackend(encoder), encoder, make_recipe(encoder=encoder)).to_bytes())
    elif how == "oversized":
        with file.open("r+b") as stream:
            stream.truncate(MAX_BYTES + 1)
    elif how == "a link out of the bundle":
        outside = folder.parent / "outside.safetensors"
        file.rename(outside)
        file.symlink_to(outside)
    elif how == "a pipe":
        file.unlink()
        os.mkfifo(file)


SPOILT = {
    "missing": "does not exist",
    "a folder": "cannot be read",
    "of another hash": "SHA-256",
    "truncated": "SHA-256",
    "of another encoder": "is of encoder",
    "oversized": "more than the",
    "a link out of the bundle": "leads out of the bundle",
    "a pipe": "device or a pipe",
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_damaged_golden_file_stops_check_and_nothing_else(
    golden_bundle: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from runtime.cli import main

    spoil(golden_bundle, how)
    manifest, recipe = load_bundle(golden_bundle, verify_all=True)
    with pytest.raises(BundleError, match=SPOILT[how]):
        load_golden(golden_bundle, manifest, recipe)
    backend = LinearBackend(manifest.encoder)
    with pytest.raises(BundleError, match=SPOILT[how]):
        Predictor(golden_bundle, backend=backend, check=True)
    with Predictor(golden_bundle, backend=backend) as predictor:
        assert predictor(np.zeros((64, 64), np.uint8)).ok
    assert main(["inspect", str(golden_bundle)]) == 0
    assert "golden      no frames to verify engines by" in capsys.readouterr().out
    point = replace(recipe.operating_point, defect_threshold=0.25)
    replace_recipe(golden_bundle, replace(recipe, operating_point=point))
    assert load_bundle(golden_bundle)[1].operating_point.defect_threshold == 0.25


def test_opening_without_check_does_not_touch_the_file(golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even its size: opening is no slower than it was."""
    touched: list[str] = []
    opened, stat = os.open, os.stat

    def spy(call: Callable[..., Any]) -> Callable[..., Any]:
        def seen(path: Any, *args: Any, **named: Any) -> Any:
            touched.append(str(path))
            return call(path, *args, **named)

        return seen

    monkeypatch.setattr(os, "open", spy(opened))
    monkeypatch.setattr(os, "stat", spy(stat))
    backend = LinearBackend(make_encoder())
    Predictor(golden_bundle, backend=backend).close()
    assert any("recipe" in path for path in touched)
    assert not any("golden" in path for path in touched)
    Predictor(golden_bundle, backend=backend, check=True).close()
    assert any("golden" in path for path in touched)


def test_a_bundle_without_golden_frames_opens_and_inspect_reports_none(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from runtime.cli import main

    with pytest.raises(BundleError, match="has no golden frames"):
        Predictor(fake_bundle, backend="fake", check=True)
    Predictor(fake_bundle, backend="fake").close()
    assert main(["inspect", str(fake_bundle)]) == 0
    assert "has no golden frames" in capsys.readouterr().out


def test_inspect_prints_the_number_of_golden_frames(golden_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from runtime.cli import main

    assert main(["inspect", str(golden_bundle)]) == 0
    assert "golden      golden.safetensors: 11 frames, SHA-256 correct" in capsys.readouterr().out


def test_a_change_of_thresholds_keeps_the_proof(golden_bundle: Path) -> None:
    recipe = load_bundle(golden_bundle)[1]
    replace_recipe(golden_bundle, replace(recipe, operating_point=replace(recipe.operating_point, temperature=2.0)))
    manifest, changed = load_bundle(golden_bundle)
    assert load_golden(golden_bundle, manifest, changed).recipe_sha256 != manifest.recipe_sha256
    assert {path.name for path in golden_bundle.iterdir()} == {"manifest.json", *manifest.files()}
    assert "golden.safetensors" in manifest.files()


def test_answers_of_a_replaced_recipe_are_refused(golden_bundle: Path) -> None:
    recipe = load_bundle(golden_bundle)[1]
    bias = {**recipe.tensors, "head_bias": recipe.tensors["head_bias"] + 1}
    replace_recipe(golden_bundle, replace(recipe, tensors=bias))
    manifest, changed = load_bundle(golden_bundle)
    with pytest.raises(BundleError, match="answers of another recipe"):
        load_golden(golden_bundle, manifest, changed)


def test_check_uses_the_bundles_own_recipe(golden_bundle: Path) -> None:
    recipe = load_bundle(golden_bundle)[1]
    other = variants(recipe)["one class more"]
    backend = LinearBackend(make_encoder())
    with Predictor(golden_bundle, backend=backend, recipe=other, check=True) as predictor:
        assert len(predictor.recipe.classes) == 4


def test_the_manifest_names_the_file_and_refuses_a_wrong_entry(golden_bundle: Path) -> None:
    text = (golden_bundle / "manifest.json").read_text()
    document = json.loads(text)
    digest = hashlib.sha256((golden_bundle / "golden.safetensors").read_bytes()).hexdigest()
    assert document["golden"] == {"file": "golden.safetensors", "sha256": digest}
    assert Manifest.from_json(text).to_json() == text
    for wrong, words in (
        ({"file": "../golden.safetensors", "sha256": digest}, "inside the bundle"),
        ({"file": "model.onnx", "sha256": digest}, "every file once"),
        ({"file": "golden.safetensors"}, "sha256 is missing"),
        ({"file": "golden.safetensors", "sha256": digest, "frames": 3}, "not known"),
        (None, "must be an object"),
    ):
        with pytest.raises(BundleError, match=words):
            Manifest.from_json(json.dumps({**document, "golden": wrong}))
