"""KLARF files of other hands: where no image can be judged, the file comes out as it went in, to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lots import LotCase, make_case
from places import SHARED

from runtime.fab.klarf import read_klarf

pytest.importorskip("pyarrow")
FILES = (
    "simple12",
    "klarf12Example",
    "klarf12DefectListExample",
    "simple18",
    "wierdKlarfWithNAs",
    "klarfWithImagelist",
)


@pytest.mark.parametrize("name", FILES)
def test_a_lot_without_its_images_comes_out_as_it_went_in(name: str, tmp_path: Path) -> None:
    path = SHARED / "fixtures" / "klarf" / f"{name}.klarf"
    if not path.is_file():
        pytest.skip("the KLARF files of others are not beside the project")
    case = make_case(tmp_path, 3)
    case = LotCase(case.folder, case.bundle, path)
    file = read_klarf(path)
    images = sum(len(defect.images) for defect in file.defects)
    assert case.run("--no-lookup", "--images", tmp_path / "in") == (1 if images else 0)
    assert (case.out / path.name).read_bytes() == path.read_bytes()
    summary = json.loads((case.out / f"{path.name}.lot.json").read_text())
    assert summary["defects"] == sum(1 for _ in file.defects)
    assert summary["images_not_read"] == images
    assert {line["verdict"] for line in case.lines()} <= {"not read", "no image"}
