"""The embedded encoder that ships: what the file is, and one small row of docs/results.md, measured again."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import open_clip
import pytest
from places import ROOT
from safetensors import safe_open

from benchmarks.accuracy.protocol import Accuracy
from benchmarks.accuracy.table import COLUMNS
from export.model.checkpoint import TRAINED_TOKENS, load_model
from export.synthetic import CLASSES
from export.teaching.prompts import load_prompts

FOLDER = ROOT / "export/weights"
MOST_BYTES = 20_000_000
CELL = re.compile(r"^\| generated, 8 per class, one seed \| sem_tiny \| 1 \| \d+ \|(.+)\|$", re.MULTILINE)
COMMAND = "python -m benchmarks.accuracy --generated 8 --arch sem_tiny --shots 1 --seeds 1"
POINTS = 6.0
"""Percentage points by which another machine may differ: two of the cell's frames."""


def test_the_file_is_small_and_half_precision() -> None:
    file = FOLDER / "sem_tiny.safetensors"
    assert file.stat().st_size <= MOST_BYTES
    with safe_open(file, framework="numpy") as tensors:
        types = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    assert types.pop(TRAINED_TOKENS) == "I32"
    assert set(types.values()) == {"F16"}


def test_sem_tiny_loads_with_the_vocabulary_of_the_prompts() -> None:
    model = load_model("sem_tiny")
    assert model.trained
    assert model.has_text
    assert model.vocabulary is not None
    tokenizer = open_clip.SimpleTokenizer(context_length=model.clip.context_length)
    prompts = load_prompts()
    assert model.vocabulary == set(
        tokenizer([p for name in CLASSES for p in prompts.for_class(name)]).flatten().tolist()
    )
    assert sum(p.numel() for p in model.clip.parameters()) == pytest.approx(9.85e6, rel=0.01)


def test_log_lists_runs_in_order_and_improves() -> None:
    lines = [json.loads(line) for line in (ROOT / "docs/pretraining-log.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == sorted(line["run"] for line in lines)
    for run in {line["run"] for line in lines}:
        steps = [line["step"] for line in lines if line["run"] == run]
        assert steps == sorted(set(steps))
    assert lines[-1]["patch_auroc"] > lines[0]["patch_auroc"]
    assert lines[-1]["accuracy"] > lines[0]["accuracy"]


@pytest.mark.slow
def test_a_cell_of_the_results_is_reproduced(tmp_path: Path) -> None:
    results = (ROOT / "docs/results.md").read_text()
    assert COMMAND in results
    (stated,) = CELL.findall(results)
    parser = argparse.ArgumentParser()
    command = Accuracy()
    command.add_arguments(parser)
    assert command.run(parser.parse_args([*COMMAND.split()[3:], "--out", str(tmp_path)])) == 0
    (row,) = json.loads((tmp_path / "accuracy.json").read_text())["rows"]
    found = [100 * row[name] for name in COLUMNS]
    assert found == pytest.approx([float(value) for value in stated.split("|")], abs=POINTS)
