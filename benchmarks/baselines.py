"""What the method is compared with: simpler ways over the same trunk, supports, test frames and metrics.

class_mean: the nearest mean of the last level's CLS tokens, by cosine.
linear_probe: logistic regression on the last level's CLS token, on the same views of the supports as the head.
patch_memory: the good supports' patches remembered; a patch is as odd as its distance to the nearest of them, mean over
    levels (the reference association of WinCLIP+, CVPR 2023; AnomalyDINO, WACV 2025). It names no class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.metrics import auroc, classification
from calibration.dataset import Dataset, Sample
from calibration.histogram import ScoreHistogram
from export import heads
from export.finetune import fit_head
from export.graph import SemClipGraph
from export.views import SupportFeatures
from runtime.frames import prepare
from runtime.manifest import Encoder
from runtime.maps import frame_score, upsample
from runtime.recipe import FrameOptions

NAMES = ("class_mean", "linear_probe", "patch_memory")
PROBE_L2 = 1e-3
_BATCH = 8


class Baselines:
    """The test frames of one split, encoded once; `judge` then takes the supports of any number of shots."""

    def __init__(
        self,
        graph: SemClipGraph,
        encoder: Encoder,
        dataset: Dataset,
        test: list[Sample],
        options: FrameOptions,
        smoothing_px: float,
    ) -> None:
        self.encoder, self.dataset, self.test = encoder, dataset, test
        self.smoothing_px = smoothing_px
        self.truth = np.array([dataset.classes.index(sample.label) for sample in test])
        tokens, cls, self.masks = [], [], []
        for start in range(0, len(test), _BATCH):
            frames = []
            for sample in test[start : start + _BATCH]:
                pixels = sample.read(options)
                frames.append(prepare(pixels, encoder, options, str(sample.path)))
                self.masks.append(sample.read_mask((pixels.shape[0], pixels.shape[1])))
            with torch.inference_mode():
                levels = graph.encode(torch.from_numpy(np.stack(frames)))
            cls.append(heads.unit(levels.tokens[-1][:, 0]))
            tokens.append(torch.stack([heads.unit(z[:, 1:]).half() for z in levels.tokens], dim=1))
        self.cls, self.tokens = torch.cat(cls), torch.cat(tokens)

    def judge(self, features: SupportFeatures) -> dict[str, dict[str, Any]]:
        """Metrics by baseline. features: the encoded supports."""
        width, classes = self.encoder.width, len(self.dataset.classes)
        last = features.cls[:, -width:]
        plain, labels = features.plain, features.labels
        means = torch.stack([last[plain][labels[plain] == k].mean(0) for k in range(classes)])
        probe = heads.head_probabilities(self.cls, *fit_head(last, labels, classes, PROBE_L2))
        result = {
            "class_mean": self._classified((self.cls @ heads.unit(means).T).argmax(1)),
            "linear_probe": self._classified(probe.argmax(1)),
        }
        good = features.tokens[plain & (labels == 0)].float()
        result["patch_memory"] = self._mapped(heads.unit(good))
        return result

    def _classified(self, predicted: Tensor) -> dict[str, Any]:
        return classification(predicted.numpy(), self.truth, len(self.dataset.classes))

    def _mapped(self, memory: Tensor) -> dict[str, Any]:
        """iAUROC, pAUROC and F1-max of the distance to the memory [S, m, P, D]."""
        pixels, scores, masked = ScoreHistogram(), [], False
        for tokens, mask in zip(self.tokens, self.masks, strict=True):
            full = self._oddness(tokens.float(), memory, None if mask is None else mask.shape)
            scores.append(frame_score(full))
            if mask is not None:
                masked |= bool(mask.any())
                pixels.add(full, mask > 0)
        return {
            "iauroc": auroc(scores, self.truth > 0),
            "pauroc": pixels.auroc() if masked else None,
            "f1_max": pixels.f1_max() if masked else None,
        }

    def _oddness(self, tokens: Tensor, memory: Tensor, size: tuple[int, ...] | None) -> NDArray[np.float32]:
        """Half of 1 - the highest cosine, mean over levels, up-sampled as the method's own map."""
        odd = torch.stack([1 - (z @ m.flatten(0, 1).T).amax(1) for z, m in zip(tokens, memory.unbind(1), strict=True)])
        patch_map = (odd.mean(0) / 2).clamp(0, 1).reshape(self.encoder.grid).numpy()
        height, width = size or self.encoder.image_size
        return upsample(patch_map, (height, width), self.encoder.image_size, self.smoothing_px)
