"""export.model.heads and the graph that joins them: eq. 9-23 against plain numpy readings of the paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_recipe
from numpy.typing import NDArray
from torch import Tensor

from export.bundle import describe_encoder
from export.model import heads
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from export.teaching.settings import TeachSettings
from runtime.recipe import TENSORS

Array = NDArray[np.float64]
LEVELS, BATCH, PATCHES, WIDTH, DIM, CLASSES = 4, 3, 25, 12, 8, 5


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def unit(x: Array) -> Array:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def random(seed: int, *shape: int) -> tuple[Tensor, Array]:
    """The same random numbers for torch and for numpy."""
    values = np.random.default_rng(seed).standard_normal(shape)
    single = values.astype(np.float32)
    return torch.tensor(single), single.astype(np.float64)


def random_text(seed: int, count: int) -> tuple[Tensor, Array]:
    values = unit(np.random.default_rng(seed).standard_normal((count, DIM))).astype(np.float32)
    return torch.tensor(values), values.astype(np.float64)


def assert_near(found: Tensor, expected: Any, tolerance: float = 1e-5) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance)


def test_transformation_layer_is_linear_with_bias() -> None:
    tokens, x = random(0, BATCH, PATCHES, WIDTH)
    weight, w = random(1, WIDTH, DIM)
    bias, b = random(2, DIM)
    assert_near(heads.transform(tokens, weight, bias), x @ w + b)
    # fp16 features: the product is fp16, the bias and the result fp32
    near = heads.transform(tokens.half(), weight, bias)
    assert_near(near, x @ w + b, tolerance=0.05)


def test_cosines_are_those_of_every_patch_with_every_text() -> None:
    z, x = random(0, BATCH, PATCHES, DIM)
    text, t = random_text(1, CLASSES)
    expected = [[[cosine(patch, word) for word in t] for patch in frame] for frame in x]
    assert_near(heads.cosines(z, text), expected, 1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_cosines_do_not_depend_on_the_length_of_a_vector(scale: float) -> None:
    z, x = random(0, BATCH, PATCHES, DIM)
    text, t = random_text(1, 2)
    assert_near(heads.cosines(z * scale, text), unit(x) @ t.T)


def test_a_vector_of_zeros_has_cosine_zero() -> None:
    text, _ = random_text(1, 2)
    assert torch.equal(heads.cosines(torch.zeros(1, 1, DIM), text), torch.zeros(1, 1, 2))


@pytest.mark.parametrize("tau", [1.0, 30.0, 100.0])
def test_sigmoid_of_the_vanilla_logit_is_the_defect_channel_of_the_softmax(tau: float) -> None:
    z, x = random(0, BATCH, PATCHES, DIM)
    text, t = random_text(1, 2)
    expected = softmax(tau * (unit(x) @ t.T))[..., 1]
    found = torch.sigmoid(heads.vanilla_logit(heads.cosines(z, text), torch.tensor(tau)))
    assert_near(found, expected, 1e-6 * tau + 1e-6)


def test_class_weights_of_the_v_path_are_twice_the_softmax_of_the_class_tokens_cosines() -> None:
    value, v = random(0, BATCH, PATCHES, DIM)
    cls, c = random(1, BATCH, DIM)
    text, t = random_text(2, 2)
    expected = np.zeros((BATCH, PATCHES))
    for b in range(BATCH):
        w = 2 * softmax(np.array([cosine(c[b], t[0]), cosine(c[b], t[1])]))
        assert w.sum() == pytest.approx(2)
        for p in range(PATCHES):
            s = np.array([w[k] * cosine(v[b, p], t[k]) for k in range(2)])
            expected[b, p] = softmax(20 * s)[1]
    found = heads.value_logit(value, cls, text, torch.tensor(20.0), "cls_weight")
    assert_near(torch.sigmoid(found), expected)


def test_class_mean_taken_literally_removes_nothing() -> None:
    """Eq. 13-15 as printed: what is subtracted from every class alike cancels in the softmax over classes."""
    value, v = random(0, BATCH, PATCHES, DIM)
    cls, _ = random(1, BATCH, DIM)
    text, t = random_text(2, 2)
    tau_v = 20.0
    multiplied = unit(v)[:, :, None, :] * t[None, None]  # eq. 13: [frame, patch, class, channel]
    redundant = multiplied.mean(axis=2, keepdims=True)  # eq. 14: mean over classes
    literal = softmax(tau_v * (multiplied - redundant).sum(axis=-1))[..., 1]  # eq. 15
    no_removal = softmax(tau_v * multiplied.sum(axis=-1))[..., 1]
    np.testing.assert_allclose(literal, no_removal, atol=1e-12)
    found = heads.value_logit(value, cls, text, torch.tensor(tau_v), "class_mean")
    assert_near(torch.sigmoid(found), literal)
    weighted = heads.value_logit(value, cls, text, torch.tensor(tau_v), "cls_weight")
    assert float((weighted - found).abs().max()) > 0.01


@pytest.mark.parametrize("lambda_m", [0.0, 0.3])
@pytest.mark.parametrize("lambda_v", [0.0, 0.5, 1.0, 7.0])
def test_fused_map_is_the_weighted_mean_of_both_paths_and_the_memory(lambda_v: float, lambda_m: float) -> None:
    pairs = [random(seed, BATCH, PATCHES) for seed in range(2 * LEVELS)]
    vanilla, value = pairs[:LEVELS], pairs[LEVELS:]
    remembered, odd = random(50, BATCH, PATCHES)
    expected = LEVELS * lambda_m * odd
    for (_, z), (_, v) in zip(vanilla, value, strict=True):
        expected += 1 / (1 + np.exp(-z)) + lambda_v / (1 + np.exp(-v))
    expected /= LEVELS * (1 + lambda_v + lambda_m)
    found = heads.fuse_maps(
        [z for z, _ in vanilla], [v for v, _ in value], remembered, torch.tensor(lambda_v), torch.tensor(lambda_m)
    )
    assert_near(found, expected, 1e-6)


@pytest.mark.parametrize("lambda_m", [0.0, 0.3])
def test_map_without_the_v_path_equals_that_with_lambda_v_0(lambda_m: float) -> None:
    vanilla = [random(seed, BATCH, PATCHES)[0] for seed in range(LEVELS)]
    value = [random(seed, BATCH, PATCHES)[0] for seed in range(LEVELS, 2 * LEVELS)]
    remembered = torch.sigmoid(random(50, BATCH, PATCHES)[0])
    shares = torch.tensor(0.0), torch.tensor(lambda_m)
    with_it = heads.fuse_maps(vanilla, value, remembered, *shares)
    assert torch.equal(heads.fuse_maps(vanilla, [], remembered, *shares), with_it)


def test_nearest_patch_distance_is_one_minus_the_highest_cosine() -> None:
    tokens, z = random(0, BATCH, PATCHES, 8)
    memory, m = random(1, 5, 8)
    m = unit(m)
    found = heads.nearest_patch_distance(tokens, heads.unit(memory))
    assert_near(found, 1 - (unit(z) @ m.T).max(-1), 1e-6)
    assert_near(heads.nearest_patch_distance(7 * heads.unit(memory)[None], heads.unit(memory)), np.zeros((1, 5)), 1e-6)


def test_memory_map_is_one_half_three_spreads_above_good_patches() -> None:
    scale = torch.tensor([[0.2, 0.1], [0.4, 0.05]])
    levels = [torch.tensor([[0.2, 0.5, 0.6]]), torch.tensor([[0.4, 0.55, 0.7]])]
    found = heads.memory_map(levels, scale)
    standard = np.array([[0.0, 3.0, 5.0]])
    assert_near(found, 1 / (1 + np.exp(-(standard - 3))), 1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize(("logit", "end"), [(1e4, 1.0), (-1e4, 0.0)])
def test_fused_map_reaches_both_ends_of_the_unit_interval_and_no_further(
    share: float, logit: float, end: float
) -> None:
    extreme = [torch.full((1, PATCHES), logit)] * LEVELS
    remembered = torch.full((1, PATCHES), end)
    found = heads.fuse_maps(extreme, extreme, remembered, torch.tensor(share), torch.tensor(share))
    assert torch.equal(found, torch.full((1, PATCHES), end))


def test_v_path_and_memory_count_nothing_with_weight_0() -> None:
    vanilla, none = [random(0, BATCH, PATCHES)[0]], torch.tensor(0.0)
    maps = [
        heads.fuse_maps(
            vanilla, [random(seed, BATCH, PATCHES)[0]], torch.sigmoid(random(seed + 9, BATCH, PATCHES)[0]), none, none
        )
        for seed in (1, 2)
    ]
    assert torch.equal(*maps)


@pytest.mark.parametrize("patches", [1, 9, 10, 11, 16, 225])
def test_text_probabilities_pool_the_highest_tenth_of_the_patches(patches: int) -> None:
    levels = [random(seed, BATCH, patches, CLASSES) for seed in range(LEVELS)]
    count = math.ceil(0.1 * patches)
    expected = np.zeros((BATCH, CLASSES))
    for b in range(BATCH):
        for k in range(CLASSES):
            pooled = [np.mean(sorted(x[b, :, k])[-count:]) for _, x in levels]
            expected[b, k] = max(pooled)  # eq. 18
    found = heads.text_probabilities([s for s, _ in levels], torch.tensor(10.0))
    assert_near(found, softmax(10 * expected))


def test_head_reads_the_class_token_of_every_level_at_unit_length() -> None:
    levels = [random(seed, BATCH, 1 + PATCHES, WIDTH) for seed in range(LEVELS)]
    expected = np.concatenate([unit(x[:, 0]) for _, x in levels], axis=1)
    found = heads.head_features([z for z, _ in levels], torch.rand(BATCH, PATCHES))
    assert found.shape == (BATCH, 3 * LEVELS * WIDTH + 1)
    assert_near(found[:, : LEVELS * WIDTH], expected)


def test_head_reads_the_tokens_under_the_map_and_its_peak_mean() -> None:
    levels = [random(seed, BATCH, PATCHES, WIDTH) for seed in range(LEVELS)]
    defect_map = np.random.default_rng(3).random((BATCH, PATCHES))
    weight = defect_map**heads.POOLING_POWER
    weight /= weight.sum(axis=1, keepdims=True)
    under_map = [np.einsum("bp,bpd->bd", weight, x) for _, x in levels]
    pooled = [unit(x) for x in under_map]
    contrast = [
        (under - x.mean(axis=1)) / x.std(axis=1) / math.sqrt(WIDTH)
        for under, (_, x) in zip(under_map, levels, strict=True)
    ]
    peak = np.sort(defect_map, axis=1)[:, -max(1, int(heads.PEAK_SHARE * PATCHES)) :].mean(axis=1, keepdims=True)
    found = heads.map_features([z for z, _ in levels], torch.tensor(defect_map, dtype=torch.float32))
    assert_near(found, np.concatenate([*pooled, *contrast, peak], axis=1))


def test_contrast_does_not_depend_on_exposure() -> None:
    """A gain and an offset of every channel change what is under the map and not how far it stands out."""
    tokens, _ = random(0, BATCH, PATCHES, WIDTH)
    gain, offset = torch.linspace(0.2, 3, WIDTH), torch.linspace(-5, 5, WIDTH)
    defect_map = torch.rand((BATCH, PATCHES), generator=torch.Generator().manual_seed(1))
    found = heads.map_features([tokens], defect_map)
    exposed = heads.map_features([tokens * gain + offset], defect_map)
    assert_near(exposed[:, WIDTH : 2 * WIDTH], found[:, WIDTH : 2 * WIDTH].double().numpy(), 1e-4)
    assert (exposed[:, :WIDTH] - found[:, :WIDTH]).abs().max() > 0.1


def test_a_constant_channel_has_no_contrast() -> None:
    tokens, _ = random(0, BATCH, PATCHES, WIDTH)
    tokens[:, :, 3] = 2.5
    weights = torch.rand((BATCH, PATCHES), generator=torch.Generator().manual_seed(0))
    found = heads.map_features([tokens], weights)
    assert found[:, WIDTH + 3].abs().max() < 0.2
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("value", [0.0, 1e-20, 1.0])
def test_a_flat_map_pools_all_tokens_alike(value: float) -> None:
    tokens = [random(seed, BATCH, PATCHES, WIDTH)[0] for seed in range(LEVELS)]
    found = heads.map_features(tokens, torch.full((BATCH, PATCHES), value))
    assert bool(found.isfinite().all())


def test_one_hot_patch_dominates_the_pooled_tokens() -> None:
    tokens = [random(seed, BATCH, PATCHES, WIDTH)[0] for seed in range(LEVELS)]
    defect_map = torch.full((BATCH, PATCHES), 1e-3)
    defect_map[:, 5] = 0.6
    found = heads.map_features(tokens, defect_map)
    assert_near(
        found[:, : LEVELS * WIDTH], np.concatenate([unit(z[:, 5].double().numpy()) for z in tokens], axis=1), 1e-4
    )


def test_head_probabilities_are_the_softmax_of_a_linear_layer() -> None:
    features, x = random(0, BATCH, LEVELS * WIDTH)
    weight, w = random(1, CLASSES, LEVELS * WIDTH)
    bias, b = random(2, CLASSES)
    assert_near(heads.head_probabilities(features, weight, bias), softmax(x @ w.T + b))


@pytest.mark.parametrize("classes", [2, 7, 64])
def test_probabilities_sum_to_one(classes: int) -> None:
    similarities = [random(seed, BATCH, PATCHES, classes)[0] for seed in range(LEVELS)]
    features, weight, bias = random(5, BATCH, WIDTH)[0], random(6, classes, WIDTH)[0], random(7, classes)[0]
    for found in (
        heads.text_probabilities(similarities, torch.tensor(50.0)),
        heads.head_probabilities(features, 100 * weight, bias),
    ):
        assert bool((found >= 0).all())
        assert_near(found.sum(1), np.ones(BATCH), 1e-6)


def test_graph_without_the_v_path_equals_the_whole_one_at_lambda_v_0() -> None:
    model = load_model("toy", random_seed=0)
    whole = SemClipGraph(model.encoder(), input_size=(80, 96))
    recipe = make_recipe(encoder=describe_encoder(model, whole.without_value_path()))
    frames = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 80, 96), dtype=np.uint8))
    tensors = [torch.tensor(recipe.tensors[name]) for name in TENSORS]
    for a, b in zip(whole(frames, *tensors), whole.without_value_path()(frames, *tensors), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("redundancy", ["cls_weight", "class_mean"])
@pytest.mark.parametrize(
    ("scalars", "tolerance"),
    [
        ((0.0, 0.7, 0.4, 12.0, 9.0, 6.0), 1e-5),
        ((0.8, 0.7, 0.4, 12.0, 9.0, 6.0), 1e-5),
        ((1.0, 0.7, 0.4, 12.0, 9.0, 6.0), 1e-5),
        (tuple(TeachSettings.paper().scalars(1.0, 0.0).tolist()), 1e-4),
    ],
    ids=["P_S", "both", "P_C", "paper"],
)
def test_graph_follows_eq_9_to_23(redundancy: str, scalars: tuple[float, ...], tolerance: float) -> None:
    """The whole way from the encoder's levels to the three outputs, read once more in numpy, in float64."""
    alpha, lambda_v, lambda_m, tau, tau_v, tau_s = scalars
    model = load_model("toy", random_seed=0)
    graph = SemClipGraph(model.encoder(), redundancy=redundancy)
    recipe = make_recipe(encoder=describe_encoder(model, graph))
    tensors: dict[str, Array] = {n: a.astype(np.float64) for n, a in recipe.tensors.items()}
    frames = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 64, 64), dtype=np.uint8))

    levels = graph.encode(frames)
    a_z, a_v, odd, per_class, cls_tokens, patches = [], [], [], [], [], []
    for j in range(4):
        z = levels.tokens[j].double().numpy()
        moved = unit(z[:, 1:] @ tensors["transform_weight"][j] + tensors["transform_bias"][j])
        a_z.append(softmax(tau * moved @ tensors["text_seg"].T)[..., 1])
        s = unit(levels.value[j].double().numpy()) @ tensors["text_seg"].T
        if redundancy == "cls_weight":
            c = unit(levels.cls[j].double().numpy()) @ tensors["text_seg"].T
            s = s * 2 * softmax(c)[:, None]
        a_v.append(softmax(tau_v * s)[..., 1])
        nearest = (unit(z[:, 1:]) @ tensors["memory"][j].T).max(axis=-1)
        mean, spread = tensors["memory_scale"][j]
        odd.append((1 - nearest - mean) / spread)
        per_class.append(np.sort(moved @ tensors["text_cls"].T, axis=1)[:, -2:].mean(axis=1))  # 2 of 16 patches
        cls_tokens.append(unit(z[:, 0]))
        patches.append(z[:, 1:])
    remembered = 1 / (1 + np.exp(3 - sum(odd) / 4))
    expected_map = (sum(a_z) + lambda_v * sum(a_v) + 4 * lambda_m * remembered) / (4 * (1 + lambda_v + lambda_m))
    weight = expected_map**4 / (expected_map**4).sum(axis=1, keepdims=True)
    under_map = [np.einsum("bp,bpd->bd", weight, z) for z in patches]
    pooled = [unit(under) for under in under_map]
    contrast = [
        (under - z.mean(axis=1)) / z.std(axis=1) / math.sqrt(z.shape[2])
        for under, z in zip(under_map, patches, strict=True)
    ]
    peak = expected_map.max(axis=1, keepdims=True)  # 1 of 16 patches
    features = np.concatenate([*cls_tokens, *pooled, *contrast, peak], axis=1)
    p_s = softmax(tau_s * np.max(per_class, axis=0))
    p_c = softmax(features @ tensors["head_weight"].T + tensors["head_bias"])
    expected = (1 - alpha) * p_s + alpha * p_c

    given = {name: torch.tensor(array) for name, array in recipe.tensors.items()} | {"scalars": torch.tensor(scalars)}
    probabilities, defect_map, found_features = graph(frames, *(given[name] for name in TENSORS))
    assert_near(probabilities, expected, tolerance)
    assert_near(probabilities.sum(1), np.ones(2), 1e-6)
    assert_near(defect_map, expected_map.reshape(2, 4, 4), tolerance)
    assert_near(found_features, features, tolerance)
