"""Few-shot fine-tuning: from cached support features to a recipe (paper section 3; decisions in the docstrings).

The trunk is frozen. Two things are fitted: the transformation layers, with focal and dice loss on the defect map of
every level, and the classification head, a multinomial logistic regression. The head reads what lies under the map,
and a map is too good on the frames that taught it; so the head is fitted on maps of layers that were taught without
the frame. Same features and seed, same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from calibration.histogram import ScoreHistogram
from calibration.thresholds import f1_max_threshold
from runtime.manifest import Encoder
from runtime.maps import frame_score, upsample, upsampling_matrix
from runtime.operating_point import OperatingPoint
from runtime.recipe import FrameOptions, Recipe

from . import heads
from .text_bank import TextBank
from .text_prior import Projection, fit_prior_scales, head_prior
from .views import Progress, SupportFeatures, area_average

Layer = tuple[Tensor, Tensor]
"""Weight and bias."""

FOCAL_WEIGHT = 10.0
"""Focal loss of a frame is a mean over cells that are nearly all easy; this brings it to the size of the dice loss."""
PAPER_ALPHA = 0.8
"""The class mix of eq. 23 as the paper sets it."""
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MAX_FOLDS = 5
START_AUROC = 0.8
"""Transformation layers start at the tower's own projection if that tells the supports' defects so well, untaught."""
LAMBDAS_V = (0.0, 0.3, 1.0)
"""The V path's share of the map, among which the supports choose."""
LEAST_GAIN = 0.01
"""Of the mean of frame and patch AUROC, for the V path to have a say."""
PRIOR_L2 = 0.8
"""Added to the head's L2 if it starts from the text: this, times the part that the text explains, by shots a class."""
MAP_FOLDS = 3
MAP_FOLD_STEPS = 200
"""Steps of the transformation layers that only make maps for the head: theirs need not be the best."""
BLOCK_WEIGHTS = {"paper": (1.0, 0.0, 0.0), "pooled": (0.5, 1.0, 0.3)}
"""By kind of head, how strongly z_C, the tokens under the map and the map's height are let speak."""


@dataclass(frozen=True, slots=True)
class TeachSettings:
    """How to teach. views per support; steps and batch of the transformation layers' Adam; the rest as in the recipe.

    tau_fit: logit scale while fitting, CLIP's. The taught map is then nearly binary; the recipe gets the softer `tau`,
    which ranks frames and pixels as well or better and makes the map less sensitive to rounding.
    head: "pooled" reads the tokens under the map beside the class tokens (heads.map_features); "paper" reads the class
    tokens alone (eq. 20-22), all other weights of the head are zero.
    head_l2: weight decay of the logistic regression, on features brought to one scale (`head_scale`); of a head that
    starts from what an aligned text tower says it is stronger, the better the text and the fewer the shots (PRIOR_L2).
    lambda_v: the V path's share of the map; None lets the supports choose (`choose_lambda_v`). It is 0 where the text
    vectors are not aligned, and the paper's 1 with head "paper".
    last_level_only: the other levels' layers and head weights are zero, and they have no say (paper, Table 3).
    alpha: the class mix of eq. 23; None chooses it by cross-validation on the supports (`choose_alpha`).
    """

    views: int = 8
    steps: int = 500
    batch: int = 4
    learning_rate: float = 2e-3
    head: str = "pooled"
    head_l2: float = 3e-4
    last_level_only: bool = False
    alpha: float | None = None
    tau_fit: float = 100.0
    tau: float = 30.0
    tau_v: float = 100.0
    tau_s: float = 10.0
    lambda_v: float | None = None

    def scalars(self, alpha: float, lambda_v: float) -> NDArray[np.float32]:
        """The graph's `scalars`."""
        return np.array([alpha, lambda_v, self.tau, self.tau_v, self.tau_s], np.float32)


