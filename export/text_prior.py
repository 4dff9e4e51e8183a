"""What the text tower already knows, as a place for teaching to start from.

In a CLIP the image tower's own projection leads from tokens to the text space. A transformation layer that starts there
(fit_transforms) draws a map before it was taught anything, and a head that adds to what the text says of a frame
(head_prior), and the map of there being a defect (height_prior), names classes from their prompts. One shot a class is
then taken as a correction, not as all there is. How far the text is believed is measured on the supports: where the
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
FIRST_PRIOR_SCALE, MAX_PRIOR_SCALE = 10.0, 50.0
"""Sum of the text's scales where their fit begins, and of all scales at most."""
HEIGHT_SCALE, HEIGHT_TRUST = 4.0, 0.03
"""The scale of the map's height without any support, and how strongly its fit is held there: HEIGHT_TRUST / (2 shots)
times the squared distance is added to the mean log loss. On EMPS the height is the better judge of whether there is a
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


def head_prior(projection: Projection, text_cls: Tensor, features: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Cosines with the classes' text as linear functions of what the head reads: weight [n, K, F], bias [n, K].

    Those of the class tokens of the upper n of the m levels, which are read by the head itself (`head_scale`). The text
    says less of the tokens under the map. features: [V, 3 m D + 1] (heads.head_features); they give the usual sizes,
    without which a cosine is not linear.
    """
    width = projection.weight.shape[0]
    upper = range(levels // 2, levels)
    weight = torch.zeros((len(upper), len(text_cls), features.shape[1]))
    bias = torch.zeros((len(upper), len(text_cls)))
    for i, level in enumerate(upper):
        block = slice(level * width, (level + 1) * width)
        x = features[:, block].float()
        layer, shift = projection.as_layer(x)
        size = torch.linalg.vector_norm(x @ layer + shift, dim=-1).mean()
        weight[i, :, block] = (layer @ text_cls.T).T / size
        bias[i] = text_cls @ shift / size
    return weight, bias


def height_prior(classes: int, width: int) -> tuple[Tensor, Tensor]:
    """The map's height less 0.5, for all defects and against good, likewise: weight [K, F] and bias [K].

    The height is the last of the F = `width` features.
    """
    sign = torch.ones(classes)
    sign[0] = -1
    weight = torch.zeros((classes, width))
    weight[:, -1] = sign
    return weight, -0.5 * sign


def fit_prior_scales(cosines: Tensor, height: Tensor, labels: Tensor, shots: float) -> Tensor:
    """How far each kind of text cosine, and last the height, is to be believed: scales [n + 1], none below 0, which
    add up to MAX_PRIOR_SCALE at most.

    cosines: [n, V, K]. height: [V, K], `height_prior` of the views. shots: supports a class.
    The scales of the lowest log loss, classes weighing the same; 0 where the text does not help. A mean over the levels
    would hide that on some frames the lower ones say nothing. Nothing of `cosines` was fitted to the labels, so a
    handful will do; maps were, if not always to these, and HEIGHT_SCALE stands against what few shots say of them.
    """
    share = (1.0 / torch.bincount(labels, minlength=cosines.shape[2]).clamp_min(1).float())[labels]
    share = share / share.sum()
    logits = torch.cat([cosines, height[None]])
    raw = torch.tensor([FIRST_PRIOR_SCALE / len(cosines)] * len(cosines) + [HEIGHT_SCALE], requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=PRIOR_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logit = (raw.abs()[:, None, None] * logits).sum(0)
        loss = (F.cross_entropy(logit, labels, reduction="none") * share).sum()
        loss = loss + 0.5 * HEIGHT_TRUST / shots * (raw[-1] - HEIGHT_SCALE).square()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    scales = raw.detach().abs()
    # Supports that the text tells apart without a fault would have it believed without bound.
    return scales * min(1.0, MAX_PRIOR_SCALE / max(float(scales.sum()), 1e-6))
