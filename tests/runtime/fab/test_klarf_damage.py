"""Damaged KLARF files: a typed error, or a model that writes back to the same bytes and changes only what is asked."""

from __future__ import annotations

import random
import re

import pytest
from klarfs import FIXTURES, flat, flat_row, nested, nested_row

from runtime.errors import KlarfError
from runtime.fab.klarf import parse_klarf
from runtime.fab.klarf_writing import with_classes

IMAGES = 'Images 2 { "C:\\lot\\1.tif" "TIFF" 3 "Patch", "b/2.jpg" "JPG" 1 "SEM" }'
OWN = {
    "flat": flat([flat_row(1, [(3, 0), (4, 1)]), flat_row(2), flat_row(3, [(5, 0)])], wafers=["W1", "W2"]),
    "uncounted": flat([flat_row(1, [(3, 0), (4, 1)], counted=False), flat_row(2, counted=False)]),
    "nested": nested([nested_row(1, IMAGES), nested_row(2), nested_row(3, code="NA")], wafers=["W1", "W2"]),
}
FILES = [*OWN, *(sorted(path.name for path in FIXTURES.glob("*.klarf")) if FIXTURES.is_dir() else [])]
FEW, MANY = 60, 5000
PIECES = [b";", b'"', b"{", b"}", b"\n", b"\r", b" ", b"NA", b"N", b"-1", b"1e999", b"99999999999999999999", b"\0",
          b"\xff", b",", b"Images 9 {", b"DefectList", b"EndOfFile;", b"__import__('os')", b"1_0", b"nan"]  # fmt: skip
_TOKEN = re.compile(rb'"[^"\r\n]*"|[^\s;"{},]+|[;"{},]')


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: bytes or tokens replaced, removed, doubled or swapped, lines moved, the end cut off."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(8)
        if kind == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[at + rng.randint(1, 40) :]
        elif kind == 2:
            data = data[:at] + rng.choice(PIECES) + data[at:]
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            length = rng.randint(1, 400)
            data = data[:at] + data[at : at + length] + data[at:]
        else:
            tokens = list(_TOKEN.finditer(data))
            if not tokens:
                break
            one, two = sorted(rng.sample(tokens, 2), key=lambda token: token.start()) if tokens[1:] else tokens * 2
            new = (b"", rng.choice(PIECES), two[0])[kind - 5]
            data = data[: one.start()] + new + data[one.end() :]
    return data


def check(data: bytes, rng: random.Random) -> bool:
    """Whether the file is read; whatever it says then agrees with itself."""
    try:
        file = parse_klarf(data, "damaged.klarf")
    except KlarfError:
        return False
    assert with_classes(file, {}) == data
    defects = list(file.defects)
    for defect in defects:
        assert all(image.page is None or isinstance(image.page, int) for image in defect.images)
        assert defect.x_nm is None or abs(defect.x_nm) < float("inf")
        assert len(defect.cells) == len(defect.table.columns)
    if not defects:
        return True
    chosen = rng.choice(defects)
    try:
        after = with_classes(file, {chosen.key: {"CLASSNUMBER": 4711}})
    except KlarfError:
        return True  # a twin, or no number to replace
    again = list(parse_klarf(after, "again.klarf").defects)
    for old, new in zip(defects, again, strict=True):
        assert new.cells == old.cells | ({"CLASSNUMBER": "4711"} if old is chosen else {})
        assert (new.key, new.images, new.x_nm) == (old.key, old.images, old.x_nm)
    return True


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("times", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_mutated_files_give_a_typed_error_or_a_right_answer(name: str, times: int) -> None:
    data = OWN[name] if name in OWN else (FIXTURES / name).read_bytes()
    rng = random.Random(f"{name} {times}")
    read = sum(check(mutated(data, rng), rng) for _ in range(times))
    assert read < times
    if name != "bad12DefectList.klarf":
        assert read > 0, "some changes do no harm"


def test_the_text_of_a_file_is_never_run() -> None:
    """One public reader evaluates what stands in a file."""
    spell = b"__import__('os')._exit(3)"
    for data in OWN.values():
        for place in re.finditer(rb"\b(2\.0|250|0\.25|lot)\b", data):
            check(data[: place.start()] + spell + data[place.end() :], random.Random(0))
