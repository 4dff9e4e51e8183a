"""PromptAD (Li et al., CVPR 2024, arXiv:2404.05231) over the same tower, as a baseline that learns its prompts.

It sees good supports only, without masks. Two models are fitted, one for the map and one for the frame score. Each
learns word vectors in front of fixed prompts, by SGD, with both towers frozen. Maps and scores combine that text with
the nearest-patch distance in two inner layers. Four choices matter for the figures:

- The last step counts. The authors' code keeps the epoch with the best result on the test frames.
- The logit scale is used as the checkpoint stores it, without `exp`, as in the authors' code (4.6, not 100).
- Maps are smoothed like those of all other rows here (6 px at 240 px; the authors: 2.4 px at 240 px).
- Features of layers 3 and 8 are the unmodified block outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP
from open_clip.transformer import text_global_pool
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy.scratch import scratch_array
from export.model import heads
from export.model.checkpoint import LoadedModel
from export.model.dual_path import DualPathEncoder
from export.teaching.prompts import Prompts
from export.teaching.text_bank import warn_of_cut_prompts
from runtime.maps import upsample

CONTEXT_WORDS, ABNORMAL_WORDS = 4, 1
"""Learned words in front of every prompt, and those that follow them in a learned abnormal prompt."""
LEARNED_PER_CONTEXT = 4
MAP_CONTEXTS, FRAME_CONTEXTS = 1, 3
"""Normal contexts of the model for the map and of the model for the frame score."""
GENERIC_STATES = (
    "damaged {}",
    "flawed {}",
    "abnormal {}",
    "imperfect {}",
    "blemished {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
)
STEPS = 100
RATE, LAST_RATE, MOMENTUM, WEIGHT_DECAY = 2e-3, 1e-5, 0.9, 5e-4
FIRST_SPREAD = 0.02
"""Standard deviation of the word vectors before the first step."""
ALIGNMENT_WEIGHT = 1e-3
SCORE_SIZE = (400, 400)
"""Size in pixels at which the peak of the distance map is taken."""


@dataclass(frozen=True, slots=True)
class FrameFeatures:
    """Features that PromptAD uses of n frames: unit vectors over the last axis.

    cls: [n, C], the frame in the text space. value: [n, P, C], X_0 and all V-V outputs, summed, in the text space.
    layers: [n, 2, P, D], patches after the two layers of `gallery_layers`.
    """

    cls: Tensor
    value: Tensor
    layers: Tensor


def gallery_layers(depth: int) -> tuple[int, int]:
    """The layers of the gallery, counted from 1: 3 and 8 of 12; for other depths, 1/4 and 2/3 of the depth."""
    return max(1, round(depth / 4)), max(1, round(2 * depth / 3))


@torch.no_grad()
def encode_frames(encoder: DualPathEncoder, pixels: Tensor) -> FrameFeatures:
    """Encode float32 [n, height, width] of the encoder's image size, in [0, 255], in one pass over the layers."""
    z = encoder.embed(pixels)
    value, layers = z[:, 1:], []
    remembered = gallery_layers(len(encoder.blocks))
    for layer, block in enumerate(encoder.blocks, start=1):
        z, v = encoder._dual_path(block, z, layer)
        assert v is not None, "the V path was requested"
        value = value + v
        layers += [heads.unit(z[:, 1:])] * remembered.count(layer)
    return FrameFeatures(
        heads.unit(encoder.ln_post(z[:, 0]) @ encoder.proj),
        heads.unit(encoder.ln_post(value) @ encoder.proj),
        torch.stack(layers, dim=1),
    )


class StoredFeatures:
    """Features of `count` frames; patches are float16 in files of `work`."""

    def __init__(self, encoder: DualPathEncoder, count: int, work: Path) -> None:
        patches = encoder.grid[0] * encoder.grid[1]
        self._cls = torch.zeros((count, encoder.text_dim))
        self._value = scratch_array(work, (count, patches, encoder.text_dim))
        self._layers = scratch_array(work, (count, 2, patches, encoder.width))

    def put(self, start: int, features: FrameFeatures) -> None:
        """Store frames from number `start` on."""
        rows = slice(start, start + len(features.cls))
        self._cls[rows] = features.cls
        self._value[rows] = features.value.half().numpy()
        self._layers[rows] = features.layers.half().numpy()

    def __getitem__(self, index: int) -> FrameFeatures:
        value, layers = torch.tensor(self._value[index]), torch.tensor(self._layers[index])
        return FrameFeatures(self._cls[index][None], heads.unit(value)[None], heads.unit(layers)[None])


