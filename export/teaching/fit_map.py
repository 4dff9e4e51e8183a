"""The defect map: its transformation layers (paper eq. 9), taught on cached support features.

The loss is focal plus dice on the map of every level, as in CLIP-AD and AnomalyCLIP (the paper names none) and, beyond
the paper, a loss of whole frames. Maps fit the frames that taught them too well, so `out_of_fold_maps` come from layers
taught without the frame.
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
from ..progress import Progress
from .priors import Projection
from .settings import TeachSettings
from .text_bank import TextBank
from .views import SupportFeatures

LEARNING_RATE = 2e-3
BATCH = 4
"""Views per step."""
FOCAL_WEIGHT = 10.0
"""The focal loss is a mean over mostly easy cells; this factor brings it to the size of the dice loss."""
FRAME_TAU = 10.0
"""Logit scale of the loss of whole frames; softer than that of patches, since only the order of frames matters."""
START_AUROC = 0.8
"""Transformation layers start at the tower's own projection if its untaught map has at least this AUROC."""
TEXT_RATE = 3.0
"""Factor of the learning rate for layers that start there (docs/method.md)."""
FOLDS = 3
FOLD_STEPS = 200
"""Steps of the layers of `out_of_fold_maps`, which need not be the best."""


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
    """Teach the transformation layers: Adam with a cosine schedule; the last step is kept.

    Views of unknown truth are left out, unless no defect has a mask. The map is then taught by frame labels: the
    highest cells of a defect frame must fire, and those of a good frame must not. Raises ValueError for the start
    "text" if the text is not aligned.
    """
    task = _MapTask.of(features, bank, grid, settings)
    generator = torch.Generator().manual_seed(seed)
    at_text = settings.start == "text" or (settings.start == "auto" and starts_at_text(features, bank, grid))
    weight, bias = _first_layers(task, generator, at_text=at_text)
    labels = features.labels[task.usable]
    picks = task.usable[_balanced_picks(labels, settings.steps * BATCH, generator)]
    batches = [picks[step * BATCH : (step + 1) * BATCH] for step in range(settings.steps)]
    rate = LEARNING_RATE * (TEXT_RATE if at_text else 1)
    weight, bias = _optimize(_loss(task), weight, bias, batches, rate, progress)
    taught_by = "masks" if task.masked else "frame labels"
    return Layers(*_for_raw_tokens(weight, bias, task.mean, task.std), taught_by, at_text)


@dataclass(frozen=True)
class _MapTask:
    """What the layers are taught on. masked: some defect has a mask. usable: indices of the views that teach.

    mean, std: of the patch tokens of every level, [m, D].
    """

    features: SupportFeatures
    bank: TextBank
    grid: tuple[int, int]
    settings: TeachSettings
    masked: bool
    usable: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: SupportFeatures, bank: TextBank, grid: tuple[int, int], settings: TeachSettings) -> _MapTask:
        """Find the views that teach, and the statistics of the tokens."""
        masked = bool((features.targets.nan_to_num().amax((1, 2)) > 0).any())
        known = ~features.targets[:, 0, 0].isnan()
        usable = known.nonzero()[:, 0] if masked else torch.arange(len(known))
        return cls(features, bank, grid, settings, masked, usable, *_patch_statistics(features.tokens))


Loss = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]
"""The loss of views [n], by every level's weight [D, C] and bias [C] for standardized tokens."""


