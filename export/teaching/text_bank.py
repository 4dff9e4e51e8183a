"""The text bank: one unit vector per class, and one each for normal and defect (paper section 3.1, eq. 8)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ..errors import PromptError
from ..model.checkpoint import LoadedModel
from .priors import Projection
from .prompts import Prompts

_log = logging.getLogger("sem_clip")
_ANCHOR_SEED = 20240
_BATCH = 64


@dataclass(frozen=True, slots=True)
class TextBank:
    """text_cls [K, C] and text_seg [2, C] (normal, defect), float32 unit vectors.

    source: "tower" or "anchors". aligned: whether image features were trained to match these vectors; otherwise the V
    path, which is not taught, is noise. projection: of the image tower to the text space; None unless aligned.
    """

    text_cls: NDArray[np.float32]
    text_seg: NDArray[np.float32]
    source: str
    aligned: bool
    projection: Projection | None = None


def build_text_bank(model: LoadedModel, prompts: Prompts, classes: Sequence[str]) -> TextBank:
    """Embed the prompts of `classes` (`good` first), or make anchors if the checkpoint has no text tower.

    Raises PromptError if the prompt file lacks a class.
    """
    if not model.has_text:
        return anchor_bank(classes, model.clip.visual.output_dim)
    by_class = [prompts.for_class(name) for name in classes]
    if model.vocabulary is not None:
        _warn_of_unknown_words(model, [phrase for phrases in by_class for phrase in phrases], model.vocabulary)
    vectors = np.stack([_embed_class(model, phrases) for phrases in by_class])
    aligned = model.text_aligned
    projection = Projection.of(model.clip.visual) if aligned else None
    return TextBank(vectors, _segmentation_bank(vectors), "tower", aligned=aligned, projection=projection)


def anchor_bank(classes: Sequence[str], dim: int) -> TextBank:
    """K orthonormal vectors from a fixed seed, in place of text vectors. Raises PromptError if K > dim."""
    if len(classes) > dim:
        raise PromptError(f"{len(classes)} classes do not fit into {dim} orthonormal anchors")
    square = np.random.default_rng(_ANCHOR_SEED).standard_normal((dim, dim))
    # Rows of one fixed square: a class keeps its anchor if others are appended.
    vectors = np.linalg.qr(square)[0][: len(classes)].astype(np.float32)
    return TextBank(vectors, _segmentation_bank(vectors), "anchors", aligned=False)


def _segmentation_bank(text_cls: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors [2, C]: normal is `good`; defect is the mean of the defect classes, each counting once."""
    bank = np.stack([text_cls[0], text_cls[1:].mean(axis=0)])
    unit: NDArray[np.float32] = (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _embed_class(model: LoadedModel, phrases: Sequence[str]) -> NDArray[np.float32]:
    """The class's unit vector [C]: the mean of its prompts' unit vectors, normalized."""
    tokenizer = open_clip.SimpleTokenizer(context_length=model.clip.context_length)
    warn_of_cut_prompts(tokenizer, phrases)
    tokens = tokenizer(list(phrases))
    with torch.inference_mode():
        parts = [model.clip.encode_text(tokens[i : i + _BATCH]) for i in range(0, len(tokens), _BATCH)]
        vector = F.normalize(F.normalize(torch.cat(parts), dim=-1).mean(0), dim=-1)
    return np.asarray(vector.numpy(), dtype=np.float32)


def warn_of_cut_prompts(tokenizer: open_clip.SimpleTokenizer, phrases: Sequence[str]) -> None:
    """Log prompts that open_clip would silently cut; the end of a prompt often distinguishes classes."""
    room = tokenizer.context_length - 2
    for phrase in phrases:
        length = len(tokenizer.encode(phrase))
        if length > room:
            _log.warning('prompt of %d tokens is cut to %d: "%s"', length, room, phrase)


def _warn_of_unknown_words(model: LoadedModel, phrases: Sequence[str], vocabulary: frozenset[int]) -> None:
    """Log, in one line, words that the text tower was never trained on; it gives them a meaningless vector."""
    tokenizer = open_clip.SimpleTokenizer(context_length=model.clip.context_length)
    words = {word for phrase in phrases for word in phrase.split()}
    unknown = sorted(word for word in words if not vocabulary.issuperset(tokenizer.encode(word)))
    if unknown:
        _log.warning(
            'the text tower was never trained on "%s": prompts with such words mean little', '", "'.join(unknown)
        )
