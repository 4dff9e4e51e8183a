"""calibration.bounds against scipy, and against counting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from calibration.bounds import at_least, beta_quantile, exact_ceil, exact_floor, order_statistic_rate


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 19), (3, 69), (50, 2), (1, 5000), (250, 4750)])
@pytest.mark.parametrize("probability", [0.05, 0.5, 0.95])
def test_quantiles_of_the_beta_distribution(a: int, b: int, probability: float) -> None:
    assert beta_quantile(probability, a, b) == pytest.approx(stats.beta.ppf(probability, a, b), rel=1e-6)


@pytest.mark.parametrize(
    ("share", "count", "floor", "ceil"),
    [(0.29, 100, 29, 29), (0.07, 100, 7, 7), (0.1, 11, 1, 2), (0.0, 5, 0, 0), (1.0, 5, 5, 5), (1e-05, 10**6, 10, 10)],
)
def test_shares_are_taken_as_the_decimals_that_were_typed(share: float, count: int, floor: int, ceil: int) -> None:
    assert (exact_floor(share, count), exact_ceil(share, count)) == (floor, ceil)


def test_the_rate_beyond_an_order_statistic_is_what_a_simulation_finds() -> None:
    """For uniform scores the share above a threshold t is 1 - t, so no second sample is needed."""
    rng = np.random.default_rng(0)
    count, beyond = 60, 2
    true_rates = 1 - np.sort(rng.random((20_000, count)), axis=1)[:, count - beyond - 1]
    expected, at_most = order_statistic_rate(beyond, count)
    assert true_rates.mean() == pytest.approx(expected, abs=4 * true_rates.std() / 20_000**0.5)
    assert np.mean(true_rates <= at_most) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("right", "count"), [(1, 1), (49, 50), (50, 50), (7, 20)])
def test_the_lower_end_is_that_of_clopper_and_pearson(right: int, count: int) -> None:
    interval = stats.binomtest(right, count, alternative="greater").proportion_ci(0.95, method="exact")
    assert at_least(right, count) == pytest.approx(interval.low, rel=1e-6)
    assert at_least(0, count) == 0
