"""The transformation layers of the defect map (paper eq. 9), taught on cached support features; and the V path's share.

Focal and dice loss on the map of every level and, beyond the paper, a loss of whole frames. What the map is made of is
chosen on maps by layers that were taught without the frame (`maps_of_others`): it is too good on frames that taught it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from calibration.histogram import ScoreHistogram
from runtime.maps import upsampling_matrix

from . import heads
from .teach_settings import TeachSettings
from .text_bank import TextBank
from .text_prior import Projection
from .views import Progress, SupportFeatures

FOCAL_WEIGHT = 10.0
"""Focal loss of a frame is a mean over cells that are nearly all easy; this brings it to the size of the dice loss."""
FRAME_TAU = 10.0
"""Logit scale of the loss of whole frames, softer than that of patches: it asks for order, not for certainty."""
START_AUROC = 0.8
"""Transformation layers start at the tower's own projection if that tells the supports' defects so well, untaught."""
TEXT_RATE = 3.0
"""Times the learning rate, for layers that start there: what tells the defect's class is some way from what tells that
there is one. Chosen on EMPS and on generated frames that stand in no table: better frame scores and outlines."""
LAMBDAS_V = (0.0, 0.3, 1.0)
"""The V path's share of the map, among which the supports choose."""
LEAST_GAIN = 0.01
"""Of the mean of frame and patch AUROC, for the V path to have a say."""
MAP_FOLDS = 3
MAP_FOLD_STEPS = 200
"""Steps of the transformation layers of `maps_of_others`: theirs need not be the best."""


def fit_transforms(
    features: SupportFeatures,
    text_seg: Tensor,
    grid: tuple[int, int],
    settings: TeachSettings,
    seed: int,
    progress: Progress | None = None,
    start: Projection | None = None,
) -> tuple[Tensor, Tensor, str]:
    """The transformation layers: weight [m, D, C], bias [m, C], and what taught them: "masks" or "frame labels".

    They start at random, or where the tower itself leads to the text space (start), if that is of use on the supports.
    Views of unknown truth are left out, unless no defect has a mask: then the map learns from frame labels, by
    asking that a defect frame's highest cells fire and a good frame's do not.
    """
    if settings.last_level_only and features.tokens.shape[1] > 1:
        last = replace(features, tokens=features.tokens[:, -1:])
        alone = replace(settings, last_level_only=False)
        weight, bias, taught_by = fit_transforms(last, text_seg, grid, alone, seed, progress, start)
        missing = features.tokens.shape[1] - 1  # a layer of zeros says 0.5 everywhere, which ranks nothing
        return F.pad(weight, (0, 0, 0, 0, missing, 0)), F.pad(bias, (0, 0, missing, 0)), taught_by
    known = ~features.targets[:, 0, 0].isnan()
    masked_defect = bool((features.targets.nan_to_num().amax((1, 2)) > 0).any())
    usable = torch.arange(len(known)) if not masked_defect else known.nonzero()[:, 0]
    mean, std = _patch_statistics(features.tokens)
    levels, width = mean.shape
    generator = torch.Generator().manual_seed(seed)
    shape = (levels, width, text_seg.shape[1])
    weight = torch.randn(shape, generator=generator) / math.sqrt(width)
    bias = torch.zeros((levels, text_seg.shape[1]))
    rate = settings.learning_rate
    if start is not None and starts_at_text(features, start, text_seg, grid):
        for level in range(levels):
            layer, shift = start.as_layer(features.tokens[:, level])
            weight[level], bias[level] = layer * std[level][:, None], shift + mean[level] @ layer
        # Cosines do not see a common factor; this one gives Adam's steps the same meaning as from a random start.
        size = weight.square().mean((1, 2)).sqrt() * math.sqrt(width)
        weight, bias = weight / size[:, None, None], bias / size[:, None]
        rate *= TEXT_RATE
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    rows, columns = features.targets.shape[1:]
    vertical = torch.tensor(upsampling_matrix(rows, grid[0], 0.0))
    horizontal = torch.tensor(upsampling_matrix(columns, grid[1], 0.0))
    frame_weight, good_weight = _frame_weights(features, usable, settings) if masked_defect else (0.0, 0.0)
    softer = FRAME_TAU / settings.tau_fit
    picks = _balanced_picks(features.labels[usable], settings.steps * settings.batch, generator)
    for step in range(settings.steps):
        chosen = usable[picks[step * settings.batch : (step + 1) * settings.batch]]
        standardized = (features.tokens[chosen].float() - mean[:, None]) / std[:, None]
        transformed = heads.transform(standardized.transpose(0, 1).flatten(1, 2), weight, bias[:, None])
        logit = heads.vanilla_logit(heads.cosines(transformed, text_seg), torch.tensor(settings.tau_fit))
        logit = vertical @ logit.reshape(levels, -1, *grid) @ horizontal.T
        loss = _map_loss(logit, features.targets[chosen])
        if frame_weight:
            loss = loss + frame_weight * _frame_loss(softer * logit, features.targets[chosen], good_weight)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, settings.steps)
    with torch.no_grad():  # the graph sees raw tokens: fold the standardization in, exactly
        folded = weight / std[..., None]
        shift = bias - torch.einsum("md,mdc->mc", mean, folded)
        # Cosines do not see a common factor; this one keeps fp16 products near 1.
        scale = folded.abs().amax((1, 2)).clamp_min(1e-12)
        folded, shift = folded / scale[:, None, None], shift / scale[:, None]
    return folded.contiguous(), shift.contiguous(), "masks" if masked_defect else "frame labels"


