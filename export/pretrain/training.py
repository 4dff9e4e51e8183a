"""Train the embedded encoder `sem_tiny` from nothing, on generated SEM frames.

    python -m export.pretrain --out runs/sem_tiny        the same command again goes on where it was interrupted

What is asked of the model stands in `trainee.py`. The matrices of the blocks are trained by Muon, everything else by
AdamW. The learning rate is constant until the last part of the schedule and then falls to zero; a training that has not
begun to fall can still be made longer.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from tqdm import tqdm

from calibration.histogram import ScoreHistogram
from runtime.files import write_atomically
from runtime.options import at_least

from ..errors import ExportError
from ..model.checkpoint import TRAINED_TOKENS, load_model
from ..model.heads import cosines, unit
from ..model.stem import stem_of
from ..synthetic import CLASSES, make_frame, suitable_layouts
from ..teaching.prompts import load_prompts
from ..versions import tool_versions
from .muon import Muon
from .replay import Kept, Replay, joined
from .trainee import FULL_PATCH, Trainee, frame_logit, frame_logits, initialize
from .windows import GRID, HELD_OUT_LAYOUTS, PATCH, Windows, WindowStream, window_loader

CHECKPOINT, BEFORE_FALL, LOG, WEIGHTS = "checkpoint.pt", "before_fall.pt", "log.jsonl", "sem_tiny.safetensors"
PROMPTS_A_STEP = 4
MOST_REPLAY = 0.75
VALUE_EVERY = 2
"""The V path is looked at in every step of this number."""
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Any of these, as torch names them; without them it computes bfloat16 in a slow reference implementation."""
PATCH_SCALE = math.log(20.0)
"""Where the patches' logit scale begins in a training that goes on from weights, which do not tell it."""


