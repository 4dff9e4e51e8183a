"""calibration.thresholds: against a search over every possible threshold, and the promises against simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.histogram import ScoreHistogram
from calibration.rules import DEFECT_RULES, PIXEL_RULES, Rule
from calibration.thresholds import choose_defect_threshold, choose_pixel_threshold, f1_max_threshold


def f1_at(threshold: float, scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """F1 of "score >= threshold", counted one by one."""
    tp = sum(1 for s, t in zip(scores, truth, strict=True) if s >= threshold and t)
    fp = sum(1 for s, t in zip(scores, truth, strict=True) if s >= threshold and not t)
    fn = sum(1 for s, t in zip(scores, truth, strict=True) if s < threshold and t)
    return 2 * tp / (2 * tp + fp + fn)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("steps", [3, 10, 10**6])
def test_no_threshold_has_a_higher_f1(seed: int, steps: int) -> None:
    """With few steps many scores are equal."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 40))
    scores = rng.integers(0, steps, count) / steps
    truth = rng.random(count) < rng.uniform(0.05, 0.95)
    truth[rng.integers(count)] = True
    threshold, f1 = f1_max_threshold(scores, truth)
    best = max(f1_at(s, scores, truth) for s in scores)
    assert f1 == pytest.approx(best)
    assert f1_at(threshold, scores, truth) == pytest.approx(best)
    called = scores[scores >= threshold]
    fewer = [f1_at(s, scores, truth) for s in called if s > called.min()]
    assert all(value < best - 1e-12 for value in fewer), "a tie must go to the highest threshold"


def test_threshold_lies_halfway_between_the_two_kinds() -> None:
    threshold, f1 = f1_max_threshold([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
    assert (threshold, f1) == (pytest.approx(0.5), 1.0)


def test_order_of_the_scores_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, 50) / 6, rng.random(50) < 0.4
    expected = f1_max_threshold(scores, truth)
    for _ in range(5):
        order = rng.permutation(50)
        assert f1_max_threshold(scores[order], truth[order]) == expected


def test_equal_scores_fall_on_one_side() -> None:
    threshold, f1 = f1_max_threshold([0.4, 0.4, 0.4], [True, False, False])
    assert threshold == 0.4
    assert f1 == pytest.approx(0.5)


def test_of_equal_f1_the_higher_threshold_is_taken() -> None:
    # Calling 1, or all 4, of these positive gives the same F1 of 2/3.
    threshold, f1 = f1_max_threshold([0.9, 0.5, 0.4, 0.1], [True, False, False, True])
    assert f1 == pytest.approx(2 / 3)
    assert threshold == pytest.approx(0.7)


@pytest.mark.parametrize("seed", range(10))
def test_a_weight_of_good_items_equals_repeating_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    good, bad = rng.random(5), rng.random(30) + 0.3
    weighted = f1_max_threshold(np.append(good, bad), [False] * 5 + [True] * 30, good_weight=6)
    assert weighted == f1_max_threshold(np.append(np.repeat(good, 6), bad), [False] * 30 + [True] * 30)


def test_with_positives_alone_all_are_called_positive() -> None:
    assert f1_max_threshold([0.3, 0.7], [True, True]) == (0.3, 1.0)


@pytest.mark.parametrize("step", range(8))
def test_a_threshold_separates_neighbouring_floats(step: int) -> None:
    """There is no float between two neighbours; the threshold must still call only the upper one positive."""
    lower = 0.5
    for _ in range(step):
        lower = float(np.nextafter(lower, 1))
    upper = float(np.nextafter(lower, 1))
    threshold, f1 = f1_max_threshold([lower, upper], [False, True])
    assert f1 == 1
    assert lower < threshold <= upper


def test_arrays_of_any_shape_are_flattened() -> None:
    scores, truth = np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([[0, 1], [0, 1]])
    assert f1_max_threshold(scores, truth) == f1_max_threshold(scores.ravel(), truth.ravel())


@pytest.mark.parametrize(
    ("scores", "positive", "says"),
    [
        ([0.1, 0.2], [False, False], "at least one defect"),
        ([], [], "at least one defect"),
        ([0.1, float("nan")], [True, False], "not finite"),
        ([float("inf"), 0.1], [True, False], "not finite"),
        ([0.1, 0.2, 0.3], [True, False], "3 scores and 2 labels"),
    ],
)
def test_scores_without_a_threshold_are_refused(scores: list[float], positive: list[bool], says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        f1_max_threshold(scores, positive)


# ---- rules -----------------------------------------------------------------------------------------------------------

Scores = NDArray[np.float64]


def defect_rule(text: str) -> Rule:
    return Rule.parse(text, DEFECT_RULES)


def drawn(seed: int, good: int = 80, bad: int = 50, steps: int = 10**6) -> tuple[Scores, NDArray[np.bool_]]:
    """Scores of good and defect frames that overlap; with few steps many are equal."""
    rng = np.random.default_rng(seed)
    truth = np.arange(good + bad) >= good
    scores = np.clip(rng.normal(0.35 + 0.3 * truth, 0.12), 0.01, 0.99)
    return np.round(scores * steps) / steps, truth


@pytest.mark.parametrize("steps", [20, 10**6])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.29])
def test_max_overkill_is_kept_and_no_lower_threshold_would_keep_it(share: float, seed: int, steps: int) -> None:
    scores, truth = drawn(seed, steps=steps)
    choice = choose_defect_threshold(Rule("max-overkill", share), scores, truth)
    good = scores[~truth]
    assert np.mean(good >= choice.value) <= share
    lower = good[good < choice.value].max()
    assert np.mean(good >= lower) > share


