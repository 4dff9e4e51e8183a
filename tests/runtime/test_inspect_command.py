"""`sem-clip inspect`: what it prints of a bundle and of a recipe, and which faults it lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_encoder, make_recipe, write_bundle

from runtime.cli import main

Capture = pytest.CaptureFixture[str]


def test_inspect_prints_what_a_bundle_holds(fake_bundle: Path, capsys: Capture) -> None:
    assert main(["inspect", str(fake_bundle)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in (
        "toy, weights: random, seed 0 (UNTRAINED)",
        "4 layers, width 32, levels after [1, 2, 3, 4]",
        "id abababababababab, checkpoint SHA-256 cdcdcdcdcdcdcdcd",
        "V path      in the graph",
        "any size, squashed to 64 x 64",
        "model.onnx: fp32, 0.0 MB, SHA-256 correct",
        "8 operators, 8 Attention",
        "recipe.safetensors: good, bridge, hole; text from anchors",
        "defect threshold 0.5000, pixel threshold 0.5000",
        "defect score: 1 x map + 0 x (1 - P(good))",
        "temperature 1; unknown: never",
        "cannot decide: below confidence good 0.000, bridge 0.000, hole 0.000; not where class and score disagree",
        "as taught, never calibrated",
        "alpha 0.8, lambda_v 1, lambda_m 0.3, tau 10, tau_v 10, tau_s 10",
        "smoothing   4 px of the encoder's image",
        "made for tests",
    ):
        assert part in out


def test_inspect_of_a_graph_without_v_path_names_its_absence(tmp_path: Path, capsys: Capture) -> None:
    bundle = write_bundle(tmp_path / "bundle", encoder=make_encoder(value_path=False))
    assert main(["inspect", str(bundle)]) == 0
    assert "V path      left out of the graph: recipes need lambda_v 0\n" in capsys.readouterr().out


def test_inspect_of_a_graph_with_resize_names_the_frame_size(tmp_path: Path, capsys: Capture) -> None:
    bundle = write_bundle(tmp_path / "bundle", encoder=make_encoder(input_size=(768, 1024), trained=True))
    assert main(["inspect", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "exactly 768 x 1024 (height x width)" in out
    assert "UNTRAINED" not in out


@pytest.mark.parametrize(
    "parity",
    [{}, {"frames": 3, "max_abs_probability": None, "max_abs_defect_map": "small"}, {"max_abs_probability": 1e-6}],
)
def test_inspect_of_odd_parity_prints_unknown(parity: dict[str, Any], fake_bundle: Path, capsys: Capture) -> None:
    document = json.loads((fake_bundle / "manifest.json").read_text())
    document["artifacts"][0]["parity"] = parity
    (fake_bundle / "manifest.json").write_text(json.dumps(document))
    assert main(["inspect", str(fake_bundle)]) == 0
    assert ("1.0e-06" if parity == {"max_abs_probability": 1e-6} else "unknown") in capsys.readouterr().out


def test_inspect_checks_every_hash_and_lists_all_faults(fake_bundle: Path, capsys: Capture) -> None:
    (fake_bundle / "model.onnx").write_bytes(b"X" * 15)
    (fake_bundle / "recipe.safetensors").unlink()
    assert main(["inspect", str(fake_bundle)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {fake_bundle}: 2 faults:\n")
    assert "model.onnx does not have the SHA-256" in err
    assert "recipe.safetensors is missing" in err


def test_inspect_of_a_threshold_changed_by_hand_drops_its_promise(tmp_path: Path, capsys: Capture) -> None:
    promise = {"rule": "conformal=0.05", "promise": "at most 5 %"}
    calibration = {"defect_threshold": promise, "novelty_threshold": promise, "changed_by_hand": ["defect_threshold"]}
    folder = write_bundle(tmp_path / "bundle", recipe=make_recipe(calibration=calibration))
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "defect_threshold changed by hand: its calibration no longer holds" in out
    assert "drift of lots: not tested: the recipe keeps no scores of calibration frames" in out
    assert "defect_threshold by" not in out
    assert "novelty_threshold by conformal=0.05: at most 5 %" in out


PAPER = {"head": "paper", "start": "random", "frame_loss": 0.0, "lambda_v": 1.0, "memory_share": 0.0}
DEFAULT = {"head": "pooled", "start": "auto", "frame_loss": 1.0, "lambda_v": None, "memory_share": None}


@pytest.mark.parametrize(
    ("teaching", "line"),
    [
        ({}, "method unknown: this recipe does not record its settings"),
        ({"settings": "none"}, "method unknown: this recipe does not record its settings"),
        ({"settings": PAPER}, "method paper, head paper, start random"),
        (
            {"settings": DEFAULT, "map_starts_at": "text"},
            "method default, head pooled, start auto (began at text)",
        ),
        ({"settings": {**DEFAULT, "memory_share": 0.0}}, "method of other settings, head pooled, start auto"),
        ({"settings": {"head": "\x1b"}}, "head \\x1b, start None"),
    ],
)
def test_inspect_of_a_recipe_file_prints_how_it_was_taught(
    teaching: dict[str, Any], line: str, tmp_path: Path, capsys: Capture
) -> None:
    make_recipe(teaching=teaching).save(tmp_path / "metal2.safetensors")
    assert main(["inspect", str(tmp_path / "metal2.safetensors")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"recipe      {tmp_path / 'metal2.safetensors'}: good, bridge, hole; text from anchors\n")
    assert f"{line}\n" in out
    assert "defect threshold 0.5000" in out
    assert "runs here" not in out


def test_inspect_of_a_damaged_recipe_file_is_one_error(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "metal2.safetensors").write_bytes(b"no recipe")
    assert main(["inspect", str(tmp_path / "metal2.safetensors")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