PER_FRAME = 3
"""Windows that are cut from a frame."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps on windows of patches x patches, `batch` of them a step. stem: it learns alone, at a sixth of the cost."""

    patches: int
    batch: int
    steps: int
    stem: bool = False


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """How to train. decay: the last part of all steps, over which the learning rate falls to zero.

    bf16: the blocks' matrix products in bfloat16, for GPUs and for CPUs with AVX512-BF16 or AMX. replay: the part of
    every batch that was seen before and was hard. stem_learns: False leaves the stem as it is, at a fifth less time.
    """

    phases: tuple[Phase, ...]
    seed: int = 0
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warm_up: int = 100
    decay: float = 0.3
    per_frame: int = PER_FRAME
    bf16: bool = False
    replay: float = 0.0
    stem_learns: bool = True

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
        if stem_of(self.model.clip.visual.conv1) is None and any(phase.stem for phase in settings.phases):
            raise ExportError(f"{arch} has no stem; leave the phases of the stem out of the schedule")
        if not settings.stem_learns and any(phase.stem for phase in settings.phases):
            raise ExportError("a stem that stays as it is has no phases of its own; leave them out of the schedule")
        initialize(self.model, settings.seed)
        self.trainee = Trainee(self.model, load_prompts(), bf16=settings.bf16, stem_learns=settings.stem_learns).to(
            self.device
        )
        matrices = [
            p for name, p in self.trainee.clip.visual.transformer.named_parameters() if p.ndim == 2 and "weight" in name
        ]
        stem = self.trainee.encoder.stem
        if stem is not None and settings.stem_learns:
            matrices += [p for p in [*stem.blocks.parameters(), *stem.halvings[1:].parameters()] if p.ndim == 4]
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
        self.replay = Replay()
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
            state = torch.load(path, map_location="cpu", weights_only=True)["model"]
            # The stem has its throw-away head only where it learns, there or here.
            head = {key: value for key, value in self.trainee.state_dict().items() if key.startswith("stem_head.")}
            fits = {key: value for key, value in state.items() if key in head or not key.startswith("stem_head.")}
            self.trainee.load_state_dict({**head, **fits})
        except Exception as exc:
            raise ExportError(f"{path} is not a checkpoint to start from: {_why(exc)}") from exc

    def _load(self) -> None:
        path = self.folder / CHECKPOINT
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.trainee.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.replay.load_state(state["replay"])
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
        except Exception as exc:
            raise ExportError(f"{path} is not a checkpoint of this training ({_why(exc)}); name another --out") from exc

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint aside, then rename it."""
        part = self.folder / (name + ".part")
        torch.save(
            {
                "model": self.trainee.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "replay": self.replay.state(),
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
        sums: dict[str, list[float]] = {}
        began = time.monotonic()
        with tqdm(total=self.settings.steps, initial=self.step, unit="step", disable=None, file=sys.stderr) as bar:
            for phase, windows in self._batches(workers):
                losses = self.train_step(windows, stem_alone=phase.stem)
                for name, value in losses.items():
                    sums.setdefault(name, []).append(value)
                bar.update()
                self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                if self.step % log_every == 0 or self.step == self.settings.steps:
                    self._note({name: fmean(values) for name, values in sums.items()}, windows.pixels.shape)
                    sums = {}
                if self.step % save_every == 0 or self.step == self.settings.steps or stop.asked:
                    self.save()
                if self.step == self.settings.fall_begins:
                    self.save(BEFORE_FALL)
                if stop.asked:
                    return False
        return True

    def train_step(self, windows: Windows, *, stem_alone: bool = False) -> dict[str, float]:
        """One step of both optimizers; the losses before it."""
        rng = np.random.default_rng([self.settings.seed, 1, self.step])
        chosen = [
            tokens[torch.from_numpy(rng.permutation(len(tokens))[:PROMPTS_A_STEP])] for tokens in self.trainee.prompts
        ]
        rate = self.settings.learning_rate * self.settings.rate_at(self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        if stem_alone:
            losses = self.trainee.stem_losses(windows.to(self.device))
        else:
            losses = self._losses_with_replay(windows, chosen, rng)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise ExportError(f"the loss is not finite at step {self.step}; lower the learning rate and start again")
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trainee.parameters(), 5.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()}

    def _losses_with_replay(
        self, windows: Windows, chosen: Sequence[Tensor], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """The losses of new windows and of hard ones seen before; the hardest of both are kept."""
        count = len(windows.label)
        batch = Kept(windows, torch.zeros(count), torch.zeros(count, dtype=torch.int64))
        if self.settings.replay:
            again = self.replay.draw(self.settings.phase_at(self.step)[0].batch - count, windows, rng)
            batch = batch if again is None else joined(batch, again)
        # What the V path has to learn it knows long before the rest, and it takes a sixth of the time.
        value_path = self.step % VALUE_EVERY == 0
        losses, wrong = self.trainee.losses(batch.windows.to(self.device), chosen, value_path=value_path)
        if self.settings.replay:
            self.replay.put(batch.windows, wrong.cpu(), batch.looks)
        return losses

    def _batches(self, workers: int) -> Iterator[tuple[Phase, Windows]]:
        while self.step < self.settings.steps:
            phase, left = self.settings.phase_at(self.step)
            per_frame = self.settings.per_frame if phase.patches < GRID else 1
            new = 1.0 if phase.stem else 1 - self.settings.replay
            stream = WindowStream(
                seed=self.settings.seed,
                first=self.step,
                batch=per_frame * math.ceil(new * phase.batch / per_frame),
                patches=phase.patches,
                per_frame=per_frame,
            )
            loader = iter(window_loader(stream, workers))
            for _ in range(left):
                try:
                    windows = next(loader)
                except Exception as exc:
                    raise ExportError(f"frames cannot be made: {str(exc).strip().splitlines()[-1]}") from exc
                yield phase, windows
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
        right = stem_right = 0
        scores = {name: ScoreHistogram() for name in ("frame_auroc", "patch_auroc", "value_auroc")}
        for i in range(0, len(frames), 14):
            batch = slice(i, i + 14)
            corner = torch.zeros((len(frames[batch]), 2), dtype=torch.int64)
            windows = Windows(frames[batch], parts[batch], labels[batch], corner).to(self.device)
            seen = self.trainee.look(windows)
            levels = self.trainee.encode(windows, seen)
            if self.trainee.stem_head is not None and seen is not None:
                found = frame_logits(self.trainee.stem_logits(seen)).argmax(-1)
                stem_right += int((found == windows.label).sum())
            right += int((cosines(levels.cls[-1], text).argmax(-1) == windows.label).sum())
            patch = 20 * cosines(self.trainee.project(levels.tokens[-1][:, 1:]), text)
            value = 20 * cosines(levels.value[-1], text_seg)
            defect = parts[batch] > FULL_PATCH / 2
            scores["frame_auroc"].add(torch.sigmoid(frame_logit(patch)).cpu().numpy(), (labels[batch] > 0).numpy())
            scores["patch_auroc"].add(
                torch.softmax(patch, -1)[..., 1:].sum(-1).clamp(max=1).cpu().numpy(), defect.numpy()
            )
            scores["value_auroc"].add(torch.softmax(value, -1)[..., 1].cpu().numpy(), defect.numpy())
        stem = {} if self.trainee.stem_head is None else {"stem_accuracy": round(stem_right / len(frames), 4)}
        return {
            "accuracy": round(right / len(frames), 4),
            **stem,
            **{name: round(h.auroc(), 4) for name, h in scores.items()},
        }


def _why(error: Exception) -> str:
    """A missing file is named; torch's own words, a page, advise to trust the file."""
    return str(error.strerror) if isinstance(error, OSError) else f"it cannot be read as one, {type(error).__name__}"


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


