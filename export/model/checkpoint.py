"""Architectures and weights: from a name or a file to an open_clip model and its origin."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, resize_pos_embed
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from open_clip.utils import to_2tuple
from safetensors.torch import load_file
from torch import Tensor

from runtime.files import sha256_of

from ..errors import CheckpointError
from .dual_path import DualPathEncoder
from .stem import StemmedEmbedding

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_SMALL_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4}
ARCHITECTURES: Mapping[str, tuple[str | dict[str, Any], str]] = {
    # The paper's backbone: 240 px, 15 x 15 patches, width 896, text dimension 640.
    "vit_b_16_plus_240": ("ViT-B-16-plus-240", "the paper's backbone"),
    "sem_tiny": (
        {
            "embed_dim": 192,
            "vision_cfg": {"image_size": 240, "layers": 12, "width": 192, "head_width": 64, "patch_size": 16},
            "text_cfg": {**_SMALL_TEXT, "width": 64, "layers": 3},
            "stem": [24, 48, 96, 160],
        },
        "the embedded default: 12 layers of width 192 and a convolutional stem",
    ),
    "toy": (
        {
            "embed_dim": 24,
            "vision_cfg": {"image_size": 64, "layers": 4, "width": 32, "head_width": 16, "patch_size": 16},
            "text_cfg": {**_SMALL_TEXT, "width": 32, "heads": 2, "layers": 1},
        },
        "for tests: 4 layers of width 32",
    ),
}
"""Name to an open_clip configuration (by name or written out) and its purpose."""
TRAINED_TOKENS = "token_embedding.tokens"
"""In a weights file: the tokens (int32) whose rows `token_embedding.weight` holds, if it is not the whole table."""
MAX_IMAGE_SIDE = 1024
EMBEDDED = {"sem_tiny": Path(__file__).parents[1] / "weights" / "sem_tiny.safetensors"}
"""Weights of this package, trained by `export.pretrain`; used if no others are named."""


@dataclass(frozen=True)
class LoadedModel:
    """An open_clip model and its origin.

    has_text: whether the text tower has weights that belong to the image tower.
    origin: in words, for the manifest. trained: False for random weights. vocabulary: the tokens that the text tower
    was trained on, by open_clip's tokenizer; None if the weights file does not list them.
    """

    clip: CLIP
    architecture: str
    config: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    has_text: bool
    origin: str
    trained: bool
    sha256: str
    vocabulary: frozenset[int] | None = None

    @property
    def text_aligned(self) -> bool:
        """Whether the image tower was trained to match the vectors of its text tower."""
        return self.has_text and self.trained

    def encoder(self, *, last_level_only: bool = False) -> DualPathEncoder:
        """The dual path over this model's image tower. last_level_only: as in `DualPathEncoder`."""
        return DualPathEncoder(self.clip.visual, mean=self.mean, std=self.std, last_level_only=last_level_only)


