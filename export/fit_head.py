"""The classification head (paper eq. 20-22), taught on cached support features; its start from the text, its alpha."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from . import heads
from .teach_settings import PAPER_ALPHA, TeachSettings
from .text_bank import TextBank
from .text_prior import fit_prior_scales, head_prior, height_prior
from .views import SupportFeatures

Layer = tuple[Tensor, Tensor]
"""Weight and bias."""
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MAX_FOLDS = 5
PRIOR_L2 = 1.0
"""Added to the head's L2 if it starts from the text: this, by shots a class. Where the text means nothing (magnetic
tiles, sem_tiny) it does no harm with two and with ten."""
PRIOR_BIAS_L2 = 1.0
"""L2 on the bias of such a head. Classes weigh the same in the fit and in the text, so what a handful of supports would
move it by is mostly chance: left free it cost up to five points of accuracy at one shot."""
BLOCK_WEIGHTS = {"paper": (1.0, 0.0, 0.0, 0.0), "pooled": (1.0, 0.4, 0.5, 0.6)}
"""By kind of head, how strongly z_C, the tokens under the map, their contrast and the map's height are let speak. The
tokens under the map are held back: maps fit the supports they were taught on better than frames to come. Chosen with
`head_l2` on magnetic tiles with DeiT-Tiny, on ten splits that stand in no table (seeds 5 to 14 of benchmarks.accuracy):
60.0 % with 10 shots, against 57.9 % with both kinds of token at 0.7 and an L2 of 3e-4."""


def text_prior(
    head: Tensor, labels: Tensor, bank: TextBank, settings: TeachSettings, shots: float
) -> tuple[Layer | None, dict[str, Any]]:
    """What text and map say of a frame's class before any head is fitted, as weight [K, F] and bias [K].

    The text names the class, the map's height tells defects from good. A handful of supports tells the tokens apart in
    any number of ways, these in one. With it how far they are believed: the scale of the class tokens' cosines, one for
    each of the upper levels, that of the height, and `explained`, the part of the log loss of guessing that they take
    away on the supports. None and {} where the text is not aligned, and for the paper's head, which has no such start.
    """
    if bank.projection is None or settings.head != "pooled" or settings.last_level_only:
        return None, {}
    levels = (head.shape[1] - 1) // (3 * bank.projection.weight.shape[0])
    weight, bias = head_prior(bank.projection, torch.tensor(bank.text_cls), head, levels)
    of_height = height_prior(len(bank.text_cls), head.shape[1])
    weight, bias = torch.cat([weight, of_height[0][None]]), torch.cat([bias, of_height[1][None]])
    logits = torch.einsum("vf,bkf->bvk", head, weight) + bias[:, None]
    scales = fit_prior_scales(logits[:-1], logits[-1], labels, shots)
    *by_level, height = (round(scale, 3) for scale in scales.tolist())
    believed: dict[str, Any] = {"class_tokens": by_level, "map_height": height}
    loss = F.cross_entropy(torch.einsum("b,bvk->vk", scales, logits), labels, weight=1 / torch.bincount(labels))
    believed["explained"] = round(max(0.0, 1 - float(loss) / math.log(len(bank.text_cls))), 4)
    return (torch.einsum("b,bkf->kf", scales, weight), scales @ bias), believed


def head_input(features: SupportFeatures, views: Tensor, maps: Tensor) -> Tensor:
    """The graph's `features` [n, F] of the chosen views (bool [V], n of them true) under their maps [n, P]."""
    rows = []
    for view, defect_map in zip(views.nonzero()[:, 0].tolist(), maps, strict=True):
        tokens = [z[None] for z in features.tokens[view]]
        rows.append(torch.cat([features.cls[view], heads.map_features(tokens, defect_map[None])[0]]))
    return torch.stack(rows)


