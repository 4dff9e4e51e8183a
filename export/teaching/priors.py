"""Priors of teaching: the image tower's projection to the text, and the head's start from text and map.

In a CLIP the image tower's own projection leads from tokens to the text space. A transformation layer that starts there
(`fit_transforms`) gives a map before any teaching. A head that starts from the cosines with the classes' text
(`text_prior`) and the map's peak mean (`peak_prior`) names classes from their prompts; supports then correct it. The
supports decide how far the text is used: not at all if the prompts mean nothing to the tower.
Tip-Adapter (Zhang et al. 2022) and CLAP (Silva-Rodriguez et al. 2024) start few-shot heads from the text, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

PRIOR_STEPS = 100
FIRST_TEXT_SCALE, MAX_PRIOR_SCALE = 10.0, 50.0
"""The text's scale at the start of its fit, and the largest sum of both scales."""
PEAK_SCALE, PEAK_SCALE_L2 = 4.0, 0.03
"""Prior scale of the map's peak mean, and its strength: the mean log loss grows by PEAK_SCALE_L2 / (2 shots) times the
squared difference from it. Chosen on EMPS and on generated frames (docs/method.md)."""


@dataclass(frozen=True, slots=True)
class Projection:
    """ln_post and proj of an image tower as one affine map of tokens divided by their standard deviation.

    weight: float32 [D, C]; it removes the token's mean. bias: float32 [C].
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, visual: VisionTransformer) -> Projection:
        """The projection of an open_clip tower."""
        proj = visual.proj.detach().float()
        gain, shift = visual.ln_post.weight.detach().float(), visual.ln_post.bias.detach().float()
        scaled = gain[:, None] * proj
        return cls(scaled - scaled.mean(0), shift @ proj)

    def as_layer(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As a transformation layer for tokens [n, ..., D]: weight [D, C] and bias [C].

        Cosines ignore a token's own size, but the bias depends on it: it is set for the mean size.
        """
        # One by one: a float32 copy of all would take more memory than all other teaching.
        sizes = torch.stack([x.float().std(-1, correction=0).mean() for x in tokens])
        return self.weight, self.bias * sizes.mean()


def text_prior(projection: Projection, text_cls: Tensor, features: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Cosines with the classes' text as a linear function of the head's inputs: weight [K, F], bias [K].

    The mean over the class tokens of the upper half of the m levels, which the head reads (`head_scale`).
    features: [V, 3 m D + 1] (heads.head_features); their mean size makes the cosine linear.
    """
    width = projection.weight.shape[0]
    upper = range(levels // 2, levels)
    weight, bias = torch.zeros((len(text_cls), features.shape[1])), torch.zeros(len(text_cls))
    for level in upper:
        block = slice(level * width, (level + 1) * width)
        x = features[:, block].float()
        layer, shift = projection.as_layer(x)
        size = torch.linalg.vector_norm(x @ layer + shift, dim=-1).mean()
        weight[:, block] = (layer @ text_cls.T).T / size / len(upper)
        bias += text_cls @ shift / size / len(upper)
    return weight, bias


def peak_prior(classes: int, width: int) -> tuple[Tensor, Tensor]:
    """The map's peak mean less 0.5, positive for all defects, negative for good: weight [K, F] and bias [K].

    The peak mean is the last of the F = `width` features.
    """
    sign = torch.ones(classes)
    sign[0] = -1
    weight = torch.zeros((classes, width))
    weight[:, -1] = sign
    return weight, -0.5 * sign


def fit_prior_scales(text: Tensor, peak: Tensor, labels: Tensor, shots: float) -> tuple[float, float]:
    """The scales >= 0 of the text's cosines and of the map's peak mean; their sum is at most MAX_PRIOR_SCALE.

    text, peak: logits [V, K] of the views by `text_prior` and `peak_prior`. shots: supports per class.
    The scales have the lowest log loss with all classes weighing the same; 0 where the text does not help. Only the
    peak's scale is held near its prior, since the maps were fitted to the labels and the text was not.
    """
    sample_weight = (1.0 / torch.bincount(labels, minlength=text.shape[1]).clamp_min(1).float())[labels]
    sample_weight = sample_weight / sample_weight.sum()
    logits = torch.stack([text, peak])
    raw = torch.tensor([FIRST_TEXT_SCALE, PEAK_SCALE], requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=PRIOR_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logit = (raw.abs()[:, None, None] * logits).sum(0)
        loss = (F.cross_entropy(logit, labels, reduction="none") * sample_weight).sum()
        loss = loss + 0.5 * PEAK_SCALE_L2 / shots * (raw[-1] - PEAK_SCALE).square()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    scales = raw.detach().abs()
    # The fit has no bound if the text separates the supports perfectly.
    scales = scales * min(1.0, MAX_PRIOR_SCALE / max(float(scales.sum()), 1e-6))
    return float(scales[0]), float(scales[1])
