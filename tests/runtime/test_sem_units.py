"""runtime.fab.sem_units: quantities and dates are read strictly, or not at all."""

from __future__ import annotations

from datetime import datetime

import pytest

from runtime.fab.sem_units import LENGTHS_NM, VOLTS_KV, magnification, moment, name, quantity, whole


@pytest.mark.parametrize(
    ("text", "nm"),
    [
        ("7.344 nm", 7.344),
        ("7344 pm", 7.344),
        ("0.5um", 500),
        ("0.5 \u00b5m", 500),
        ("0.5 \u03bcm", 500),
        ("2.8 mm", 2.8e6),
        ("1e-9 m", 1),
        (" 4.1e-008 m ", 41),
        (".5 nm", 0.5),
    ],
)
def test_lengths_have_units(text: str, nm: float) -> None:
    assert quantity(text, LENGTHS_NM) == pytest.approx(nm)


@pytest.mark.parametrize(
    "text", ["", "nm", "7.344", "7,344 nm", "7.344 px", "7.344 NM", "1 2 nm", "7.344 nm x", "nan nm"]
)
def test_a_length_without_a_unit_or_with_another_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no number with a unit"):
        quantity(text, LENGTHS_NM)


def test_a_number_takes_the_unit_that_its_maker_always_means() -> None:
    assert quantity("2.0345e-009", LENGTHS_NM, "m") == pytest.approx(2.0345)
    assert quantity("15000", VOLTS_KV, "V") == 15
    assert quantity("15000 Volt", VOLTS_KV) == 15


@pytest.mark.parametrize(
    ("text", "times"),
    [("50.00 K X", 50000), ("157 X", 157), ("5000", 5000), ("x1.5k", 1500), ("x50.0k", 50000), ("1.2 M X", 1.2e6)],
)
def test_magnifications(text: str, times: float) -> None:
    assert magnification(text) == times


@pytest.mark.parametrize("text", ["", "X", "50,00 K X", "5 Q", "fifty"])
def test_what_is_no_magnification(text: str) -> None:
    with pytest.raises(ValueError, match="is no magnification"):
        magnification(text)


@pytest.mark.parametrize(
    ("date", "time", "found"),
    [
        ("18 Jul 2019", "10:09:27", datetime(2019, 7, 18, 10, 9, 27)),
        ("2019/03/12", "10:22:13", datetime(2019, 3, 12, 10, 22, 13)),
        ("2019-03-12", "10:22:13.25", datetime(2019, 3, 12, 10, 22, 13)),
        ("12.03.2019", "10:22:13", datetime(2019, 3, 12, 10, 22, 13)),
        ("03/12/2019", "10:22:13 PM", datetime(2019, 3, 12, 22, 22, 13)),
        ("03/12/2019", "12:00:00 AM", datetime(2019, 3, 12)),
        ("13/12/2019", "10:22:13", datetime(2019, 12, 13, 10, 22, 13)),
        ("12/13/2019", "10:22:13", datetime(2019, 12, 13, 10, 22, 13)),
        ("05/05/2019", "10:22:13", datetime(2019, 5, 5, 10, 22, 13)),
    ],
)
def test_dates_are_as_written(date: str, time: str, found: datetime) -> None:
    assert moment(date, time) == found


@pytest.mark.parametrize(
    ("date", "time"),
    [
        ("03/12/2019", "10:22:13"),
        ("2019-13-40", "10:22:13"),
        ("18 Jux 2019", "10:22:13"),
        ("18 Jul 19", "10:22:13"),
        ("18 Jul 2019", "25:22:13"),
        ("18 Jul 2019", "13:00:00 PM"),
        ("18 Jul 2019", "noon"),
        ("", "10:22:13"),
    ],
)
def test_a_date_that_may_be_two_or_is_none_is_refused(date: str, time: str) -> None:
    with pytest.raises(ValueError, match=r"may be|is no|no year|must be|out of range"):
        moment(date, time)


def test_whole_numbers_and_names() -> None:
    assert whole("16") == whole("16.0") == 16
    assert name("  Supra \t 40 ") == "Supra 40"
    for text in ("", "1.5", "-1", "1e3", "9" * 30):
        with pytest.raises(ValueError, match="is no whole number"):
            whole(text)
    for text in ("", "a\x00b", "n" * 200):
        with pytest.raises(ValueError, match="is no name"):
            name(text)
