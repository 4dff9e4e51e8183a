"""Baselines: simpler methods on the same trunk, supports, test frames and metrics.

class_mean: the nearest mean of the last level's CLS tokens, by cosine.
linear_probe: logistic regression on the last level's CLS token, on the same views of the supports as the head.
cls_mean_patch_probe: the same on that token and the mean of the level's patches, each of unit length.
patch_memory: AnomalyGPT's few-shot scorer (Gu et al., AAAI 2024) on this trunk. A patch scores its distance to the
    nearest patch of the good supports, mean over levels. AnomalyGPT's language model and decoder take no part in its
    scores. AnomalyDINO (WACV 2025) scores in the same way. It predicts no class.
dra_heads: DRA's heads (benchmarks/accuracy/dra.py) on this trunk. They predict no class.
winclip, promptad: WinCLIP+ (benchmarks/accuracy/winclip.py) and PromptAD. They predict no class, and need text that was
    trained with the frames.

iAUROC of a probe ranks frames by 1 - P(good), that of a map by the mean of its top pixels. Classifiers with a trunk of
their own are in benchmarks/accuracy/classifiers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from benchmarks.accuracy import dra, promptad, winclip
from benchmarks.accuracy.scratch import scratch_array
from calibration.dataset import GOOD, Dataset, Sample
from calibration.errors import DatasetError
from calibration.histogram import ScoreHistogram
from calibration.metrics import auroc, classification
from export.errors import ExportError
from export.model import heads
from export.model.checkpoint import LoadedModel
from export.model.graph import SemClipGraph
from export.teach import EncodedSupports
from export.teaching.fit_head import HeadFit, fit_head
from runtime.frames import prepare
from runtime.manifest import Encoder
from runtime.maps import frame_score, upsample
from runtime.recipe import FrameOptions

GOOD_FRAMES = "good frames"
GOOD_OR_DEFECT = "good or defect"
CLASS_LABELS = "class labels"
LABELS_AND_MASKS = "class labels and masks"
NEEDS_TEXT = "needs text"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: its supervision, its output, and its requirement.

    supervision: GOOD_FRAMES (it sees no other frames), GOOD_OR_DEFECT, CLASS_LABELS or LABELS_AND_MASKS. draws_map:
    whether it has pixel metrics. needs_text: whether it needs a text tower that was trained with the frames.
    """

    supervision: str
    draws_map: bool = False
    needs_text: bool = False


ROWS = {
    "class_mean": Row(CLASS_LABELS),
    "linear_probe": Row(CLASS_LABELS),
    "cls_mean_patch_probe": Row(CLASS_LABELS),
    "patch_memory": Row(GOOD_FRAMES, draws_map=True),
    "dra_heads": Row(GOOD_OR_DEFECT, draws_map=True),
    "winclip": Row(GOOD_FRAMES, draws_map=True, needs_text=True),
    "promptad": Row(GOOD_FRAMES, draws_map=True, needs_text=True),
}
"""The rows of --baselines, in the order of the table. Their supports have the same views as ours: crops that would lose
a masked defect are left out. No row uses the masks in another way."""
PROBE_L2 = 1e-3
_BATCH = 8


def choose_rows(text: str) -> tuple[str, ...]:
    """The rows named in `text`, separated by commas, or "all"; in the order of ROWS. Raises ExportError."""
    names = list(ROWS) if text == "all" else [name.strip() for name in text.split(",")]
    unknown = [f'"{name}"' for name in names if name not in ROWS]
    if unknown:
        raise ExportError(f"--baselines has no row {', '.join(unknown)}; there are: {', '.join(ROWS)}")
    return tuple(name for name in ROWS if name in names)


def describe_row(row: Row, *, unavailable: str | None = None) -> dict[str, Any]:
    """The description in each row: supervision, whether it draws a map, and why it has no figures, if so."""
    return {"supervision": row.supervision, "draws_map": row.draws_map, "unavailable": unavailable}


def judge_logits(logits: Tensor, truth: NDArray[np.int64], classes: int) -> dict[str, Any]:
    """Accuracy and macro figures of logits [n, K], class 0 good; iAUROC by 1 - P(good).

    The log odds against good replace 1 - P(good): they have the same order, and no ties where it rounds to 0 or 1.
    """
    logits = logits.double()
    defect = torch.logsumexp(logits[:, 1:], 1) - logits[:, 0]
    predicted = logits.argmax(1).numpy()
    return {**classification(predicted, truth, classes), "iauroc": auroc(defect.numpy(), truth > 0)}


