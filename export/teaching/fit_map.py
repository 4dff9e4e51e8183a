"""The defect map: its transformation layers (paper eq. 9), taught on cached support features.

Focal and dice loss on the map of every level, as in the paper's relatives (CLIP-AD, AnomalyCLIP); the paper names no
loss. Beyond the paper, a loss of whole frames. A map is too good on the frames that taught it: `out_of_fold_maps` are
by layers that were taught without the frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from calibration.histogram import ScoreHistogram
from runtime.maps import upsampling_matrix

from ..model import heads
from .settings import TeachSettings
from .text_bank import TextBank
from .text_prior import Projection
from .views import Progress, SupportFeatures

LEARNING_RATE = 2e-3
BATCH = 4
"""Views a step."""
FOCAL_WEIGHT = 10.0
"""Focal loss of a frame is a mean over cells that are nearly all easy; this brings it to the size of the dice loss."""
FRAME_TAU = 10.0
"""Logit scale of the loss of whole frames, softer than that of patches: it asks for order, not for certainty."""
START_AUROC = 0.8
"""Transformation layers start at the tower's own projection if that tells the supports' defects so well, untaught."""
TEXT_RATE = 3.0
"""Times the learning rate, for layers that start there: what tells the defect's class is some way from what tells that
there is one. Chosen on EMPS and on generated frames that stand in no table: better frame scores and outlines."""
FOLDS = 3
FOLD_STEPS = 200
"""Steps of the layers of `out_of_fold_maps`: theirs need not be the best."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Transformation layers for raw tokens: weight [m, D, C], bias [m, C], float32.

    taught_by: "masks" or "frame labels". at_text: whether they started at the tower's own projection.
    """

    weight: Tensor
    bias: Tensor
    taught_by: str
    at_text: bool

    def maps(self, tokens: Tensor, text_seg: Tensor, tau: float) -> Tensor:
        """Maps [n, P] of the vanilla path (eq. 12), from patch tokens [n, m, P, D]."""
        scale = torch.tensor(tau)
        similarity = (
            heads.cosines(heads.transform(z.float(), self.weight, self.bias[:, None]), text_seg) for z in tokens
        )
        return torch.stack([torch.sigmoid(heads.vanilla_logit(s, scale)).mean(0) for s in similarity])


def fit_transforms(
    features: SupportFeatures,
    bank: TextBank,
    grid: tuple[int, int],
    settings: TeachSettings,
    seed: int,
    progress: Progress | None = None,
) -> Layers:
    """Teach the transformation layers: Adam with a cosine schedule, the last step kept.

    Views of unknown truth are left out, unless no defect has a mask: then the map learns from frame labels, by
    asking that a defect frame's highest cells fire and a good frame's do not. Raises ValueError for the start "text"
    where the text is not aligned.
    """
    masked = bool((features.targets.nan_to_num().amax((1, 2)) > 0).any())
    known = ~features.targets[:, 0, 0].isnan()
    usable = known.nonzero()[:, 0] if masked else torch.arange(len(known))
    mean, std = _patch_statistics(features.tokens)
    generator = torch.Generator().manual_seed(seed)
    at_text = settings.start == "text" or (settings.start == "auto" and starts_at_text(features, bank, grid))
    weight, bias = _first_layers(features, bank, mean, std, generator, at_text=at_text)
    picks = usable[_balanced_picks(features.labels[usable], settings.steps * BATCH, generator)]
    loss = _loss(features, usable, masked, torch.tensor(bank.text_seg), grid, settings, (mean, std))
    # A parameter for each level: the gradient of a view of one for all would be put together anew at every step.
    weights, biases = ([level.clone().requires_grad_() for level in both] for both in (weight, bias))
    optimizer = torch.optim.Adam([*weights, *biases], lr=LEARNING_RATE * (TEXT_RATE if at_text else 1), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.steps))
    for step in range(settings.steps):
        optimizer.zero_grad()
        loss(picks[step * BATCH : (step + 1) * BATCH], weights, biases).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, settings.steps)
    taught_by = "masks" if masked else "frame labels"
    weight, bias = torch.stack(weights).detach(), torch.stack(biases).detach()
    return Layers(*_for_raw_tokens(weight, bias, mean, std), taught_by, at_text)


def out_of_fold_maps(
    features: SupportFeatures, bank: TextBank, grid: tuple[int, int], settings: TeachSettings, seed: int
) -> Tensor:
    """Maps [V, P] of every view by layers that were taught without its group, from the start at the text.

    Groups are dealt out to FOLDS folds, class by class. Where the others cannot teach a map, for want of a good
    frame or of a defect, the layers are taught on all: one support of two classes leaves no choice. Raises ValueError
    where the text is not aligned: layers that start at random are not honest judges (`finetune.SupportMaps`).
    """
    quick = replace(settings, steps=min(settings.steps, FOLD_STEPS), start="text")
    places = {group: i for i, group in enumerate(dict.fromkeys(features.group.tolist()))}
    fold = torch.tensor([places[group] % FOLDS for group in features.group.tolist()])
    maps = torch.empty(features.tokens.shape[0], features.tokens.shape[2])
    for left_out in sorted(set(fold.tolist())):
        mine, others = fold == left_out, fold != left_out
        labels = features.labels[others]
        if not ((labels == 0).any() and (labels > 0).any()):
            others = torch.ones_like(others)
        layers = fit_transforms(features.part(others), bank, grid, quick, seed)
        maps[mine] = layers.maps(features.tokens[mine], torch.tensor(bank.text_seg), settings.temperatures.map)
    return maps


def starts_at_text(features: SupportFeatures, bank: TextBank, grid: tuple[int, int]) -> bool:
    """Whether the tower's own projection, untaught, finds the supports' defects well enough to start there."""
    return bank.projection is not None and _start_auroc(features, bank.projection, bank, grid) >= START_AUROC


def _start_auroc(features: SupportFeatures, start: Projection, bank: TextBank, grid: tuple[int, int]) -> float:
    """How well the untaught map of the tower's own projection ranks the supports' patches, or frames without masks."""
    similarity = []
    for level in range(features.tokens.shape[1]):
        tokens = features.tokens[:, level]
        weight, bias = start.as_layer(tokens)
        # One view after the other: all of them as float32 would be the most memory that teaching takes.
        text_seg = torch.tensor(bank.text_seg)
        similarity.append(torch.stack([heads.cosines(z.float() @ weight + bias, text_seg) for z in tokens]))
    difference = torch.stack(similarity).mean(0)
    maps = torch.sigmoid(difference[..., 1] - difference[..., 0])
    known = ~features.targets[:, 0, 0].isnan()
    patches = _patch_targets(features.targets[known].nan_to_num(), grid)
    if patches.any():
        return _auroc(maps[known], patches)
    return _auroc(maps.amax(1), features.labels > 0)


def _first_layers(
    features: SupportFeatures, bank: TextBank, mean: Tensor, std: Tensor, generator: torch.Generator, *, at_text: bool
) -> tuple[Tensor, Tensor]:
    """Where the layers for standardized tokens start: weight [m, D, C], bias [m, C]. ValueError as `fit_transforms`."""
    levels, width = mean.shape
    weight = torch.randn((levels, width, bank.text_seg.shape[1]), generator=generator) / math.sqrt(width)
    if not at_text:
        return weight, torch.zeros((levels, bank.text_seg.shape[1]))
    if bank.projection is None:
        raise ValueError('start "text" takes a tower whose text was trained with its images')
    return _at_projection(features, bank.projection, mean, std)


def _at_projection(features: SupportFeatures, start: Projection, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """The tower's own projection as layers for standardized tokens: weight [m, D, C], bias [m, C]."""
    weights, biases = [], []
    for level in range(len(mean)):
        layer, shift = start.as_layer(features.tokens[:, level])
        weights.append(layer * std[level][:, None])
        biases.append(shift + mean[level] @ layer)
    weight, bias = torch.stack(weights), torch.stack(biases)
    # Cosines do not see a common factor; this one gives Adam's steps the same meaning as from a random start.
    size = weight.square().mean((1, 2)).sqrt() * math.sqrt(weight.shape[1])
    return weight / size[:, None, None], bias / size[:, None]


