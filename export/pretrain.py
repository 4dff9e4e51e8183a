"""Train the embedded encoder `sem_tiny` from nothing, on generated SEM frames.

    python -m export.pretrain --out runs/sem_tiny        the same command again goes on where it was interrupted

Three things are asked of the image tower, at each of its four levels, all in the words of the prompt file and through
the one projection to the text space:

- image and text (CLIP): the class token meets the prompts of the frame's class, and each prompt meets its frames;
- patch and text: a patch meets the text of what it shows, known exactly from the mask, through the vanilla path and
  through the V-V path (eq. 13-15);
- frame: the patches most like a defect are so in a frame with a defect, and in a good one not even they are.

The matrices of the blocks are trained by Muon, everything else by AdamW. The learning rate is constant until the last
part of the schedule and then falls to zero; a training that has not begun to fall can still be made longer.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from calibration.histogram import ScoreHistogram
from runtime.cli import describe, run
from runtime.files import write_atomically

from .checkpoint import LoadedModel, load_model
from .encoder import PIXEL_OFFSET, PIXEL_SCALE, Levels, _grey_patch_embedding
from .errors import ExportError
from .heads import cosines, unit
from .pretrain_frames import GRID, HELD_OUT_LAYOUTS, PATCH, Windows, WindowStream, window_loader
from .prompts import Prompts, load_prompts
from .synthetic import CLASSES, make_frame, suitable_layouts
from .versions import tool_versions

CHECKPOINT, BEFORE_FALL, LOG, WEIGHTS = "checkpoint.pt", "before_fall.pt", "log.jsonl", "sem_tiny.safetensors"
LEVEL_WEIGHTS = (0.15, 0.3, 0.6, 1.0)
"""The lower levels see little of the frame; what they can say is asked of them more gently."""
DEFECT_SHARE = 0.35
"""Weight of the few defect patches against all others in the patch losses."""
FRAME_SHARE = 0.02
"""A frame is judged by this share of its patches, the ones most like a defect."""
FULL_PATCH = 0.25
"""From this part of a patch on, its text is wholly that of the defect."""
PROMPTS_A_STEP = 4
MAX_LOGIT_SCALE = 100.0
PATCH_SCALE = math.log(20.0)
"""Where the patches' logit scale begins in a training that goes on from weights, which do not tell it."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps on windows of patches x patches, `batch` of them a step."""

    patches: int
    batch: int
    steps: int


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """How to train. decay: the last part of all steps, over which the learning rate falls to zero.

    bf16: the blocks' matrix products in bfloat16, which pays on GPUs and on CPUs with AVX512-BF16 or AMX alone.
    """

    phases: tuple[Phase, ...]
    seed: int = 0
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warm_up: int = 100
    decay: float = 0.3
    per_frame: int = 3
    bf16: bool = False

    @property
    def steps(self) -> int:
        """Steps in all."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[Phase, int]:
        """The phase of step `step`, and how many of its steps are left."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, phase.steps - step
            step -= phase.steps
        raise ValueError("the schedule has ended")

    @property
    def fall_begins(self) -> int:
        """The first step with a falling learning rate; the state before it can be trained further instead."""
        return self.steps - max(1, round(self.decay * self.steps))

    def rate_at(self, step: int) -> float:
        """Learning rate as a part of the full one."""
        return min(1.0, (step + 1) / self.warm_up, (self.steps - step) / (self.steps - self.fall_begins))


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal by Newton-Schulz (Jordan et al. 2024), with AdamW's size of steps (Liu et al. 2025).

    torch.optim.Muon computes in bfloat16, which takes 30 times as long on CPUs without such instructions.
    """

    def __init__(self, params: Sequence[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step for all matrices; a matrix of 3 n rows is the fused projection of Q, K and V, taken apart."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"].mul_(0.95).add_(p.grad)
                update = p.grad + 0.95 * momentum
                parts = update.chunk(3) if p.shape[0] == 3 * p.shape[1] else (update,)
                size = 0.2 * math.sqrt(max(parts[0].shape))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.cat([_orthogonal(part) for part in parts]), alpha=-group["lr"] * size)


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, roughly: five Newton-Schulz steps."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Trainee(nn.Module):
    """The model in training: a CLIP and the dual path over it."""

    def __init__(self, model: LoadedModel, prompts: Prompts, *, bf16: bool = False) -> None:
        super().__init__()
        self.bf16 = bf16
        self.clip = model.clip.train().requires_grad_(True)
        self.encoder = model.encoder()
        self.mean, self.std = model.mean, model.std
        self.patch_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.clip.requires_grad_(True)  # building the encoder froze the shared parameters
        tokenizer = open_clip.SimpleTokenizer(context_length=self.clip.context_length)
        self.prompts = [tokenizer(prompts.for_class(name)) for name in CLASSES]

    def embed_text(self, chosen: Sequence[Tensor]) -> Tensor:
        """Unit vectors [classes, n, C] of n prompts of every class."""
        vectors = self.clip.encode_text(torch.cat(list(chosen)).to(self.patch_scale.device), normalize=True)
        return vectors.reshape(len(chosen), -1, vectors.shape[-1])  # type: ignore[no-any-return]

    def class_vectors(self) -> Tensor:
        """Unit vectors [classes, C] of all prompts, as in the text bank."""
        return torch.cat([unit(self.embed_text([tokens])[0].mean(0, keepdim=True)) for tokens in self.prompts])

    def encode(self, windows: Windows) -> Levels:
        """The encoder on windows, each with the positions of the part of the frame that it was cut from."""
        visual = self.clip.visual
        weight, bias = _grey_patch_embedding(visual.conv1.weight, self.mean, self.std)
        count = windows.pixels.shape[-1] // PATCH
        pixels = (windows.pixels - PIXEL_OFFSET) / PIXEL_SCALE
        patches = pixels.reshape(-1, count, PATCH, count, PATCH).permute(0, 1, 3, 2, 4)
        steps = torch.arange(count, device=pixels.device)
        rows = windows.corner[:, :1] + steps
        columns = windows.corner[:, 1:] + steps
        places = (rows[:, :, None] * GRID + columns[:, None]).flatten(1)
        x = patches.flatten(3).flatten(1, 2) @ weight + bias + visual.positional_embedding[1:][places]
        first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
        tokens = visual.ln_pre(torch.cat([first, x], dim=1))
        if not self.bf16:
            return self.encoder.levels_of(tokens)
        # On a CPU the plain products of bfloat16 attention take half the time of the fused kernel.
        kernels = [SDPBackend.MATH] if tokens.device.type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        with torch.autocast(tokens.device.type, torch.bfloat16), sdpa_kernel(kernels):
            return self.encoder.levels_of(tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens [..., D] of the trunk in the text space [..., C], as CLIP does with its class token."""
        return self.encoder.ln_post(tokens) @ self.encoder.proj  # type: ignore[no-any-return]

    def losses(self, windows: Windows, chosen: Sequence[Tensor]) -> dict[str, Tensor]:
        """The losses of a batch; `chosen`: tokens of some prompts of every class."""
        text = self.embed_text(chosen)
        text_cls = unit(text.mean(1))
        text_seg = torch.stack([text_cls[0], unit(text_cls[1:].mean(0))])
        levels = self.encode(windows)
        scale = self.clip.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        patch_scale = self.patch_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        device = windows.fraction.device
        target = torch.zeros((*windows.fraction.shape, len(CLASSES)), device=device)
        part = (windows.fraction / FULL_PATCH).clamp(max=1)
        target[torch.arange(len(part), device=device), :, windows.label] = part
        target[..., 0] = 1 - part
        has_defect = (windows.label > 0).float()
        total = {name: torch.zeros((), device=device) for name in ("image_text", "patch_text", "value_text", "frame")}
        for j, level_weight in enumerate(LEVEL_WEIGHTS):
            total["image_text"] = total["image_text"] + level_weight * image_text_loss(
                unit(levels.cls[j]), text, windows.label, scale
            )
            patch = patch_scale * cosines(self.project(levels.tokens[j][:, 1:]), text_cls)
            surprise = -(target * torch.log_softmax(patch, dim=-1)).sum(-1)
            total["patch_text"] = total["patch_text"] + level_weight * _balanced(surprise, part)
            frame = F.binary_cross_entropy_with_logits(frame_logit(patch), has_defect)
            total["frame"] = total["frame"] + level_weight * frame
            value = patch_scale * cosines(levels.value[j], text_seg)
            bce = F.binary_cross_entropy_with_logits(value[..., 1] - value[..., 0], part, reduction="none")
            total["value_text"] = total["value_text"] + level_weight * _balanced(bce, part)
        return total


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

    The mean over the patches most like a defect, so that a good frame is taught by what in it misleads most.
    """
    defect = torch.logsumexp(patch[..., 1:], dim=-1) - patch[..., 0]
    return defect.topk(max(1, round(FRAME_SHARE * defect.shape[1])), dim=1).values.mean(1)


def _balanced(loss: Tensor, part: Tensor) -> Tensor:
    """Mean over defect patches and mean over others, in fixed shares: loss and part [B, P]."""
    defect = (loss * part).sum() / part.sum().clamp(min=1)
    other = (loss * (1 - part)).sum() / (1 - part).sum().clamp(min=1)
    return DEFECT_SHARE * defect + (1 - DEFECT_SHARE) * other


@torch.no_grad()
def initialize(model: LoadedModel, seed: int) -> None:
    """Start where trained transformers end up (Trockman & Kolter 2023): Q K^T near the identity, V O near its negative.

    Positions start as sines, so that neighbours are alike from the first step on.
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


