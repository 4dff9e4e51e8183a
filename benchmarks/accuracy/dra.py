"""The four heads of DRA (Ding, Pang and Shen, CVPR 2022, arXiv:2203.14506) on the frozen trunk, as a baseline.

DRA learns to separate good and defect supports; it reads no masks and needs no text. Here the trunk is not trained, and
the heads read the last level's patch tokens at one scale, so this is less than DRA. Each head gives a score y >= 0:

- holistic: normality of the mean token, by two layers;
- seen and pseudo: the defects of the supports, and patches that were cut and pasted, by one layer over every patch;
- composite: a small convolution over the difference from the mean of a few good reference frames.

DRA draws no map. The one here is the sum of the three patch maps M as M / (M + 5), the same for all frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.teaching.views import SupportFeatures, vary

GOOD, PSEUDO, DEFECT = 0, 1, 2
"""Kinds of training frames."""
HIDDEN = 256
TOP_SHARE = 0.1
"""The score of a patch head is the mean of this share of its patches, the highest ones, and at least one."""
MARGIN = 5.0
"""A positive with at least this score has no loss."""
REFERENCES = 5
GOOD_SLOTS, DEFECT_SLOTS = 32, 16
"""Slots of a batch. Each good slot holds a pseudo defect with probability 1/2."""
EPOCHS, STEPS_PER_EPOCH = 30, 20
RATE, RATE_EVERY, WEIGHT_DECAY, CLIP = 2e-4, 10, 1e-5, 1.0
MAX_WIDTH = 256
"""Wider tokens are first projected to this many principal directions: a 3 x 3 convolution costs the square."""
PATCH_AREA, PATCH_ASPECT, JITTER = (0.02, 0.15), (0.3, 3.3), 0.1


@dataclass(frozen=True, slots=True)
class TrainingTokens:
    """The last level's patch tokens, float32 [n, P, D].

    good, defect: views of the good and of the defect supports. pseudo: good views with pasted patches. references: the
    unaugmented views of up to 5 good supports.
    """

    good: Tensor
    pseudo: Tensor
    defect: Tensor
    references: Tensor

    @classmethod
    def of(cls, features: SupportFeatures, pseudo: Tensor) -> TrainingTokens:
        """From encoded supports, where class 0 is good, and the last level's tokens of pseudo defects.

        Raises ValueError without good or without defect supports, or without pseudo defects. One good support is
        enough: it is then its own reference.
        """
        tokens, is_good = features.tokens[:, -1].float(), features.labels == 0
        for kind, count in {"good": is_good.sum(), "defect": (~is_good).sum(), "pseudo-defect": len(pseudo)}.items():
            if not count:
                raise ValueError(
                    f"DRA's heads learn from good, defect and pseudo-defect views; there is no {kind} view"
                )
        references = tokens[features.unaugmented & is_good][:REFERENCES]
        return cls(tokens[is_good], pseudo.float(), tokens[~is_good], references)


@dataclass(frozen=True, slots=True)
class TokenScale:
    """Normalization of tokens [..., D]: principal directions [D, 256] where D is larger, then mean and spread."""

    basis: Tensor | None
    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> TokenScale:
        """From support tokens [n, P, D]."""
        flat = tokens.flatten(0, 1)
        basis = None
        if flat.shape[1] > MAX_WIDTH:
            covariance = torch.cov(flat.double().T)
            basis = torch.linalg.eigh(covariance).eigenvectors[:, -MAX_WIDTH:].float()
            flat = flat @ basis
        return cls(basis, flat.mean(0), flat.std(0, correction=0).clamp_min(1e-6))

    def __call__(self, tokens: Tensor) -> Tensor:
        projected = tokens if self.basis is None else tokens @ self.basis
        return (projected - self.mean) / self.spread


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores >= 0 of B frames. holistic: [B], high for good frames. seen, pseudo, composite: maps [B, P]."""

    holistic: Tensor
    seen: Tensor
    pseudo: Tensor
    composite: Tensor

    def frame(self) -> Tensor:
        """Defect scores [B] of any sign: the patch heads minus the holistic head, not normalized."""
        return top_mean(self.seen) + top_mean(self.pseudo) + top_mean(self.composite) - self.holistic

    def map(self) -> Tensor:
        """Maps [B, P] in [0, 1)."""
        total = self.seen + self.pseudo + self.composite
        return total / (total + MARGIN)


class DraHeads(nn.Module):
    """The heads on standardized tokens [B, P, D]. references: [R, P, D]; the composite head uses their mean."""

    reference: Tensor

    def __init__(self, references: Tensor, grid: tuple[int, int]) -> None:
        super().__init__()
        width = references.shape[-1]
        self.grid = grid
        self.holistic = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.seen, self.pseudo = nn.Linear(width, 1), nn.Linear(width, 1)
        self.composite = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 1, 1)
        )
        self.register_buffer("reference", references.mean(0))

    def forward(self, tokens: Tensor) -> Scores:
        """The scores of B frames."""
        residual = (self.reference - tokens).transpose(1, 2).reshape(len(tokens), -1, *self.grid)
        return Scores(
            self.holistic(tokens.mean(1))[:, 0].abs(),
            self.seen(tokens)[..., 0].abs(),
            self.pseudo(tokens)[..., 0].abs(),
            self.composite(residual).flatten(1).abs(),
        )


