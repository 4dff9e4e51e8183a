"""Train the embedded encoder `sem_tiny` from scratch, on generated SEM frames.

    python -m export.pretrain --out runs/sem_tiny        the same command again resumes an interrupted training

The losses are in `trainee.py`. Muon trains the matrices of the blocks, AdamW everything else. The learning rate is
constant until the last part of the schedule and then falls to zero; before that, the schedule can be extended.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from tqdm import tqdm

from calibration.histogram import ScoreHistogram

from ..errors import ExportError
from ..model.checkpoint import TRAINED_TOKENS, load_model
from ..model.heads import cosines, unit
from ..model.stem import stem_of
from ..synthetic import CLASSES, make_frame, suitable_layouts
from ..teaching.prompts import load_prompts
from ..versions import tool_versions
from .muon import Muon
from .replay import Kept, Replay, joined
from .schedule import Phase, PretrainSettings
from .trainee import FULL_PATCH, Trainee, frame_logit, frame_logits, initialize
from .windows import GRID, HELD_OUT_LAYOUTS, PATCH, Windows, WindowStream, window_loader

CHECKPOINT, BEFORE_FALL, LOG, WEIGHTS = "checkpoint.pt", "before_fall.pt", "log.jsonl", "sem_tiny.safetensors"
PROMPTS_A_STEP = 4
VALUE_EVERY = 2
"""The V path is trained in one of this many steps."""
PATCH_SCALE = math.log(20.0)
"""First logit scale of the patches in a training that starts from weights without it."""


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
        """Begin with the model of another training: its checkpoint or its weights. The optimizers start anew.

        Raises ExportError.
        """
        if path.suffix == ".safetensors":
            self.trainee.clip.load_state_dict(load_model(self.model.architecture, weights=path).clip.state_dict())
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("sem_clip", "{}"))
            # The only trained parameter that the encoder itself does not need.
            self.trainee.patch_scale.data.fill_(about.get("patch_scale", PATCH_SCALE))
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["model"]
            # The stem has its auxiliary head only if it learns, there or here.
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
        """Write a checkpoint to a temporary name, then rename it."""
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
        """The losses of new windows and of replayed hard ones; the hardest of both are kept."""
        count = len(windows.label)
        batch = Kept(windows, torch.zeros(count), torch.zeros(count, dtype=torch.int64))
        if self.settings.replay:
            again = self.replay.draw(self.settings.phase_at(self.step)[0].batch - count, windows, rng)
            batch = batch if again is None else joined(batch, again)
        # The V path learns long before the rest, and it takes a sixth of the time.
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
        """Write one line of the log, with the untaught encoder's figures on held-out layouts."""
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
    """The cause in a few words: torch's long message would advise to trust the file."""
    return str(error.strerror) if isinstance(error, OSError) else f"it cannot be read as one, {type(error).__name__}"


class _Stop:
    """SIGINT and SIGTERM request a stop after the step; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def held_out_frames(per_class: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whole frames of layouts that are never trained on: pixels [n, 240, 240], labels [n], defect fractions [n, P]."""
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
    """The CLIP in fp16, as safetensors, with the settings of the training in the metadata.

    Of the token embeddings only those of prompts are trained, and written.

    before: the CLIP at the start of the training. keep: its fraction, in [0, 1), of the mean that is written.
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
