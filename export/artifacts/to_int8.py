"""From the fp32 ONNX file to an 8-bit one, by ranges and harm measured on real frames: for CPUs, and for TensorRT.

Every matrix product of the encoder's blocks reads 8-bit activations (one scale per tensor, so that a frame's answer
does not depend on its batch) and 8-bit weights (one scale per output channel), as QuantizeLinear/DequantizeLinear pairs
that engines fuse. The patch embedding (2 % of the work, and pixels use its whole range), a convolutional stem,
attention, norms and heads stay as they are. Activation outliers are balanced into the weights (SmoothQuant, Xiao et al.
2023, arXiv:2211.10438), weights are rounded so that their errors make up for each other (`round_weights`), and
the products that hurt most are left out until labels agree and features change little. Labels alone would not do: they
are those of one recipe, and the encoder serves any number of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from runtime.backends import Outputs
from runtime.backends.ort import check_provider
from runtime.recipe import TENSORS, Recipe

from ..errors import ExportError
from .round_weights import Rounded, round_weight
from .to_onnx import OUTPUTS

BALANCE = 0.7
"""SmoothQuant's alpha: how much of an outlier goes into the weights. 0.4 to 0.7 were tried on DeiT-Tiny; the change of
the features fell with it."""
PATCH_WEIGHT = "encoder.patch_weight"
TEXT_PROJECTION = "encoder.proj"
PARTS = ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
"""The products of a layer, in the order of the graph."""
_BATCH = 4
_HARM_FRAMES = 16

Progress = Callable[[int, int], None]
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scheme:
    """What 8-bit numbers an engine takes.

    weight_limit: largest weight level. symmetric: activations are int8 around 0, not uint8 with a zero point.
    """

    weight_limit: int
    symmetric: bool


CPU = Scheme(63, symmetric=False)
"""CPUs without VNNI add two products of uint8 and int8 in 16 bits and saturate; 2 x 255 x 63 just fits. Full levels
(127) lost twice the agreement on such a CPU; uint8 weights do not saturate but are 14 % slower."""
TENSORRT = Scheme(127, symmetric=True)
"""TensorRT and TensorRT for RTX know no zero points, and their tensor cores add in 32 bits."""


@dataclass(frozen=True)
class Product:
    """One weight of the encoder and the MatMul nodes that use it (the V path shares its out_proj with the vanilla one).

    name: of the weight's tensor. title: the layer, for people. weight: [in, out] as the nodes use it.
    """

    name: str
    title: str
    nodes: tuple[str, ...]
    weight: Array = field(repr=False)

    @property
    def cost(self) -> int:
        """Multiply-adds per token."""
        return len(self.nodes) * self.weight.size


@dataclass(frozen=True)
class Int8Report:
    """What was done: the products that run in 8 bits and those left in fp32, worst first, each with its harm.

    harm: mean absolute change of `features` if that product alone is 8-bit, relative to their mean size.
    labels_equal, feature_change: of the whole, on the frames that it was fitted on.
    """

    quantized: tuple[str, ...]
    left_out: tuple[str, ...]
    harm: Mapping[str, float]
    labels_equal: float
    feature_change: float
    operators: Mapping[str, int]


def int8_from_onnx(
    source: Path,
    frames: NDArray[np.uint8],
    recipe: Recipe,
    path: Path,
    *,
    agreement: float,
    change: float,
    scheme: Scheme = CPU,
    half: Path | None = None,
    progress: Progress | None = None,
) -> Int8Report:
    """Write the 8-bit form of `source` (fp32, as `onnx_from_graph` writes it) to `path`.

    frames: uint8 [n, height, width], real ones of the kind that will be served; ranges and harm are measured on them.
    scheme: the 8-bit numbers. half: the fp16 form of `source`; what was found on `source` is then done to that, and
    what is not 8-bit stays as it is there.
    recipe: judges them. agreement: share of `frames` whose label must be that of fp32. change: how much `features` may
    change, as `feature_change` measures it. Products are left in fp32, those with the most harm per multiply-add
    first, until both hold.
    Raises ExportError if `source` holds no products of the kind that this can quantize.
    """
    model = onnx.load(source)
    products = find_products(model)
    if not products:
        raise ExportError(f"{source.name} has no products with constant weights: it is not an exported encoder")
    maxima = _channel_maxima(model, products, frames)
    written = _same_products(onnx.load(half), products, source.name, half.name) if half is not None else None
    balance(model, products, maxima)
    products = find_products(model)  # with their new weights
    ranges, moments = _input_statistics(model, products, frames)
    weights = {
        product.name: round_weight(product.weight, moments.pop(product.name), scheme.weight_limit)
        for product in products
    }
    reference = run(model, frames, recipe)
    labels = reference.probabilities.argmax(1)

    def outputs_of(chosen: Sequence[Product]) -> Outputs:
        return run(quantized(model, chosen, weights, ranges, scheme), frames, recipe)

    harm: dict[str, float] = {}
    few = slice(None, None, max(1, len(frames) // _HARM_FRAMES))
    for index, product in enumerate(products):
        features = run(quantized(model, [product], weights, ranges, scheme), frames[few], recipe).features
        harm[product.name] = feature_change(reference.features[few], features)
        if progress is not None:
            progress(index + 1, len(products))
    # Errors of products are independent: their squares add. So the best to leave out removes most of it per work.
    order = sorted(products, key=lambda product: harm[product.name] ** 2 / product.cost, reverse=True)
    left = 0
    while True:
        chosen = order[left:]
        if not chosen:
            raise ExportError(
                f"no product could be quantized with labels equal on {agreement:.0%} of {len(frames)} frames and "
                f"features that change by {change:g} at most"
            )
        outputs = outputs_of(chosen)
        equal = float((outputs.probabilities.argmax(1) == labels).mean())
        changed = feature_change(reference.features, outputs.features)
        if equal >= agreement and changed <= change:
            break
        left += max(1, len(order) // 24)
    if written is None:
        result = quantized(model, chosen, weights, ranges, scheme)
    else:
        result = _as_found(written, model, products, chosen, maxima, weights, ranges, scheme)
    _drop_unused(result)
    onnx.checker.check_model(result)
    onnx.save(result, path)
    names = {product.name for product in chosen}
    return Int8Report(
        quantized=tuple(product.title for product in products if product.name in names),
        left_out=tuple(product.title for product in order if product.name not in names),
        harm={product.title: harm[product.name] for product in products},
        labels_equal=equal,
        feature_change=changed,
        operators=dict(sorted(Counter(node.op_type for node in result.graph.node).items())),
    )


def feature_change(reference: Array, features: Array) -> float:
    """Mean absolute change of features [n, F], relative to their mean size."""
    return float(np.abs(features - reference).mean() / np.abs(reference).mean())


def _same_products(twin: onnx.ModelProto, products: Sequence[Product], one: str, other: str) -> onnx.ModelProto:
    """`twin`, if it holds the same products in the same order. Raises ExportError."""
    found = [(product.title, product.weight.shape, len(product.nodes)) for product in find_products(twin)]
    if found != [(product.title, product.weight.shape, len(product.nodes)) for product in products]:
        raise ExportError(f"{other} does not hold the products of {one}: they are not of one encoder; build them again")
    return twin


def _as_found(
    twin: onnx.ModelProto,
    model: onnx.ModelProto,
    products: Sequence[Product],
    chosen: Sequence[Product],
    maxima: Mapping[str, Array],
    weights: Mapping[str, Rounded],
    ranges: Mapping[str, tuple[float, float]],
    scheme: Scheme,
) -> onnx.ModelProto:
    """Do to `twin`, of other precision and names, what was found on `model`: balance all products, quantize some."""
    partners = {a.title: b for a, b in zip(products, find_products(twin), strict=True)}
    balance(twin, list(partners.values()), {partners[p.title].name: maxima[p.name] for p in products})
    names = {product.title for product in chosen}
    theirs = {product.title: product for product in find_products(twin) if product.title in names}
    read, read_there = ({node.name: node.input[0] for node in m.graph.node if node.input} for m in (model, twin))
    carried = {
        read_there[there]: ranges[read[here]]
        for product in chosen
        for here, there in zip(product.nodes, theirs[product.title].nodes, strict=True)
    }
    rounded = {theirs[product.title].name: weights[product.name] for product in chosen}
    return quantized(twin, list(theirs.values()), rounded, carried, scheme)


# ---- finding and balancing -------------------------------------------------------------------------------------------


def find_products(model: onnx.ModelProto) -> list[Product]:
    """The encoder's products with a constant weight, in graph order; not the patch embedding, not the recipe's."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in TENSORS}
    turned = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Transpose" and node.input[0] in constants
    }
    nodes: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants.keys() | turned.keys():
            nodes.setdefault(node.input[1], []).append(node.name)
    stored = {name: numpy_helper.to_array(constants[turned.get(name, name)]) for name in nodes if name != PATCH_WEIGHT}
    weights = {name: value.T if name in turned else value for name, value in stored.items() if value.ndim == 2}
    # The exporter renames weights, so layers are known by their order.
    inner = [name for name in weights if name != TEXT_PROJECTION]
    titles = {name: f"blocks.{i // len(PARTS)}.{PARTS[i % len(PARTS)]}" for i, name in enumerate(inner)}
    return [
        Product(name, titles.get(name, TEXT_PROJECTION), tuple(nodes[name]), weight) for name, weight in weights.items()
    ]