def weights_file(training: Pretraining, *, before: Mapping[str, Tensor] | None = None, keep: float = 0.0) -> bytes:
    """The CLIP in fp16, as safetensors; what it was trained with stands in the metadata.

    Of the token embeddings only those that a prompt has are trained, and written.

    before: the CLIP that the training began with; keep: its part in the mean of the two that is written, [0, 1).
    """
    state = {
        key: value.detach().float().cpu()
        for key, value in training.trainee.clip.state_dict().items()
        if key not in ("attn_mask",)
    }
    if before is not None:
        state = {key: torch.lerp(value, before[key].float(), keep) for key, value in state.items()}
    tokens = torch.unique(torch.cat([prompts.flatten() for prompts in training.trainee.prompts]))
    state["token_embedding.weight"] = state["token_embedding.weight"][tokens]
    state = {key: value.half().contiguous() for key, value in state.items()}
    state[TRAINED_TOKENS] = tokens.to(torch.int32)
    about = {
        "architecture": "sem_tiny",
        "settings": asdict(training.settings),
        "kept": keep,
        "steps": training.step,
        "hours": round(training.seconds / 3600, 2),
        "patch_scale": float(training.trainee.patch_scale.detach()),
        "held_out_layouts": list(HELD_OUT_LAYOUTS),
        "tools": tool_versions(),
    }
    return bytes(serialize(state, metadata={"sem_clip": json.dumps(about)}))


def parse_phases(text: str) -> tuple[Phase, ...]:
    """Read "stem:15:32:1000,6:96:1500": patches, batch and steps of every phase. Raises ExportError."""
    try:
        phases = tuple(_phase(part) for part in text.split(","))
    except (ValueError, TypeError):
        raise ExportError(f'"{text}" is not a schedule; write PATCHES:BATCH:STEPS,... such as {SCHEDULE}') from None
    for phase in phases:
        if phase.patches < GRID and phase.batch % PER_FRAME:
            raise ExportError(
                f"phase {phase} cannot be: {PER_FRAME} windows are cut from a frame, so the batch is a multiple of that"
            )
        if not (2 <= phase.patches <= GRID and phase.batch >= 1 and phase.steps >= 1):
            raise ExportError(f"phase {phase} cannot be: patches 2 to {GRID}, batch and steps 1 or more")
    return phases


def _phase(text: str) -> Phase:
    patches, batch, steps = (int(n) for n in text.removeprefix("stem:").split(":"))
    return Phase(patches, batch, steps, stem=text.startswith("stem:"))


SCHEDULE = "6:96:1800,9:48:700,15:18:500"