def top_mean(scores: Tensor) -> Tensor:
    """Mean of the highest tenth of the patches [B, P], rounded down, at least one patch: [B]."""
    count = max(1, int(TOP_SHARE * scores.shape[1]))
    return scores.topk(count, dim=1).values.mean(1)


def deviation_loss(scores: Tensor, positive: Tensor) -> Tensor:
    """Mean over the frames of max(0, 5 - y) where `positive` (bool [B]), else of y; y: scores [B] >= 0.

    DevNet's loss (Pang et al. 2019). y replaces its deviation from 5,000 draws of N(0, 1); both differ by under 0.006.
    """
    return torch.where(positive, (MARGIN - scores).clamp_min(0), scores).mean()


def loss_of(scores: Scores, kind: Tensor) -> Tensor:
    """The sum of the heads' losses; kind: int64 [B] of GOOD, PSEUDO, DEFECT.

    The seen head is not trained on pseudo defects, nor the pseudo head on real ones.
    """
    real, made = kind != PSEUDO, kind != DEFECT
    return (
        deviation_loss(scores.holistic, kind == GOOD)
        + deviation_loss(top_mean(scores.seen[real]), kind[real] == DEFECT)
        + deviation_loss(top_mean(scores.pseudo[made]), kind[made] == PSEUDO)
        + deviation_loss(top_mean(scores.composite), kind != GOOD)
    )


def rate_of(epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: 9 epochs at 2e-4, 10 at 2e-5, 10 at 2e-6 and 1 at 2e-7."""
    return RATE * math.pow(0.1, (epoch + 1) // RATE_EVERY)


@dataclass(frozen=True, slots=True)
class Dra:
    """Fitted heads and the scale of their tokens."""

    heads: DraHeads
    scale: TokenScale

    @torch.no_grad()
    def judge(self, tokens: Tensor) -> tuple[Tensor, float]:
        """Map [rows, columns] in [0, 1) and score of one frame's last-level patch tokens [P, D]."""
        scores = self.heads(self.scale(tokens.float()[None]))
        return scores.map().reshape(self.heads.grid), float(scores.frame())


def fit_dra(tokens: TrainingTokens, grid: tuple[int, int], seed: int) -> Dra:
    """Fit the heads by Adam for 600 steps; the same tokens and seed give the same heads."""
    scale = TokenScale.of(torch.cat([tokens.good, tokens.defect]))
    good, pseudo, defect = scale(tokens.good), scale(tokens.pseudo), scale(tokens.defect)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = DraHeads(scale(tokens.references), grid)
    optimizer = torch.optim.Adam(heads.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)

    def drawn(kind: Tensor, count: int) -> Tensor:
        return kind[torch.randint(len(kind), (count,), generator=generator)]

    heads.train()
    for step in range(EPOCHS * STEPS_PER_EPOCH):
        optimizer.param_groups[0]["lr"] = rate_of(step // STEPS_PER_EPOCH)
        made = torch.rand(GOOD_SLOTS, generator=generator) < 0.5
        slots = torch.where(made[:, None, None], drawn(pseudo, GOOD_SLOTS), drawn(good, GOOD_SLOTS))
        kind = torch.cat([made.long() * PSEUDO, torch.full((DEFECT_SLOTS,), DEFECT)])
        loss = loss_of(heads(torch.cat([slots, drawn(defect, DEFECT_SLOTS)])), kind)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(heads.parameters(), CLIP)
        optimizer.step()
    return Dra(heads.eval(), scale)


def pseudo_views(frame: NDArray[np.uint8], views: int, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """`views` views of a good frame, uint8 [H, W], the first one otherwise unchanged, each with a pasted patch."""
    return [cut_and_paste(frame if view == 0 else vary(frame, None, rng)[0], rng) for view in range(views)]


def cut_and_paste(frame: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paste a patch of 2 to 15 % of the frame's area, jittered in brightness and contrast, at another place.

    DRA makes its pseudo defects in this way, from CutPaste (Li et al., CVPR 2021). Raises ValueError under 2 x 2 px.
    """
    height, width = frame.shape
    if min(height, width) < 2:
        raise ValueError(f"a frame of {height}x{width} px has no second place for a patch")
    area, aspect = rng.uniform(*PATCH_AREA) * height * width, math.exp(rng.uniform(*np.log(PATCH_ASPECT)))
    high = int(np.clip(round(math.sqrt(area / aspect)), 1, height - 1))
    wide = int(np.clip(round(math.sqrt(area * aspect)), 1, width - 1))

    def place() -> tuple[int, int]:
        return int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))

    source = target = place()
    while target == source:
        target = place()
    patch = frame[source[0] : source[0] + high, source[1] : source[1] + wide].astype(np.float32)
    patch = np.clip(patch * rng.uniform(1 - JITTER, 1 + JITTER), 0, 255)
    patch = np.clip((patch - patch.mean()) * rng.uniform(1 - JITTER, 1 + JITTER) + patch.mean(), 0, 255)
    pasted = frame.copy()
    pasted[target[0] : target[0] + high, target[1] : target[1] + wide] = np.rint(patch).astype(np.uint8)
    return pasted