def balance(model: onnx.ModelProto, products: Sequence[Product], maxima: Mapping[str, Array]) -> None:
    """Move outlier channels of activations into the weights (SmoothQuant eq. 4); the model's answers stay the same.

    Behind a LayerNormalization the factors go into its own scale and bias; elsewhere a Mul before the product takes
    them. maxima: largest absolute value per channel of each product's input, by product name.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    by_name = {node.name: node for node in model.graph.node}
    readers = Counter(name for node in model.graph.node for name in node.input)
    for product in products:
        heights = np.abs(product.weight.astype(np.float32)).max(1)
        factors = np.maximum(maxima[product.name], 1e-5) ** BALANCE / np.maximum(heights, 1e-5) ** (1 - BALANCE)
        factors = np.clip(factors / np.exp(np.log(factors).mean()), 1e-2, 1e2).astype(np.float32)
        for user in (by_name[name] for name in product.nodes):
            norm = _norm_before(user.input[0], makers, readers)
            if norm is not None:
                for place, kind in ((1, "scale"), (2, "bias")):  # of its own: others may share the constant
                    stored = numpy_helper.to_array(constants[norm.input[place]])
                    value = (stored / factors).astype(stored.dtype)
                    norm.input[place] = f"{norm.name}_balanced_{kind}"
                    model.graph.initializer.append(numpy_helper.from_array(value, norm.input[place]))
            else:
                name = f"{user.name}_balance"
                part = (1 / factors).astype(product.weight.dtype)
                model.graph.initializer.append(numpy_helper.from_array(part, name))
                _insert_before(model, user, helper.make_node("Mul", [user.input[0], name], [f"{user.name}_balanced"]))
                user.input[0] = f"{user.name}_balanced"
        weight = product.weight.astype(np.float32) * factors[:, None]
        _set_weight(model, product, weight.astype(product.weight.dtype))


def _norm_before(name: str, makers: Mapping[str, onnx.NodeProto], readers: Mapping[str, int]) -> onnx.NodeProto | None:
    """The LayerNormalization that makes a tensor which nobody else reads, straight or through a cast; else None."""
    maker = makers.get(name)
    if maker is not None and maker.op_type == "Cast" and readers[name] == 1:
        name, maker = maker.input[0], makers.get(maker.input[0])
    found = maker is not None and maker.op_type == "LayerNormalization" and readers[name] == 1
    return maker if found else None


def _set_weight(model: onnx.ModelProto, product: Product, weight: Array) -> None:
    """Store a product's weight as a constant [in, out] of its own name, without a Transpose node."""
    for index, node in enumerate(model.graph.node):
        if node.op_type == "Transpose" and node.output[0] == product.name:
            del model.graph.node[index]
            break
    for tensor in model.graph.initializer:
        if tensor.name == product.name:
            _replace(tensor, weight)
            return
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight), product.name))