def load_model(
    arch: str,
    *,
    weights: str | Path | None = None,
    pretrained: str | None = None,
    random_seed: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> LoadedModel:
    """Build `arch` (a name of ARCHITECTURES or an open_clip configuration file) with weights from one source.

    weights: a .safetensors file or a state dict (loaded with weights_only=True). pretrained: an open_clip tag, which
    is downloaded. random_seed: untrained weights, for tests and speed measurements. None of them: the package's own
    weights, for an architecture of EMBEDDED. image_size: (height, width) to encode at, instead of the architecture's:
    more patches for smaller defects, with the learned positions interpolated (bicubic).
    Raises CheckpointError.
    """
    require_one_source(arch, weights, pretrained, random_seed)
    if weights is None and pretrained is None and random_seed is None:
        weights = EMBEDDED[arch]
    name, config, mean, std = _architecture(arch)
    if image_size is not None:
        config = _at_size(config, image_size)
    if random_seed is not None:
        clip = _build(config, arch, random_seed, mean, std)
        digest = _sha256_of_tensors(clip.visual.state_dict())
        return LoadedModel(clip, name, config, mean, std, True, f"random, seed {random_seed}", False, digest)
    if pretrained is not None:
        path, origin = _download(arch, pretrained), f"open_clip {pretrained}"
        cfg = get_pretrained_cfg(str(ARCHITECTURES[arch][0]), pretrained)
        mean, std = tuple(cfg.get("mean") or mean), tuple(cfg.get("std") or std)
    else:
        path = Path(str(weights))
        origin = path.name
    clip = _build(config, arch, 0, mean, std)
    state = read_state_dict(path)
    if image_size is not None:
        _interpolate_positions(state, clip)
    vocabulary = _spread_vocabulary(state, clip, path)
    has_text = _load_into(clip, state, path)
    return LoadedModel(clip, name, config, mean, std, has_text, origin, True, sha256_of(path), vocabulary)


def require_one_source(arch: str, *sources: object) -> None:
    """Raise CheckpointError unless exactly one of weights, pretrained and random_seed is given (not None).

    None of them is needed for an architecture of EMBEDDED.
    """
    given = sum(source is not None for source in sources)
    if given > 1 or (given == 0 and arch not in EMBEDDED):
        raise CheckpointError(
            f"{arch} needs weights from exactly one source: --weights FILE (safetensors or state dict), "
            "--pretrained TAG (downloads through open_clip, e.g. laion400m_e32), or --random-weights (untrained)"
        )


def _architecture(arch: str) -> tuple[str, dict[str, Any], tuple[float, ...], tuple[float, ...]]:
    if arch in ARCHITECTURES:
        config = ARCHITECTURES[arch][0]
        if isinstance(config, str):
            config = open_clip.get_model_config(config)
            assert config is not None, "open_clip ships this configuration"
        return arch, dict(config), CLIP_MEAN, CLIP_STD
    path = Path(arch)
    if not path.is_file():
        known = ", ".join(f"{name} ({what})" for name, (_, what) in ARCHITECTURES.items())
        raise CheckpointError(f'"{arch}" is neither a configuration file nor an architecture; there are: {known}')
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        config = dict(document["model_cfg"])
        preprocess = document.get("preprocess_cfg", {})
        mean, std = (_three(preprocess.get(n, usual)) for n, usual in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
        if min(std) <= 0:
            raise ValueError(f"std must be positive, not {list(std)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{path} is not an open_clip configuration (JSON with model_cfg): {exc!r}") from exc
    return path.parent.name or path.stem, config, mean, std


def _at_size(config: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The configuration for another image size; unchanged if it is its own."""
    try:
        vision = dict(config["vision_cfg"])
        own, patch = (to_2tuple(vision[key]) for key in ("image_size", "patch_size"))
    except (KeyError, TypeError, ValueError) as exc:
        raise CheckpointError(f"the configuration has no vision_cfg with image_size and patch_size: {exc!r}") from exc
    if tuple(own) == size:
        return config
    if any(not p <= n <= MAX_IMAGE_SIDE or n % p for n, p in zip(size, patch, strict=True)):
        raise CheckpointError(
            f"image size {size[0]}x{size[1]} cannot be: a multiple of the patches' {patch[0]}x{patch[1]} px, "
            f"{MAX_IMAGE_SIDE} px a side at most"
        )
    return {**config, "vision_cfg": {**vision, "image_size": size[0] if size[0] == size[1] else list(size)}}


def _three(values: Iterable[float]) -> tuple[float, ...]:
    """One finite number per colour channel."""
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"mean and std must be three finite numbers each, not {list(numbers)}")
    return numbers


def _build(config: dict[str, Any], arch: str, seed: int, mean: Sequence[float], std: Sequence[float]) -> CLIP:
    """An open_clip model; the key `stem`, in addition to open_clip's own, has the widths of a convolutional stem."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            clip = CLIP(**{key: value for key, value in config.items() if key != "stem"})
            if "stem" in config:
                clip.visual.conv1 = StemmedEmbedding(clip.visual.conv1, config["stem"], mean=mean, std=std)
            return clip.eval().requires_grad_(False)
    except Exception as exc:  # open_clip checks little, so any error means a bad configuration
        raise CheckpointError(f"open_clip cannot build {arch} from its configuration: {exc}") from exc


def _download(arch: str, tag: str) -> Path:
    model = ARCHITECTURES.get(arch, ("",))[0]
    cfg = get_pretrained_cfg(model, tag) if isinstance(model, str) and model else None
    if not cfg:
        tags = open_clip.list_pretrained_tags_by_model(model) if isinstance(model, str) and model else []
        held = f"there are: {', '.join(tags)}" if tags else "it has none; use --weights FILE"
        raise CheckpointError(f'{arch} has no pretrained tag "{tag}"; {held}')
    try:
        # Not from the hub, where this tag resolves to the file of the epoch before (laion400m_e31).
        return Path(download_pretrained(cfg, prefer_hf_hub=False))
    except Exception as exc:
        raise CheckpointError(
            f"the weights {tag} of {arch} cannot be downloaded here ({exc}): give a file with --weights FILE, "
            "or untrained weights with --random-weights"
        ) from exc


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a state dict (weights_only=True: no code of the file is run).

    Of a training checkpoint, its `state_dict` is read. The prefix `module.` of keys is dropped. Raises CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:  # torch's message advises to run the code
        raise CheckpointError(
            f"{path} cannot be read as safetensors or as a plain state dict: it is damaged, or holds more than tensors "
            "(a pickle with code or objects), which is not loaded: save its state dict as safetensors"
        ) from exc
    except Exception as exc:
        what = str(exc).strip().split("\n", 1)[0] or f"it ends early ({type(exc).__name__})"
        raise CheckpointError(f"{path} cannot be read as safetensors or as a plain state dict: {what}") from exc
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} does not hold a state dict of tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _interpolate_positions(state: dict[str, Tensor], clip: CLIP) -> None:
    """Interpolate the learned positions of a state dict to the grid of `clip`; only square grids are changed."""
    positions = state.get("visual.positional_embedding")
    if positions is not None and positions.ndim == 2 and math.isqrt(len(positions) - 1) ** 2 == len(positions) - 1:
        state["visual.positional_embedding"] = positions.float()
        resize_pos_embed(state, clip)


def _spread_vocabulary(state: dict[str, Tensor], clip: CLIP, path: Path) -> frozenset[int] | None:
    """Put the rows of trained tokens, if a file holds those only, into the whole table; returns the tokens.

    The other rows keep their random start, which still distinguishes words.
    """
    tokens = state.pop(TRAINED_TOKENS, None)
    if tokens is None:
        return None
    table, rows = clip.token_embedding.weight.detach().clone(), state.get("token_embedding.weight")
    numbers = [] if tokens.is_floating_point() else tokens.flatten().tolist()
    if rows is None or rows.shape != (len(numbers), table.shape[1]) or len(set(numbers)) < max(1, len(numbers)):
        raise CheckpointError(f"{path}: {TRAINED_TOKENS} does not name the rows of token_embedding.weight, each once")
    if not 0 <= min(numbers) <= max(numbers) < len(table):
        raise CheckpointError(f"{path}: {TRAINED_TOKENS} goes beyond the vocabulary of {len(table)}")
    table[numbers] = rows.float()
    state["token_embedding.weight"] = table
    return frozenset(numbers)


def _load_into(clip: CLIP, state: dict[str, Tensor], path: Path) -> bool:
    """Load image tower and, if the file has it, text tower; all keys and shapes must fit. Returns has_text."""
    own = clip.state_dict()
    ignored = ("logit_scale", "logit_bias")
    has_text = any(not key.startswith("visual.") and key not in ignored for key in state)
    wanted = {key for key in own if key.startswith("visual.") or (has_text and key not in ignored)}
    faults = [f"lacks {key}" for key in sorted(wanted - state.keys())]
    faults += [f"has {key}, which the architecture has not" for key in sorted(state.keys() - own.keys() - {*ignored})]
    faults += [
        f"{key} is {list(state[key].shape)}, the architecture needs {list(own[key].shape)}"
        for key in sorted(wanted & state.keys())
        if state[key].shape != own[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{path} does not fit the architecture: {'; '.join(faults[:5])}{more}")
    if not all(bool(state[key].isfinite().all()) for key in wanted):
        raise CheckpointError(f"{path} holds weights that are not finite")
    scales = {key for key in ignored if key in own and key in state and state[key].shape == own[key].shape}
    clip.load_state_dict({key: state[key].float() for key in wanted | scales}, strict=False)
    return has_text


def _sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