def fit_recipe(
    features: SupportFeatures,
    encoder: Encoder,
    classes: Sequence[str],
    bank: TextBank,
    options: FrameOptions,
    *,
    smoothing_px: float,
    seed: int,
    settings: TeachSettings | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Recipe:
    """Teach a recipe. Deterministic for equal arguments on one machine.

    Thresholds are those of the highest F1 on the supports themselves: a starting point, optimistic by nature.
    """
    settings = settings or TeachSettings()
    text_seg = torch.tensor(bank.text_seg)
    weight, bias, taught_by = fit_transforms(
        features, text_seg, encoder.grid, settings, seed, progress, start=bank.projection
    )
    unseen, unseen_value = maps_of_others(features, bank, encoder.grid, settings, seed)
    lambda_v = choose_lambda_v(unseen, unseen_value, features, bank, encoder.grid, settings)
    tensors = {
        "text_seg": bank.text_seg,
        "text_cls": bank.text_cls,
        "transform_weight": weight.numpy(),
        "transform_bias": bias.numpy(),
        "scalars": settings.scalars(PAPER_ALPHA, lambda_v),
    }
    patch_maps, text = _judge_supports(features, tensors, encoder)
    levels = features.tokens.shape[1]
    scale = head_scale(features.cls.shape[1], settings.head, levels if settings.last_level_only else 1)
    unseen_maps = (unseen + lambda_v * unseen_value) / (1 + lambda_v)
    head = head_input(features, torch.ones(len(features.labels), dtype=torch.bool), unseen_maps)
    prior, believed = text_prior(head, features.labels, bank, settings)
    shots = float((features.plain.sum() / len(classes)).item())
    l2 = settings.head_l2 + PRIOR_L2 * believed.get("explained", 0.0) / shots
    head_weight, head_bias = fit_head(head, features.labels, len(classes), l2, scale, prior=prior)
    tensors["head_weight"], tensors["head_bias"] = head_weight.numpy(), head_bias.numpy()
    if settings.alpha is None:
        alpha, chosen_by = choose_alpha(head, features, text, len(classes), l2, scale, prior)
    else:
        alpha, chosen_by = settings.alpha, {"by": "setting"}
    tensors["scalars"] = settings.scalars(alpha, lambda_v)
    defect_threshold, pixel_threshold = _support_thresholds(features, patch_maps, encoder, smoothing_px)
    teaching = {
        "seed": seed,
        "map_taught_by": taught_by,
        "alpha": {"value": alpha, **chosen_by},
        "text_prior": {**believed, "head_l2": l2} if believed else {},
        "settings": asdict(settings),
        **(provenance or {}),
    }
    return Recipe(
        tuple(classes),
        tensors,
        head_input(features, features.plain, torch.stack([m.flatten() for m in map(torch.tensor, patch_maps)])).numpy(),
        encoder.id,
        OperatingPoint.taught(classes, defect_threshold, pixel_threshold),
        bank.source,
        options,
        teaching,
    )


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
    if start is not None and _start_auroc(features, start, text_seg, grid) >= START_AUROC:
        for level in range(levels):
            layer, shift = start.as_layer(features.tokens[:, level])
            weight[level], bias[level] = layer * std[level][:, None], shift + mean[level] @ layer
        # Cosines do not see a common factor; this one gives Adam's steps the same meaning as from a random start.
        size = weight.square().mean((1, 2)).sqrt() * math.sqrt(width)
        weight, bias = weight / size[:, None, None], bias / size[:, None]
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    rows, columns = features.targets.shape[1:]
    vertical = torch.tensor(upsampling_matrix(rows, grid[0], 0.0))
    horizontal = torch.tensor(upsampling_matrix(columns, grid[1], 0.0))
    picks = _balanced_picks(features.labels[usable], settings.steps * settings.batch, generator)
    for step in range(settings.steps):
        chosen = usable[picks[step * settings.batch : (step + 1) * settings.batch]]
        standardized = (features.tokens[chosen].float() - mean[:, None]) / std[:, None]
        transformed = heads.transform(standardized.transpose(0, 1).flatten(1, 2), weight, bias[:, None])
        logit = heads.vanilla_logit(heads.cosines(transformed, text_seg), torch.tensor(settings.tau_fit))
        logit = vertical @ logit.reshape(levels, -1, *grid) @ horizontal.T
        loss = _map_loss(logit, features.targets[chosen])
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


def _start_auroc(features: SupportFeatures, start: Projection, text_seg: Tensor, grid: tuple[int, int]) -> float:
    """How well the untaught map of the tower's own projection ranks the supports' patches, or frames without masks."""
    similarity = []
    for level in range(features.tokens.shape[1]):
        tokens = features.tokens[:, level].float()
        weight, bias = start.as_layer(tokens)
        similarity.append(heads.cosines(tokens @ weight + bias, text_seg))
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
    if not bank.aligned:
        return 0.0
    if settings.lambda_v is not None:
        return settings.lambda_v
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
        for view in mine.nonzero()[:, 0].tolist():
            similarity = heads.cosines(heads.transform(features.tokens[view].float(), weight, bias[:, None]), text_seg)
            vanilla = heads.vanilla_logit(similarity, torch.tensor(settings.tau))
            maps[view] = torch.sigmoid(vanilla).mean(0)
    return maps, torch.sigmoid(settings.tau_v * features.value).mean(1)


def text_prior(
    head: Tensor, labels: Tensor, bank: TextBank, settings: TeachSettings
) -> tuple[Layer | None, dict[str, float]]:
    """What the text says of a frame's class before any head is fitted, as weight [K, F] and bias [K].

    With it how far it is believed: the scales of both kinds of cosine, and `explained`, the part of the log loss of
    guessing that it takes away on the supports. None and {} where the text is not aligned, and for the paper's head,
    which knows no such start.
    """
    if bank.projection is None or settings.head != "pooled" or settings.last_level_only:
        return None, {}
    levels = (head.shape[1] - 1) // (2 * bank.projection.weight.shape[0])
    weight, bias = head_prior(bank.projection, torch.tensor(bank.text_cls), head, levels)
    cosines = torch.einsum("vf,bkf->bvk", head, weight) + bias[:, None]
    scales = fit_prior_scales(cosines, labels)
    names = ("class_tokens", "tokens_under_map")
    believed = {name: round(float(scale), 3) for name, scale in zip(names, scales, strict=True)}
    loss = F.cross_entropy(torch.einsum("b,bvk->vk", scales, cosines), labels, weight=1 / torch.bincount(labels))
    believed["explained"] = round(max(0.0, 1 - float(loss) / math.log(len(bank.text_cls))), 4)
    return (torch.einsum("b,bkf->kf", scales, weight), scales @ bias), believed


def head_input(features: SupportFeatures, views: Tensor, maps: Tensor) -> Tensor:
    """The graph's `features` [n, F] of the chosen views (bool [V], n of them true) under their maps [n, P]."""
    rows = []
    for view, defect_map in zip(views.nonzero()[:, 0].tolist(), maps, strict=True):
        tokens = [z[None] for z in features.tokens[view]]
        rows.append(torch.cat([features.cls[view], heads.map_features(tokens, defect_map[None])[0]]))
    return torch.stack(rows)


def head_scale(cls_width: int, kind: str, last_of: int = 1) -> Tensor:
    """What standardized features are multiplied with before the head is fitted: [F], F = 2 * cls_width + 1.

    Class tokens and pooled tokens count as blocks, each with its weight, whatever their width. last_of: of so many
    levels, side by side in a block, the last alone is read; 1 reads all of the block. Raises ValueError.
    """
    if kind not in BLOCK_WEIGHTS:
        raise ValueError(f'head "{kind}" is unknown; there are: {", ".join(BLOCK_WEIGHTS)}')
    cls, pooled, height = BLOCK_WEIGHTS[kind]
    read = cls_width // last_of
    ones = torch.ones(cls_width) / math.sqrt(read)
    ones[: cls_width - read] = 0
    return torch.cat([cls * ones, pooled * ones, torch.tensor([height])])


def fit_head(
    features: Tensor,
    labels: Tensor,
    classes: int,
    l2: float,
    scale: Tensor | None = None,
    max_iterations: int = 300,
    prior: Layer | None = None,
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with L2, full batch: weight [K, F] and bias [K] for raw features [V, F].

    prior: weight and bias to start from; the L2 is on what the result adds to them.

    Classes weigh the same whatever their number of views. Features are standardized and multiplied with scale [F]
    (1/sqrt(F) by default; a feature of scale 0 gets weight 0); both is folded into the result.
    """
    x = features.double()
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    factor = (torch.full_like(std, x.shape[1] ** -0.5) if scale is None else scale.double()) / std
    z = (x - mean) * factor
    # With L2 the best weights lie in the span of the views, which are far fewer than F: the same fit in fewer numbers.
    basis, coordinates = torch.linalg.qr(z.T)
    z = coordinates.T
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)
    share = (1.0 / counts.double())[labels] / classes
    known = 0.0 if prior is None else F.linear(features, *prior).double()
    weight = torch.zeros((classes, z.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logit = F.linear(z, weight, bias) + known
        loss = (F.cross_entropy(logit, labels, reduction="none") * share).sum()
        loss = loss + 0.5 * l2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        folded = weight @ basis.T * factor
        bias = bias - folded @ mean
        if prior is not None:
            folded, bias = folded + prior[0], bias + prior[1]
        return folded.float(), bias.float()


def choose_alpha(
    head_input: Tensor,
    features: SupportFeatures,
    text: NDArray[np.float32],
    classes: int,
    l2: float,
    scale: Tensor | None = None,
    prior: Layer | None = None,
) -> tuple[float, dict[str, Any]]:
    """The class mix of eq. 23 by cross-validation on the supports, and how it was chosen.

    head_input: [V, F], what the head reads. text: P_S [plain views, K]. prior: as in `fit_head`. All views of a support
    are left out together, the head is fitted again on the others, and log loss is taken on the left-out supports
    (unchanged views, classes weighing the same). A handful of supports measures it poorly, and P_S, which is not fitted
    again, has seen their masks; so the mix nearest the paper's is taken whose loss is within one standard error of the
    lowest (Breiman et al. 1984). A class with a single support leaves nothing to teach it from: then the paper's 0.8.
    """
    support = features.plain.cumsum(0) - 1  # views of one support stand together, the unchanged one first
    labels = features.labels[features.plain]
    folds = min(MAX_FOLDS, int(torch.bincount(labels, minlength=classes).min()))
    if folds < 2:
        return PAPER_ALPHA, {"by": "paper", "why": "a class has fewer than 2 supports"}
    fold = torch.zeros_like(labels)
    for label in range(classes):
        mine = (labels == label).nonzero()[:, 0]
        fold[mine] = torch.arange(len(mine)) % folds
    head = torch.zeros((len(labels), classes))
    plain = head_input[features.plain]
    for left_out in range(folds):
        taught = fold[support] != left_out
        fitted = fit_head(
            head_input[taught], features.labels[taught], classes, l2, scale, max_iterations=40, prior=prior
        )
        head[fold == left_out] = heads.head_probabilities(plain[fold == left_out], *fitted)
    share = (1.0 / torch.bincount(labels).double())[labels] / classes
    truth = torch.arange(len(labels)), labels
    of_head, of_text = head[truth].double(), torch.tensor(text)[truth].double()
    losses = {a: -((1 - a) * of_text + a * of_head).clamp_min(1e-12).log() for a in ALPHAS}
    mean = {a: float((share * loss).sum()) for a, loss in losses.items()}
    lowest = min(ALPHAS, key=lambda a: mean[a])

    def within_noise(a: float) -> bool:
        excess = losses[a] - losses[lowest]
        error = (share * (excess - (share * excess).sum())).square().sum().sqrt()
        return mean[a] - mean[lowest] <= float(error)

    best = min(filter(within_noise, ALPHAS), key=lambda a: (abs(a - PAPER_ALPHA), a))
    return best, {"by": "cross-validation", "folds": folds, "log_loss": {f"{a:g}": loss for a, loss in mean.items()}}


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
        x = logit[:, ~known].flatten(2)
        peaks = x.topk(max(1, x.shape[2] // 50), dim=2).values
        loss = loss + F.softplus(-peaks).mean((1, 2)).sum()
    return loss


def _judge_supports(
    features: SupportFeatures, tensors: Mapping[str, NDArray[np.float32]], encoder: Encoder
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """What the taught layers say of the unchanged supports: patch maps (eq. 17) and P_S [supports, K] (eq. 18-19)."""
    names = ("text_seg", "text_cls", "transform_weight", "transform_bias")
    text_seg, text_cls, weight, bias = (torch.tensor(tensors[name]) for name in names)
    _, lambda_v, tau, tau_v, tau_s = torch.tensor(tensors["scalars"])
    maps, text = [], []
    for view in features.plain.nonzero()[:, 0].tolist():
        transformed = heads.transform(features.tokens[view].float(), weight, bias[:, None])
        vanilla = heads.vanilla_logit(heads.cosines(transformed, text_seg), tau)
        patch_map = heads.fuse_maps(list(vanilla), list(tau_v * features.value[view]), lambda_v).reshape(encoder.grid)
        maps.append(patch_map.numpy())
        text.append(heads.text_probabilities(list(heads.cosines(transformed, text_cls)[:, None]), tau_s)[0].numpy())
    return maps, np.stack(text)


def _support_thresholds(
    features: SupportFeatures, patch_maps: Sequence[NDArray[np.float32]], encoder: Encoder, smoothing_px: float
) -> tuple[float, float]:
    """Thresholds of highest F1 for frame scores and for pixels, on the unchanged supports, by the runtime's own map."""
    scores, values, truths = [], [], []
    for patch_map, view in zip(patch_maps, features.plain.nonzero()[:, 0].tolist(), strict=True):
        full = upsample(patch_map, encoder.image_size, encoder.image_size, smoothing_px)
        scores.append(frame_score(full))
        target = features.targets[view].numpy()
        if not np.isnan(target[0, 0]):
            values.append(area_average(full, (target.shape[0], target.shape[1])).ravel())
            truths.append(target.ravel() > 0)
    defect_threshold, _ = f1_max_threshold(scores, (features.labels[features.plain] > 0).numpy())
    if not any(truth.any() for truth in truths):
        return defect_threshold, 0.5
    return defect_threshold, f1_max_threshold(np.concatenate(values), np.concatenate(truths))[0]
