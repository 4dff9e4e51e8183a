"""What the method is compared with: simpler ways over the same trunk, supports, test frames and metrics.

class_mean: the nearest mean of the last level's CLS tokens, by cosine.
linear_probe: logistic regression on the last level's CLS token, on the same views of the supports as the head.
patch_memory: AnomalyGPT's few-shot scorer (Gu et al., AAAI 2024) on this trunk. The good supports' patches are
    remembered; a patch scores its distance to the nearest of them, mean over levels. AnomalyGPT's language model and
    decoder take no part in its scores. AnomalyDINO (WACV 2025) scores in the same way. It names no class.
dra_heads: DRA's heads (benchmarks/dra.py) on this trunk. They name no class.
winclip, promptad: WinCLIP+ (benchmarks/winclip.py) and PromptAD (benchmarks/promptad.py), where there is a text tower
    that was trained with the image tower. They name no class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import dra, promptad, winclip
from benchmarks.metrics import auroc, classification
from benchmarks.scratch import scratch_array
from calibration.dataset import Dataset, Sample
from calibration.errors import DatasetError
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

DRA_HEADS = "dra_heads"
NAMES = ("class_mean", "linear_probe", "patch_memory", DRA_HEADS)
NO_MAP = ("class_mean", "linear_probe")
"""Those that draw no map."""
WINCLIP, PROMPTAD = "winclip", "promptad"
NEED_TEXT = (WINCLIP, PROMPTAD)
"""Those that need text and frames that were brought together."""
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
        self.model = model
        self.smoothing_px = smoothing_px
        self.truth = np.array([dataset.classes.index(sample.label) for sample in test])
        self.masks: list[NDArray[np.uint8] | None] = []
        # Where text and frames were never brought together, WinCLIP and PromptAD have nothing to compare.
        self.scale = float(model.clip.logit_scale.exp()) if model.has_text and model.trained else None
        cls, windows = [], []
        # On disk: those of a few thousand frames by a large encoder are more than most machines have memory for.
        shape = (len(test), len(encoder.levels), encoder.grid[0] * encoder.grid[1], encoder.width)
        self.tokens = scratch_array(work, shape)
        self.lengths = torch.zeros(shape[0], shape[2], 1)
        """Of the last level's tokens before they were brought to unit length, [n, P, 1]."""
        self.promptad = None if self.scale is None else promptad.StoredFeatures(graph.encoder, len(test), work)
        for start in range(0, len(test), _BATCH):
            frames = self._read(test[start : start + _BATCH], self.masks)
            with torch.inference_mode():
                levels = graph.encode(frames)
            cls.append(heads.unit(levels.tokens[-1][:, 0]))
            unit = torch.stack([heads.unit(z[:, 1:]).half() for z in levels.tokens], dim=1)
            self.tokens[start : start + len(unit)] = unit.numpy()
            self.lengths[start : start + len(unit)] = levels.tokens[-1][:, 1:].norm(dim=-1, keepdim=True)
            if self.scale is not None:
                windows.append(winclip.encode_windows(graph.encoder, graph.pixels(frames)))
            if self.promptad is not None:
                self.promptad.put(start, promptad.encode_frames(graph.encoder, graph.pixels(frames)))
        self.cls = torch.cat(cls)
        self.windows = winclip.join(windows) if windows else None

    def judge(self, encoded: EncodedSupports) -> dict[str, dict[str, Any]]:
        """Metrics by baseline; those of NEED_TEXT only where the tower's text is aligned.

        Raises DatasetError without a good support or without a defect support.
        """
        self._require_both_kinds(encoded)
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
            "patch_memory": self._mapped(lambda i: (self._distance(i, memory), None)),
            DRA_HEADS: self._dra(encoded),
        }
        if self.windows is not None:
            result[WINCLIP] = self._winclip(self.windows, encoded)
        if self.promptad is not None:
            result[PROMPTAD] = self._promptad(self.promptad, encoded)
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

    def _distance(self, index: int, memory: Tensor) -> Tensor:
        return patch_distance(torch.tensor(self.tokens[index]).float(), memory).reshape(self.encoder.grid)

    def _winclip(self, windows: winclip.WindowFeatures, encoded: EncodedSupports) -> dict[str, Any]:
        memory = winclip.encode_windows(self.graph.encoder, self.graph.pixels(self._read(self._good(encoded))))
        text_seg, scale = torch.tensor(encoded.bank.text_seg), self.scale or 1.0
        return self._mapped(lambda i: winclip.judge(windows[i], memory, text_seg, scale, self.encoder.grid))

    def _promptad(self, frames: promptad.StoredFeatures, encoded: EncodedSupports) -> dict[str, Any]:
        good = promptad.encode_frames(self.graph.encoder, self.graph.pixels(self._read(self._good(encoded))))
        prompts, seed = encoded.request.prompts, encoded.request.seed
        fitted = promptad.fit_promptad(self.model, prompts, self.dataset.classes[1:], good, self.encoder.grid, seed)
        return self._mapped(lambda i: fitted.judge(frames[i]))

    def _dra(self, encoded: EncodedSupports) -> dict[str, Any]:
        request, pseudo = encoded.request, []
        for index, frame in enumerate(self._read(self._good(encoded)).numpy()):
            rng = np.random.default_rng([request.seed, index])
            views = np.stack(dra.pseudo_views(frame, request.settings.views, rng))
            with torch.inference_mode():
                pseudo.append(self.graph.encode(torch.from_numpy(views)).tokens[-1][:, 1:].half())
        tokens = dra.TrainingTokens.of(encoded.features, torch.cat(pseudo))
        fitted = dra.fit_dra(tokens, self.encoder.grid, request.seed)
        return self._mapped(lambda i: fitted.judge(torch.tensor(self.tokens[i, -1]).float() * self.lengths[i]))

    def _good(self, encoded: EncodedSupports) -> list[Sample]:
        return [sample for sample in encoded.supports if sample.label == self.dataset.classes[0]]

    def _require_both_kinds(self, encoded: EncodedSupports) -> None:
        good = len(self._good(encoded))
        for kind, count in (("good", good), ("defect", len(encoded.supports) - good)):
            if not count:
                raise DatasetError(self.dataset.folder, f"no support is a {kind} frame, and the baselines need some")

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


def patch_distance(tokens: Tensor, memory: Tensor) -> Tensor:
    """Half of 1 - the highest cosine of unit patches [m, P, D] with the memory [S, m, P, D], mean over levels: [P]."""
    far = torch.stack([1 - (z @ m.flatten(0, 1).T).amax(1) for z, m in zip(tokens, memory.unbind(1), strict=True)])
    return (far.mean(0) / 2).clamp(0, 1)
