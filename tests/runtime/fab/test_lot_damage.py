"""Damaged lots: each gives a typed error, or results that agree with its own file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from lots import make_case

from runtime import Predictor
from runtime.errors import PredictorError
from runtime.fab.codes import Codes
from runtime.fab.klarf import read_klarf
from runtime.fab.lot import LotClassifier
from runtime.fab.lot_run import Engine


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or moved."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data))
        stop = min(len(data), start + rng.choice((1, 1, 2, 8, 60)))
        part = bytes(data[start:stop])
        way = rng.randrange(5)
        if way == 0:
            data[start:stop] = bytes(rng.choice(b' ;"{}0-9ENA\n\r\t\x00\xff') for _ in part)
        elif way == 1:
            del data[start:stop]
        elif way == 2:
            data[start:start] = part
        elif way == 3:
            place = rng.randrange(len(data))
            data[place:place] = part
        else:
            data[start:stop] = str(rng.choice((-1, 0, 10**6, 10**19, 1e30))).encode()
    return bytes(data)


def classify_all(folder: Path, count: int, seed: int) -> tuple[int, int]:
    """How many damaged lots were answered, and how many refused."""
    case, rng = make_case(folder, 8), random.Random(seed)
    whole = case.lot.read_bytes()
    answered = refused = 0
    with Predictor(case.bundle, backend="fake") as predictor:
        codes = Codes.load(case.folder / "codes.toml", predictor.recipe.classes)
        engine = Engine.of(predictor, 8, {})
        lots = LotClassifier(predictor, engine, codes, case.lot.parent, case.out, parquet=False, force=True)
        for number in range(count):
            lot = case.lot.with_name(f"{number}.klarf")
            lot.write_bytes(damaged(whole, rng))
            try:
                done = lots.classify(lot)
            except PredictorError:
                refused += 1
                assert not (case.out / lot.name).exists()
                continue
            answered += 1
            lines = [json.loads(line) for line in (case.out / f"{lot.name}.jsonl").read_text().splitlines()]
            before, after = read_klarf(lot), read_klarf(case.out / lot.name)
            assert len(lines) == sum(1 for _ in before.defects)
            for line, old, new in zip(lines, before.defects, after.defects, strict=True):
                assert (line["wafer"], line["defect_id"], line["test"]) == old.key == new.key
                assert new.class_number == (old.class_number if line["code"] is None else line["code"])
            assert done.status == any("error" in image for line in lines for image in line["images"])
            assert not (case.out / f"{lot.name}.journal").exists()
    return answered, refused


def test_damaged_lots_are_refused_or_answered(tmp_path: Path) -> None:
    answered, refused = classify_all(tmp_path, 80, 0)
    assert answered > 5
    assert refused > 5


@pytest.mark.slow
def test_many_damaged_lots_are_refused_or_answered(tmp_path: Path) -> None:
    assert sum(classify_all(tmp_path, 1500, 1)) == 1500