def starts_at_text(
    features: SupportFeatures, start: Projection | None, text_seg: Tensor, grid: tuple[int, int]
) -> bool:
    """Whether the layers of `fit_transforms` start where the tower itself leads to the text space, not at random."""
    return start is not None and _start_auroc(features, start, text_seg, grid) >= START_AUROC


def _start_auroc(features: SupportFeatures, start: Projection, text_seg: Tensor, grid: tuple[int, int]) -> float:
    """How well the untaught map of the tower's own projection ranks the supports' patches, or frames without masks."""
    similarity = []
    for level in range(features.tokens.shape[1]):
        tokens = features.tokens[:, level]
        weight, bias = start.as_layer(tokens)
        # One view after the other: all of them as float32 would be the most memory that teaching takes.
        similarity.append(torch.stack([heads.cosines(z.float() @ weight + bias, text_seg) for z in tokens]))
    difference = torch.stack(similarity).mean(0)
    maps = torch.sigmoid(difference[..., 1] - difference[..., 0])
    known = ~features.targets[:, 0, 0].isnan()
    patches = _patch_targets(features.targets[known].nan_to_num(), grid)
    if patches.any():
        return _auroc(maps[known], patches)
    return _auroc(maps.amax(1), features.labels > 0)


def _patch_targets(targets: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches [n, P] of which a tenth or more is defect."""
    return F.adaptive_avg_pool2d(targets[:, None], grid)[:, 0].flatten(1) >= 0.1


def _auroc(scores: Tensor, positive: Tensor) -> float:
    """0.5 without both kinds: nothing is known then."""
    histogram = ScoreHistogram()
    histogram.add(scores.numpy(), positive.numpy())
    found = histogram.auroc()
    return 0.5 if math.isnan(found) else found


def choose_lambda_v(
    own: Tensor,
    value: Tensor,
    features: SupportFeatures,
    bank: TextBank,
    grid: tuple[int, int],
    settings: TeachSettings,
) -> float:
    """The V path's share of the map: of LAMBDAS_V that of the best mean of frame and patch AUROC on the supports.

    own, value: maps [V, P] of both paths by `maps_of_others`. The V path is not taught, so nothing heals it where the
    text means little to the tower; it must gain LEAST_GAIN to have a say. With one support a class its rival has seen
    the answers, and it has none.
    """
    if settings.lambda_v is not None:
        return settings.lambda_v
    if not bank.aligned:
        return 0.0
    if settings.head == "paper":
        return 1.0
    known = ~features.targets[:, 0, 0].isnan()
    patches = _patch_targets(features.targets[known].nan_to_num(), grid)
    gain = {}
    for share in LAMBDAS_V:
        maps = (own + share * value) / (1 + share)
        gain[share] = _auroc(maps.amax(1), features.labels > 0) + (_auroc(maps[known], patches) if patches.any() else 0)
    best = max(gain, key=lambda share: gain[share])
    return best if gain[best] - gain[0.0] >= 2 * LEAST_GAIN else 0.0


def maps_of_others(
    features: SupportFeatures, bank: TextBank, grid: tuple[int, int], settings: TeachSettings, seed: int
) -> tuple[Tensor, Tensor]:
    """Maps [V, P] of both paths (eq. 12, 16) of every view, the first by layers that were taught without its group.

    Groups are dealt out to MAP_FOLDS folds, class by class. Where the others cannot teach a map, for want of a good
    frame or of a defect, the layers are taught on all: one support of two classes leaves no choice.
    """
    text_seg = torch.tensor(bank.text_seg)
    quick = replace(settings, steps=min(settings.steps, MAP_FOLD_STEPS))
    places = {group: i for i, group in enumerate(dict.fromkeys(features.group.tolist()))}
    fold = torch.tensor([places[group] % MAP_FOLDS for group in features.group.tolist()])
    maps = torch.empty(features.tokens.shape[0], features.tokens.shape[2])
    for left_out in range(MAP_FOLDS):
        mine, others = fold == left_out, fold != left_out
        if not mine.any():
            continue
        labels = features.labels[others]
        if not ((labels == 0).any() and (labels > 0).any()):
            others = torch.ones_like(others)
        weight, bias, _ = fit_transforms(features.part(others), text_seg, grid, quick, seed, start=bank.projection)
        maps[mine] = maps_by(features.tokens[mine], weight, bias, text_seg, settings.tau)
    return maps, torch.sigmoid(settings.tau_v * features.value).mean(1)


def maps_by(tokens: Tensor, weight: Tensor, bias: Tensor, text_seg: Tensor, tau: float) -> Tensor:
    """Maps [n, P] of the vanilla path (eq. 12) by transformation layers, from patch tokens [n, m, P, D]."""
    similarity = (heads.cosines(heads.transform(z.float(), weight, bias[:, None]), text_seg) for z in tokens)
    return torch.stack([torch.sigmoid(heads.vanilla_logit(s, torch.tensor(tau))).mean(0) for s in similarity])


def _patch_statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [m, D] over all views and patches, in float64 and without a float copy of all."""
    total = torch.zeros((tokens.shape[1], tokens.shape[3]), dtype=torch.float64)
    squares = torch.zeros_like(total)
    for view in tokens:
        wide = view.double()
        total += wide.sum(1)
        squares += wide.square().sum(1)
    count = tokens.shape[0] * tokens.shape[2]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    # A channel that never varies must not be blown up to unit variance.
    return mean.float(), torch.maximum(std, 1e-3 * std.mean(1, keepdim=True)).clamp_min(1e-6).float()


def _balanced_picks(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices into `labels`; every class equally likely, every view of a class equally likely."""
    shares = 1.0 / torch.bincount(labels)[labels].double()
    return torch.multinomial(shares, count, replacement=True, generator=generator)


def _map_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Sum over levels of focal (gamma = 2) plus dice loss: logit [m, B, rows, columns], target [B, rows, columns].

    Frames of unknown truth only ask their highest cells to fire.
    """
    known = ~target[:, 0, 0].isnan()
    loss = torch.zeros(())
    if known.any():
        x, y = logit[:, known], target[known].expand(len(logit), -1, -1, -1)
        plain = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        probability = torch.sigmoid(x)
        wrong = torch.where(y > 0, 1 - probability, probability)
        overlap, either = (probability * y).sum((1, 2, 3)), (probability + y).sum((1, 2, 3))
        dice = 1 - (2 * overlap + 1) / (either + 1)
        loss = loss + (FOCAL_WEIGHT * (wrong.square() * plain).mean((1, 2, 3)) + dice).sum()
    if not known.all():
        loss = loss + F.softplus(-_peaks(logit[:, ~known])).mean((1, 2)).sum()
    return loss


def _frame_weights(features: SupportFeatures, usable: Tensor, settings: TeachSettings) -> tuple[float, float]:
    """What the loss of whole frames counts, and what a good frame counts in it.

    One good frame does not show how good frames differ, so its peaks are no measure; with one the loss counts nothing.
    Classes are drawn alike; good ones weigh as all defects together.
    """
    if settings.head == "paper":
        return 0.0, 0.0
    labels, groups = features.labels[usable], features.group[usable]
    good = len(set(groups[labels == 0].tolist()))
    return settings.frame_loss * (1 - 1 / max(1, good)), float(len(set(labels[labels > 0].tolist())))


def _frame_loss(logit: Tensor, target: Tensor, good_weight: float) -> Tensor:
    """Sum over levels of the log loss of frames as their highest cells tell them: shapes and NaN as in `_map_loss`.

    What the frame score will read (the map's highest part) is asked for here; a mean over cells hardly sees it.
    """
    known = ~target[:, 0, 0].isnan()
    if not known.any():
        return torch.zeros(())
    peaks = _peaks(logit[:, known]).mean(2)
    defect = (target[known].amax((1, 2)) > 0).float().expand(len(peaks), -1)
    weight = torch.where(defect > 0, 1.0, good_weight)
    return (weight * F.binary_cross_entropy_with_logits(peaks, defect, reduction="none")).mean(1).sum()


def _peaks(logit: Tensor) -> Tensor:
    """The highest fiftieth of the cells [m, B, rows, columns] of every frame and level: [m, B, n]."""
    cells = logit.flatten(2)
    return cells.topk(max(1, cells.shape[2] // 50), dim=2).values