def head_scale(levels: int, width: int, kind: str, *, last_level_only: bool = False) -> Tensor:
    """What standardized features are multiplied with before the head is fitted: [F], F = 3 * levels * width + 1.

    Class tokens, pooled tokens and their contrast count as blocks, each with its weight, whatever their width; what is
    not read is 0. "paper" reads the class tokens of all levels, "pooled" those of the upper half: lower down they know
    the frame's brightness and little else. Raises ValueError.
    """
    if kind not in BLOCK_WEIGHTS:
        raise ValueError(f'head "{kind}" is unknown; there are: {", ".join(BLOCK_WEIGHTS)}')
    *blocks, height = BLOCK_WEIGHTS[kind]
    read = 1 if last_level_only else levels
    reads = (read if kind == "paper" else -(-read // 2), read, read)
    parts = []
    for weight, upper in zip(blocks, reads, strict=True):
        part = torch.zeros((levels, width))
        part[levels - upper :] = weight / math.sqrt(upper * width)
        parts.append(part.flatten())
    return torch.cat([*parts, torch.tensor([height])])


def fit_head(
    features: Tensor,
    labels: Tensor,
    classes: int,
    l2: float,
    scale: Tensor | None = None,
    max_iterations: int = 300,
    prior: Layer | None = None,
    bias_l2: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with L2, full batch: weight [K, F] and bias [K] for raw features [V, F].

    prior: weight and bias to start from; the L2 is on what the result adds to them. bias_l2: the same for the bias
    alone, which is free by default.

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
        loss = loss + 0.5 * l2 * weight.square().sum() + 0.5 * bias_l2 * bias.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        folded = weight @ basis.T * factor
        bias = bias - folded @ mean
        if prior is not None:
            folded, bias = folded + prior[0], bias + prior[1]
        return folded.float(), bias.float()


def held_out_probabilities(
    head_input: Tensor,
    features: SupportFeatures,
    classes: int,
    l2: float,
    scale: Tensor | None = None,
    prior: Layer | None = None,
    bias_l2: float = 0.0,
) -> Tensor | None:
    """P_C (eq. 22) of each unchanged support by heads that were taught without it: [plain views, K].

    head_input: [V, F], what the head reads. prior, bias_l2: as in `fit_head`. All views of a support are left out
    together. None where a class has a single support, which leaves nothing to teach it from.
    """
    support = features.plain.cumsum(0) - 1  # views of one support stand together, the unchanged one first
    labels = features.labels[features.plain]
    folds = min(MAX_FOLDS, int(torch.bincount(labels, minlength=classes).min()))
    if folds < 2:
        return None
    fold = torch.zeros_like(labels)
    for label in range(classes):
        mine = (labels == label).nonzero()[:, 0]
        fold[mine] = torch.arange(len(mine)) % folds
    head = torch.zeros((len(labels), classes))
    plain = head_input[features.plain]
    for left_out in range(folds):
        taught = fold[support] != left_out
        fitted = fit_head(
            head_input[taught],
            features.labels[taught],
            classes,
            l2,
            scale,
            max_iterations=40,
            prior=prior,
            bias_l2=bias_l2,
        )
        head[fold == left_out] = heads.head_probabilities(plain[fold == left_out], *fitted)
    return head


def choose_alpha(held_out: Tensor | None, text: NDArray[np.float32], labels: Tensor) -> tuple[float, dict[str, Any]]:
    """The class mix of eq. 23 by cross-validation on the supports, and how it was chosen.

    held_out: P_C of `held_out_probabilities`. text: P_S of the same supports [S, K]. labels: [S].
    Log loss is taken on the left-out supports, classes weighing the same. A handful of supports measures it poorly, and
    P_S, which is not fitted again, has seen their masks; so the mix nearest the paper's is taken whose loss is within
    one standard error of the lowest (Breiman et al. 1984). Without held-out supports it is the paper's 0.8.
    """
    if held_out is None:
        return PAPER_ALPHA, {"by": "paper", "why": "a class has fewer than 2 supports"}
    share = (1.0 / torch.bincount(labels).double())[labels] / held_out.shape[1]
    truth = torch.arange(len(labels)), labels
    of_head, of_text = held_out[truth].double(), torch.tensor(text)[truth].double()
    losses = {a: -((1 - a) * of_text + a * of_head).clamp_min(1e-12).log() for a in ALPHAS}
    mean = {a: float((share * loss).sum()) for a, loss in losses.items()}
    lowest = min(ALPHAS, key=lambda a: mean[a])

    def within_noise(a: float) -> bool:
        excess = losses[a] - losses[lowest]
        error = (share * (excess - (share * excess).sum())).square().sum().sqrt()
        return mean[a] - mean[lowest] <= float(error)

    best = min(filter(within_noise, ALPHAS), key=lambda a: (abs(a - PAPER_ALPHA), a))
    return best, {"by": "cross-validation", "log_loss": {f"{a:g}": loss for a, loss in mean.items()}}