@dataclass(frozen=True, slots=True)
class Texts:
    """Raw text features [n, C] of the normal, the manual abnormal and the learned abnormal prompts."""

    normal: Tensor
    manual: Tensor
    learned: Tensor

    @property
    def abnormal(self) -> Tensor:
        """Both kinds of abnormal prompts, [A, C]."""
        return torch.cat([self.manual, self.learned])

    def prototypes(self) -> Tensor:
        """Unit vectors [2, C] of normal and abnormal: the directions of the two means."""
        return heads.unit(torch.stack([self.normal.mean(0), self.abnormal.mean(0)]))


class LearnedPrompts:
    """Prompts with learned word vectors, initially N(0, 0.02²); the text tower is frozen.

    "[v1..v4] object." is normal; "[v1..v4] state(object)." and "[v1..v4][u1] object." are abnormal. subject: the
    object. states: phrases that contain the object. contexts: number of [v1..v4].
    """

    def __init__(self, model: LoadedModel, subject: str, states: Sequence[str], contexts: int, seed: int) -> None:
        self._clip = model.clip
        self._normal = self._tokens([subject], CONTEXT_WORDS)
        self._manual = self._tokens(states, CONTEXT_WORDS)
        self._learned = self._tokens([subject], CONTEXT_WORDS + ABNORMAL_WORDS)
        width, generator = model.clip.token_embedding.embedding_dim, torch.Generator().manual_seed(seed)
        self.context = FIRST_SPREAD * torch.randn((contexts, CONTEXT_WORDS, width), generator=generator)
        self.abnormal = FIRST_SPREAD * torch.randn((LEARNED_PER_CONTEXT, ABNORMAL_WORDS, width), generator=generator)
        self.parameters = [self.context.requires_grad_(), self.abnormal.requires_grad_()]

    def texts(self) -> Texts:
        """Text features of all prompts, ordered by context."""
        contexts = self.context.repeat_interleave(LEARNED_PER_CONTEXT, 0)
        further = torch.cat([contexts, self.abnormal.repeat(len(self.context), 1, 1)], dim=1)
        return Texts(
            self._features(self.context, self._normal),
            self._features(self.context, self._manual),
            self._features(further, self._learned),
        )

    def _tokens(self, phrases: Sequence[str], words: int) -> Tensor:
        """int64 [n, L] of prompts that start with `words` placeholders and end with a full stop."""
        tokenizer = open_clip.SimpleTokenizer(context_length=self._clip.context_length)
        prompts = [f"{' '.join(['N'] * words)} {phrase}." for phrase in phrases]
        warn_of_cut_prompts(tokenizer, prompts)
        tokens: Tensor = tokenizer(prompts)
        return tokens[:, : needed_length(self._clip, tokens)]

    def _features(self, words: Tensor, tokens: Tensor) -> Tensor:
        """[c p, C]: features of all prompts [p, L] with their first k words replaced by each of words [c, k, W]."""
        fixed = self._clip.token_embedding(tokens).repeat(len(words), 1, 1)
        own = words.repeat_interleave(len(tokens), 0)
        embedded = torch.cat([fixed[:, :1], own, fixed[:, 1 + words.shape[1] :]], dim=1)
        return encode_embedded(self._clip, embedded, tokens.repeat(len(words), 1))


def needed_length(clip: CLIP, tokens: Tensor) -> int:
    """Number of leading tokens, of [n, L], that the text features depend on.

    With causal attention and pooling at the end token, tokens after the end of the longest prompt do not matter.
    """
    if clip.attn_mask is None or clip.text_pool_type not in ("argmax", "eos"):
        return int(tokens.shape[1])
    return int(tokens.argmax(-1).max()) + 1  # the end token has the highest number


def encode_embedded(clip: CLIP, embedded: Tensor, tokens: Tensor) -> Tensor:
    """open_clip's `encode_text` from word vectors [n, L, W]: [n, C]. tokens: [n, L], to find the ends of prompts."""
    length = embedded.shape[1]
    mask = None if clip.attn_mask is None else clip.attn_mask[:length, :length]
    x = clip.ln_final(clip.transformer(embedded + clip.positional_embedding[:length], attn_mask=mask))
    x = text_global_pool(x, tokens, clip.text_pool_type, eos_token_id=clip.text_eos_id)
    if isinstance(clip.text_projection, nn.Linear):
        x = clip.text_projection(x)
    elif clip.text_projection is not None:
        x = x @ clip.text_projection
    return x  # type: ignore[no-any-return]


