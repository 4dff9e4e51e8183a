"""Few-shot fine-tuning: from cached support features to a recipe (paper section 3; docs/method.md says what is ours).

The trunk is frozen. `fit_recipe` goes through five steps, each on what the ones before it found:

1. `fit_transforms` teaches the layers of the defect map; `fit_memory` remembers patches of the good supports.
2. `fuse_support_maps` draws the supports' maps: as the recipe draws them, and as the head and the threshold read them.
3. `fit_class_head` fits the classes on what lies under those maps.
4. `judge_supports` asks the finished tensors for the maps and P_S of the unchanged supports, as the graph will.
5. `taught_point` sets the thresholds.

The supports decide four things: where the layers start (`starts_at_text`), how far the text is used
(`fit_prior_scales`), and two thresholds. Same features and seed, same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.thresholds import f1_max_threshold
from runtime.manifest import Encoder
from runtime.maps import frame_score, upsample
from runtime.operating_point import OperatingPoint
from runtime.recipe import FrameOptions, Recipe
from runtime.verdict import defect_scores

from ..model import heads
from .fit_head import ClassHead, fit_class_head, head_input
from .fit_map import Layers, fit_transforms, out_of_fold_maps
from .fit_memory import Memory, fit_memory, memory_share, with_memory
from .settings import TeachSettings
from .text_bank import TextBank
from .views import Progress, SupportFeatures, area_average

LAMBDA_V = 0.3
"""The V path's share of the map where the text is aligned: with `sem_tiny`, against shares that the supports choose and
against the paper's 1, the best or even on EMPS and on generated frames (docs/method.md)."""
CLASS_SHARE = 0.25
"""What 1 - P(good) counts in the defect score of a taught recipe; the map's score counts the rest.

Chosen on splits that stand in no table (seeds 5 to 8, DeiT-Tiny), with the threshold below. At 10 shots 58.3 % of the
verdicts on magnetic tiles are right, against 48.1 % by the map alone and 58.2 % at 0.5; on EMPS 93.0, 92.5 and 92.6 %.
At one shot it costs EMPS half a point and brings the tiles seven."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a recipe is taught from, and how. classes: `good` first. smoothing_px: of the map, as the bundle smooths."""

    features: SupportFeatures
    encoder: Encoder
    classes: Sequence[str]
    bank: TextBank
    smoothing_px: float
    seed: int
    settings: TeachSettings = field(default_factory=TeachSettings)


@dataclass(frozen=True, slots=True)
class SupportMaps:
    """Defect maps [V, P] of all views of the supports (eq. 17, the memory's share in them).

    own: by the recipe's layers. honest: what the head and the defect threshold learn from. Where the layers start at
    the text, those that were taught without a frame draw it well, and `honest` is out of fold. Where they start at
    random, layers taught on fewer frames often point at something else than the defect: `honest` is `own`.
    A good support is never compared with a memory bank that holds it: nothing in it would be odd.
    """

    own: Tensor
    honest: Tensor


@dataclass(frozen=True, slots=True)
class Shares:
    """What counts beside the vanilla path's map: value, lambda_v of eq. 17; memory, beside those two together."""

    value: float
    memory: float


