"""benchmarks.accuracy.choosing: which frames to label next."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.accuracy.choosing import (
    RULES,
    Answers,
    Choosing,
    Study,
    at_random,
    least_sure,
    most_unlike,
    table,
)
from export.model.graph import SemClipGraph
from runtime.cli import run
from runtime.frames import prepare
from runtime.recipe import TENSORS


def answers() -> Answers:
    return Answers(
        np.array([0, 1, 1, 0]),
        np.array([0.9, 0.1, 0.5, 0.1], np.float32),
        np.array([0.2, 0.3, 0.9, 0.1], np.float32),
    )


def test_rules_order_frames_by_margin_by_novelty_and_at_random() -> None:
    rng = np.random.default_rng(0)
    assert least_sure(answers(), rng).tolist() == [1, 3, 2, 0]
    assert most_unlike(answers(), rng).tolist() == [2, 1, 0, 3]
    assert sorted(at_random(answers(), rng).tolist()) == [0, 1, 2, 3]
    assert len({tuple(at_random(answers(), rng).tolist()) for _ in range(20)}) > 1


def test_the_table_gives_means_spread_and_the_gain_on_random() -> None:
    value = {"random": 0.5, "least sure": 0.6, "most unlike": 0.4}
    rows = [
        {"seed": seed, "rule": rule, "labels": labels, "accuracy": value[rule] + 0.1 * seed + labels / 100}
        for seed in (0, 1)
        for rule in RULES
        for labels in (4, 8)
    ]
    lines = table(rows).splitlines()
    assert lines[0] == "| accuracy | 4 labels | 8 labels |"
    assert lines[2] == "| random | 59.0 ± 5.0 | 63.0 ± 5.0 |"
    assert "| least sure - random | 10.0 ± 0.0 | 10.0 ± 0.0 |" in lines
    assert "| most unlike - random | -10.0 ± 0.0 | -10.0 ± 0.0 |" in lines


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    Choosing().add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


TOY = ("--arch", "toy", "--random-weights", "--views", 1, "--seeds", 1, "--start", 1, "--step", 2, "--rounds", 1)


@pytest.mark.slow
def test_every_rule_starts_alike_and_gets_as_many_labels(toy_frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    assert run(Choosing(), arguments("--data", toy_frames, *TOY, "--out", out)) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["rule"], row["labels"]) for row in rows] == [(rule, n) for rule in RULES for n in (7, 9)]
    assert len({row["accuracy"] for row in rows if row["labels"] == 7}) == 1


@pytest.mark.slow
def test_answers_on_features_are_those_of_the_graph(toy_frames: Path, tmp_path: Path) -> None:
    study = Study.open(arguments("--data", toy_frames, *TOY), tmp_path)
    samples = list(study.dataset.samples)[::3]
    features = study._encode(samples, 1)
    recipe = study._teach(features, np.ones(len(samples), np.bool_), 0)
    probabilities, maps, vectors = study._outputs(features, recipe)
    frames = np.stack([prepare(s.read(study.options), study.encoder, study.options, "x") for s in samples])
    with torch.inference_mode():
        inputs = {name: torch.tensor(recipe.tensors[name]) for name in TENSORS}
        expected = SemClipGraph(study.model.encoder())(torch.from_numpy(frames), **inputs)
    assert np.abs(probabilities - expected[0].numpy()).max() < 5e-3  # tokens are kept in half precision
    assert np.abs(maps - expected[1].flatten(1).numpy()).max() < 5e-3
    assert np.abs(vectors - expected[2].numpy()).max() < 5e-2
