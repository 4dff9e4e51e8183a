"""benchmarks.accuracy.precisions: which precisions are opened, on which frames int8 is quantized, and agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import precisions
from benchmarks.accuracy.precisions import frames_not_tested, label_agreement, open_precisions
from calibration.dataset import Dataset, Sample
from calibration.errors import DatasetError
from export.errors import ParityError


def test_int8_with_too_few_untested_frames_is_refused() -> None:
    samples = [Sample(Path(f"{n}.png"), "good", str(n), None) for n in range(40)]
    dataset = Dataset(Path("data"), ("good",), tuple(samples))
    assert frames_not_tested(dataset, samples[20:]) == samples[:20]
    with pytest.raises(DatasetError, match="all frames but 4, and int8 needs at least 16 untested frames"):
        frames_not_tested(dataset, samples[4:])


def test_a_refused_int8_leaves_the_other_precisions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*given: Any) -> None:
        raise ParityError("the 8-bit form is too far off")

    monkeypatch.setattr(precisions, "quantize", refused)
    monkeypatch.setattr(precisions, "Predictor", lambda bundle, precision, **_: f"{precision} of {bundle}")
    samples = tuple(Sample(Path(f"{n}.png"), "good", str(n), None) for n in range(40))
    dataset = Dataset(Path("data"), ("good",), samples)
    opened = open_precisions(Path("bundle"), ["fp32", "fp16", "int8"], dataset, samples[20:], 3)
    assert opened == {"fp32": "fp32 of bundle", "fp16": "fp16 of bundle"}
    assert "seed 3, no int8: the 8-bit form is too far off" in capsys.readouterr().err


def test_label_agreement_is_of_all_frames_and_of_the_most_confident() -> None:
    one = {"labels": ["good"] * 10, "confidences": np.linspace(1, 0.1, 10)}
    other = {"labels": ["good"] * 9 + ["hole"], "confidences": np.ones(10)}
    assert label_agreement(one, other) == {"labels_equal": 0.9, "labels_equal_kept": 1.0}
