"""Few-shot fine-tuning: from cached support features to a recipe (paper section 3; decisions in the docstrings).

The trunk is frozen. Two things are fitted: the transformation layers, with focal and dice loss on the defect map of
every level, and the classification head, a multinomial logistic regression. A third is remembered: patches of the good
supports. The head reads what lies under the map, and a map is too good on the frames that taught it. Where the layers
start at the text, those that were taught without a frame draw it well, and the head is fitted on such honest maps.
Where they start at random, layers taught on fewer frames often point at something else than the defect, and the
recipe's own maps are the better teacher. The defect threshold goes by the same maps, and by heads that were taught
without the frame.

Same features and seed, same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
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

from . import heads
from .fit_head import (
    PRIOR_BIAS_L2,
    PRIOR_L2,
    choose_alpha,
    fit_head,
    head_input,
    head_scale,
    held_out_probabilities,
    text_prior,
)
from .fit_map import choose_lambda_v, fit_transforms, maps_by, maps_of_others, starts_at_text
from .fit_memory import choose_memory_share, fit_memory, with_memory
from .teach_settings import PAPER_ALPHA, TeachSettings
from .text_bank import TextBank
from .views import Progress, SupportFeatures, area_average

HEAD_MAPS = ("own", "others")
CLASS_SHARE = 0.25
"""What 1 - P(good) counts in the defect score of a taught recipe; the map's score counts the rest.

Chosen on splits that stand in no table (seeds 5 to 8, DeiT-Tiny), with the threshold below. At 10 shots 58.3 % of the
verdicts on magnetic tiles are right, against 48.1 % by the map alone and 58.2 % at 0.5; on EMPS 93.0, 92.5 and 92.6 %.
At one shot it costs EMPS half a point and brings the tiles seven."""


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

    Thresholds are those of the highest F1 on the supports themselves, the defect threshold where it can be by layers
    and heads that were taught without the frame: a starting point, optimistic by nature. Raises ValueError for settings
    that are unknown.
    """
    settings = settings or TeachSettings()
    if settings.head_maps not in (None, *HEAD_MAPS):
        raise ValueError(f'head_maps "{settings.head_maps}" is unknown; there are: {", ".join(HEAD_MAPS)}')
    text_seg = torch.tensor(bank.text_seg)
    weight, bias, taught_by = fit_transforms(
        features, text_seg, encoder.grid, settings, seed, progress, start=bank.projection
    )
    unseen, unseen_value = maps_of_others(features, bank, encoder.grid, settings, seed)
    lambda_v = choose_lambda_v(unseen, unseen_value, features, bank, encoder.grid, settings)
    unseen_maps = (unseen + lambda_v * unseen_value) / (1 + lambda_v)
    memory = fit_memory(features)
    share = choose_memory_share(memory, unseen_maps, features, settings)
    lambda_m = share * (1 + lambda_v)
    at_text = starts_at_text(features, bank.projection, text_seg, encoder.grid)
    head_maps, taken = unseen_maps, settings.head_maps or ("others" if at_text else "own")
    if taken == "own":
        own = maps_by(features.tokens, weight, bias, text_seg, settings.tau)
        head_maps = (own + lambda_v * unseen_value) / (1 + lambda_v)
    if memory.maps is not None:
        head_maps = with_memory(head_maps, memory.maps, share)
    tensors = {
        "text_seg": bank.text_seg,
        "text_cls": bank.text_cls,
        "transform_weight": weight.numpy(),
        "transform_bias": bias.numpy(),
        "memory": memory.rows.numpy(),
        "memory_scale": memory.scale.numpy(),
        "scalars": settings.scalars(PAPER_ALPHA, lambda_v, lambda_m),
    }
    patch_maps, text = _judge_supports(features, tensors, encoder)
    levels, width = features.tokens.shape[1], features.tokens.shape[3]
    scale = head_scale(levels, width, settings.head, last_level_only=settings.last_level_only)
    head = head_input(features, torch.ones(len(features.labels), dtype=torch.bool), head_maps)
    shots = float((features.plain.sum() / len(classes)).item())
    prior, believed = text_prior(head, features.labels, bank, settings, shots)
    held = 0.0 if prior is None else 1.0
    l2, bias_l2 = settings.head_l2 + held * PRIOR_L2 / shots, held * PRIOR_BIAS_L2
    head_weight, head_bias = fit_head(head, features.labels, len(classes), l2, scale, prior=prior, bias_l2=bias_l2)
    tensors["head_weight"], tensors["head_bias"] = head_weight.numpy(), head_bias.numpy()
    labels = features.labels[features.plain]
    held_out = held_out_probabilities(head, features, len(classes), l2, scale, prior, bias_l2)
    if settings.alpha is None:
        alpha, chosen_by = choose_alpha(held_out, text, labels)
    else:
        alpha, chosen_by = settings.alpha, {"by": "setting"}
    tensors["scalars"] = settings.scalars(alpha, lambda_v, lambda_m)
    # A good support that is remembered has nothing odd in it, which no frame to come can match.
    unremembered, _ = _judge_supports(features, tensors, encoder, memory.maps)
    frame_maps = unremembered
    if taken == "others":
        frame_maps = list(head_maps[features.plain].reshape(-1, *encoder.grid).numpy())
    good = None if held_out is None else alpha * held_out[:, 0].numpy() + (1 - alpha) * text[:, 0]
    point = OperatingPoint.taught(
        classes,
        _defect_threshold(frame_maps, good, (labels > 0).numpy(), len(classes), encoder, smoothing_px),
        _pixel_threshold(features, unremembered, encoder, smoothing_px),
        CLASS_SHARE,
    )
    teaching = {
        "seed": seed,
        "map_taught_by": taught_by,
        "head_maps": taken,
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
        point,
        bank.source,
        options,
        teaching,
    )


def _judge_supports(
    features: SupportFeatures,
    tensors: Mapping[str, NDArray[np.float32]],
    encoder: Encoder,
    memory_maps: Tensor | None = None,
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """What the recipe says of the unchanged supports: patch maps (eq. 17) and P_S [supports, K] (eq. 18-19).

    memory_maps: [V, P], to take for the memory's map; else the memory's own, as in the graph.
    """
    names = ("text_seg", "text_cls", "transform_weight", "transform_bias", "memory", "memory_scale")
    text_seg, text_cls, weight, bias, memory, memory_scale = (torch.tensor(tensors[name]) for name in names)
    _, lambda_v, lambda_m, tau, tau_v, tau_s = torch.tensor(tensors["scalars"])
    maps, text = [], []
    for view in features.plain.nonzero()[:, 0].tolist():
        transformed = heads.transform(features.tokens[view].float(), weight, bias[:, None])
        vanilla = heads.vanilla_logit(heads.cosines(transformed, text_seg), tau)
        if memory_maps is None:
            odd = [heads.oddness(z.float(), rows) for z, rows in zip(features.tokens[view], memory, strict=True)]
            remembered = heads.memory_map(odd, memory_scale)
        else:
            remembered = memory_maps[view]
        value = list(tau_v * features.value[view])
        patch_map = heads.fuse_maps(list(vanilla), value, remembered, lambda_v, lambda_m)
        maps.append(patch_map.reshape(encoder.grid).numpy())
        text.append(heads.text_probabilities(list(heads.cosines(transformed, text_cls)[:, None]), tau_s)[0].numpy())
    return maps, np.stack(text)


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

    Here maps of others are no better: they were taught by fewer frames, and so are less sure.
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
