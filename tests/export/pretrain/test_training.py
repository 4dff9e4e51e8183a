"""export.pretrain: losses, steps, checkpoints and weights of a training."""

from __future__ import annotations

import itertools
import json
import math
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from export.errors import ExportError
from export.model.checkpoint import TRAINED_TOKENS, load_model
from export.pretrain.muon import Muon
from export.pretrain.schedule import Phase, PretrainSettings
from export.pretrain.trainee import _balanced, frame_logits, image_text_loss, stepwise_attention
from export.pretrain.training import CHECKPOINT, LOG, VALUE_EVERY, Pretraining, held_out_frames, weights_file
from export.pretrain.windows import (
    GRID,
    HELD_OUT_LAYOUTS,
    Windows,
    WindowStream,
)

pytestmark = pytest.mark.slow


def settings(steps: int = 4, **changes: object) -> PretrainSettings:
    return PretrainSettings((Phase(3, 7, steps),), **{"warm_up": 2, "per_frame": 1, **changes})  # type: ignore[arg-type]


def stream(patches: int = 4, batch: int = 14, first: int = 0) -> WindowStream:
    return WindowStream(seed=5, first=first, batch=batch, patches=patches, per_frame=2)


def test_muon_takes_orthogonal_steps_of_the_size_of_adam() -> None:
    parameter = torch.nn.Parameter(torch.zeros(6, 10))
    parameter.grad = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    Muon([parameter], lr=1.0, weight_decay=0.0).step()
    singular = torch.linalg.svdvals(parameter.detach()) / (0.2 * math.sqrt(10))
    assert bool(((singular > 0.6) & (singular < 1.3)).all())
    assert float((parameter.detach() * parameter.grad).sum()) < 0, "downhill"


def test_image_text_loss_is_least_if_images_match_their_class() -> None:
    text = torch.eye(3)[:, None].repeat(1, 2, 1)
    labels = torch.tensor([0, 1, 2, 2])
    scale = torch.tensor(20.0)
    right = image_text_loss(torch.eye(3)[labels], text, labels, scale)
    wrong = image_text_loss(torch.eye(3)[(labels + 1) % 3], text, labels, scale)
    # The rest is a prompt's choice among its right images: log 2 for the class with two of them.
    assert float(right) == pytest.approx(math.log(2) / 3 / 2, abs=1e-3)
    assert float(wrong) > float(right) + 5


def test_training_learns_and_resumes_at_its_checkpoint(tmp_path: Path) -> None:
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
    trained = whole.trainee.clip.state_dict()["visual.proj"]
    torch.testing.assert_close(model.clip.state_dict()["visual.proj"], trained, atol=2e-3, rtol=2e-3)
    with safe_open(tmp_path / "sem_tiny.safetensors", "np") as file:
        about = json.loads(file.metadata()["sem_clip"])
    assert (about["steps"], about["held_out_layouts"]) == (4, list(HELD_OUT_LAYOUTS))


def test_hard_windows_fill_the_batch_also_after_a_restart(tmp_path: Path) -> None:
    plan = settings(5, replay=0.5)
    whole = Pretraining(plan, tmp_path / "whole")
    kept = []
    for _, windows in itertools.islice(whole._batches(0), 5):
        assert len(windows.label) == 4, "half of the batch of seven, rounded up"
        whole.train_step(windows)
        kept.append(len(whole.replay))
    assert kept[:3] == [4, 8, 12], "none are drawn until there are three times as many"
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


def test_v_path_is_trained_at_intervals_and_a_frozen_stem_stays(tmp_path: Path) -> None:
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
    assert learning.trainee.stem_head is not None, "its auxiliary head starts anew"
    with pytest.raises(ExportError, match="no phases of its own"):
        Pretraining(PretrainSettings((Phase(3, 7, 1, stem=True),), stem_learns=False), tmp_path / "other")


def test_a_stop_between_log_lines_keeps_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped_after_the_first(training: Pretraining, windows: object, *, stem_alone: bool) -> dict[str, float]:
        time.sleep(0.01)
        training.step += 1
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)
        handler(signal.SIGTERM, None)  # a real signal would end the test process where anything resets the handler
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


def test_start_loads_the_weights_of_another_training(tmp_path: Path) -> None:
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


def test_keep_writes_the_mean_of_weights_before_and_after(tmp_path: Path) -> None:
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


def test_stepwise_attention_equals_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((2, 3, n, 8), generator=generator) for n in (5, 6, 6))  # fewer queries, as in eq. 2
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(stepwise_attention(q, k, v), expected)


def test_bfloat16_is_close_to_fp32(tmp_path: Path) -> None:
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


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}, "optimizers": [], "step": 1, "seconds": 0.0}, tmp_path / CHECKPOINT)
    with pytest.raises(ExportError, match="not a checkpoint of this training"):
        Pretraining(settings(), tmp_path)


def test_stem_phase_changes_the_stem_only(tmp_path: Path) -> None:
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
    assert bool(stem.join.weight.any()), "the stem now contributes to the tokens"


def test_a_stem_phase_needs_a_stem(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="toy has no stem"):
        Pretraining(PretrainSettings((Phase(3, 7, 1, stem=True),)), tmp_path, arch="toy")


def test_small_defects_count_as_much_as_large_ones() -> None:
    part = torch.zeros((3, 10))
    part[0, 0], part[1, 2:8] = 0.2, 1.0
    loss = torch.zeros((3, 10))
    loss[0, 0] = 1.0
    small = _balanced(loss, part)
    torch.testing.assert_close(small, torch.tensor(0.35 / 2 + 0.65 * 0.8 / float((1 - part).sum())))
    torch.testing.assert_close(_balanced(part[:1] * 0 + 1.0, torch.zeros(1, 10)), torch.tensor(0.65))


def test_frame_logits_come_from_the_patches_most_like_a_class() -> None:
    patch = torch.zeros((2, 225, 3))
    patch[0, 7:12, 2] = 6.0  # 2 % of the patches
    patch[1, :, 0] = 1.0
    torch.testing.assert_close(frame_logits(patch)[0], torch.tensor([0.0, 0.0, 6.0]))
    torch.testing.assert_close(frame_logits(patch)[1], torch.tensor([0.0, -1.0, -1.0]))


def test_whole_frames_give_the_levels_of_the_shipped_encoder(tmp_path: Path) -> None:
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