def _for_raw_tokens(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """The same layers for tokens that are not standardized, as the graph sees them; exact."""
    folded = weight / std[..., None]
    shift = bias - torch.einsum("md,mdc->mc", mean, folded)
    # Cosines do not see a common factor; this one keeps fp16 products near 1.
    scale = folded.abs().amax((1, 2)).clamp_min(1e-12)
    return (folded / scale[:, None, None]).contiguous(), (shift / scale[:, None]).contiguous()


def _loss(
    features: SupportFeatures,
    usable: Tensor,
    masked: bool,
    text_seg: Tensor,
    grid: tuple[int, int],
    settings: TeachSettings,
    statistics: tuple[Tensor, Tensor],
) -> Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]:
    """The loss of a step, as a function of views [n] and every level's weight [D, C] and bias [C].

    Both are for standardized tokens.
    """
    mean, std = statistics
    rows, columns = features.targets.shape[1:]
    vertical = torch.tensor(upsampling_matrix(rows, grid[0], 0.0))
    horizontal = torch.tensor(upsampling_matrix(columns, grid[1], 0.0))
    frame_weight, good_weight = _frame_weights(features, usable, settings) if masked else (0.0, 0.0)
    tau = torch.tensor(settings.temperatures.fit)
    scale, shift = 1 / std, -mean / std

    def logit_of(level: int, views: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        standardized = torch.addcmul(shift[level], features.tokens[views, level].float(), scale[level])
        return heads.vanilla_logit(heads.cosines(heads.transform(standardized, weight, bias), text_seg), tau)

    def loss_of(views: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
        layers = enumerate(zip(weights, biases, strict=True))
        logit = torch.stack([logit_of(level, views, *layer) for level, layer in layers])
        logit = vertical @ logit.reshape(len(weights), -1, *grid) @ horizontal.T
        loss = _map_loss(logit, features.targets[views])
        if frame_weight:
            loss = loss + frame_weight * _frame_loss(FRAME_TAU / tau * logit, features.targets[views], good_weight)
        return loss

    return loss_of


def _patch_targets(targets: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches [n, P] of which a tenth or more is defect."""
    return F.adaptive_avg_pool2d(targets[:, None], grid)[:, 0].flatten(1) >= 0.1


def _auroc(scores: Tensor, positive: Tensor) -> float:
    """0.5 without both kinds: nothing is known then."""
    histogram = ScoreHistogram()
    histogram.add(scores.numpy(), positive.numpy())
    found = histogram.auroc()
    return 0.5 if math.isnan(found) else found


def _patch_statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [m, D] over all views and patches, in float64 and without a float copy of all."""
    total = torch.zeros((tokens.shape[1], tokens.shape[3]), dtype=torch.float64)
    squares = torch.zeros_like(total)
    wide = torch.empty(tokens.shape[1:], dtype=torch.float64)  # one for all: fresh memory can cost more than the sums
    for view in tokens:
        total += wide.copy_(view).sum(1)
        squares += wide.square_().sum(1)
    count = tokens.shape[0] * tokens.shape[2]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    # A channel that never varies must not be blown up to unit variance.
    return mean.float(), torch.maximum(std, 1e-3 * std.mean(1, keepdim=True)).clamp_min(1e-6).float()


def _balanced_picks(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices into `labels`; every class equally likely, every view of a class equally likely."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
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
