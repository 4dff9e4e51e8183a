"""What the text tower already knows, as a place for teaching to start from.

In a CLIP the image tower's own projection leads from tokens to the text space. A transformation layer that starts there
(fit_transforms) draws a map before it was taught anything, and a head that adds to what the text says of a frame
(text_prior), and the map of there being a defect (peak_prior), names classes from their prompts. One shot a class is
then taken as a correction, not as all there is. How far the text is used is measured on the supports: where the
prompts mean nothing to the tower, not at all.
Zhang et al. 2022 (Tip-Adapter) and Silva-Rodriguez et al. 2024 (CLAP) anchor few-shot heads in the text likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

PRIOR_STEPS = 100
FIRST_TEXT_SCALE, MAX_PRIOR_SCALE = 10.0, 50.0
"""The text's scale where its fit begins, and the sum of both scales at most."""
PEAK_SCALE, PEAK_TRUST = 4.0, 0.03
"""The scale of the map's peak mean without any support, and how strongly its fit is held there: PEAK_TRUST / (2 shots)
times the squared distance is added to the mean log loss. On EMPS the peak is the better judge of whether there is a
defect, on generated frames the text; a handful of supports tells which it is. Chosen on both."""


@dataclass(frozen=True, slots=True)
class Projection:
    """ln_post and proj of an image tower as one affine map of centred tokens divided by their standard deviation.

    weight: float32 [D, C]; it takes the token's mean away. bias: float32 [C].
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
        """The same as a transformation layer for tokens [n, ..., D]: weight [D, C] and bias [C].

        Cosines do not see a token's own size, but the bias does: it is set for the usual one.
        """
        # One after the other: a float32 copy of all would be the most memory that teaching takes.
        sizes = torch.stack([x.float().std(-1, correction=0).mean() for x in tokens])
        return self.weight, self.bias * sizes.mean()


def text_prior(projection: Projection, text_cls: Tensor, features: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Cosines with the classes' text as a linear function of what the head reads: weight [K, F], bias [K].

    The mean over the class tokens of the upper half of the m levels, which the head itself reads (`head_scale`). The
    text says less of the tokens under the map. features: [V, 3 m D + 1] (heads.head_features); they give the usual
    sizes, without which a cosine is not linear.
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
    """The map's peak mean less 0.5, for all defects and against good, likewise: weight [K, F] and bias [K].

    The peak mean is the last of the F = `width` features.
    """
    sign = torch.ones(classes)
    sign[0] = -1
    weight = torch.zeros((classes, width))
    weight[:, -1] = sign
    return weight, -0.5 * sign


def fit_prior_scales(text: Tensor, peak: Tensor, labels: Tensor, shots: float) -> tuple[float, float]:
    """How far the text's cosines and the map's peak mean are used: two scales >= 0, MAX_PRIOR_SCALE together at most.

    text, peak: [V, K], what `text_prior` and `peak_prior` say of the views. shots: supports per class.
    The scales of the lowest log loss, classes weighing the same; 0 where the text does not help. Nothing of the text's
    was fitted to the labels, so a handful will do; maps were, if not always to these, and PEAK_SCALE stands against
    what few shots say of them.
    """
    share = (1.0 / torch.bincount(labels, minlength=text.shape[1]).clamp_min(1).float())[labels]
    share = share / share.sum()
    logits = torch.stack([text, peak])
    raw = torch.tensor([FIRST_TEXT_SCALE, PEAK_SCALE], requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=PRIOR_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logit = (raw.abs()[:, None, None] * logits).sum(0)
        loss = (F.cross_entropy(logit, labels, reduction="none") * share).sum()
        loss = loss + 0.5 * PEAK_TRUST / shots * (raw[-1] - PEAK_SCALE).square()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    scales = raw.detach().abs()
    # Supports that the text tells apart without a fault would have it used without bound.
    scales = scales * min(1.0, MAX_PRIOR_SCALE / max(float(scales.sum()), 1e-6))
    return float(scales[0]), float(scales[1])
