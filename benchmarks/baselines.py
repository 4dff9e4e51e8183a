"""What the method is compared with: simpler ways over the same trunk, supports, test frames and metrics.

class_mean: the nearest mean of the last level's CLS tokens, by cosine.
linear_probe: logistic regression on the last level's CLS token, on the same views of the supports as the head.
patch_memory: the good supports' patches remembered; a patch is as odd as its distance to the nearest of them, mean over
    levels (AnomalyDINO, WACV 2025). It names no class.
winclip: WinCLIP+ (benchmarks/winclip.py), where there is a text tower. It names no class.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import winclip
from benchmarks.metrics import auroc, classification
from calibration.dataset import Dataset, Sample
from calibration.histogram import ScoreHistogram
from export import heads
from export.checkpoint import LoadedModel
from export.fit_head import fit_head
from export.graph import SemClipGraph
from export.teach import EncodedSupports
from runtime.frames import prepare
from runtime.manifest import Encoder
from runtime.maps import frame_score, upsample
from runtime.recipe import FrameOptions

NAMES = ("class_mean", "linear_probe", "patch_memory")
NO_MAP = ("class_mean", "linear_probe")
"""Those that draw no map."""
WINCLIP = "winclip"
PROBE_L2 = 1e-3
_BATCH = 8


class Baselines:
    """The test frames of one split, encoded once; `judge` then takes the supports of any number of shots.

    work: a folder for features that are kept on disk.
    """

    def __init__(
        self,
        model: LoadedModel,
        graph: SemClipGraph,
        encoder: Encoder,
        dataset: Dataset,
        test: list[Sample],
        options: FrameOptions,
        smoothing_px: float,
        work: Path,
    ) -> None:
        self.graph, self.encoder, self.dataset, self.test, self.options = graph, encoder, dataset, test, options
        self.smoothing_px = smoothing_px
        self.truth = np.array([dataset.classes.index(sample.label) for sample in test])
        self.masks: list[NDArray[np.uint8] | None] = []
        # Where text and frames were never brought together, WinCLIP has nothing to compare.
        self.scale = float(model.clip.logit_scale.exp()) if model.has_text and model.trained else None
        cls, windows = [], []
        # On disk: those of a few thousand frames by a large encoder are more than most machines have memory for.
        shape = (len(test), len(encoder.levels), encoder.grid[0] * encoder.grid[1], encoder.width)
        with tempfile.NamedTemporaryFile(dir=work) as file:
            self.tokens = np.memmap(file, np.float16, "w+", shape=shape)
        for start in range(0, len(test), _BATCH):
            frames = self._read(test[start : start + _BATCH], self.masks)
            with torch.inference_mode():
                levels = graph.encode(frames)
            cls.append(heads.unit(levels.tokens[-1][:, 0]))
            unit = torch.stack([heads.unit(z[:, 1:]).half() for z in levels.tokens], dim=1)
            self.tokens[start : start + len(unit)] = unit.numpy()
            if self.scale is not None:
                windows.append(winclip.encode_windows(graph.encoder, graph.pixels(frames)))
        self.cls = torch.cat(cls)
        self.windows = winclip.join(windows) if windows else None

    def judge(self, encoded: EncodedSupports) -> dict[str, dict[str, Any]]:
        """Metrics by baseline; those of WinCLIP+ only where the tower's text is aligned."""
        features = encoded.features
        width, classes = self.encoder.width, len(self.dataset.classes)
        last = features.cls[:, -width:]
        plain, labels = features.plain, features.labels
        means = torch.stack([last[plain][labels[plain] == k].mean(0) for k in range(classes)])
        probe = heads.head_probabilities(self.cls, *fit_head(last, labels, classes, PROBE_L2))
        memory = heads.unit(features.tokens[plain & (labels == 0)].float())
        result = {
            "class_mean": self._classified((self.cls @ heads.unit(means).T).argmax(1)),
            "linear_probe": self._classified(probe.argmax(1)),
            "patch_memory": self._mapped(lambda i: (self._oddness(torch.tensor(self.tokens[i]).float(), memory), None)),
        }
        if self.windows is not None:
            result[WINCLIP] = self._winclip(self.windows, encoded)
        return result

    def _read(self, samples: Sequence[Sample], masks: list[NDArray[np.uint8] | None] | None = None) -> Tensor:
        """Prepared frames, uint8 [n, height, width]; their masks go to `masks`."""
        frames = []
        for sample in samples:
            pixels = sample.read(self.options)
            frames.append(prepare(pixels, self.encoder, self.options, str(sample.path)))
            if masks is not None:
                mask = sample.read_mask((pixels.shape[0], pixels.shape[1]))
                judged = slice(self.options.ignore_top, pixels.shape[0] - self.options.ignore_bottom)
                masks.append(None if mask is None else mask[judged])
        return torch.from_numpy(np.stack(frames))

    def _winclip(self, windows: winclip.WindowFeatures, encoded: EncodedSupports) -> dict[str, Any]:
        good = [sample for sample in encoded.supports if sample.label == self.dataset.classes[0]]
        memory = winclip.encode_windows(self.graph.encoder, self.graph.pixels(self._read(good)))
        text_seg, scale = torch.tensor(encoded.bank.text_seg), self.scale or 1.0
        return self._mapped(lambda i: winclip.judge(windows[i], memory, text_seg, scale, self.encoder.grid))

    def _classified(self, predicted: Tensor) -> dict[str, Any]:
        return classification(predicted.numpy(), self.truth, len(self.dataset.classes))

    def _mapped(self, judge: Callable[[int], tuple[Tensor, float | None]]) -> dict[str, Any]:
        """iAUROC, pAUROC and F1-max of the maps and scores that `judge` gives test frames; without one, the map's."""
        pixels, scores, masked = ScoreHistogram(), [], False
        for index, mask in enumerate(self.masks):
            patch_map, score = judge(index)
            height, width = self.encoder.image_size if mask is None else mask.shape
            full = upsample(patch_map.numpy(), (height, width), self.encoder.image_size, self.smoothing_px)
            scores.append(frame_score(full) if score is None else score)
            if mask is not None:
                masked |= bool(mask.any())
                pixels.add(full, mask > 0)
        return {
            "iauroc": auroc(scores, self.truth > 0),
            "pauroc": pixels.auroc() if masked else None,
            "f1_max": pixels.f1_max() if masked else None,
        }

    def _oddness(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Half of 1 - the highest cosine with the memory [S, m, P, D], mean over levels: [rows, columns]."""
        odd = torch.stack([1 - (z @ m.flatten(0, 1).T).amax(1) for z, m in zip(tokens, memory.unbind(1), strict=True)])
        return (odd.mean(0) / 2).clamp(0, 1).reshape(self.encoder.grid)
