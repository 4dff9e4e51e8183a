"""export/artifacts/round_weights.py: levels that keep the product close, not each weight."""

from __future__ import annotations

import numpy as np
import pytest

from export.artifacts.round_weights import Rounded, round_weight

LIMIT = 63


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(150, 40)).astype(np.float32)


def correlated_inputs(count: int, width: int) -> np.ndarray:
    """As activations are: a few directions hold most of the variance."""
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(width // 8, width))
    return (rng.normal(size=(count, width // 8)) @ mixing + 0.1 * rng.normal(size=(count, width))).astype(np.float32)


def nearest(weight: np.ndarray) -> Rounded:
    scale = np.abs(weight).max(0) / LIMIT
    return Rounded(np.rint(weight / scale).astype(np.int8), scale)


def error(inputs: np.ndarray, weight: np.ndarray, rounded: Rounded) -> float:
    return float(np.square(inputs @ (rounded.levels * rounded.scale - weight)).mean())


@pytest.mark.parametrize("moments", [np.eye(150), 7 * np.eye(150), np.zeros((150, 150))], ids=["one", "seven", "none"])
def test_uninformative_moments_give_rounding_to_nearest(weight: np.ndarray, moments: np.ndarray) -> None:
    rounded = round_weight(weight, moments.astype(np.float32), LIMIT)
    np.testing.assert_array_equal(rounded.levels, nearest(weight).levels)
    np.testing.assert_allclose(rounded.scale, nearest(weight).scale, rtol=1e-6)
    assert (np.abs(rounded.levels * rounded.scale - weight) <= rounded.scale / 2 + 1e-6).all()


def test_correlated_inputs_have_a_smaller_error_also_unseen_ones(weight: np.ndarray) -> None:
    inputs = correlated_inputs(4000, len(weight))
    seen, others = inputs[:2000], inputs[2000:]
    rounded = round_weight(weight, seen.T @ seen, LIMIT)
    assert error(seen, weight, rounded) < error(seen, weight, nearest(weight)) / 3
    assert error(others, weight, rounded) < error(others, weight, nearest(weight)) / 3


@pytest.mark.parametrize("limit", [63, 127])
def test_levels_stay_within_the_limit(weight: np.ndarray, limit: int) -> None:
    inputs = correlated_inputs(300, len(weight))
    rounded = round_weight(weight, inputs.T @ inputs, limit)
    assert rounded.levels.dtype == np.int8
    assert np.abs(rounded.levels.astype(int)).max() == limit
    assert rounded.scale.dtype == np.float32


def test_unused_channels_and_zero_outputs_keep_the_error_small(weight: np.ndarray) -> None:
    inputs, holed = correlated_inputs(300, len(weight)), weight.copy()
    inputs[:, 10:20] = 0
    holed[:, 3] = 0
    rounded = round_weight(holed, inputs.T @ inputs, LIMIT)
    assert np.isfinite(rounded.scale).all()
    assert not rounded.levels[:, 3].any()
    assert error(inputs, holed, rounded) < error(inputs, holed, nearest(np.where(holed == 0, 1e-9, holed)))