def _replace(tensor: onnx.TensorProto, value: NDArray[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))


def _insert_before(model: onnx.ModelProto, node: onnx.NodeProto, *new: onnx.NodeProto) -> None:
    index = next(i for i, other in enumerate(model.graph.node) if other.name == node.name)
    for offset, item in enumerate(new):
        item.name = item.name or item.output[0]
        model.graph.node.insert(index + offset, item)


# ---- quantizing ------------------------------------------------------------------------------------------------------


def quantized(
    model: onnx.ModelProto,
    products: Sequence[Product],
    weights: Mapping[str, Rounded],
    ranges: Mapping[str, tuple[float, float]],
    scheme: Scheme = CPU,
) -> onnx.ModelProto:
    """A copy of `model` whose `products` run in 8 bits.

    weights: by product name. ranges: least and largest value by input tensor name. Steps are of the type of the
    product's weight, fp32 or fp16, and so is what comes out.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    by_name = {node.name: node for node in twin.graph.node}
    inputs: dict[str, list[onnx.NodeProto]] = {}
    types: dict[str, np.dtype[Any]] = {}
    for product in products:
        name, stored = product.name, product.weight.dtype
        levels = weights[name].levels
        scale = np.maximum(weights[name].scale, np.finfo(stored).tiny).astype(stored)
        for tensor in twin.graph.initializer:
            if tensor.name == name:
                twin.graph.initializer.remove(tensor)
                break
        _add_constants(twin, name, q=levels, scale=scale, zero=np.zeros(scale.shape, np.int8))
        node = helper.make_node(
            "DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], [name], f"{name}_dequantize", axis=1
        )
        twin.graph.node.insert(0, node)
        for user in product.nodes:
            inputs.setdefault(by_name[user].input[0], []).append(by_name[user])
            types[by_name[user].input[0]] = stored
    for name, users in inputs.items():
        low, high = ranges[name]
        width = 2 * max(-low, high) / 254 if scheme.symmetric else (high - low) / 255
        step = np.maximum(width, np.finfo(types[name]).tiny).astype(types[name])
        zero = np.int8(0) if scheme.symmetric else np.uint8(np.clip(np.rint(-low / step), 0, 255))
        _add_constants(twin, name, scale=np.array(step), zero=np.array(zero))
        parameters = [f"{name}_scale", f"{name}_zero"]
        _insert_before(
            twin,
            users[0],
            helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_8bit"]),
        )
        for user in users:
            user.input[0] = f"{name}_8bit"
    return twin


def _add_constants(model: onnx.ModelProto, name: str, **parts: NDArray[np.generic]) -> None:
    for kind, value in parts.items():
        model.graph.initializer.append(numpy_helper.from_array(value, f"{name}_{kind}"))


def _drop_unused(model: onnx.ModelProto) -> None:
    """Remove constants that nothing reads any more; those of the recipe are inputs and stay."""
    read = {name for node in model.graph.node for name in node.input} | set(TENSORS)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


# ---- measuring -------------------------------------------------------------------------------------------------------


def run(model: onnx.ModelProto, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
    """What the model answers on `frames` with `recipe`."""
    session = _session(model)
    parts = [session.run(list(OUTPUTS), {"frames": batch, **recipe.tensors}) for batch in _batches(frames)]
    return Outputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _channel_maxima(model: onnx.ModelProto, products: Sequence[Product], frames: NDArray[np.uint8]) -> dict[str, Array]:
    """Largest absolute value of every channel of each product's input, by product name."""
    inputs = _inputs(model, products)
    maxima: dict[str, Array] = {}
    for values in _observe(model, [name for names in inputs.values() for name in names], frames):
        for product, names in inputs.items():
            for name in names:
                peak = np.abs(values[name]).max(axis=tuple(range(values[name].ndim - 1)))
                maxima[product] = np.maximum(maxima[product], peak) if product in maxima else peak
    return maxima


