"""What the text tower already knows, as a place for teaching to start from.

In a CLIP the image tower's own projection leads from tokens to the text space. A transformation layer that starts there
(fit_transforms) draws a map before it was taught anything, and a head that adds to what the text says of a frame
(head_prior) names classes from their prompts. One shot a class is then taken as a correction, not as all there is.
How far the text is believed is measured on the supports: where the prompts mean nothing to the tower, not at all.
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
"""Sum of the scales where their fit begins, and at most."""


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
    """Cosines with the classes' text as linear functions of what the head reads: weight [2 m, K, F], bias [2 m, K].

    First those of the class tokens of the m levels, then those of the tokens under the map. features: [V, 3 m D + 1]
    (heads.head_features); they give the usual sizes, without which a cosine is not linear.
    """
    width = projection.weight.shape[0]
    weight = torch.zeros((2 * levels, len(text_cls), features.shape[1]))
    bias = torch.zeros((2 * levels, len(text_cls)))
    for kind in range(2 * levels):
        block = slice(kind * width, (kind + 1) * width)
        x = features[:, block].float()
        layer, shift = projection.as_layer(x)
        size = torch.linalg.vector_norm(x @ layer + shift, dim=-1).mean()
        weight[kind, :, block] = (layer @ text_cls.T).T / size
        bias[kind] = text_cls @ shift / size
    return weight, bias


def fit_prior_scales(cosines: Tensor, labels: Tensor) -> Tensor:
    """How far each kind of text cosine is to be believed: scales [n] from 0 on, at most MAX_PRIOR_SCALE in all.

    cosines: [n, V, K]. The scales of the lowest log loss, classes weighing the same; 0 where the text does not help.
    A mean over the levels would hide that on some frames the lower ones say nothing. Nothing of `cosines` was fitted to
    the labels except the map under which tokens were pooled, so a handful will do.
    """
    share = (1.0 / torch.bincount(labels, minlength=cosines.shape[2]).clamp_min(1).float())[labels]
    share = share / share.sum()
    raw = torch.full((len(cosines),), FIRST_PRIOR_SCALE / len(cosines), requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=PRIOR_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logit = (raw.abs()[:, None, None] * cosines).sum(0)
        loss = (F.cross_entropy(logit, labels, reduction="none") * share).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    scales = raw.detach().abs()
    # Supports that the text tells apart without a fault would have it believed without bound.
    return scales * min(1.0, MAX_PRIOR_SCALE / max(float(scales.sum()), 1e-6))
