"""The heads on the encoder: defect map (paper eq. 9-17) and class probabilities (eq. 18-23).

Plain functions of features and recipe tensors, shared by the exported graph and teaching. Everything that decides a
verdict (norms, cosines, softmax, mixing) is float32, whatever the type of the features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

POOLED_SHARE = 0.1
"""A class's frame-level cosine is the mean of the highest patches, this fraction of them."""
POOLING_POWER = 4
"""High enough that a defect of a few patches outweighs a faint map on all others."""
PEAK_SHARE = 0.02
"""Fraction of a map's patches, the highest ones, whose mean is its peak mean."""
LEAST_SPREAD = 1e-6
"""Added to the spread of patches, which is 0 in a channel that is constant over a frame."""
MEMORY_MIDPOINT = 3.0
"""Spreads above the mean distance of good patches at which the memory's map is 0.5."""


def transform(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Z'_j of eq. 9: patch tokens [B, P, D] through one transformation layer ([D, C], [C]); float32 [B, P, C]."""
    return (tokens @ weight.to(tokens.dtype)).float() + bias


def cosines(x: Tensor, text: Tensor) -> Tensor:
    """Eq. 10: cosine of every x [..., C] with every unit text vector [T, C]; float32 [..., T].

    The norm divides the few cosines instead of the wide vectors: the same result with less memory.
    """
    x = x.float()
    return (x @ text.T) / _norm(x)


def vanilla_logit(similarity: Tensor, tau: Tensor) -> Tensor:
    """Eq. 11 before the softmax, from cosines [B, P, 2] with (normal, defect): [B, P].

    Its sigmoid is the defect channel of the two-way softmax.
    """
    return tau * (similarity[..., 1] - similarity[..., 0])


def value_logit(value: Tensor, cls: Tensor, text_seg: Tensor, tau_v: Tensor, redundancy: str) -> Tensor:
    """Eq. 13-15 before the softmax, for the V path: value [B, P, C], cls [B, C]; gives [B, P].

    "cls_weight": cosines weighted by w_k = 2 softmax(cos(c_j, t))_k (CLIP Surgery, CLIP-AD). "class_mean": the paper
    taken literally: the redundant feature is the same for both classes, so it cancels in the softmax.
    """
    similarity = cosines(value, text_seg)
    if redundancy == "cls_weight":
        similarity = similarity * (2 * torch.softmax(cosines(cls, text_seg), dim=-1))[:, None]
    return tau_v * (similarity[..., 1] - similarity[..., 0])


def nearest_patch_distance(tokens: Tensor, memory: Tensor) -> Tensor:
    """1 - the highest cosine of patch tokens [B, P, D] with rows of a memory bank (unit, [M, D]): float32 [B, P]."""
    return 1 - cosines(tokens, memory).amax(-1)


def memory_map(distances: Sequence[Tensor], scale: Tensor) -> Tensor:
    """The memory's map [B, P] in [0, 1], from nearest-patch distances [B, P] of every level. Beyond the paper.

    Good patches are the reference, as in WinCLIP+ (Jeong et al. 2023) and AnomalyDINO (Damm et al. 2025).
    scale: [m, 2], mean and spread of the distances of good patches outside the bank. The map is 0.5 if a patch is
    MEMORY_MIDPOINT spreads above the mean, averaged over levels.
    """
    standard = torch.stack([(d - s[0]) / s[1] for d, s in zip(distances, scale.unbind(0), strict=True)]).mean(0)
    return torch.sigmoid(standard - MEMORY_MIDPOINT)


def fuse_maps(
    vanilla: Sequence[Tensor], value: Sequence[Tensor], memory: Tensor, lambda_v: Tensor, lambda_m: Tensor
) -> Tensor:
    """Eq. 12, 16, 17 from logits [B, P] of every level, scaled to [0, 1], and beyond the paper the memory's map [B, P].

    value: empty for a graph without the V path; lambda_v, which must then be 0, is not read.
    """
    fused, weight = torch.stack([torch.sigmoid(logit) for logit in vanilla]).mean(0), torch.ones_like(lambda_m)
    if value:
        a_v = torch.stack([torch.sigmoid(logit) for logit in value]).mean(0)
        fused, weight = fused + lambda_v * a_v, weight + lambda_v
    return (fused + lambda_m * memory) / (weight + lambda_m)


def text_probabilities(similarities: Sequence[Tensor], tau_s: Tensor) -> Tensor:
    """P_S of eq. 18-19 from every level's cosines [B, P, K] with the classes' text vectors; gives [B, K]."""
    stacked = torch.stack(list(similarities), dim=1).transpose(2, 3)  # [B, m, K, P]
    count = math.ceil(POOLED_SHARE * stacked.shape[-1])
    pooled = stacked.topk(count, dim=-1).values.mean(-1)
    return torch.softmax(tau_s * pooled.amax(1), dim=-1)


def head_features(tokens: Sequence[Tensor], defect_map: Tensor) -> Tensor:
    """The head's inputs: float32 [B, 3 m D + 1], from tokens [B, 1 + P, D] of m levels and the map [B, P] of eq. 17.

    z_C of eq. 20 (the CLS token of every level, each of unit length), then, beyond the paper, `map_features`. A CLS
    token stands for the whole frame, mostly background; the tokens under the map stand for the defect.
    """
    cls = torch.cat([unit(z[:, 0]) for z in tokens], dim=-1)
    return torch.cat([cls, map_features([z[:, 1:] for z in tokens], defect_map)], dim=-1)


def map_features(patches: Sequence[Tensor], defect_map: Tensor) -> Tensor:
    """The patch tokens [B, P, D] of every level under the map, and the map's peak mean: float32 [B, 2 m D + 1].

    First the pooled tokens, of unit length: a patch weighs as the map to the power of POOLING_POWER. Then the contrast:
    the difference between pooled and mean patch, in standard deviations of the frame's patches, per channel and over
    sqrt(D). It describes the defect relative to its background, whatever the exposure. Last the peak mean.
    """
    # Scaled by the peak first, since the fourth power of a faint map underflows. An all-zero map pools all alike.
    weight = (defect_map / defect_map.amax(1, keepdim=True).clamp_min(1e-12) + 1e-6) ** POOLING_POWER
    weight = (weight / weight.sum(1, keepdim=True))[:, None]
    pooled, contrast = [], []
    for level in patches:
        z = level.float()
        mean = z.mean(1, keepdim=True)
        spread = (z - mean).square().mean(1).sqrt() + LEAST_SPREAD
        under_map = (weight @ z)[:, 0]
        pooled.append(unit(under_map))
        contrast.append((under_map - mean[:, 0]) / spread / math.sqrt(z.shape[-1]))
    return torch.cat([*pooled, *contrast, peak_mean(defect_map)[:, None]], dim=-1)


def peak_mean(defect_map: Tensor) -> Tensor:
    """Mean of the highest patches of maps [B, P], PEAK_SHARE of them: float32 [B]."""
    count = max(1, int(PEAK_SHARE * defect_map.shape[1]))
    return defect_map.topk(count, dim=1).values.mean(1)


def head_probabilities(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """P_C of eq. 21-22: [B, K]."""
    return torch.softmax(F.linear(features, weight, bias), dim=-1)


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis, in float32."""
    x = x.float()
    return x / _norm(x)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.clamp_min(1e-12)
