"""benchmarks.accuracy.dra: the four heads, the frames that train each of them, and pasted patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.accuracy import dra
from benchmarks.accuracy.dra import (
    DEFECT,
    GOOD,
    PSEUDO,
    DraHeads,
    TokenScale,
    TrainingTokens,
    cut_and_paste,
    deviation_loss,
    fit_dra,
    loss_of,
    pseudo_views,
    rate_of,
    top_mean,
)
from calibration.metrics import auroc
from export.teaching.views import SupportFeatures

pytestmark = pytest.mark.slow

GRID = (4, 4)
PATCHES, WIDTH = 16, 8


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heads_of(references: torch.Tensor, grid: tuple[int, int] = GRID) -> DraHeads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DraHeads(references, grid)


def training_tokens(seed: int = 0) -> TrainingTokens:
    """Noise. A defect shifts two patches in 16 of 64 channels, a pasted patch two other patches in 16 others."""
    good, defect, pseudo = (random(n, PATCHES, 64, seed=seed + n) for n in (16, 17, 18))
    defect[:, 5:7, :16] += 4
    pseudo[:, 9:11, 16:32] += 4
    return TrainingTokens(good, pseudo, defect, good[:2])


@pytest.fixture(scope="module")
def fitted() -> dra.Dra:
    return fit_dra(training_tokens(), GRID, seed=0)


def test_the_seen_head_peaks_at_the_one_defect_token() -> None:
    heads = heads_of(torch.zeros(1, PATCHES, WIDTH)).eval()
    with torch.no_grad():
        heads.seen.weight[:], heads.seen.bias[:] = torch.eye(WIDTH)[0], 0
    tokens = torch.zeros(1, PATCHES, WIDTH)
    tokens[0, 6, 0] = 1
    seen = heads(tokens).seen[0]
    assert seen[6] == 1
    assert seen.count_nonzero() == 1


@pytest.mark.parametrize(("head", "kind"), [("seen", PSEUDO), ("pseudo", DEFECT)])
def test_seen_and_pseudo_heads_ignore_each_others_frames(head: str, kind: int) -> None:
    kinds = torch.tensor([GOOD, PSEUDO, DEFECT, GOOD])
    heads = heads_of(random(2, PATCHES, WIDTH))
    tokens = random(4, PATCHES, WIDTH, seed=1).requires_grad_()
    scores = heads(tokens)
    alone = {"seen": scores.seen, "pseudo": scores.pseudo}
    zero = torch.zeros_like(scores.holistic), torch.zeros_like(scores.composite)
    kept = {name: value if name == head else torch.zeros_like(value) for name, value in alone.items()}
    loss_of(dra.Scores(zero[0], kept["seen"], kept["pseudo"], zero[1]), kinds).backward()  # type: ignore[no-untyped-call]
    assert tokens.grad is not None
    moved = tokens.grad.abs().sum((1, 2))
    assert (moved > 0).tolist() == (kinds != kind).tolist()


def test_a_score_is_the_mean_of_the_highest_tenth_of_patches() -> None:
    for patches, count in ((225, 22), (9, 1), (10, 1)):
        scores = torch.arange(patches).float()[None]
        assert float(top_mean(scores)) == pytest.approx(float(scores[0, -count:].mean()))


def test_a_frame_that_is_the_only_reference_has_no_residual() -> None:
    frame = random(1, 36, WIDTH)
    heads = heads_of(frame, (6, 6)).eval()
    inside = heads(frame).composite.reshape(6, 6)[1:-1, 1:-1]
    assert inside.max() - inside.min() < 1e-6
    other = heads(frame + random(1, 36, WIDTH, seed=1)).composite.reshape(6, 6)[1:-1, 1:-1]
    assert other.max() - other.min() > 1e-3


def test_fitted_heads_give_good_supports_the_higher_normality(fitted: dra.Dra) -> None:
    tokens = training_tokens()
    with torch.no_grad():
        good, defect = (fitted.heads(fitted.scale(x)).holistic.mean() for x in (tokens.good, tokens.defect))
    assert good > defect


def test_new_frames_are_ranked_and_defects_located(fitted: dra.Dra) -> None:
    new = training_tokens(seed=100)
    good, defect = [fitted.judge(x) for x in new.good], [fitted.judge(x) for x in new.defect]
    scores = [score for _, score in (*good, *defect)]
    assert auroc(scores, [False] * len(good) + [True] * len(defect)) > 0.85
    mean = torch.stack([patch_map for patch_map, _ in defect]).mean(0)
    assert mean.shape == GRID
    assert mean.flatten()[5:7].mean() > mean.mean()
    assert 0 <= float(mean.min()) <= float(mean.max()) < 1
    with torch.no_grad():
        seen = fitted.heads(fitted.scale(new.defect)).seen.mean(0)
        pseudo = fitted.heads(fitted.scale(new.pseudo)).pseudo.mean(0)
    assert set(seen.topk(2).indices.tolist()) == {5, 6}
    assert set(pseudo.topk(2).indices.tolist()) == {9, 10}


def test_frame_score_and_map_are_of_the_heads() -> None:
    scores = dra.Scores(torch.tensor([4.0]), *(torch.full((1, 20), value) for value in (1.0, 2.0, 3.0)))
    assert scores.frame().tolist() == [2.0]
    assert scores.map()[0].tolist() == pytest.approx([6 / 11] * 20)


def test_deviation_loss_is_the_score_of_good_frames_and_the_gap_to_five_of_others() -> None:
    scores = torch.tensor([1.0, 2.0, 7.0])
    assert float(deviation_loss(scores, torch.tensor([False, True, True]))) == pytest.approx((1 + 3 + 0) / 3)


def test_the_four_heads_have_their_own_targets() -> None:
    none = torch.zeros(3, PATCHES)
    kinds = torch.tensor([GOOD, PSEUDO, DEFECT])
    # At a score of 0 a positive costs 5: holistic 1 of 3, seen 1 of 2, pseudo 1 of 2, composite 2 of 3.
    assert float(loss_of(dra.Scores(none[:, 0], none, none, none), kinds)) == pytest.approx(
        5 / 3 + 5 / 2 + 5 / 2 + 10 / 3
    )


def test_the_learning_rate_falls_before_every_tenth_epoch() -> None:
    rates = [rate_of(epoch) for epoch in range(30)]
    assert rates == pytest.approx([2e-4] * 9 + [2e-5] * 10 + [2e-6] * 10 + [2e-7])


def test_the_same_seed_gives_the_same_heads(fitted: dra.Dra, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = random(PATCHES, 64, seed=9)
    state = torch.random.get_rng_state()
    again = fit_dra(training_tokens(), GRID, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random state is unchanged"
    assert torch.equal(again.judge(frame)[0], fitted.judge(frame)[0])
    monkeypatch.setattr(dra, "EPOCHS", 1)
    assert not torch.equal(fit_dra(training_tokens(), GRID, seed=1).judge(frame)[0], fitted.judge(frame)[0])


def test_wide_tokens_are_projected_to_their_leading_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random(3, 50, WIDTH) * torch.tensor([1.0, 1, 1, 1, 1, 1, 9, 5])
    whole = TokenScale.of(tokens)
    assert whole.basis is None
    monkeypatch.setattr(dra, "MAX_WIDTH", 2)
    narrow = TokenScale.of(tokens)
    assert narrow.basis is not None
    assert set(narrow.basis.abs().argmax(0).tolist()) == {6, 7}
    for scale in (whole, narrow):
        scaled = scale(tokens).flatten(0, 1)
        assert torch.allclose(scaled.mean(0), torch.zeros(scaled.shape[1]), atol=1e-5)
        assert torch.allclose(scaled.std(0, correction=0), torch.ones(scaled.shape[1]), atol=1e-4)


def support_features(labels: list[int], plain: list[bool]) -> SupportFeatures:
    n = len(labels)
    tokens = torch.arange(n).half().reshape(n, 1, 1, 1) * 10 + torch.tensor([0, 1]).half().reshape(1, 2, 1, 1)
    none = torch.zeros(n, 2, 1)
    return SupportFeatures(tokens, none, none, none, torch.tensor(labels), torch.tensor(plain), *[torch.arange(n)] * 2)


def test_training_reads_the_last_level_and_up_to_five_unchanged_good_views() -> None:
    labels, plain = [0] * 14 + [2, 2], [True, False] * 8
    found = TrainingTokens.of(support_features(labels, plain), torch.ones(3, 1, 1).half())
    assert found.good.flatten().tolist() == [10.0 * n + 1 for n in range(14)]
    assert found.defect.flatten().tolist() == [141, 151]
    assert found.references.flatten().tolist() == [1, 21, 41, 61, 81]
    assert found.pseudo.dtype == torch.float32


def test_one_good_support_is_its_own_reference_and_a_kind_without_views_is_refused() -> None:
    pseudo = torch.ones(1, 1, 1)
    assert len(TrainingTokens.of(support_features([0, 0, 1], [True, False, True]), pseudo).references) == 1
    with pytest.raises(ValueError, match="there is no good view"):
        TrainingTokens.of(support_features([1, 1], [True, False]), pseudo)
    with pytest.raises(ValueError, match="there is no defect view"):
        TrainingTokens.of(support_features([0, 0], [True, False]), pseudo)
    with pytest.raises(ValueError, match="there is no pseudo-defect view"):
        TrainingTokens.of(support_features([0, 1], [True, True]), pseudo[:0])


def test_a_pasted_patch_is_a_box_of_the_frames_own_pixels_within_the_jitter() -> None:
    frame = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8) + 60
    for seed in range(30):
        pasted = cut_and_paste(frame, np.random.default_rng(seed))
        rows, columns = np.nonzero(pasted != frame)
        assert rows.size, "the patch comes from another place"
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert high * wide <= 0.16 * frame.size, "jitter and rounding aside, 15 % of the area at most"
        assert pasted.min() >= 0.8 * frame.min()
        assert pasted.max() <= 1.2 * frame.max()


def test_views_with_a_patch_differ_and_repeat_with_their_seed() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (48, 48), dtype=np.uint8)
    views = pseudo_views(frame, 4, np.random.default_rng(1))
    assert len({view.tobytes() for view in views}) == 4
    assert all(view.shape == frame.shape and view.dtype == np.uint8 for view in views)
    assert (views[0] == frame).mean() > 0.8, "the first view is the frame itself, but for the patch"
    again = pseudo_views(frame, 4, np.random.default_rng(1))
    assert all(np.array_equal(a, b) for a, b in zip(views, again, strict=True))


def test_a_frame_without_a_second_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no second place"):
        cut_and_paste(np.zeros((1, 50), np.uint8), np.random.default_rng(0))
