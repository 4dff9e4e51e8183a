"""benchmarks.accuracy.classifiers.fine_tune: the layers it changes, its rates and its seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.accuracy import classifiers
from benchmarks.accuracy.classifiers import (
    BODY_RATE,
    STEPS,
    TRANSFORMER_RATE,
    Classifier,
    _rate,
    fine_tune,
    load_classifier,
)

pytestmark = pytest.mark.slow


def small(folder: Path, name: str = "test_vit") -> Classifier:
    """One of timm's own small networks with random weights."""
    torch.manual_seed(5)
    torch.save(timm.create_model(name, pretrained=False).state_dict(), folder / "w.pth")
    return load_classifier(name, folder / "w.pth")


def two_kinds(classifier: Classifier) -> tuple[NDArray[np.uint8], Tensor]:
    """Dark and bright frames, eight of each."""
    rng = np.random.default_rng(1)
    level = np.repeat([40, 200], 8)[:, None, None]
    return (level + rng.integers(0, 30, (16, *classifier.size))).astype(np.uint8), torch.tensor([0] * 8 + [1] * 8)


def test_fine_tuning_moves_all_layers_and_learns(tmp_path: Path) -> None:
    found = small(tmp_path, "test_efficientnet")
    before = {key: value.clone() for key, value in found.network.state_dict().items()}
    frames, labels = two_kinds(found)
    tuned = fine_tune(found, frames, labels, 2, seed=0, steps=12)
    with torch.inference_mode():
        assert torch.equal(tuned(found.pixels(frames)).argmax(1), labels)
    after = dict(tuned.named_parameters())
    assert after.keys() - before.keys() == {"classifier.weight", "classifier.bias"}
    assert all(not torch.equal(after[key], before[key]) for key in after.keys() & before.keys())
    assert all(torch.equal(found.network.state_dict()[key], before[key]) for key in before), "a copy was tuned"
    statistics = [key for key in before if key.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(torch.equal(tuned.state_dict()[key], before[key]) for key in statistics), "they stay"


def test_fine_tuning_repeats_with_its_seed_and_keeps_the_callers_random_state(tmp_path: Path) -> None:
    found = small(tmp_path)
    frames, labels = two_kinds(found)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = fine_tune(found, frames, labels, 2, seed=3, steps=2)
    assert torch.equal(torch.rand(3), expected)
    again, other = (fine_tune(found, frames, labels, 2, seed=seed, steps=2) for seed in (3, 4))
    key = "head.weight"
    assert torch.equal(one.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.state_dict()[key])


def test_rates_and_decay_of_body_and_classifier(tmp_path: Path) -> None:
    for name, rate in (("test_vit", TRANSFORMER_RATE), ("test_efficientnet", BODY_RATE)):
        found = small(tmp_path, name)
        network: nn.Module = found.network
        network.reset_classifier(3)
        groups = classifiers._parameter_groups(network, found.head)
        rates = {key: group["lr"] for (key, _), group in zip(network.named_parameters(), groups, strict=True)}
        head = [key for key in rates if key.startswith(("head", "classifier"))]
        assert len(head) == 2
        assert all(rates[key] == pytest.approx(rate * (10 if key in head else 1)) for key in rates)
        assert all((group["weight_decay"] > 0) == (group["params"][0].ndim > 1) for group in groups)


def test_the_rate_warms_up_and_falls_to_0() -> None:
    rates = [_rate(step, STEPS) for step in range(STEPS)]
    warm = STEPS // 10
    assert rates[warm - 1] == 1
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm - 1 :] == sorted(rates[warm - 1 :], reverse=True)
    assert 0 < rates[-1] < 1e-3
