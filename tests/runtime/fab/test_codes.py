"""codes.toml: which code stands for which verdict, and every fault of such a file at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from lots import CODES

from runtime.fab.codes import MAX_BYTES, Codes
from runtime.fab.lot_errors import LotError

CLASSES = ("good", "bridge", "hole")


def load(folder: Path, text: str | bytes, classes: tuple[str, ...] = CLASSES) -> Codes:
    path = folder / "codes.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Codes.load(path, classes)


def faults(folder: Path, text: str | bytes, classes: tuple[str, ...] = CLASSES) -> tuple[str, ...]:
    with pytest.raises(LotError) as caught:
        load(folder, text, classes)
    return caught.value.faults


def test_codes_by_verdict_and_names_by_code(tmp_path: Path) -> None:
    codes = load(tmp_path, CODES)
    assert codes.numbers == {"good": 0, "bridge": 12, "hole": 13, "unknown": 98, "cannot decide": 99}
    assert codes.names == {0: "Unclassified", 12: "bridge", 13: "hole", 98: "unknown", 99: "cannot decide"}
    assert codes.sha256 != load(tmp_path, CODES + "\n").sha256


def test_not_read_may_have_a_code(tmp_path: Path) -> None:
    codes = load(tmp_path, CODES.replace("[names]", '"not read" = -1\n[names]'))
    assert codes.numbers["not read"] == -1
    assert codes.names[-1] == "not read"


def test_one_code_for_two_classes_needs_one_name(tmp_path: Path) -> None:
    text = CODES.replace("hole = 13", "hole = 12")
    (fault,) = faults(tmp_path, text)
    assert fault == 'code 12 is used for "bridge", "hole": give each its own, or one name for all in [names]'
    codes = load(tmp_path, text + 'bridge = "Short"\nhole = "Short"\n')
    assert codes.numbers["bridge"] == codes.numbers["hole"] == 12
    assert codes.names[12] == "Short"


def test_all_faults_are_named_together(tmp_path: Path) -> None:
    text = """
    [codes]
    good = 0
    bridge = "12"
    scratch = 7
    unknown = 3000000000
    "cannot decide" = true
    [names]
    scratch = "x"
    good = ""
    [extra]
    """
    found = faults(tmp_path, text)
    assert [fault.split(",")[0][:40] for fault in found] == [
        "[extra] is not known; the tables are [co",
        '"hole" has no code in [codes]',
        'the code of "bridge" must be a whole num',
        '"scratch" in [codes] is no class of the ',
        'the code of "unknown" must lie in -21474',
        'the code of "cannot decide" must be a wh',
        '"scratch" in [names] has no code in [cod',
        'the name of "good" must be 1 to 128 char',
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no table [codes]"),
        ("codes = 3", "has no table [codes]"),
        ("[codes", "is not readable TOML"),
        (b"[codes]\n\xff = 1", "is not UTF-8 text"),
        ("x = " + "[" * 5000, "is not readable TOML"),
        ("#" * (MAX_BYTES + 1), "more than the"),
        (CODES + "names = 3", "[names]"),
        (CODES.replace('"Unclassified"', '"a\\nb"'), "without quotes and line breaks"),
        (CODES.replace('"Unclassified"', "5"), "must be 1 to 128 characters"),
    ],
)
def test_what_is_no_file_of_codes_is_one_typed_error(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert any(said in fault for fault in faults(tmp_path, text))


def test_a_missing_file_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(LotError, match="does not exist"):
        Codes.load(tmp_path / "absent.toml", CLASSES)


def test_a_class_may_not_be_called_like_a_defect_that_was_not_judged(tmp_path: Path) -> None:
    found = faults(tmp_path, CODES.replace("hole", '"No  Image"'), ("good", "bridge", "No  Image"))
    assert any("teach it under another name" in fault for fault in found)


def test_a_class_with_a_quote_needs_a_name_of_its_own(tmp_path: Path) -> None:
    text = CODES.replace("hole", "'5\" hole'")
    classes = ("good", "bridge", '5" hole')
    assert any("needs a name without quotes" in fault for fault in faults(tmp_path, text, classes))
    assert load(tmp_path, text + '\'5" hole\' = "hole"', classes).names[13] == "hole"