def _input_statistics(
    model: onnx.ModelProto, products: Sequence[Product], frames: NDArray[np.uint8]
) -> tuple[dict[str, tuple[float, float]], dict[str, Array]]:
    """Least and largest value, 0 included, by input tensor name; and the sum of x xᵀ over inputs x, by product name.

    The whole range, nothing clipped: on DeiT-Tiny, ranges of least squared error halved the agreement that was lost to
    rounding, because the rare large values carry the class.
    """
    inputs = _inputs(model, products)
    names = [name for group in inputs.values() for name in group]
    ranges = dict.fromkeys(names, (0.0, 0.0))
    moments = {product.name: np.zeros((len(product.weight),) * 2, np.float32) for product in products}
    for values in _observe(model, names, frames):
        for product, group in inputs.items():
            for name in group:
                rows = values[name].reshape(-1, values[name].shape[-1])
                moments[product] += rows.T @ rows
                low, high = ranges[name]
                ranges[name] = (min(low, float(rows.min())), max(high, float(rows.max())))
    return ranges, moments


def _inputs(model: onnx.ModelProto, products: Sequence[Product]) -> dict[str, list[str]]:
    sources = {node.name: node.input[0] for node in model.graph.node}
    return {product.name: list(dict.fromkeys(sources[node] for node in product.nodes)) for product in products}


def _observe(
    model: onnx.ModelProto, names: Sequence[str], frames: NDArray[np.uint8]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The values of inner tensors, batch by batch."""
    names = list(dict.fromkeys(names))
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    twin.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = _session(twin)
    for batch in _batches(frames):
        yield dict(zip(names, session.run(names, {"frames": batch}), strict=True))


def _batches(frames: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(frames), _BATCH):
        yield frames[start : start + _BATCH]


def _session(model: onnx.ModelProto) -> Any:
    onnxruntime = check_provider("cpu")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is an error is raised, too
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