class Baselines:
    """The test frames of one split, encoded once; `judge` then takes the supports of any number of shots.

    rows: names of ROWS. work: a folder for features that are kept on disk.
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
        rows: Sequence[str] = tuple(ROWS),
    ) -> None:
        self.graph, self.encoder, self.dataset, self.test, self.options = graph, encoder, dataset, test, options
        self.model, self.smoothing_px, self.rows = model, smoothing_px, rows
        self.truth = np.array([dataset.classes.index(sample.label) for sample in test])
        self.masks: list[NDArray[np.uint8] | None] = []
        # Without text that was trained with the frames, WinCLIP and PromptAD have nothing to compare.
        self.scale = float(model.clip.logit_scale.exp()) if model.text_aligned else None
        cls, mean_patch, windows = [], [], []
        # On disk: with a large encoder, those of a few thousand frames exceed the memory of most machines.
        shape = (len(test), len(encoder.levels), encoder.grid[0] * encoder.grid[1], encoder.width)
        self.tokens = scratch_array(work, shape)
        self.lengths = torch.zeros(shape[0], shape[2], 1)
        """Lengths of the last level's tokens before normalization, [n, P, 1]."""
        wanted = self.scale is not None and "promptad" in rows
        self.promptad = promptad.StoredFeatures(graph.encoder, len(test), work) if wanted else None
        for start in range(0, len(test), _BATCH):
            frames = self._read(test[start : start + _BATCH], self.masks)
            with torch.inference_mode():
                levels = graph.encode(frames, value_path=False)
            cls.append(heads.unit(levels.tokens[-1][:, 0]))
            mean_patch.append(heads.unit(levels.tokens[-1][:, 1:].mean(1)))
            unit = torch.stack([heads.unit(z[:, 1:]).half() for z in levels.tokens], dim=1)
            self.tokens[start : start + len(unit)] = unit.numpy()
            self.lengths[start : start + len(unit)] = levels.tokens[-1][:, 1:].norm(dim=-1, keepdim=True)
            if self.scale is not None and "winclip" in rows:
                windows.append(winclip.encode_windows(graph.encoder, graph.pixels(frames)))
            if self.promptad is not None:
                self.promptad.put(start, promptad.encode_frames(graph.encoder, graph.pixels(frames)))
        self.cls, self.mean_patch = torch.cat(cls), torch.cat(mean_patch)
        self.windows = winclip.join(windows) if windows else None

    def judge(self, encoded: EncodedSupports) -> dict[str, dict[str, Any]]:
        """Metrics by row, with `describe_row` of each; a row that needs text this tower lacks has no metrics.

        Raises DatasetError as `require_supports`.
        """
        judges: dict[str, Callable[[EncodedSupports], dict[str, Any]]] = {
            "class_mean": self._class_mean,
            "linear_probe": self._linear_probe,
            "cls_mean_patch_probe": self._cls_mean_patch_probe,
            "patch_memory": self._patch_memory,
            "dra_heads": self._dra_heads,
            "winclip": self._winclip,
            "promptad": self._promptad,
        }
        found = {}
        for name in self.rows:
            unavailable = NEEDS_TEXT if ROWS[name].needs_text and self.scale is None else None
            require_supports(encoded, name)
            metrics = {} if unavailable else judges[name](encoded)
            found[name] = {**describe_row(ROWS[name], unavailable=unavailable), **metrics}
        return found

    def _class_mean(self, encoded: EncodedSupports) -> dict[str, Any]:
        features, classes = encoded.features, len(self.dataset.classes)
        plain, labels = features.unaugmented, features.labels
        last = self._last_cls(encoded)
        means = torch.stack([last[plain][labels[plain] == k].mean(0) for k in range(classes)])
        return classification((self.cls @ heads.unit(means).T).argmax(1).numpy(), self.truth, classes)

    def _linear_probe(self, encoded: EncodedSupports) -> dict[str, Any]:
        return self._probe(self._last_cls(encoded), self.cls, encoded)

    def _cls_mean_patch_probe(self, encoded: EncodedSupports) -> dict[str, Any]:
        mean_patch = heads.unit(torch.stack([z[-1].float().mean(0) for z in encoded.features.tokens]))
        views = torch.cat([self._last_cls(encoded), mean_patch], dim=1)
        return self._probe(views, torch.cat([self.cls, self.mean_patch], dim=1), encoded)

    def _probe(self, views: Tensor, test: Tensor, encoded: EncodedSupports) -> dict[str, Any]:
        """Logistic regression on features [V, F] of the supports' views, judged on those of the test frames."""
        classes = len(self.dataset.classes)
        weight, bias = fit_head(views, encoded.features.labels, classes, HeadFit(PROBE_L2))
        return judge_logits(F.linear(test, weight, bias), self.truth, classes)

    def _last_cls(self, encoded: EncodedSupports) -> Tensor:
        return encoded.features.cls[:, -self.encoder.width :]

    def _patch_memory(self, encoded: EncodedSupports) -> dict[str, Any]:
        features = encoded.features
        memory = heads.unit(features.tokens[features.unaugmented & (features.labels == 0)].float())

        def judge(index: int) -> tuple[Tensor, None]:
            return patch_distance(torch.tensor(self.tokens[index]).float(), memory).reshape(self.encoder.grid), None

        return self._mapped(judge)

    def _read(self, samples: Sequence[Sample], masks: list[NDArray[np.uint8] | None] | None = None) -> Tensor:
        """Prepared frames, uint8 [n, height, width]; their masks are appended to `masks`."""
        frames = []
        for sample in samples:
            pixels = sample.read(self.options)
            frames.append(prepare(pixels, self.encoder, self.options, str(sample.path)))
            if masks is not None:
                mask = sample.read_mask((pixels.shape[0], pixels.shape[1]))
                judged = slice(self.options.ignore_top, pixels.shape[0] - self.options.ignore_bottom)
                masks.append(None if mask is None else mask[judged])
        return torch.from_numpy(np.stack(frames))

    def _winclip(self, encoded: EncodedSupports) -> dict[str, Any]:
        windows = self.windows
        assert windows is not None, "encoded where the row is requested and there is text"
        memory = winclip.encode_windows(self.graph.encoder, self.graph.pixels(self._read(self._good(encoded))))
        text_seg, scale = torch.tensor(encoded.bank.text_seg), self.scale or 1.0
        return self._mapped(lambda i: winclip.judge(windows[i], memory, text_seg, scale, self.encoder.grid))

    def _promptad(self, encoded: EncodedSupports) -> dict[str, Any]:
        frames = self.promptad
        assert frames is not None, "encoded where the row is requested and there is text"
        good = promptad.encode_frames(self.graph.encoder, self.graph.pixels(self._read(self._good(encoded))))
        prompts, seed = encoded.request.prompts, encoded.request.seed
        fitted = promptad.fit_promptad(self.model, prompts, self.dataset.classes[1:], good, self.encoder.grid, seed)
        return self._mapped(lambda i: fitted.judge(frames[i]))

    def _dra_heads(self, encoded: EncodedSupports) -> dict[str, Any]:
        request, pseudo = encoded.request, []
        for index, frame in enumerate(self._read(self._good(encoded)).numpy()):
            rng = np.random.default_rng([request.seed, index])
            views = np.stack(dra.pseudo_views(frame, request.views, rng))
            with torch.inference_mode():
                pseudo.append(self.graph.encode(torch.from_numpy(views), value_path=False).tokens[-1][:, 1:].half())
        tokens = dra.TrainingTokens.of(encoded.features, torch.cat(pseudo))
        fitted = dra.fit_dra(tokens, self.encoder.grid, request.seed)
        return self._mapped(lambda i: fitted.judge(torch.tensor(self.tokens[i, -1]).float() * self.lengths[i]))

    def _good(self, encoded: EncodedSupports) -> list[Sample]:
        return [sample for sample in encoded.supports if sample.label == self.dataset.classes[0]]

    def _mapped(self, judge: Callable[[int], tuple[Tensor, float | None]]) -> dict[str, Any]:
        """iAUROC, pAUROC and F1-max of the maps and scores that `judge` gives; without a score, that of the map."""
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


def require_supports(encoded: EncodedSupports, row: str) -> None:
    """Raise DatasetError unless there are supports of each kind that the row of ROWS learns from."""
    needed = {GOOD_FRAMES: (True,), GOOD_OR_DEFECT: (True, False)}.get(ROWS[row].supervision, ())
    for good in needed:
        if not any((sample.label == GOOD) == good for sample in encoded.supports):
            raise DatasetError(
                encoded.request.dataset.folder,
                f"no support is a {'good' if good else 'defect'} frame, but the row {row} learns from such frames: add "
                "some, or leave the row out",
            )


def patch_distance(tokens: Tensor, memory: Tensor) -> Tensor:
    """(1 - highest cosine) / 2 of unit patches [m, P, D] with the memory [S, m, P, D], mean over levels: [P]."""
    far = torch.stack([1 - (z @ m.flatten(0, 1).T).amax(1) for z, m in zip(tokens, memory.unbind(1), strict=True)])
    return (far.mean(0) / 2).clamp(0, 1)
