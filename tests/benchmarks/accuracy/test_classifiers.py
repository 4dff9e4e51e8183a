"""Classifiers as rows: strict weights, the frames a network sees, its rows, and one pass through the command.

Networks are timm's own small ones with random weights, so nothing is downloaded.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from torch import Tensor
from torch.nn import functional as F

from benchmarks.accuracy import classifiers
from benchmarks.accuracy.classifiers import (
    LITE0,
    LITE0_PACKAGE,
    TABLE_2,
    Classifier,
    ClassifierRows,
    lite0_from_package,
    load_classifier,
    load_classifiers,
)
from calibration.dataset import load_dataset
from export.bundle import describe_encoder
from export.errors import CheckpointError
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from export.progress import Stages
from export.synthetic import write_dataset
from export.teach import EncodedSupports, TeachRequest, encode_request
from export.teaching.prompts import load_prompts
from runtime.files import sha256_of
from runtime.manifest import Encoder
from runtime.recipe import FrameOptions

pytestmark = pytest.mark.slow

SMALL = "test_vit"


def state_of(name: str, **arguments: Any) -> dict[str, Tensor]:
    """Random weights of a network in timm, with its ImageNet classifier."""
    torch.manual_seed(5)
    state: dict[str, Tensor] = timm.create_model(name, pretrained=False, **arguments).state_dict()
    return state


def saved(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def small(folder: Path, name: str = SMALL) -> Classifier:
    return load_classifier(name, saved(state_of(name), folder / f"{name}.safetensors"))


def refusal(name: str, file: Path | None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_classifier(name, file)
    return str(caught.value)


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_the_network_with_its_classifier_is_loaded_whole(tmp_path: Path, suffix: str) -> None:
    state = state_of(SMALL)
    path = saved(state, tmp_path / f"w{suffix}")
    found = load_classifier(SMALL, path)
    own = found.network.state_dict()
    assert own
    assert all(torch.equal(own[key], state[key]) for key in own)
    assert found.record()["sha256"] == sha256_of(path)
    assert not found.network.training
    assert not any(key.startswith("head") for key in own), "the features, and no classifier of ImageNet"


@pytest.mark.parametrize("name", TABLE_2)
def test_the_networks_of_table_2_are_built_and_give_pooled_features(name: str) -> None:
    network, config = classifiers._build(name)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    with torch.inference_mode():
        features = network(torch.zeros((1, *config["input_size"])))
    assert features.shape == (1, network.num_features)


def test_a_file_that_lacks_a_weight_is_refused_and_the_weight_named(tmp_path: Path) -> None:
    state = state_of(SMALL)
    del state["blocks.3.mlp.fc1.weight"]
    message = refusal(SMALL, saved(state, tmp_path / "w.safetensors"))
    assert f"w.safetensors does not hold the weights of {SMALL}: lacks blocks.3.mlp.fc1.weight" in message


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    message = refusal(SMALL, saved(state_of("test_resnet"), tmp_path / "w.safetensors"))
    assert "lacks blocks.0" in message
    assert " more" in message


def test_a_smaller_network_does_not_run_on_the_weights_of_a_larger_one(tmp_path: Path) -> None:
    small_one, large = (timm.create_model(name, num_classes=0).state_dict() for name in ("resnet18", "resnet34"))
    assert all(large[key].shape == value.shape for key, value in small_one.items()), "every key of it is there"
    message = refusal("resnet18", saved(large, tmp_path / "w.safetensors"))
    assert "has layer1.2.bn1.bias, which the network lacks" in message


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda value: value[:-1].clone(), "the network needs"),
        (lambda value: torch.full_like(value, float("nan")), "not finite floating point"),
        (lambda value: value.to(torch.int32), "not finite floating point"),
    ],
)
def test_weights_of_another_shape_or_kind_are_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], why: str
) -> None:
    state = state_of(SMALL)
    state["norm.weight"] = change(state["norm.weight"])
    message = refusal(SMALL, saved(state, tmp_path / "w.safetensors"))
    assert "norm.weight is " in message
    assert why in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 100, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = saved(state_of(SMALL), tmp_path / f"w{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    assert f"{path} cannot be read as safetensors or as a plain state dict" in refusal(SMALL, path)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of a weights file was run')",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"norm.weight": Malicious()}))
    assert "cannot be read" in refusal(SMALL, path)
    torch.save({"norm.weight": Malicious()}, path)
    assert "cannot be read" in refusal(SMALL, path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.truncate(classifiers.MAX_FILE_BYTES + 1)
    assert "is larger than 4 GiB" in refusal(SMALL, path)


@pytest.mark.parametrize("name", ["no_such_network", "hf-hub:timm/resnet18", "../w", "", "test_vit.no_such_tag"])
def test_an_unknown_name_is_refused_without_a_download(name: str, tmp_path: Path) -> None:
    message = refusal(name, saved(state_of(SMALL), tmp_path / "w.pth"))
    assert "timm has no network of this name" in message or "Invalid pretrained tag (no_such_tag)" in message


def test_names_and_files_of_the_command_line(tmp_path: Path) -> None:
    path = saved(state_of(SMALL), tmp_path / "a=b.pth")
    assert [c.file for c in load_classifiers([f"{SMALL}={path}"])] == ["a=b.pth"]
    with pytest.raises(CheckpointError, match=f"{SMALL} needs a file with its weights, {SMALL}=FILE"):
        load_classifiers([SMALL])
    for nothing in (f"{SMALL}=", f"{LITE0}=", f"{SMALL}={tmp_path / 'absent'}"):
        with pytest.raises(CheckpointError, match="there is no weights file"):
            load_classifiers([nothing])
    with pytest.raises(CheckpointError, match=f"{SMALL} is given twice"):
        load_classifiers([f"{SMALL}={path}", f"{SMALL}={path}"])


# ---- the package's names ---------------------------------------------------------------------------------------------

STAGES = (1, 2, 2, 3, 3, 4, 1)
FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
LATER = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
LATER |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
OUTER = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}


def package_name(key: str) -> str:
    """From timm's name to the package's, the inverse mapping."""
    parts = key.split(".")
    if parts[0] != "blocks":
        return ".".join([OUTER[parts[0]], *parts[1:]])
    stage, block = int(parts[1]), int(parts[2])
    names = FIRST if stage == 0 else LATER
    return ".".join(["_blocks", str(sum(STAGES[:stage]) + block), names[parts[3]], *parts[4:]])


def test_every_name_of_the_package_maps_to_one_of_timm() -> None:
    state = state_of(LITE0)
    renamed = {package_name(key): value for key, value in state.items()}
    assert len(renamed) == len(state)
    back = lite0_from_package(renamed)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    timm.create_model(LITE0, pretrained=False).load_state_dict(back, strict=True)


@pytest.mark.parametrize("key", ["_blocks.16._bn1.bias", "_blocks.0._expand_conv.weight", "_blocks.x.y", "_other.bias"])
def test_an_unknown_name_in_the_package_is_refused(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {package_name(name): value for name, value in state_of(LITE0).items()}
    path = saved({**state, key: torch.zeros(3)}, tmp_path / "w.pth")
    monkeypatch.setattr(classifiers, "_lite0_file", lambda: path)
    assert f"has {key}, which the network lacks" in refusal(LITE0, None)


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "find_spec", lambda _: None)
    assert 'pip install "sem-clip[classifiers]"' in refusal(LITE0, None)


def test_another_package_of_that_name_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / LITE0_PACKAGE / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text('raise SystemExit("a stranger was run")\n')
    saved({package_name(k): v for k, v in state_of(LITE0).items()}, models / "efficientnet-lite0-57934424.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, LITE0_PACKAGE, raising=False)
    assert "is not the weights file of tf_efficientnet_lite0 (its SHA-256 differs)" in refusal(LITE0, None)


def test_the_real_weights_recognize_a_uniform() -> None:
    """A portrait shipped with matplotlib: Rear Admiral Hopper in uniform, class 652 of ImageNet."""
    if find_spec(LITE0_PACKAGE) is None:
        pytest.skip("the extra `classifiers` is not installed")
    cbook = pytest.importorskip("matplotlib.cbook")
    found = load_classifier(LITE0)
    assert found.sha256 == classifiers.LITE0_SHA256
    state = lite0_from_package(torch.load(classifiers._lite0_file(), weights_only=True))
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        grey = np.asarray(image.convert("L"))
    with torch.inference_mode():
        pooled = found.network(found.pixels(found.prepare(grey, FrameOptions(), "hopper")[None]))
        logits = F.linear(pooled, state["classifier.weight"], state["classifier.bias"])
    assert 652 in logits[0].topk(5).indices


# ---- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", LITE0])
def test_a_grey_frame_is_prepared_like_timm_without_the_crop(name: str) -> None:
    network, config = classifiers._build(name)
    found = Classifier(name, network, config["input_size"][1:], config["mean"], config["std"], ("fc.",), "", "")
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (30, 40), np.uint8)).resize((400, 300), Image.Resampling.BICUBIC)
    pixels = found.pixels(found.prepare(np.asarray(smooth), FrameOptions(), "frame")[None])[0]
    transform = create_transform(
        config["input_size"], mean=config["mean"], std=config["std"], interpolation="bicubic", crop_pct=1.0,
        crop_mode="squash",
    )  # fmt: skip
    level = 1 / 255 / min(config["std"])  # Pillow rounds between its passes
    assert pixels.shape == (3, 224, 224)
    assert float((pixels - transform(smooth.convert("RGB"))).abs().max()) <= 1.01 * level


def test_ignored_rows_are_cut_before_the_frame_is_resized(tmp_path: Path) -> None:
    found = small(tmp_path)
    frame = np.full((100, 90), 50, np.uint8)
    frame[:10], frame[-20:] = 255, 255
    assert (found.prepare(frame, FrameOptions(ignore_top=10, ignore_bottom=20), "frame") == 50).all()
    assert found.prepare(frame, FrameOptions(), "frame").shape == found.size


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncodedSupports, Encoder]:
    """Two supports of two classes, encoded by the toy encoder."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "frames", per_class=6, size=(64, 64))
    dataset = load_dataset(folder / "frames").only(["good", "hole"])
    model = load_model("toy", random_seed=0)
    graph = SemClipGraph(model.encoder())
    request = TeachRequest(dataset, load_prompts(), 2, 0)
    return encode_request(model, graph, request, Stages()), describe_encoder(model, graph)


def test_the_probe_classifies_its_own_supports(taught: tuple[EncodedSupports, Encoder], tmp_path: Path) -> None:
    encoded, encoder = taught
    dataset = encoded.request.dataset
    rows = ClassifierRows(small(tmp_path), encoder, dataset, encoded.supports, FrameOptions())
    row = rows.judge(encoded)[f"{SMALL} probe"]
    assert row["accuracy"] == row["iauroc"] == 1
    assert (row["supervision"], row["draws_map"], row["unavailable"]) == ("class labels", False, None)