@pytest.mark.parametrize("steps", [20, 10**6])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3])
def test_max_underkill_is_kept_and_no_higher_threshold_would_keep_it(share: float, seed: int, steps: int) -> None:
    scores, truth = drawn(seed, steps=steps)
    choice = choose_defect_threshold(Rule("max-underkill", share), scores, truth)
    bad = scores[truth]
    assert np.mean(bad < choice.value) <= share
    caught = bad[bad >= choice.value].min()
    assert np.mean(bad < np.nextafter(caught, 1)) > share


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_a_quantile_of_good_frames_passes_that_share(share: float) -> None:
    scores, truth = drawn(0)
    good = scores[~truth]
    alone = choose_defect_threshold(Rule("good-quantile", share), good, np.zeros(80, bool))
    assert np.mean(good < alone.value) >= share
    assert np.mean(good < good[good < alone.value].max()) < share


def test_thresholds_lie_between_scores_so_that_rounding_changes_no_verdict() -> None:
    scores, truth = np.array([0.1, 0.2, 0.3, 0.6, 0.7]), np.array([False, False, False, True, True])
    assert choose_defect_threshold(defect_rule("max-overkill=0.1"), scores, truth).value == pytest.approx(0.45)
    assert choose_defect_threshold(defect_rule("max-underkill=0.1"), scores, truth).value == pytest.approx(0.45)
    assert choose_defect_threshold(defect_rule("f1-max"), scores, truth).value == pytest.approx(0.45)


def test_every_choice_names_its_rule_and_its_promise() -> None:
    scores, truth = drawn(1)
    for text in ("f1-max", "max-overkill=0.02", "max-underkill=0.01", "good-quantile=0.99", "conformal=0.05"):
        choice = choose_defect_threshold(defect_rule(text), scores, truth)
        assert choice.rule == text
        assert "future frames" in choice.promise or "of future" in choice.promise
        assert choice.to_dict()["rule"] == text
    conformal = choose_defect_threshold(defect_rule("conformal=0.05"), scores, truth)
    assert conformal.figures["expected_rate"] == pytest.approx(4 / 81)
    assert conformal.figures["rate_at_95_percent"] == pytest.approx(0.0941, abs=5e-4)  # Beta(4, 77)
    assert "at most 4.94% on average" in conformal.promise
    assert "9.41% with 95% confidence" in conformal.promise


# ---- the conformal promise -------------------------------------------------------------------------------------------


