"""Pretraining, its trainee, optimizer and frames: what is trained on, that it learns, and that it goes on."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from export.errors import ExportError
from export.model.checkpoint import TRAINED_TOKENS, load_model
from export.pretrain import windows as pretrain_frames
from export.pretrain.muon import Muon
from export.pretrain.trainee import _balanced, frame_logits, image_text_loss, plain_attention
from export.pretrain.training import (
    CHECKPOINT,
    LOG,
    VALUE_EVERY,
    Phase,
    Pretrain,
    Pretraining,
    PretrainSettings,
    held_out_frames,
    parse_phases,
    weights_file,
)
from export.pretrain.windows import (
    GRID,
    HELD_OUT_LAYOUTS,
    LARGEST_SIDE,
    MAX_TILT,
    MIN_REDUCED_PX,
    PATCH,
    SIDE,
    Windows,
    WindowStream,
    window_loader,
)
from export.synthetic import CLASSES, LAYOUTS


def settings(steps: int = 4, **changes: object) -> PretrainSettings:
    return PretrainSettings((Phase(3, 7, steps),), **{"warm_up": 2, "per_frame": 1, **changes})  # type: ignore[arg-type]


# ---- frames ----------------------------------------------------------------------------------------------------------


def stream(patches: int = 4, batch: int = 14, first: int = 0) -> WindowStream:
    return WindowStream(seed=5, first=first, batch=batch, patches=patches, per_frame=2)


@pytest.mark.parametrize("patches", [4, GRID])
def test_windows_are_whole_patches_with_their_truth(patches: int) -> None:
    windows = stream(patches).make(0)
    assert windows.pixels.shape == (14, patches * PATCH, patches * PATCH)
    assert windows.pixels.dtype == torch.float32
    assert float(windows.pixels.min()) >= 0
    assert float(windows.pixels.max()) <= 255
    assert windows.fraction.shape == (14, patches**2)
    assert bool(((windows.corner >= 0) & (windows.corner + patches <= GRID)).all())
    defect = windows.label > 0
    assert bool((windows.fraction[defect].amax(1) > 0).all()), "a window named after a defect shows some of it"
    assert not windows.fraction[~defect].any(), "a window without a defect is good"
    assert len(windows.label.unique()) >= 5


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    third = stream().make(2)
    again = stream(first=2).make(2)
    assert torch.equal(third.pixels, again.pixels)
    assert torch.equal(third.label, again.label)
    assert not torch.equal(third.pixels, stream().make(1).pixels)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_hands_batches_out_in_order(workers: int) -> None:
    loader = iter(window_loader(stream(first=3), workers))
    for number in (3, 4):
        assert torch.equal(next(loader).pixels, stream().make(number).pixels)


def test_frames_come_in_many_sizes_and_some_under_tilt(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    make_frame = WindowStream.make.__globals__["make_frame"]

    def spy(label: str, seed: int, **options: object) -> object:
        sizes.append(options["size"])  # type: ignore[arg-type]
        return make_frame(label, seed, **options)

    monkeypatch.setitem(WindowStream.make.__globals__, "make_frame", spy)
    windows = stream(GRID, batch=84).make(0)
    widths = [width for _, width in sizes]
    assert min(widths) >= SIDE
    assert max(widths) <= LARGEST_SIDE
    assert len(set(widths)) > 10
    tilted = [height / width for height, width in sizes if height > width]
    assert 0 < len(tilted) < len(sizes) / 2
    assert max(tilted) <= MAX_TILT + 0.01
    assert windows.pixels.shape[1:] == (SIDE, SIDE)
    pixels = windows.fraction[windows.label > 0].sum(1) * PATCH**2
    assert float(pixels.min()) >= MIN_REDUCED_PX - 1e-3, (
        "however much a frame is reduced, its defect is still to be seen"
    )


def test_words_over_a_frame_are_no_defect_and_hide_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}
    for share in (0.0, 1.0):
        monkeypatch.setattr(pretrain_frames, "ANNOTATED_SHARE", share)
        made[share] = [
            pretrain_frames._reduced_frame(
                label, pretrain_frames._Shot(70 + i, "rough", (SIDE, SIDE), False), np.random.default_rng(i)
            )
            for i, label in enumerate(["good", "particle", "scratch", "hole"] * 4)
        ]
    written = 0
    for (plain, truth, _), (image, left, _) in zip(made[0.0], made[1.0], strict=True):
        assert image.dtype == np.uint8
        assert (left <= truth).all()
        assert left.sum() >= 0.7 * truth.sum()
        changed = image != plain
        written += bool(changed.any())
        assert not changed[left == 1].any(), "what counts as the defect can be seen"
    assert written >= 12


@pytest.mark.parametrize("patches", [6, GRID])
def test_good_frames_are_those_before_them_without_the_defect(patches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TWIN_SHARE", 1.0), ("ANNOTATED_SHARE", 0.0)):
        monkeypatch.setattr(pretrain_frames, name, value)
    monkeypatch.setattr(pretrain_frames, "_vary", lambda image, rng: image.astype(np.float32))
    asked: list[tuple[str, tuple[object, ...]]] = []
    make_frame = WindowStream.make.__globals__["make_frame"]

    def spy(label: str, seed: int, **options: object) -> object:
        asked.append((label, (seed, *options.values())))
        return make_frame(label, seed, **options)

    monkeypatch.setitem(WindowStream.make.__globals__, "make_frame", spy)
    windows = WindowStream(seed=5, first=0, batch=21, patches=patches, per_frame=1).make(0)
    good = [i for i, (label, _) in enumerate(asked) if label == "good"]
    assert len(good) == 3
    twins = [i for i in good if i > 0]
    assert len(twins) >= 2
    for i in twins:
        assert asked[i][1] == asked[i - 1][1], "the last that was made for the class before, all but the class"
    row = int((windows.label == 0).nonzero()[-1])
    assert windows.fraction[row].sum() == 0
    if patches == GRID:  # turned and mirrored each in its own way
        before, after = windows.pixels[row - 1], windows.pixels[row]
        turned = [torch.rot90(x, k) for x in (after, after.flip(1)) for k in range(4)]
        changed = min(float((x != before).float().mean()) for x in turned)
        assert 0 < changed < 0.5


def test_large_defects_are_trained_on_less_than_small_ones() -> None:
    rng = np.random.default_rng(0)

    def kept(area: float) -> float:
        return float(np.mean([pretrain_frames._is_kept(area, rng) for _ in range(2000)]))

    assert kept(MIN_REDUCED_PX - 0.1) == 0
    assert kept(MIN_REDUCED_PX) == kept(80.0) == 1
    assert kept(160.0) == pytest.approx(0.5**0.5, abs=0.05)
    assert kept(20_000.0) == pytest.approx(0.5, abs=0.05)


def test_held_out_layouts_are_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    make_frame = WindowStream.make.__globals__["make_frame"]

    def spy(label: str, seed: int, **options: object) -> object:
        seen.add(str(options["layout"]))
        return make_frame(label, seed, **options)

    monkeypatch.setitem(WindowStream.make.__globals__, "make_frame", spy)
    for number in range(3):
        stream(batch=28).make(number)
    assert seen
    assert seen <= set(LAYOUTS) - set(HELD_OUT_LAYOUTS)
    _, labels, _ = held_out_frames(2)
    assert labels.bincount().tolist() == [2] * len(CLASSES)


# ---- training --------------------------------------------------------------------------------------------------------


def test_muon_takes_orthogonal_steps_of_adam_s_size() -> None:
    parameter = torch.nn.Parameter(torch.zeros(6, 10))
    parameter.grad = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    Muon([parameter], lr=1.0, weight_decay=0.0).step()
    singular = torch.linalg.svdvals(parameter.detach()) / (0.2 * math.sqrt(10))
    assert bool(((singular > 0.6) & (singular < 1.3)).all())
    assert float((parameter.detach() * parameter.grad).sum()) < 0, "downhill"


def test_image_text_loss_is_least_where_images_meet_their_class() -> None:
    text = torch.eye(3)[:, None].repeat(1, 2, 1)
    labels = torch.tensor([0, 1, 2, 2])
    scale = torch.tensor(20.0)
    right = image_text_loss(torch.eye(3)[labels], text, labels, scale)
    wrong = image_text_loss(torch.eye(3)[(labels + 1) % 3], text, labels, scale)
    # A prompt's share over its right images is what remains: log 2 for the class with two of them, nothing else.
    assert float(right) == pytest.approx(math.log(2) / 3 / 2, abs=1e-3)
    assert float(wrong) > float(right) + 5


def test_rate_warms_up_stays_and_falls_to_zero() -> None:
    plan = PretrainSettings((Phase(3, 7, 60), Phase(4, 7, 40)), warm_up=10, decay=0.3)
    assert (plan.steps, plan.fall_begins) == (100, 70)
    assert plan.rate_at(0) == pytest.approx(0.1)
    assert plan.rate_at(30) == plan.rate_at(70) == 1
    assert plan.rate_at(99) == pytest.approx(1 / 30)
    assert plan.phase_at(59) == (Phase(3, 7, 60), 1)
    assert plan.phase_at(60) == (Phase(4, 7, 40), 40)


def test_training_learns_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = Pretraining(settings(), tmp_path / "whole", arch="sem_tiny")
    assert whole.run(workers=0, log_every=2, save_every=100, threads=None)
    lines = [json.loads(line) for line in (tmp_path / "whole" / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[1]["patch_text"] < lines[0]["patch_text"]
    assert {"accuracy", "patch_auroc", "value_auroc", "hours"} <= lines[1].keys()

    part = Pretraining(settings(), tmp_path / "part", arch="sem_tiny")
    batches = part._batches(0)
    for _ in range(3):
        part.train_step(next(batches)[1])
    part.folder.mkdir()
    part.save()
    resumed = Pretraining(settings(), tmp_path / "part", arch="sem_tiny")
    assert resumed.step == 3
    resumed.train_step(next(resumed._batches(0))[1])
    for (name, a), b in zip(whole.trainee.state_dict().items(), resumed.trainee.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)

    (tmp_path / "sem_tiny.safetensors").write_bytes(weights_file(whole))
    assert (tmp_path / "sem_tiny.safetensors").stat().st_size < 20e6
    model = load_model("sem_tiny", weights=tmp_path / "sem_tiny.safetensors")
    assert model.has_text
    assert model.trained
    own = whole.trainee.clip.state_dict()["visual.proj"]
    torch.testing.assert_close(model.clip.state_dict()["visual.proj"], own, atol=2e-3, rtol=2e-3)
    with safe_open(tmp_path / "sem_tiny.safetensors", "np") as file:
        about = json.loads(file.metadata()["sem_clip"])
    assert (about["steps"], about["held_out_layouts"]) == (4, list(HELD_OUT_LAYOUTS))


def test_hard_windows_fill_the_batch_and_come_again_after_a_stop(tmp_path: Path) -> None:
    plan = settings(5, replay=0.5)
    whole = Pretraining(plan, tmp_path / "whole")
    kept = []
    for _, windows in itertools.islice(whole._batches(0), 5):
        assert len(windows.label) == 4, "half of the batch of seven, rounded up"
        whole.train_step(windows)
        kept.append(len(whole.replay))
    assert kept[:3] == [4, 8, 12], "until there are three times as many as are wanted"
    assert kept[3] == 16
    assert whole.replay.kept is not None
    assert int(whole.replay.kept.looks.max()) >= 2
    part = Pretraining(plan, tmp_path / "part")
    for _, windows in itertools.islice(part._batches(0), 4):
        part.train_step(windows)
    part.folder.mkdir()
    part.save()
    resumed = Pretraining(plan, tmp_path / "part")
    resumed.train_step(next(resumed._batches(0))[1])
    torch.testing.assert_close(resumed.trainee.clip.visual.proj, whole.trainee.clip.visual.proj, atol=1e-5, rtol=1e-4)


def test_the_v_path_has_its_turn_and_a_stem_can_be_left_as_it_is(tmp_path: Path) -> None:
    training = Pretraining(settings(stem_learns=False), tmp_path)
    stem = {key: value.clone() for key, value in training.trainee.clip.state_dict().items() if ".stem." in key}
    windows = stream(3).make(0)
    losses = [training.train_step(windows) for _ in range(VALUE_EVERY + 1)]
    assert ["value_text" in loss for loss in losses] == [True, *[False] * (VALUE_EVERY - 1), True]
    assert not any(name.startswith("stem") for loss in losses for name in loss)
    assert "stem_accuracy" not in training.judge(1)
    state = training.trainee.clip.state_dict()
    assert all(torch.equal(state[key], value) for key, value in stem.items())
    training.folder.mkdir(exist_ok=True)
    training.save()
    training.folder.joinpath(CHECKPOINT).rename(tmp_path / "start.pt")
    learning = Pretraining(settings(), tmp_path / "next", start=tmp_path / "start.pt")
    assert learning.trainee.stem_head is not None, "its throw-away head begins anew"
    with pytest.raises(ExportError, match="no phases of its own"):
        Pretraining(PretrainSettings((Phase(3, 7, 1, stem=True),), stem_learns=False), tmp_path / "other")


def test_a_stop_between_two_lines_of_the_log_keeps_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped_after_the_first(training: Pretraining, windows: object, *, stem_alone: bool) -> dict[str, float]:
        time.sleep(0.01)
        training.step += 1
        signal.raise_signal(signal.SIGTERM)
        return {}

    monkeypatch.setattr(Pretraining, "train_step", stopped_after_the_first)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        assert not Pretraining(settings(), tmp_path).run(workers=0, log_every=100, save_every=100, threads=None)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    resumed = Pretraining(settings(), tmp_path)
    assert resumed.step == 1
    assert resumed.seconds >= 0.01


def test_a_training_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    first = Pretraining(settings(), tmp_path / "first")
    first.trainee.patch_scale.data.fill_(2.5)
    file = tmp_path / "sem_tiny.safetensors"
    file.write_bytes(weights_file(first))
    second = Pretraining(settings(), tmp_path / "second", start=file)
    assert second.step == 0
    assert second.trainee.patch_scale.item() == 2.5
    for (name, a), b in zip(first.trainee.state_dict().items(), second.trainee.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3, msg=name)
    with pytest.raises(ExportError, match="not a checkpoint to start from: No such file"):
        Pretraining(settings(), tmp_path / "third", start=tmp_path / "missing.pt")
    other = tmp_path / "notes.pt"
    other.write_text("no checkpoint")
    with pytest.raises(ExportError, match=r"it cannot be read as one, UnpicklingError$"):  # no advice to trust the file
        Pretraining(settings(), tmp_path / "third", start=other)


def test_the_mean_of_the_weights_before_and_after_can_be_written(tmp_path: Path) -> None:
    begun, ended = Pretraining(settings(), tmp_path / "begun"), Pretraining(settings(seed=1), tmp_path / "ended")
    before, after = (x.trainee.clip.state_dict() for x in (begun, ended))
    (tmp_path / "mean.safetensors").write_bytes(weights_file(ended, before=before, keep=0.25))
    with safe_open(tmp_path / "mean.safetensors", "pt") as file:
        assert json.loads(file.metadata()["sem_clip"])["kept"] == 0.25
        for name in ("visual.positional_embedding", "visual.conv1.stem.join.weight", "token_embedding.weight"):
            expected = 0.25 * before[name] + 0.75 * after[name]
            if name == "token_embedding.weight":
                expected = expected[file.get_tensor(TRAINED_TOKENS)]
            torch.testing.assert_close(file.get_tensor(name).float(), expected, atol=1e-3, rtol=1e-3)
    assert not torch.equal(before["token_embedding.weight"], after["token_embedding.weight"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--keep", "1"], "0 to below 1"),
        (["--leave-stem"], "name them: --start FILE"),
        (["--replay", "0.8"], r"0 to 0\.75, the rest of a batch is new"),
        (["--keep", "0.5"], r"name them: --start FILE\.safetensors"),
        (["--keep", "0.5", "--start", "checkpoint.pt"], r"name them: --start FILE\.safetensors"),
    ],
)
def test_parts_that_cannot_be(tmp_path: Path, options: list[str], says: str) -> None:
    command = Pretrain()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ExportError, match=says):
        command.run(parser.parse_args(["--out", str(tmp_path / "out"), *options]))
    assert not (tmp_path / "out").exists()


def test_plain_attention_is_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((2, 3, n, 8), generator=generator) for n in (5, 6, 6))  # fewer queries, as in eq. 2
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(plain_attention(q, k, v), expected)


def test_bfloat16_is_near_enough(tmp_path: Path) -> None:
    pixels, labels, parts = (x[:2] for x in held_out_frames(1))
    windows = Windows(pixels, parts, labels, torch.zeros((2, 2), dtype=torch.int64))
    exact, rough = (Pretraining(settings(bf16=bf16), tmp_path).trainee for bf16 in (False, True))
    with torch.no_grad():
        a, b = exact.encode(windows, exact.look(windows)), rough.encode(windows, rough.look(windows))
    for j in range(4):
        tokens = torch.cosine_similarity(a.tokens[j], b.tokens[j].float(), dim=-1)
        value = torch.cosine_similarity(a.value[j], b.value[j].float(), dim=-1)
        assert float(tokens.mean()) > 0.9995
        assert float(tokens.min()) > (0.999 if j < 3 else 0.995)  # single tokens of the last level come to 0.997
        assert float(value.min()) > 0.999


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    command = Pretrain()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ExportError, match="sees no GPU"):
        command.run(parser.parse_args(["--out", str(tmp_path), "--device", "cuda"]))


def test_bfloat16_is_refused_where_it_would_crawl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx2": True})
    command = Pretrain()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ExportError, match=r"no instructions for bfloat16.*leave it out"):
        command.run(parser.parse_args(["--out", str(tmp_path / "out"), "--bf16"]))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}, "optimizers": [], "step": 1, "seconds": 0.0}, tmp_path / CHECKPOINT)
    with pytest.raises(ExportError, match="not a checkpoint of this training"):
        Pretraining(settings(), tmp_path)


@pytest.mark.parametrize(
    "text", ["", "6:96", "6:96:x", "16:8:10", "6:0:10", "1:8:10", "stem:6:96", "stem", "trunk:6:9:1"]
)
def test_schedules_that_cannot_be(text: str) -> None:
    with pytest.raises(ExportError, match=r"schedule|cannot be"):
        parse_phases(text)


def test_the_stem_learns_alone_and_then_with_the_rest(tmp_path: Path) -> None:
    plan = (Phase(GRID, 7, 30, stem=True), Phase(3, 7, 1))
    training = Pretraining(PretrainSettings(plan, warm_up=5, per_frame=1, learning_rate=4e-3, decay=0.05), tmp_path)
    trunk = {key: value.clone() for key, value in training.trainee.clip.state_dict().items() if ".stem." not in key}
    windows = stream(GRID, batch=14).make(0)
    losses = [training.train_step(windows, stem_alone=True) for _ in range(30)]
    assert losses[0].keys() == {"stem_patch", "stem_frame"}
    assert losses[-1]["stem_patch"] < 0.7 * losses[0]["stem_patch"]
    state = training.trainee.clip.state_dict()
    assert all(torch.equal(state[key], value) for key, value in trunk.items()), "the trunk stays"
    assert training.train_step(stream(3).make(0)).keys() > {"image_text", "stem_patch"}
    stem = training.trainee.encoder.stem
    assert stem is not None
    assert bool(stem.join.weight.any()), "the trunk begins to hear it"


def test_a_tower_without_a_stem_has_none_to_teach(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="toy has no stem"):
        Pretraining(PretrainSettings((Phase(3, 7, 1, stem=True),)), tmp_path, arch="toy")


def test_the_schedule_says_which_phase_is_of_the_stem(tmp_path: Path) -> None:
    assert parse_phases("stem:15:32:10,6:96:20") == (Phase(15, 32, 10, stem=True), Phase(6, 96, 20))


def test_a_small_defect_counts_as_much_as_a_large_one() -> None:
    part = torch.zeros((3, 10))
    part[0, 0], part[1, 2:8] = 0.2, 1.0
    loss = torch.zeros((3, 10))
    loss[0, 0] = 1.0
    small = _balanced(loss, part)
    torch.testing.assert_close(small, torch.tensor(0.35 / 2 + 0.65 * 0.8 / float((1 - part).sum())))
    torch.testing.assert_close(_balanced(part[:1] * 0 + 1.0, torch.zeros(1, 10)), torch.tensor(0.65))


def test_frames_are_named_by_their_most_unusual_patches() -> None:
    patch = torch.zeros((2, 225, 3))
    patch[0, 7:12, 2] = 6.0  # 2 % of the patches
    patch[1, :, 0] = 1.0
    torch.testing.assert_close(frame_logits(patch)[0], torch.tensor([0.0, 0.0, 6.0]))
    torch.testing.assert_close(frame_logits(patch)[1], torch.tensor([0.0, -1.0, -1.0]))


def test_a_whole_frame_gives_the_levels_of_the_encoder_that_ships(tmp_path: Path) -> None:
    training = Pretraining(settings(), tmp_path)
    stem = training.trainee.encoder.stem
    assert stem is not None
    stem.join.weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    windows = stream(GRID, batch=2).make(0)
    with torch.no_grad():
        levels = training.trainee.encode(windows, training.trainee.look(windows))
        expected = training.model.encoder()(windows.pixels)
    for j in range(4):
        torch.testing.assert_close(levels.tokens[j], expected.tokens[j], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(levels.value[j], expected.value[j], atol=1e-4, rtol=1e-4)


FAILING = """
import sys
from export import pretrain
from export.pretrain_frames import WindowStream