class Pretraining:
    """One training: model, optimizers, the step it is at, and its folder."""

    def __init__(
        self,
        settings: PretrainSettings,
        folder: Path,
        *,
        arch: str = "sem_tiny",
        start: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.settings, self.folder, self.device = settings, folder, torch.device(device)
        self.model = load_model(arch, random_seed=settings.seed)
        initialize(self.model, settings.seed)
        self.trainee = Trainee(self.model, load_prompts(), bf16=settings.bf16).to(self.device)
        matrices = [
            p for name, p in self.trainee.clip.visual.transformer.named_parameters() if p.ndim == 2 and "weight" in name
        ]
        held = {id(p) for p in matrices}
        others = [p for p in self.trainee.parameters() if p.requires_grad and id(p) not in held]
        flat = [p for p in others if p.ndim < 2]
        wide = [p for p in others if p.ndim >= 2]
        rate, decay = settings.learning_rate, settings.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=rate, weight_decay=decay),
            torch.optim.AdamW(
                [{"params": flat, "weight_decay": 0.0}, {"params": wide, "weight_decay": decay}],
                lr=rate,
                betas=(0.9, 0.98),
            ),
        ]
        self.step = 0
        self.seconds = 0.0
        if (folder / CHECKPOINT).is_file():
            self._load()
        elif start is not None:
            self._start_from(start)

    def _start_from(self, path: Path) -> None:
        """Begin with the model of another training: its checkpoint or its weights. The optimizers know nothing of it.

        Raises ExportError.
        """
        if path.suffix == ".safetensors":
            self.trainee.clip.load_state_dict(load_model(self.model.architecture, weights=path).clip.state_dict())
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("sem_clip", "{}"))
            # The one thing in training that the encoder does not need.
            self.trainee.patch_scale.data.fill_(about.get("patch_scale", PATCH_SCALE))
            return
        try:
            self.trainee.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
        except Exception as exc:
            raise ExportError(f"{path} is not a checkpoint to start from: {exc}") from exc

    def _load(self) -> None:
        path = self.folder / CHECKPOINT
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.trainee.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
        except Exception as exc:
            raise ExportError(f"{path} is not a checkpoint of this training ({exc}); name another --out") from exc

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint aside, then rename it."""
        part = self.folder / (name + ".part")
        torch.save(
            {
                "model": self.trainee.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
                "seconds": self.seconds,
            },
            part,
        )
        part.replace(self.folder / name)

    def run(self, *, workers: int, log_every: int, save_every: int, threads: int | None) -> bool:
        """Train to the end of the schedule; False if a signal stopped it, with everything saved."""
        if threads:
            torch.set_num_threads(threads)
        self.folder.mkdir(parents=True, exist_ok=True)
        stop = _Stop()
        sums: dict[str, float] = {}
        count = 0
        began = time.monotonic()
        with tqdm(total=self.settings.steps, initial=self.step, unit="step", disable=None, file=sys.stderr) as bar:
            for windows in self._batches(workers):
                losses = self.train_step(windows)
                count += 1
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value
                bar.update()
                if self.step % log_every == 0 or self.step == self.settings.steps:
                    self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                    self._note({name: value / count for name, value in sums.items()}, windows.pixels.shape)
                    sums, count = {}, 0
                if self.step % save_every == 0 or self.step == self.settings.steps or stop.asked:
                    self.save()
                if self.step == self.settings.fall_begins:
                    self.save(BEFORE_FALL)
                if stop.asked:
                    return False
        return True

    def train_step(self, windows: Windows) -> dict[str, float]:
        """One step of both optimizers; the losses before it."""
        windows = windows.to(self.device)
        rng = np.random.default_rng([self.settings.seed, 1, self.step])
        chosen = [
            tokens[torch.from_numpy(rng.permutation(len(tokens))[:PROMPTS_A_STEP])] for tokens in self.trainee.prompts
        ]
        rate = self.settings.learning_rate * self.settings.rate_at(self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        losses = self.trainee.losses(windows, chosen)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise ExportError(f"the loss is not finite at step {self.step}; lower the learning rate and start again")
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trainee.parameters(), 5.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()}

    def _batches(self, workers: int) -> Iterator[Windows]:
        while self.step < self.settings.steps:
            phase, left = self.settings.phase_at(self.step)
            stream = WindowStream(
                seed=self.settings.seed,
                first=self.step,
                batch=phase.batch,
                patches=phase.patches,
                per_frame=self.settings.per_frame if phase.patches < GRID else 1,
            )
            loader = iter(window_loader(stream, workers))
            for _ in range(left):
                yield next(loader)
            del loader

    def _note(self, losses: dict[str, float], shape: torch.Size) -> None:
        """One line of the log, with what the encoder, untaught, makes of layouts that it never sees."""
        line = {
            "step": self.step,
            "hours": round(self.seconds / 3600, 3),
            "window_px": shape[-1],
            **{name: round(value, 4) for name, value in losses.items()},
            **self.judge(),
        }
        with (self.folder / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        tqdm.write(json.dumps(line), file=sys.stderr)

    @torch.no_grad()
    def judge(self, per_class: int = 8) -> dict[str, float]:
        """Whole frames of the held-out layouts, by text alone: accuracy, and AUROC of frames and of patches."""
        frames, labels, parts = held_out_frames(per_class)
        text = self.trainee.class_vectors()
        text_seg = torch.stack([text[0], unit(text[1:].mean(0))])
        right = 0
        scores = {name: ScoreHistogram() for name in ("frame_auroc", "patch_auroc", "value_auroc")}
        for i in range(0, len(frames), 14):
            batch = slice(i, i + 14)
            corner = torch.zeros((len(frames[batch]), 2), dtype=torch.int64)
            windows = Windows(frames[batch], parts[batch], labels[batch], corner).to(self.device)
            levels = self.trainee.encode(windows)
            right += int((cosines(levels.cls[-1], text).argmax(-1) == windows.label).sum())
            patch = 20 * cosines(self.trainee.project(levels.tokens[-1][:, 1:]), text)
            value = 20 * cosines(levels.value[-1], text_seg)
            defect = parts[batch] > FULL_PATCH / 2
            scores["frame_auroc"].add(torch.sigmoid(frame_logit(patch)).cpu().numpy(), (labels[batch] > 0).numpy())
            scores["patch_auroc"].add(
                torch.softmax(patch, -1)[..., 1:].sum(-1).clamp(max=1).cpu().numpy(), defect.numpy()
            )
            scores["value_auroc"].add(torch.softmax(value, -1)[..., 1].cpu().numpy(), defect.numpy())
        return {"accuracy": right / len(frames), **{name: round(h.auroc(), 4) for name, h in scores.items()}}


class _Stop:
    """SIGINT and SIGTERM ask for a stop after the step; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def held_out_frames(per_class: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whole frames of layouts that are never trained on: pixels [n, 240, 240], labels [n], defect parts [n, P]."""
    frames = [
        make_frame(name, 10_000 + i, layout=layouts[i % len(layouts)])
        for i in range(per_class)
        for name in CLASSES
        if (layouts := [x for x in suitable_layouts(name) if x in HELD_OUT_LAYOUTS])
    ]
    pixels = torch.from_numpy(np.stack([frame.image for frame in frames]).astype(np.float32))
    masks = np.stack([frame.mask > 0 for frame in frames]).reshape(-1, GRID, PATCH, GRID, PATCH)
    parts = torch.from_numpy(masks.mean((2, 4)).reshape(len(frames), -1).astype(np.float32))
    return pixels, torch.tensor([CLASSES.index(frame.label) for frame in frames]), parts


def weights_file(training: Pretraining) -> bytes:
    """The CLIP in fp16, as safetensors; what it was trained with stands in the metadata."""
    state = {
        key: value.half().contiguous().cpu()
        for key, value in training.trainee.clip.state_dict().items()
        if key not in ("attn_mask",)
    }
    about = {
        "architecture": "sem_tiny",
        "settings": asdict(training.settings),
        "steps": training.step,
        "hours": round(training.seconds / 3600, 2),
        "patch_scale": float(training.trainee.patch_scale.detach()),
        "held_out_layouts": list(HELD_OUT_LAYOUTS),
        "tools": tool_versions(),
    }
    return bytes(serialize(state, metadata={"sem_clip": json.dumps(about)}))


def parse_phases(text: str) -> tuple[Phase, ...]:
    """Read "6:96:1500,15:16:400": patches, batch and steps of every phase. Raises ExportError."""
    try:
        phases = tuple(Phase(*(int(n) for n in part.split(":"))) for part in text.split(","))
    except (ValueError, TypeError):
        raise ExportError(f'"{text}" is not a schedule; write PATCHES:BATCH:STEPS,... such as {SCHEDULE}') from None
    for phase in phases:
        if not (2 <= phase.patches <= GRID and phase.batch >= 1 and phase.steps >= 1):
            raise ExportError(f"phase {phase} cannot be: patches 2 to {GRID}, batch and steps 1 or more")
    return phases


SCHEDULE = "6:96:1800,9:48:700,15:18:500"


class Pretrain:
    """The command."""

    help = "Train the embedded encoder on generated frames; goes on where it was interrupted."
    example = "python -m export.pretrain --out runs/sem_tiny"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and weights")
        parser.add_argument(
            "--schedule", default=SCHEDULE, help=f"PATCHES:BATCH:STEPS of every phase (default: {SCHEDULE})"
        )
        parser.add_argument(
            "--start",
            type=Path,
            metavar="FILE",
            help="begin with the model of this checkpoint, such as before_fall.pt, or of these weights (.safetensors)",
        )
        parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
        parser.add_argument(
            "--bf16",
            action="store_true",
            help="matrix products in bfloat16: for GPUs, and CPUs with AVX512-BF16 or AMX",
        )
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--learning-rate", type=float, default=1.5e-3)
        parser.add_argument(
            "--decay", type=float, default=0.3, help="part of all steps with falling rate (default: 0.3)"
        )
        parser.add_argument("--workers", type=int, default=1, help="processes that make frames (default: 1)")
        parser.add_argument("--threads", type=int, help="CPU threads of the trainer (default: all)")
        parser.add_argument("--log-every", type=int, default=50, metavar="STEPS")
        parser.add_argument("--save-every", type=int, default=50, metavar="STEPS")

    def run(self, args: argparse.Namespace) -> int:
        """Train, then write the weights."""
        settings = PretrainSettings(
            parse_phases(args.schedule),
            seed=args.seed,
            learning_rate=args.learning_rate,
            decay=args.decay,
            bf16=args.bf16,
        )
        if args.device.startswith("cuda") and not torch.cuda.is_available():
            raise ExportError(f"--device {args.device}: this torch sees no GPU; leave it out to train on the CPU")
        training = Pretraining(settings, args.out, start=args.start, device=args.device)
        done = training.run(
            workers=args.workers, log_every=args.log_every, save_every=args.save_every, threads=args.threads
        )
        if not done:
            print(f"stopped at step {training.step} of {settings.steps}; the same command goes on")
            return 1
        write_atomically(args.out / WEIGHTS, weights_file(training))
        print(f"weights   {args.out / WEIGHTS}, {(args.out / WEIGHTS).stat().st_size / 1e6:.1f} MB")
        print(f"log       {args.out / LOG}")
        return 0


if __name__ == "__main__":
    command = Pretrain()
    parser = describe(argparse.ArgumentParser(), command)
    command.add_arguments(parser)
    sys.exit(run(command, parser.parse_args()))