def overkill_over_splits(pool: Scores, count: int, alpha: float, splits: int, *, naive: bool = False) -> Scores:
    """Overkill on the rest of `pool` of the threshold chosen on `count` of it, for random splits."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(splits):
        order = rng.permutation(pool.size)
        chosen, rest = pool[order[:count]], pool[order[count:]]
        if naive:
            threshold = float(np.quantile(chosen, 1 - alpha))
        else:
            threshold = choose_defect_threshold(Rule("conformal", alpha), chosen, np.zeros(count, bool)).value
        rates.append(float(np.mean(rest >= threshold)))
    return np.array(rates)


def breaks_promise(rates: Scores, alpha: float) -> bool:
    return bool(rates.mean() > alpha + 3 * rates.std(ddof=1) / rates.size**0.5)


@pytest.mark.parametrize(("count", "alpha"), [(19, 0.05), (9, 0.1), (25, 0.05), (60, 0.05), (99, 0.01), (200, 0.02)])
def test_promised_overkill_holds_over_random_splits(count: int, alpha: float) -> None:
    for seed, shape in enumerate((0.3, 2.0)):
        pool = np.random.default_rng(seed).beta(shape, 5.0, 4000)
        assert not breaks_promise(overkill_over_splits(pool, count, alpha, 400), alpha)


@pytest.mark.parametrize(("count", "alpha"), [(19, 0.05), (9, 0.1), (25, 0.05)])
def test_the_plain_quantile_of_few_frames_breaks_the_promise(count: int, alpha: float) -> None:
    pool = np.random.default_rng(0).beta(0.3, 5.0, 4000)
    assert breaks_promise(overkill_over_splits(pool, count, alpha, 400, naive=True), alpha)


def test_the_promise_is_tight() -> None:
    """Of n + 1 exchangeable frames, floor((n + 1) a) are above the threshold: here 3 of 61."""
    rates = overkill_over_splits(np.random.default_rng(3).random(20_000), 60, 0.05, 2000)
    assert rates.mean() == pytest.approx(3 / 61, abs=0.003)


def test_the_promise_holds_where_many_scores_are_equal() -> None:
    pool = np.round(np.random.default_rng(0).beta(0.3, 5.0, 4000), 2)
    assert not breaks_promise(overkill_over_splits(pool, 19, 0.05, 400), 0.05)


@pytest.mark.slow
def test_promised_overkill_holds_on_real_frames(shared: Path) -> None:
    """Distances of the good frames of a real set to five of them, in the features of the encoder."""
    data, weights = shared / "data" / "emps-particles", shared / "weights" / "deit-tiny"
    if not data.is_dir() or not weights.is_dir():
        pytest.skip("these frames or weights are not there")
    torch = pytest.importorskip("torch")
    from calibration.dataset import load_dataset
    from export.bundle import describe_encoder
    from export.model import heads
    from export.model.checkpoint import load_model
    from export.model.graph import SemClipGraph
    from runtime.frames import prepare
    from runtime.recipe import FrameOptions

    model = load_model(str(weights / "open_clip_config.json"), weights=weights / "visual.safetensors")
    graph = SemClipGraph(model.encoder())
    encoder, options = describe_encoder(model, graph), FrameOptions()
    samples = load_dataset(data).of_class("good")
    frames = np.stack([prepare(s.read(options), encoder, options, s.path.name) for s in samples])
    with torch.inference_mode():
        tokens = graph.encode(torch.from_numpy(frames)).tokens
        features = torch.cat([heads.unit(z[:, 0]) for z in tokens], dim=-1).numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    pool = (1 - (features[5:] @ features[:5].T).max(axis=1)).astype(np.float64) / 2
    assert not breaks_promise(overkill_over_splits(pool, 39, 0.05, 200), 0.05)


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_pixel_rules() -> None:
    rng = np.random.default_rng(0)
    good, bad = 0.5 * rng.random(20_000), 0.4 + 0.5 * rng.random(1000)
    pixels = ScoreHistogram()
    pixels.add(np.append(good, bad), np.append(np.zeros(20_000, bool), np.ones(1000, bool)))
    raised = ScoreHistogram()  # as the map is around a defect, on pixels that are of no good frame
    raised.add(
        np.concatenate([good, bad, np.full(20_000, 0.7)]), np.repeat([False, True, False], [20_000, 1000, 20_000])
    )
    clean = ScoreHistogram()
    clean.add(good, np.zeros(20_000, bool))
    peaks = good.reshape(40, 500).max(axis=1).astype(np.float32)
    quantile = choose_pixel_threshold(Rule.parse("good-quantile=0.999", PIXEL_RULES), raised, clean, peaks)
    assert np.mean(good < quantile.value) == pytest.approx(0.999, abs=2e-4)
    best = choose_pixel_threshold(Rule.parse("f1-max", PIXEL_RULES), pixels, clean, peaks)
    assert 0.45 < best.value < 0.51
    conformal = choose_pixel_threshold(Rule.parse("conformal=0.05", PIXEL_RULES), pixels, clean, peaks)
    assert np.sum(peaks >= conformal.value) == 1  # floor(41 * 0.05) - 1
    assert np.float32(conformal.value) == conformal.value, "maps are compared in float32"


# ---- what cannot be chosen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.1, 9), (0.02, 49), (0.01, 99), (0.03, 33)])
def test_too_few_frames_for_a_promise_are_refused_with_the_number_needed(alpha: float, needed: int) -> None:
    scores = np.linspace(0.1, 0.9, needed)
    rule = Rule("conformal", alpha)
    choose_defect_threshold(rule, scores, np.zeros(needed, bool))
    with pytest.raises(
        CalibrationError, match=f"at least {needed} are needed .*; bring 1 more, or choose a share of at least"
    ) as e:
        choose_defect_threshold(rule, scores[:-1], np.zeros(needed - 1, bool))
    suggested = float(str(e.value).rsplit(" ", 1)[1])
    choose_defect_threshold(Rule("conformal", suggested), scores[:-1], np.zeros(needed - 1, bool))


@pytest.mark.parametrize(
    ("rule", "scores", "truth", "says"),
    [
        ("f1-max", [0.1, float("nan"), float("inf")], [0, 1, 1], "2 of 3 scores are NaN or infinite"),
        ("conformal=0.5", [0.2, 0.2, 0.2], [0, 0, 0], r"all 3 scores are equal \(0.2\)"),
        ("f1-max", [0.2, 0.2], [0, 1], "all 2 scores are equal"),
        ("f1-max", [0.1, 0.2], [0, 0], "f1-max needs labelled defect frames .* need good frames only"),
        ("max-underkill=0.1", [0.1, 0.2], [0, 0], "needs labelled defect frames"),
        ("max-overkill=0.1", [0.1, 0.2], [1, 1], "needs good frames and there are none"),
        ("conformal=0.1", [0.1, 0.2], [1, 1], "needs good frames and there are none"),
        ("f1-max", [], [], "there are no scores"),
        ("max-overkill=0", [0.2, 1.0, 0.5], [0, 0, 1], "good frames reach the highest score, 1"),
    ],
)
def test_frames_without_a_threshold_are_refused(rule: str, scores: list[float], truth: list[int], says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        choose_defect_threshold(defect_rule(rule), scores, np.array(truth, bool))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("median", 'there is no rule "median"; choose one of f1-max, max-overkill'),
        ("f1-max=0.5", "f1-max takes no share"),
        ("conformal", "conformal needs a share, such as conformal=0.05"),
        ("conformal=five", "conformal needs a share"),
        ("conformal=0", r"conformal takes a share in \(0, 1\), not 0"),
        ("max-overkill=1", r"max-overkill takes a share in \[0, 1\), not 1"),
        ("good-quantile=1.5", r"good-quantile takes a share in \(0, 1\], not 1.5"),
        ("conformal=nan", "not nan"),
    ],
)
def test_a_malformed_rule_is_refused(text: str, says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        defect_rule(text)
