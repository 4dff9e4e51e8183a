"""The methods of comparison: the arguments that choose them, and one run of the command with them."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
import timm
import torch

from benchmarks.accuracy import classifiers
from benchmarks.accuracy.classifiers import TABLE_2
from benchmarks.accuracy.comparison import Comparison, add_comparison_arguments
from benchmarks.accuracy.protocol import Accuracy
from export.errors import ExportError
from runtime.cli import run
from runtime.files import sha256_of

SMALL = "test_vit"


def arguments(*words: str) -> Namespace:
    parser = ArgumentParser()
    Accuracy().add_arguments(parser)
    return parser.parse_args(["--generated", "4", "--arch", "toy", "--random-weights", "--shots", "1", *words])


@pytest.mark.slow
def test_accuracy_json_has_the_rows_of_classifiers_and_the_hash_of_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifiers, "STEPS", 2)
    path = tmp_path / "w.pth"
    torch.save(timm.create_model(SMALL, pretrained=False).state_dict(), path)
    words = ["--seeds", "1", "--classes", "good,hole", "--classifier", f"{SMALL}={path}", "--fine-tune"]
    Accuracy().run(arguments(*words, "--out", str(tmp_path / "out")))
    document = json.loads((tmp_path / "out/accuracy.json").read_text())
    assert [row["method"] for row in document["rows"]] == ["fp32", f"{SMALL} probe", f"{SMALL} fine-tuned"]
    assert document["classifiers"][0]["sha256"] == sha256_of(path)
    assert all(0 <= row["iauroc"] <= 1 for row in document["rows"])
    table = (tmp_path / "out/accuracy.md").read_text()
    assert f"| {SMALL} probe | class labels | 1 | 1 |" in table
    assert table.count("| - | - | - |\n") == 2, "classifiers draw no map"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classifier", "no_such_network=w.pth"], "timm has no network of this name"),
        (["--classifier", f"{SMALL}=absent.pth"], "there is no weights file absent.pth"),
        (["--fine-tune"], "--fine-tune tunes classifiers, and none is named"),
        (["--baselines", "patch_memory,nearest_star"], '--baselines has no row "nearest_star"; there are: class_mean'),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("the encoder was loaded before the arguments were checked")

    monkeypatch.setattr("benchmarks.accuracy.protocol.load_model", too_late)
    with pytest.raises(ExportError) as caught:
        Accuracy().run(arguments(*words))
    assert message in str(caught.value)
    assert run(Accuracy(), arguments(*words)) == 2
    assert message in capsys.readouterr().err


def test_the_help_names_the_networks_of_table_2(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    add_comparison_arguments(parser)
    parser.print_help()
    said = re.sub(r"\n\s+", " ", capsys.readouterr().out)
    assert all(f"{name} ({family})" in said for name, family in TABLE_2.items())


def test_rows_are_chosen_in_the_order_of_the_table() -> None:
    parser = ArgumentParser()
    add_comparison_arguments(parser)
    chosen = Comparison.from_arguments(parser.parse_args(["--baselines", "patch_memory,class_mean"]))
    assert chosen.baselines == ("class_mean", "patch_memory")
    assert "winclip" in Comparison.from_arguments(parser.parse_args(["--baselines"])).baselines
    assert Comparison.from_arguments(parser.parse_args([])) == Comparison()