def loss_terms(features: Tensor, texts: Texts, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy, explicit anomaly margin and alignment, of unit features [n, C] of good frames or patches.

    Cross entropy separates the normal prototype from every abnormal prompt. The margin is the mean over features of
    relu(|f - w|² - |f - a|²). Alignment is the squared distance between the means of manual and learned prompts.
    """
    normal, abnormal = texts.prototypes()
    logits = scale * features @ torch.cat([normal[None], heads.unit(texts.abnormal)]).T
    contrast = F.cross_entropy(logits, torch.zeros(len(features), dtype=torch.long))
    margin = F.relu((features - normal).square().sum(-1) - (features - abnormal).square().sum(-1)).mean()
    apart = heads.unit(texts.manual).mean(0) - heads.unit(texts.learned).mean(0)
    return contrast, margin, apart.square().sum()


def fit_prototypes(prompts: LearnedPrompts, features: Tensor, scale: float) -> Tensor:
    """Fit the prompts to unit features [n, C] of good supports, full batch; the last step's prototypes [2, C]."""
    optimizer = torch.optim.SGD(prompts.parameters, lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=LAST_RATE)
    for _ in range(STEPS):
        contrast, margin, alignment = loss_terms(features, prompts.texts(), scale)
        optimizer.zero_grad()
        (contrast + margin + ALIGNMENT_WEIGHT * alignment).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return prompts.texts().prototypes()


@dataclass(frozen=True, slots=True)
class PromptAD:
    """The fitted model. patch_text, frame_text: unit vectors [2, C], normal and abnormal. scale: stored logit scale.

    gallery: unit [2, K P, D], patches of the good supports in both layers. grid: rows and columns of patches.
    """

    patch_text: Tensor
    frame_text: Tensor
    scale: float
    gallery: Tensor
    grid: tuple[int, int]

    def judge(self, frame: FrameFeatures) -> tuple[Tensor, float]:
        """Map [rows, columns] and score of one frame, both in [0, 0.5]: halves of harmonic means."""
        distance = gallery_distance(frame.layers[0], self.gallery).reshape(self.grid)
        by_text = self._abnormal(frame.value[0], self.patch_text).reshape(self.grid)
        patch_map = half_harmonic(by_text, distance)
        peak = torch.tensor(upsample(distance.numpy(), SCORE_SIZE, SCORE_SIZE, 0.0).max())
        return patch_map, float(half_harmonic(self._abnormal(frame.cls, self.frame_text)[0], peak))

    def _abnormal(self, x: Tensor, text: Tensor) -> Tensor:
        return torch.softmax(self.scale * x @ text.T, dim=-1)[..., 1]


def fit_promptad(
    model: LoadedModel,
    prompts: Prompts,
    defects: Sequence[str],
    good: FrameFeatures,
    grid: tuple[int, int],
    seed: int,
) -> PromptAD:
    """Fit both models on one unaugmented view of each good support; one support is enough.

    defects: the defect classes, for their states. Raises PromptError if the prompt file lacks one, and ValueError
    without a good frame.
    """
    if not len(good.cls):
        raise ValueError("PromptAD learns from good frames, but there is none")
    states = abnormal_states(model, prompts, defects)
    scale = float(model.clip.logit_scale)

    def fitted(features: Tensor, contexts: int) -> Tensor:
        return fit_prototypes(LearnedPrompts(model, prompts.subject, states, contexts, seed), features, scale)

    patch_text = fitted(good.value.flatten(0, 1), MAP_CONTEXTS)
    frame_text = fitted(good.cls, FRAME_CONTEXTS)
    return PromptAD(patch_text, frame_text, scale, good.layers.transpose(0, 1).flatten(1, 2), grid)


def abnormal_states(model: LoadedModel, prompts: Prompts, defects: Sequence[str]) -> list[str]:
    """States of the defect classes, with the object, after the generic states if the tower's vocabulary is open."""
    generic = GENERIC_STATES if model.vocabulary is None else ()
    own = [state for name in defects for state in prompts.states_of(name)]
    return [*(state.replace("{}", prompts.subject) for state in generic), *own]


def gallery_distance(patches: Tensor, gallery: Tensor) -> Tensor:
    """(1 - highest cosine) / 2 of unit patches [2, P, D] with the gallery [2, M, D], mean over layers: [P]."""
    nearest = (patches @ gallery.transpose(1, 2)).amax(-1)
    return ((1 - nearest).mean(0) / 2).clamp(0, 1)


def half_harmonic(a: Tensor, b: Tensor) -> Tensor:
    """1 / (1 / a + 1 / b): 0 where either is 0."""
    return 1 / (1 / a + 1 / b)