def fit_recipe(
    lesson: Lesson, options: FrameOptions, provenance: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> Recipe:
    """Teach a recipe. Deterministic for equal arguments on one machine. Raises ValueError as `fit_transforms`.

    provenance: kept in the recipe's record. progress: called with the steps of the layers.
    """
    features, bank = lesson.features, lesson.bank
    layers = fit_transforms(features, bank, lesson.encoder.grid, lesson.settings, lesson.seed, progress)
    memory = fit_memory(features)
    shares = choose_shares(lesson, layers, memory)
    maps = fuse_support_maps(lesson, layers, memory, shares)
    head = fit_class_head(features, maps.honest, bank, lesson.settings)
    tensors = _tensors(lesson, layers, memory, shares, head)
    judged, text = judge_supports(features, tensors)
    teaching = {
        "seed": lesson.seed,
        "map_taught_by": layers.taught_by,
        "map_starts_at": "text" if layers.at_text else "random",
        "memory_share": shares.memory,
        "text_prior": head.prior,
        "settings": asdict(lesson.settings),
        **(provenance or {}),
    }
    supports = head_input(features, features.plain, judged).numpy()
    point = taught_point(lesson, maps, head, text)
    return Recipe(tuple(lesson.classes), tensors, supports, lesson.encoder.id, point, bank.source, options, teaching)


def choose_shares(lesson: Lesson, layers: Layers, memory: Memory) -> Shares:
    """As set, or by what taught the map. The V path is not taught: without aligned text it is noise.

    One good group gives a memory bank that nothing can be compared with: its share is 0, whatever was set.
    """
    value, share = lesson.settings.lambda_v, lesson.settings.memory_share
    if value is None:
        value = LAMBDA_V if lesson.bank.aligned else 0.0
    if share is None or memory.maps is None:
        share = memory_share(memory, layers.taught_by, layers.at_text)
    return Shares(value, share)


def fuse_support_maps(lesson: Lesson, layers: Layers, memory: Memory, shares: Shares) -> SupportMaps:
    """The supports' maps. Out-of-fold ones are computed only where they are read."""
    features, bank, temperatures = lesson.features, lesson.bank, lesson.settings.temperatures
    value = torch.sigmoid(temperatures.value * features.value).mean(1)  # eq. 16

    def fused(vanilla: Tensor) -> Tensor:
        return with_memory((vanilla + shares.value * value) / (1 + shares.value), memory, shares.memory)

    own = fused(layers.maps(features.tokens, torch.tensor(bank.text_seg), temperatures.map))
    if not layers.at_text:
        return SupportMaps(own, own)
    return SupportMaps(own, fused(out_of_fold_maps(features, bank, lesson.encoder.grid, lesson.settings, lesson.seed)))


def _tensors(
    lesson: Lesson, layers: Layers, memory: Memory, shares: Shares, head: ClassHead
) -> dict[str, NDArray[np.float32]]:
    """The recipe's tensors, which are the graph's inputs."""
    return {
        "text_seg": lesson.bank.text_seg,
        "text_cls": lesson.bank.text_cls,
        "transform_weight": layers.weight.numpy(),
        "transform_bias": layers.bias.numpy(),
        "memory": memory.rows.numpy(),
        "memory_scale": memory.scale.numpy(),
        "head_weight": head.weight.numpy(),
        "head_bias": head.bias.numpy(),
        "scalars": lesson.settings.scalars(shares.value, shares.memory * (1 + shares.value)),
    }


def judge_supports(
    features: SupportFeatures, tensors: Mapping[str, NDArray[np.float32]]
) -> tuple[Tensor, NDArray[np.float32]]:
    """What the recipe says of the unchanged supports: maps [supports, P] (eq. 17) and P_S [supports, K] (eq. 18-19)."""
    names = ("text_seg", "text_cls", "transform_weight", "transform_bias", "memory", "memory_scale")
    text_seg, text_cls, weight, bias, memory, memory_scale = (torch.tensor(tensors[name]) for name in names)
    _, lambda_v, lambda_m, tau, tau_v, tau_s = torch.tensor(tensors["scalars"])
    maps, text = [], []
    for view in features.plain.nonzero()[:, 0].tolist():
        transformed = heads.transform(features.tokens[view].float(), weight, bias[:, None])
        vanilla = heads.vanilla_logit(heads.cosines(transformed, text_seg), tau)
        odd = [heads.oddness(z.float(), rows) for z, rows in zip(features.tokens[view], memory, strict=True)]
        remembered = heads.memory_map(odd, memory_scale)
        maps.append(heads.fuse_maps(list(vanilla), list(tau_v * features.value[view]), remembered, lambda_v, lambda_m))
        text.append(heads.text_probabilities(list(heads.cosines(transformed, text_cls)[:, None]), tau_s)[0].numpy())
    return torch.stack(maps), np.stack(text)


def taught_point(lesson: Lesson, maps: SupportMaps, head: ClassHead, text: NDArray[np.float32]) -> OperatingPoint:
    """Thresholds of the highest F1 on the unchanged supports: a starting point; expect worse on new frames.

    text: P_S of the unchanged supports [supports, K].
    """
    features, encoder, alpha = lesson.features, lesson.encoder, lesson.settings.alpha
    plain, held_out = features.plain, head.held_out

    def grids(of: Tensor) -> list[NDArray[np.float32]]:
        return [row.reshape(encoder.grid).numpy() for row in of[plain]]

    good = None if held_out is None else alpha * held_out[:, 0].numpy() + (1 - alpha) * text[:, 0]
    defect, classes = (features.labels[plain] > 0).numpy(), len(lesson.classes)
    return OperatingPoint.taught(
        lesson.classes,
        _defect_threshold(grids(maps.honest), good, defect, classes, encoder, lesson.smoothing_px),
        _pixel_threshold(features, grids(maps.own), encoder, lesson.smoothing_px),
        CLASS_SHARE,
    )


def _defect_threshold(
    patch_maps: Sequence[NDArray[np.float32]],
    good: NDArray[np.float32] | None,
    defect: NDArray[np.bool_],
    classes: int,
    encoder: Encoder,
    smoothing_px: float,
) -> float:
    """The threshold of highest F1 for the defect scores of n supports, from patch maps, P(good) and the truth [n].

    good: P(good) by heads that were taught without the support (eq. 23); a head knows its own supports too well to say
    where the threshold lies. None where no support can be left out: then the map's threshold, and the 1 - P(good) of a
    guess among all classes, count as their scores do. Good and defect frames weigh the same: with K supports of each of
    many defect classes, F1 would be highest where all frames are called defects.
    """
    full = [upsample(m, encoder.image_size, encoder.image_size, smoothing_px) for m in patch_maps]
    map_scores = np.array([frame_score(m) for m in full], np.float32)
    good_weight = float(defect.sum() / max(1, (~defect).sum()))
    if good is None:
        of_map = f1_max_threshold(map_scores, defect, good_weight)[0]
        return (1 - CLASS_SHARE) * of_map + CLASS_SHARE * (1 - 1 / classes)
    return f1_max_threshold(defect_scores(map_scores, good[:, None], CLASS_SHARE), defect, good_weight)[0]


def _pixel_threshold(
    features: SupportFeatures, patch_maps: Sequence[NDArray[np.float32]], encoder: Encoder, smoothing_px: float
) -> float:
    """The threshold of highest F1 for pixels, by the recipe's own maps of the unchanged supports; 0.5 without masks.

    Out-of-fold maps are no better here: they were taught by fewer frames, and so are less sure.
    """
    values, truths = [], []
    for patch_map, view in zip(patch_maps, features.plain.nonzero()[:, 0].tolist(), strict=True):
        target = features.targets[view].numpy()
        if not np.isnan(target[0, 0]):
            full = upsample(patch_map, encoder.image_size, encoder.image_size, smoothing_px)
            values.append(area_average(full, (target.shape[0], target.shape[1])).ravel())
            truths.append(target.ravel() > 0)
    if not any(truth.any() for truth in truths):
        return 0.5
    return f1_max_threshold(np.concatenate(values), np.concatenate(truths))[0]
