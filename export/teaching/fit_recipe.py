"""Few-shot fine-tuning: from cached support features to a recipe (paper section 3; docs/method.md for what is added).

The trunk is frozen. `fit_recipe` takes five steps, each on the results of those before it:

1. `fit_transforms` teaches the layers of the defect map; `fit_memory` builds the memory bank of good patches.
2. `fuse_support_maps` computes the supports' maps: by the recipe, and for fitting the head and the threshold.
3. `fit_class_head` fits the classes to the features under those maps.
4. `judge_supports` computes maps and P_S of the unaugmented supports from the finished tensors, as the graph does.
5. `taught_point` sets the thresholds.

The supports decide four things: where the layers start (`starts_at_text`), how far the text is used
(`fit_prior_scales`), and two thresholds. Equal features and seeds give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.histogram import ScoreHistogram
from calibration.thresholds import f1_max_threshold
from runtime.manifest import Encoder
from runtime.maps import frame_score, upsample
from runtime.operating_point import OperatingPoint
from runtime.recipe import FrameOptions, Recipe
from runtime.verdict import defect_scores

from ..model import heads
from ..progress import Progress
from .fit_head import ClassHead, features_under_maps, fit_class_head
from .fit_map import Layers, fit_transforms, out_of_fold_maps
from .fit_memory import Memory, fit_memory, fuse_memory, memory_share
from .settings import TeachSettings
from .support_pixels import area_average
from .text_bank import TextBank
from .unseen_tiles import JudgedTiles, UnseenTiles
from .views import SupportFeatures

LAMBDA_V = 0.3
"""Weight of the V path's map if the text is aligned (docs/method.md)."""
CLASS_SHARE = 0.25
"""Weight of 1 - P(good) in the defect score of a taught recipe; the map's score has the rest (docs/method.md)."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """All that a recipe is taught from. classes: `good` first. smoothing_px: of the map, as in the bundle.

    unseen: the other tiles of the good frames, where frames are read in tiles.
    """

    features: SupportFeatures
    encoder: Encoder
    classes: Sequence[str]
    bank: TextBank
    smoothing_px: float
    seed: int
    settings: TeachSettings = field(default_factory=TeachSettings)
    unseen: UnseenTiles | None = None


@dataclass(frozen=True, slots=True)
class SupportMaps:
    """Defect maps [V, P] of all views of the supports (eq. 17, with the memory's map).

    recipe: by the recipe's layers. fitting: what the head and the defect threshold are fitted on. These are
    out-of-fold maps if the layers start at the text; otherwise `recipe`, since layers that start at random and see
    fewer frames often miss the defect. In both, good supports are compared with a memory bank without them.
    """

    recipe: Tensor
    fitting: Tensor


@dataclass(frozen=True, slots=True)
class MapWeights:
    """Weights of maps. value: of the V path's (lambda_v of eq. 17), relative to the vanilla path's.

    memory: of the memory's, relative to the weighted mean of those two.
    """

    value: float
    memory: float


def fit_recipe(
    lesson: Lesson, options: FrameOptions, provenance: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> Recipe:
    """Teach a recipe. Deterministic for equal arguments on one machine. Raises ValueError as `fit_transforms`.

    provenance: added to the recipe's record. progress: called with the steps of the layers.
    """
    features, bank = lesson.features, lesson.bank
    layers = fit_transforms(features, bank, lesson.encoder.grid, lesson.settings, lesson.seed, progress)
    memory = fit_memory(features)
    weights = choose_map_weights(lesson, layers, memory)
    maps = fuse_support_maps(lesson, layers, memory, weights)
    head = fit_class_head(features, maps.fitting, bank, lesson.settings)
    tensors = _tensors(lesson, layers, memory, weights, head)
    judged, text = judge_supports(features, tensors)
    teaching = {
        "seed": lesson.seed,
        "map_taught_by": layers.taught_by,
        "map_starts_at": "text" if layers.at_text else "random",
        "memory_share": weights.memory,
        "text_prior": head.prior,
        "settings": asdict(lesson.settings),
        **(provenance or {}),
    }
    supports = features_under_maps(features, features.unaugmented, judged).numpy()
    unseen = None if lesson.unseen is None else lesson.unseen.judge(tensors)
    point = taught_point(lesson, maps, head, text, unseen)
    return Recipe(tuple(lesson.classes), tensors, supports, lesson.encoder.id, point, bank.source, options, teaching)


def choose_map_weights(lesson: Lesson, layers: Layers, memory: Memory) -> MapWeights:
    """The weights of the settings, or by what taught the map.

    The V path is not taught, so it counts nothing without aligned text. The memory counts nothing with one good group,
    whatever the settings are, since nothing can be compared with it.
    """
    value, share = lesson.settings.lambda_v, lesson.settings.memory_share
    if value is None:
        value = LAMBDA_V if lesson.bank.aligned else 0.0
    if share is None or memory.maps is None:
        share = memory_share(memory, layers.taught_by, layers.at_text)
    return MapWeights(value, share)


def fuse_support_maps(lesson: Lesson, layers: Layers, memory: Memory, weights: MapWeights) -> SupportMaps:
    """The supports' maps. Out-of-fold maps are computed only if they are needed."""
    features, bank, temperatures = lesson.features, lesson.bank, lesson.settings.temperatures
    value = torch.sigmoid(temperatures.value * features.value).mean(1)  # eq. 16

    def fused(vanilla: Tensor) -> Tensor:
        return fuse_memory((vanilla + weights.value * value) / (1 + weights.value), memory, weights.memory)

    by_recipe = fused(layers.maps(features.tokens, torch.tensor(bank.text_seg), temperatures.map))
    if not layers.at_text:
        return SupportMaps(by_recipe, by_recipe)
    out_of_fold = out_of_fold_maps(features, bank, lesson.encoder.grid, lesson.settings, lesson.seed)
    return SupportMaps(by_recipe, fused(out_of_fold))


def _tensors(
    lesson: Lesson, layers: Layers, memory: Memory, weights: MapWeights, head: ClassHead
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
        "scalars": lesson.settings.scalars(weights.value, weights.memory * (1 + weights.value)),
    }


def judge_supports(
    features: SupportFeatures, tensors: Mapping[str, NDArray[np.float32]]
) -> tuple[Tensor, NDArray[np.float32]]:
    """The recipe on the unaugmented supports: maps [supports, P] (eq. 17) and P_S [supports, K] (eq. 18-19)."""
    names = ("text_seg", "text_cls", "transform_weight", "transform_bias", "memory", "memory_scale")
    text_seg, text_cls, weight, bias, memory, memory_scale = (torch.tensor(tensors[name]) for name in names)
    _, lambda_v, lambda_m, tau, tau_v, tau_s = torch.tensor(tensors["scalars"])
    maps, text = [], []
    for view in features.unaugmented.nonzero()[:, 0].tolist():
        transformed = heads.transform(features.tokens[view].float(), weight, bias[:, None])
        vanilla = heads.vanilla_logit(heads.cosines(transformed, text_seg), tau)
        distances = [
            heads.nearest_patch_distance(z.float(), rows) for z, rows in zip(features.tokens[view], memory, strict=True)
        ]
        remembered = heads.memory_map(distances, memory_scale)
        maps.append(heads.fuse_maps(list(vanilla), list(tau_v * features.value[view]), remembered, lambda_v, lambda_m))
        text.append(heads.text_probabilities(list(heads.cosines(transformed, text_cls)[:, None]), tau_s)[0].numpy())
    return torch.stack(maps), np.stack(text)


def taught_point(
    lesson: Lesson,
    maps: SupportMaps,
    head: ClassHead,
    text: NDArray[np.float32],
    unseen: JudgedTiles | None = None,
) -> OperatingPoint:
    """Thresholds of the highest F1 on the unaugmented supports: a starting point; expect worse on new frames.

    text: P_S of the unaugmented supports [supports, K]. unseen: what the recipe says of other tiles of the good frames.
    """
    features, encoder, alpha = lesson.features, lesson.encoder, lesson.settings.alpha
    unaugmented, p_c = features.unaugmented, head.out_of_fold

    def grids(of: Tensor) -> list[NDArray[np.float32]]:
        return [row.reshape(encoder.grid).numpy() for row in of[unaugmented]]

    full = [upsample(m, encoder.image_size, encoder.image_size, lesson.smoothing_px) for m in grids(maps.fitting)]
    scored = ScoredSupports(
        features.frame[unaugmented].numpy(),
        (features.labels[unaugmented] > 0).numpy(),
        np.array([frame_score(m) for m in full], np.float32),
        None if p_c is None else alpha * p_c[:, 0].numpy() + (1 - alpha) * text[:, 0],
    )
    return OperatingPoint.taught(
        lesson.classes,
        defect_threshold(scored if unseen is None else scored.with_good(unseen), len(lesson.classes)),
        _pixel_threshold(features, grids(maps.recipe), encoder, lesson.smoothing_px, unseen),
        CLASS_SHARE,
    )


@dataclass(frozen=True, slots=True, eq=False)
class ScoredSupports:
    """What the defect threshold is chosen by, of n supports.

    frame: [n], the frame that each is, or is a tile of. defect: bool [n]. map_scores: float32 [n]. good: out-of-fold
    P(good) (eq. 23), float32 [n], since heads fit their own supports too well; None if no frame can be left out.
    """

    frame: NDArray[np.intp]
    defect: NDArray[np.bool_]
    map_scores: NDArray[np.float32]
    good: NDArray[np.float32] | None

    def with_good(self, tiles: JudgedTiles) -> ScoredSupports:
        """With other tiles of good frames."""
        return ScoredSupports(
            np.concatenate([self.frame, tiles.frame]),
            np.concatenate([self.defect, np.zeros(len(tiles.frame), np.bool_)]),
            np.concatenate([self.map_scores, tiles.map_scores]),
            None if self.good is None else np.concatenate([self.good, tiles.good]),
        )

    def highest(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """By frame: float32 [frames]. A frame is what its most suspicious tile is."""
        frames, place = np.unique(self.frame, return_inverse=True)
        found = np.full(len(frames), -np.inf, np.float32)
        np.maximum.at(found, place, values)
        return found


def defect_threshold(scored: ScoredSupports, classes: int) -> float:
    """The threshold of highest F1 for the defect scores of the support frames.

    Where no frame can be left out, it is the map's threshold, mixed with the 1 - P(good) of a guess among all classes.
    Good and defect frames weigh the same; otherwise, with many defect classes, F1 would be highest where all frames are
    called defects.
    """
    defect = scored.highest(scored.defect.astype(np.float32)) > 0
    good_weight = float(defect.sum() / max(1, (~defect).sum()))
    if scored.good is None:
        of_map = f1_max_threshold(scored.highest(scored.map_scores), defect, good_weight)[0]
        return (1 - CLASS_SHARE) * of_map + CLASS_SHARE * (1 - 1 / classes)
    scores = defect_scores(scored.map_scores, scored.good[:, None], CLASS_SHARE)
    return f1_max_threshold(scored.highest(scores), defect, good_weight)[0]


def _pixel_threshold(
    features: SupportFeatures,
    patch_maps: Sequence[NDArray[np.float32]],
    encoder: Encoder,
    smoothing_px: float,
    unseen: JudgedTiles | None = None,
) -> float:
    """The threshold of highest F1 for pixels, by the recipe's maps of the unaugmented supports; 0.5 without masks."""
    values, truths, seen = [], [], []
    for patch_map, view in zip(patch_maps, features.unaugmented.nonzero()[:, 0].tolist(), strict=True):
        target = features.targets[view].numpy()
        if not np.isnan(target[0, 0]):
            full = upsample(patch_map, encoder.image_size, encoder.image_size, smoothing_px)
            values.append(area_average(full, (target.shape[0], target.shape[1])).ravel())
            truths.append(target.ravel() > 0)
            seen.append(view)
    if not any(truth.any() for truth in truths):
        return 0.5
    if unseen is not None:
        labels, frame = features.labels[seen].numpy(), features.frame[seen].numpy()
        return pixel_threshold_of_tiles(values, truths, labels > 0, frame, unseen.cells)
    return f1_max_threshold(np.concatenate(values), np.concatenate(truths))[0]


def pixel_threshold_of_tiles(
    values: Sequence[NDArray[np.float32]],
    truths: Sequence[NDArray[np.bool_]],
    defect: NDArray[np.bool_],
    frame: NDArray[np.int64],
    unseen: ScoreHistogram,
) -> float:
    """The pixel threshold of highest F1 on whole frames, where supports are tiles of them.

    values, truths: of the cells of each support. defect, frame: whether its frame is a defect, and which it is.
    unseen: cells of the other tiles of the good frames.

    Frames have far more cells without a defect than the tiles that teach. Of the good frames all tiles are known. Of a
    defect frame they are not: it counts as the mean of its tiles, which show the same defect, and as a good frame.
    """
    near, rest = ScoreHistogram(), ScoreHistogram()
    for cells, truth, is_defect in zip(values, truths, defect, strict=True):
        (near if is_defect else rest).add(np.clip(cells, 0, 1), truth)
    bad_frames, good_frames = len(np.unique(frame[defect])), len(np.unique(frame[~defect]))
    # Whole numbers in place of weights of 1 / (tiles of a defect frame), and of (all frames) / (good frames).
    for_near, for_rest = bad_frames * good_frames, int(defect.sum()) * (bad_frames + good_frames)
    counted = ScoreHistogram()
    counted.positive = for_near * near.positive
    counted.negative = for_near * near.negative + for_rest * (rest.negative + unseen.negative)
    return counted.f1_max_threshold()[0]