class Pretrain:
    """The command."""

    help = "Train the embedded encoder on generated frames; goes on where it was interrupted."
    example = "python -m export.pretrain --out runs/sem_tiny"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and weights")
        parser.add_argument(
            "--schedule",
            default=SCHEDULE,
            help="PATCHES:BATCH:STEPS of every phase; stem:PATCHES:BATCH:STEPS where the stem learns alone "
            f"(default: {SCHEDULE})",
        )
        parser.add_argument(
            "--start",
            type=Path,
            metavar="FILE",
            help="begin with the model of this checkpoint, such as before_fall.pt, or of these weights (.safetensors)",
        )
        parser.add_argument(
            "--keep",
            type=float,
            default=0.0,
            metavar="PART",
            help="write the mean of the weights before and after, with this part of those before: often better "
            "than either (Wortsman et al. 2022); needs --start with weights (default: 0)",
        )
        parser.add_argument(
            "--replay",
            type=float,
            default=0.0,
            metavar="PART",
            help="this part of every batch are the windows of late that were hardest, turned anew (default: 0)",
        )
        parser.add_argument(
            "--leave-stem", action="store_true", help="the stem stays as it is, which takes a fifth less time"
        )
        parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
        parser.add_argument(
            "--bf16",
            action="store_true",
            help="matrix products in bfloat16: for GPUs, and CPUs with AVX512-BF16 or AMX",
        )
        parser.add_argument("--seed", type=at_least(0), default=0)
        parser.add_argument("--learning-rate", type=float, default=1.5e-3)
        parser.add_argument(
            "--decay", type=float, default=0.3, help="part of all steps with falling rate (default: 0.3)"
        )
        parser.add_argument("--workers", type=at_least(0), default=1, help="processes that make frames (default: 1)")
        parser.add_argument("--threads", type=at_least(1), help="CPU threads of the trainer (default: all)")
        parser.add_argument("--log-every", type=at_least(1), default=50, metavar="STEPS")
        parser.add_argument("--save-every", type=at_least(1), default=50, metavar="STEPS")

    def run(self, args: argparse.Namespace) -> int:
        """Train, then write the weights."""
        settings = PretrainSettings(
            parse_phases(args.schedule),
            seed=args.seed,
            learning_rate=args.learning_rate,
            decay=args.decay,
            bf16=args.bf16,
            replay=args.replay,
            stem_learns=not args.leave_stem,
        )
        if args.device.startswith("cuda") and not torch.cuda.is_available():
            raise ExportError(f"--device {args.device}: this torch sees no GPU; leave it out to train on the CPU")
        if args.bf16 and args.device == "cpu" and not any(map(torch.cpu.get_capabilities().get, BF16_INSTRUCTIONS)):
            raise ExportError(
                "--bf16: this CPU has no instructions for bfloat16, and would take many times longer; leave it out"
            )
        if not (0 < args.learning_rate < 1 and 0 <= args.decay <= 1):
            raise ExportError(
                f"--learning-rate {args.learning_rate:g} --decay {args.decay:g} cannot be: the rate lies between 0 and "
                "1, and the decay is a part of all steps, 0 to 1"
            )
        if args.device not in ("cpu", "cuda") and not args.device.startswith("cuda:"):
            raise ExportError(f"--device {args.device} is not known; write cpu or cuda")
        if not 0 <= args.replay <= MOST_REPLAY:
            raise ExportError(f"--replay {args.replay:g} cannot be: 0 to {MOST_REPLAY:g}, the rest of a batch is new")
        if args.leave_stem and args.start is None:
            raise ExportError("--leave-stem needs weights whose stem has learned something; name them: --start FILE")
        if not 0 <= args.keep < 1:
            raise ExportError(f"--keep {args.keep:g} cannot be: 0 to below 1")
        if args.keep and (args.start is None or args.start.suffix != ".safetensors"):
            raise ExportError("--keep needs weights to keep a part of; name them: --start FILE.safetensors")
        before = load_model("sem_tiny", weights=args.start).clip.state_dict() if args.keep else None
        training = Pretraining(settings, args.out, start=args.start, device=args.device)
        done = training.run(
            workers=args.workers, log_every=args.log_every, save_every=args.save_every, threads=args.threads
        )
        if not done:
            print(f"stopped at step {training.step} of {settings.steps}; the same command goes on")
            return 1
        write_atomically(args.out / WEIGHTS, weights_file(training, before=before, keep=args.keep))
        print(f"weights   {args.out / WEIGHTS}, {(args.out / WEIGHTS).stat().st_size / 1e6:.1f} MB")
        print(f"log       {args.out / LOG}")
        return 0
