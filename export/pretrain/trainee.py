"""The model in pretraining: a CLIP with the dual path over it, its start and its losses.

Each of the four levels has three losses, all with the prompts of the prompt file and the one projection to the text:

- image and text (CLIP): the class token matches the prompts of the frame's class, and each prompt its frames;
- patch and text: a patch matches the text of its content, known from the mask, through the vanilla path and through the
  V-V path (eq. 13-15);
- frame: the patches most like a defect are defect patches in a frame with a defect, and good ones in a good frame.

The convolutional stem learns patches and frames through an auxiliary linear layer: first alone, when a step costs a
sixth, then together with the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.checkpoint import LoadedModel
from ..model.dual_path import Levels, _grey_patch_embedding
from ..model.heads import cosines, unit
from ..model.stem import PIXEL_OFFSET, PIXEL_SCALE
from ..synthetic import CLASSES
from ..teaching.prompts import Prompts
from .windows import GRID, PATCH, Windows

LEVEL_WEIGHTS = (0.15, 0.3, 0.6, 1.0)
"""Weights of the levels; lower ones know little of the frame."""
DEFECT_SHARE = 0.35
"""Weight of the few defect patches against all others in the patch losses."""
FRAME_SHARE = 0.02
"""A frame is judged by this fraction of its patches, those most like a defect."""
FULL_PATCH = 0.25
"""From this fraction of a patch on, its text is that of the defect only."""
MAX_LOGIT_SCALE = 100.0


class Trainee(nn.Module):
    """The model in training: a CLIP and the dual path over it. stem_learns: False freezes its stem."""

    def __init__(self, model: LoadedModel, prompts: Prompts, *, bf16: bool = False, stem_learns: bool = True) -> None:
        super().__init__()
        self.bf16 = bf16
        self.clip = model.clip.train().requires_grad_(True)
        self.encoder = model.encoder()
        self.mean, self.std = model.mean, model.std
        self.patch_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.stem_head: nn.Linear | None = None
        if self.encoder.stem is not None and stem_learns:
            self.stem_head = nn.Linear(self.encoder.stem.join.in_channels, len(CLASSES))
            nn.init.zeros_(self.stem_head.weight)
            nn.init.zeros_(self.stem_head.bias)
        self.clip.requires_grad_(True)  # building the encoder froze the shared parameters
        if self.encoder.stem is not None:
            self.encoder.stem.requires_grad_(stem_learns)
        tokenizer = open_clip.SimpleTokenizer(context_length=self.clip.context_length)
        self.prompts = [tokenizer(prompts.for_class(name)) for name in CLASSES]

    def embed_text(self, chosen: Sequence[Tensor]) -> Tensor:
        """Unit vectors [classes, n, C] of n prompts of every class."""
        vectors = self.clip.encode_text(torch.cat(list(chosen)).to(self.patch_scale.device), normalize=True)
        return vectors.reshape(len(chosen), -1, vectors.shape[-1])  # type: ignore[no-any-return]

    def class_vectors(self) -> Tensor:
        """Unit vectors [classes, C] of all prompts, as in the text bank."""
        return torch.cat([unit(self.embed_text([tokens])[0].mean(0, keepdim=True)) for tokens in self.prompts])

    def look(self, windows: Windows) -> Tensor | None:
        """The last activations of the stem, float32 [B, channels, rows, columns]; None for a tower without one."""
        stem = self.encoder.stem
        if stem is None:
            return None
        pixels = scaled(windows)[:, None].contiguous(memory_format=torch.channels_last)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            return stem.maps(pixels)[-1].float()

    def encode(self, windows: Windows, seen: Tensor | None, *, value_path: bool = True) -> Levels:
        """The encoder on windows, each with the positions of its part of the frame.

        seen: the result of `look`. value_path: as for `DualPathEncoder.levels_of`.
        """
        visual = self.clip.visual
        weight, bias = _grey_patch_embedding(visual.conv1.weight, self.mean, self.std)
        count = windows.pixels.shape[-1] // PATCH
        pixels = scaled(windows)
        patches = pixels.reshape(-1, count, PATCH, count, PATCH).permute(0, 1, 3, 2, 4)
        steps = torch.arange(count, device=pixels.device)
        rows = windows.corner[:, :1] + steps
        columns = windows.corner[:, 1:] + steps
        places = (rows[:, :, None] * GRID + columns[:, None]).flatten(1)
        x = patches.flatten(3).flatten(1, 2) @ weight + bias + visual.positional_embedding[1:][places]
        if seen is not None:
            assert self.encoder.stem is not None
            x = x + self.encoder.stem.join(seen).flatten(2).transpose(1, 2)
        first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
        tokens = visual.ln_pre(torch.cat([first, x], dim=1))
        if not self.bf16:
            return self.encoder.levels_of(tokens, value_path=value_path)
        self.encoder.attention = stepwise_attention if tokens.device.type == "cpu" else F.scaled_dot_product_attention
        with torch.autocast(tokens.device.type, torch.bfloat16):
            return self.encoder.levels_of(tokens, value_path=value_path)

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens [..., D] of the trunk in the text space [..., C], as CLIP does with its class token."""
        return self.encoder.ln_post(tokens) @ self.encoder.proj  # type: ignore[no-any-return]

    def stem_logits(self, seen: Tensor) -> Tensor:
        """Class logits of the patches by the stem alone, [B, P, classes]."""
        assert self.stem_head is not None
        logits: Tensor = self.stem_head(seen.flatten(2).transpose(1, 2))
        return logits

    def stem_losses(self, windows: Windows, seen: Tensor | None = None) -> dict[str, Tensor]:
        """The losses of the stem alone: of patches by the mask, and of frames by their patches most like a class.

        seen: the result of `look` for the windows; None: computed here.
        """
        seen = self.look(windows) if seen is None else seen
        assert seen is not None, "there is a stem"
        logits = self.stem_logits(seen)
        target, part = _truth(windows)
        surprise = -(target * torch.log_softmax(logits, dim=-1)).sum(-1)
        return {
            "stem_patch": _balanced(surprise, part),
            "stem_frame": F.cross_entropy(frame_logits(logits), windows.label),
        }

    def losses(
        self, windows: Windows, chosen: Sequence[Tensor], *, value_path: bool = True
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of a batch, and the loss of each window [B] without gradient.

        chosen: tokens of some prompts of every class. value_path: False leaves out the loss of the V path.
        """
        text = self.embed_text(chosen)
        text_cls = unit(text.mean(1))
        text_seg = torch.stack([text_cls[0], unit(text_cls[1:].mean(0))])
        seen = self.look(windows)
        levels = self.encode(windows, seen, value_path=value_path)
        scale = self.clip.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        patch_scale = self.patch_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        device = windows.fraction.device
        target, part = _truth(windows)
        has_defect = (windows.label > 0).float()
        names = ["image_text", "patch_text", "frame", *(["value_text"] if value_path else [])]
        total = {name: torch.zeros((), device=device) for name in names}
        for j, level_weight in enumerate(LEVEL_WEIGHTS):
            total["image_text"] = total["image_text"] + level_weight * image_text_loss(
                unit(levels.cls[j]), text, windows.label, scale
            )
            patch = patch_scale * cosines(self.project(levels.tokens[j][:, 1:]), text_cls)
            surprise = -(target * torch.log_softmax(patch, dim=-1)).sum(-1)
            total["patch_text"] = total["patch_text"] + level_weight * _balanced(surprise, part)
            kind = F.binary_cross_entropy_with_logits(frame_logit(patch), has_defect, reduction="none")
            total["frame"] = total["frame"] + level_weight * kind.mean()
            if not value_path:
                continue
            value = patch_scale * cosines(levels.value[j], text_seg)
            bce = F.binary_cross_entropy_with_logits(value[..., 1] - value[..., 0], part, reduction="none")
            total["value_text"] = total["value_text"] + level_weight * _balanced(bce, part)
        # Of the last level, which decides the class.
        named = scale.detach() * cosines(levels.cls[-1].detach(), text_cls.detach())
        wrong = F.cross_entropy(named, windows.label, reduction="none") + kind.detach()
        if self.stem_head is not None:
            total.update(self.stem_losses(windows, seen))
        return total, wrong


def scaled(windows: Windows) -> Tensor:
    """The pixels as the encoder takes them, [B, n, n]."""
    return (windows.pixels - PIXEL_OFFSET) / PIXEL_SCALE


def _truth(windows: Windows) -> tuple[Tensor, Tensor]:
    """What every patch shows, as a distribution over the classes [B, P, classes], and how far it is the defect."""
    part = (windows.fraction / FULL_PATCH).clamp(max=1)
    target = torch.zeros((*part.shape, len(CLASSES)), device=part.device)
    target[torch.arange(len(part), device=part.device), :, windows.label] = part
    target[..., 0] = 1 - part
    return target, part


def stepwise_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over [B, heads, N, d] in three steps.

    Forward and backward in bfloat16 on a CPU take less than half the time of any kernel of
    `scaled_dot_product_attention`, whose MatMuls read q, k and v in strides.
    """
    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = (q * shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (torch.softmax(scores, dim=-1) @ v).reshape(shape)


def image_text_loss(image: Tensor, text: Tensor, label: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss with several right answers: image [B, C], text [classes, n, C], label [B].

    An image's right prompts are those of its class, a prompt's right images those of its class (Khosla et al. 2020).
    """
    logit = scale * image @ text.flatten(0, 1).T
    prompt_class = torch.arange(len(text), device=label.device).repeat_interleave(text.shape[1])
    right = label[:, None] == prompt_class
    of_image = torch.logsumexp(logit, 1) - torch.logsumexp(logit.masked_fill(~right, -torch.inf), 1)
    seen = right.any(0)
    of_text = torch.logsumexp(logit, 0) - (logit * right).sum(0) / right.sum(0).clamp(min=1)
    return (of_image.mean() + of_text[seen].mean()) / 2


def frame_logit(patch: Tensor) -> Tensor:
    """Defect against good of whole frames [B], from the logits [B, P, classes] of their patches, good first.

    The mean over the patches most like a defect, so that the most misleading patches of good frames count.
    """
    defect = torch.logsumexp(patch[..., 1:], dim=-1) - patch[..., 0]
    return defect.topk(max(1, round(FRAME_SHARE * defect.shape[1])), dim=1).values.mean(1)


def frame_logits(patch: Tensor) -> Tensor:
    """Classes of whole frames [B, classes] from those of their patches [B, P, classes], good first and at 0.

    The mean over the patches most like a class, for each class.
    """
    against_good = patch[..., 1:] - patch[..., :1]
    most = against_good.topk(max(1, round(FRAME_SHARE * patch.shape[1])), dim=1).values.mean(1)
    return F.pad(most, (1, 0))


def _balanced(loss: Tensor, part: Tensor) -> Tensor:
    """Mean over defects and mean over the other patches, in fixed shares: loss and part [B, P].

    Every defect counts the same, however few patches it covers, since small ones are missed most.
    """
    size = part.sum(1)
    of_frame = (loss * part).sum(1) / size.clamp(min=1e-6)
    defect = of_frame.sum() / (size > 0).sum().clamp(min=1)
    other = (loss * (1 - part)).sum() / (1 - part).sum().clamp(min=1)
    return DEFECT_SHARE * defect + (1 - DEFECT_SHARE) * other


@torch.no_grad()
def initialize(model: LoadedModel, seed: int) -> None:
    """Start like trained transformers (Trockman & Kolter 2023): Q K^T near the identity, V O near its negative.

    Positions start as sines, so that neighbours are alike.
    """
    generator = torch.Generator().manual_seed(seed)
    visual = model.clip.visual
    width = visual.positional_embedding.shape[1]
    eye = torch.eye(width)

    def near(identity: float, noise: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.linalg.svd(  # type: ignore[no-any-return]
            noise * torch.randn((width, width), generator=generator) / math.sqrt(width) + identity * eye
        )

    for block in visual.transformer.resblocks:
        projection = block.attn.in_proj_weight.data
        d = width // block.attn.num_heads
        for start in range(0, width, d):
            u, s, v = near(0.7, 0.7)
            root = s[:d].sqrt()[:, None]
            projection[start : start + d] = root * u[:, :d].T
            projection[width + start : width + start + d] = root * v[:d]
        u, s, v = near(-0.4, 0.4)
        projection[2 * width :] = s.sqrt()[:, None] * v
        block.attn.out_proj.weight.data.copy_(u * s.sqrt())
    place = torch.arange(GRID)[:, None] / 10000 ** (torch.arange(width // 4) / (width // 4))
    wave = torch.cat([place.sin(), place.cos()], dim=1)
    grid = torch.cat([wave[:, None].expand(-1, GRID, -1), wave[None].expand(GRID, -1, -1)], dim=-1)
    visual.positional_embedding[1:] = 0.3 * grid.flatten(0, 1)