class Failing(WindowStream):
    def make(self, number):
        raise RuntimeError("no frame fits")


if __name__ == "__main__":
    pretrain.WindowStream = Failing
    command, parser = pretrain.Pretrain(), pretrain.argparse.ArgumentParser()
    command.add_arguments(parser)
    sys.exit(pretrain.run(command, parser.parse_args(sys.argv[1:])))
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_frames_that_cannot_be_made_end_the_training_and_its_workers(workers: int, tmp_path: Path) -> None:
    """A worker that outlives its trainer would keep the program from ending."""
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    words = [sys.executable, str(script), "--out", str(tmp_path / "out"), "--schedule", "2:3:4", "--threads", "1"]
    done = subprocess.run([*words, "--workers", str(workers)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "error: frames cannot be made: " in done.stderr
    assert "no frame fits" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--learning-rate", "-1"], "--learning-rate -1 --decay 0.3 cannot be"),
        (["--decay", "5"], "--decay 5 cannot be"),
        (["--device", "foo"], "--device foo is not known"),
        (["--schedule", "6:4:10"], "the batch is a multiple of that"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, options: list[str], says: str) -> None:
    command, parser = Pretrain(), argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ExportError, match=says):
        command.run(parser.parse_args(["--out", str(tmp_path / "out"), *options]))
    assert not (tmp_path / "out").exists()