def _optimize(
    loss: Loss, weight: Tensor, bias: Tensor, batches: Sequence[Tensor], rate: float, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Weight [m, D, C] and bias [m, C] after one step per batch of views."""
    # One parameter per level: the gradient of a shared one would be assembled anew at every step.
    weights, biases = ([level.clone().requires_grad_() for level in both] for both in (weight, bias))
    optimizer = torch.optim.Adam([*weights, *biases], lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, len(batches)))
    for step, views in enumerate(batches):
        optimizer.zero_grad()
        loss(views, weights, biases).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, len(batches))
    return torch.stack(weights).detach(), torch.stack(biases).detach()


def out_of_fold_maps(
    features: SupportFeatures, bank: TextBank, grid: tuple[int, int], settings: TeachSettings, seed: int
) -> Tensor:
    """Out-of-fold maps [V, P]: of every view, by layers taught without its group, starting at the text.

    Groups are dealt to FOLDS folds in order. If the other folds lack good frames or defects, as with one shot of two
    classes, the layers are taught on all views. Raises ValueError if the text is not aligned; layers that start at
    random give no useful out-of-fold maps (`fit_recipe.SupportMaps`).
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
    """Whether the untaught projection of the tower finds the supports' defects well enough to start there."""
    return bank.projection is not None and _start_auroc(features, bank.projection, bank, grid) >= START_AUROC


def _start_auroc(features: SupportFeatures, start: Projection, bank: TextBank, grid: tuple[int, int]) -> float:
    """AUROC of the untaught map of the tower's projection on the supports' patches; on frames without a mask."""
    similarity = []
    for level in range(features.tokens.shape[1]):
        tokens = features.tokens[:, level]
        weight, bias = start.as_layer(tokens)
        # View by view: all of them as float32 would take more memory than all other teaching.
        text_seg = torch.tensor(bank.text_seg)
        similarity.append(torch.stack([heads.cosines(z.float() @ weight + bias, text_seg) for z in tokens]))
    difference = torch.stack(similarity).mean(0)
    maps = torch.sigmoid(difference[..., 1] - difference[..., 0])
    known = ~features.targets[:, 0, 0].isnan()
    patches = _patch_targets(features.targets[known].nan_to_num(), grid)
    if patches.any():
        return _auroc(maps[known], patches)
    return _auroc(maps.amax(1), features.labels > 0)


def _first_layers(task: _MapTask, generator: torch.Generator, *, at_text: bool) -> tuple[Tensor, Tensor]:
    """Where the layers for standardized tokens start: weight [m, D, C], bias [m, C]. ValueError as `fit_transforms`."""
    levels, width = task.mean.shape
    channels = task.bank.text_seg.shape[1]
    weight = torch.randn((levels, width, channels), generator=generator) / math.sqrt(width)
    if not at_text:
        return weight, torch.zeros((levels, channels))
    if task.bank.projection is None:
        raise ValueError('start "text" takes a tower whose text was trained with its images')
    return _at_projection(task.features, task.bank.projection, task.mean, task.std)


def _at_projection(features: SupportFeatures, start: Projection, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """The tower's own projection as layers for standardized tokens: weight [m, D, C], bias [m, C]."""
    weights, biases = [], []
    for level in range(len(mean)):
        layer, shift = start.as_layer(features.tokens[:, level])
        weights.append(layer * std[level][:, None])
        biases.append(shift + mean[level] @ layer)
    weight, bias = torch.stack(weights), torch.stack(biases)
    # Cosines ignore a common factor; this one makes Adam's steps as large, relative to the weights, as at random.
    size = weight.square().mean((1, 2)).sqrt() * math.sqrt(weight.shape[1])
    return weight / size[:, None, None], bias / size[:, None]


def _for_raw_tokens(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """The same layers for raw tokens, as the graph has them; exact."""
    folded = weight / std[..., None]
    shift = bias - torch.einsum("md,mdc->mc", mean, folded)
    # Cosines ignore a common factor; this one keeps the largest weight at 1, for fp16.
    scale = folded.abs().amax((1, 2)).clamp_min(1e-12)
    return (folded / scale[:, None, None]).contiguous(), (shift / scale[:, None]).contiguous()


def _loss(task: _MapTask) -> Loss:
    """The loss of a step."""
    features, grid = task.features, task.grid
    rows, columns = features.targets.shape[1:]
    vertical = torch.tensor(upsampling_matrix(rows, grid[0], 0.0))
    horizontal = torch.tensor(upsampling_matrix(columns, grid[1], 0.0))
    frame_weight, good_weight = _frame_weights(task) if task.masked else (0.0, 0.0)
    text_seg, tau = torch.tensor(task.bank.text_seg), torch.tensor(task.settings.temperatures.fit)
    scale, shift = 1 / task.std, -task.mean / task.std

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
    """Whether a tenth or more of a patch is defect: bool [n, P]."""
    return F.adaptive_avg_pool2d(targets[:, None], grid)[:, 0].flatten(1) >= 0.1


def _auroc(scores: Tensor, positive: Tensor) -> float:
    """AUROC; 0.5 unless there are both kinds."""
    histogram = ScoreHistogram()
    histogram.add(scores.numpy(), positive.numpy())
    found = histogram.auroc()
    return 0.5 if math.isnan(found) else found


def _patch_statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [m, D] over all views and patches, summed in float64 view by view."""
    total = torch.zeros((tokens.shape[1], tokens.shape[3]), dtype=torch.float64)
    squares = torch.zeros_like(total)
    wide = torch.empty(tokens.shape[1:], dtype=torch.float64)  # reused: allocation can cost more than the sums
    for view in tokens:
        total += wide.copy_(view).sum(1)
        squares += wide.square_().sum(1)
    count = tokens.shape[0] * tokens.shape[2]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    # A constant channel must not be scaled to unit variance.
    return mean.float(), torch.maximum(std, 1e-3 * std.mean(1, keepdim=True)).clamp_min(1e-6).float()


def _balanced_picks(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices into `labels`; every class equally likely, every view of a class equally likely."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    weights = 1.0 / torch.bincount(labels)[labels].double()
    return torch.multinomial(weights, count, replacement=True, generator=generator)


def _map_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Sum over levels of focal (gamma = 2) plus dice loss: logit [m, B, rows, columns], target [B, rows, columns].

    In frames of unknown truth only the highest cells are asked to fire.
    """
    known = ~target[:, 0, 0].isnan()
    loss = torch.zeros(())
    if known.any():
        x, y = logit[:, known], target[known].expand(len(logit), -1, -1, -1)
        entropy = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        probability = torch.sigmoid(x)
        wrong = torch.where(y > 0, 1 - probability, probability)
        overlap, either = (probability * y).sum((1, 2, 3)), (probability + y).sum((1, 2, 3))
        dice = 1 - (2 * overlap + 1) / (either + 1)
        loss = loss + (FOCAL_WEIGHT * (wrong.square() * entropy).mean((1, 2, 3)) + dice).sum()
    if not known.all():
        loss = loss + F.softplus(-_peaks(logit[:, ~known])).mean((1, 2)).sum()
    return loss


def _frame_weights(task: _MapTask) -> tuple[float, float]:
    """The weight of the loss of whole frames, and the weight of a good frame within it.

    The loss counts nothing with one good group, whose peaks do not show how good frames vary. Classes are drawn
    equally often; good frames weigh as much as all defects together.
    """
    labels, groups = task.features.labels[task.usable], task.features.group[task.usable]
    good = len(set(groups[labels == 0].tolist()))
    return task.settings.frame_loss * (1 - 1 / max(1, good)), float(len(set(labels[labels > 0].tolist())))


def _frame_loss(logit: Tensor, target: Tensor, good_weight: float) -> Tensor:
    """Sum over levels of the log loss of frames by their highest cells; shapes and NaN as in `_map_loss`.

    The frame score reads the map's highest part, which a mean over all cells hardly depends on.
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
