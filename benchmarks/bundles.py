"""Bundles with random recipes, for measurements of speed and memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.artifacts.to_onnx import onnx_from_graph
from export.bundle import describe_encoder, record_artifact, write_manifest
from export.model.checkpoint import load_model
from export.model.graph import SemClipGraph
from export.teach import RECIPE_FILE, smoothing_px
from export.teaching.fit_memory import MEMORY_SHARE_WITH_MASKS
from export.teaching.fit_recipe import LAMBDA_V
from export.teaching.settings import TeachSettings
from export.teaching.text_bank import anchor_bank
from export.versions import tool_versions
from runtime.files import sha256_of
from runtime.manifest import Manifest
from runtime.operating_point import OperatingPoint
from runtime.recipe import MEMORY_ROWS, Recipe
from runtime.verdict import unit_rows


def random_bundle(arch: str, weights: Path | None, folder: Path, classes: int = 7) -> tuple[SemClipGraph, Path]:
    """Export fp32 with a recipe of random numbers; returns the torch graph and the bundle folder.

    The graph always has the V path: random weights stand for a tower with aligned text.
    """
    model = load_model(arch, weights=weights, random_seed=None if weights else 0)
    graph = SemClipGraph(model.encoder())
    encoder = describe_encoder(model, graph)
    names = ("good", *(f"class {k}" for k in range(1, classes)))
    bank = anchor_bank(names, encoder.text_dim)
    rng = np.random.default_rng(0)
    levels, width, dim = len(encoder.levels), encoder.width, encoder.text_dim
    tensors = {
        "text_seg": bank.text_seg,
        "text_cls": bank.text_cls,
        "transform_weight": rng.standard_normal((levels, width, dim)).astype(np.float32),
        "transform_bias": np.zeros((levels, dim), np.float32),
        "memory": unit_rows(rng.standard_normal((levels * MEMORY_ROWS, width)).astype(np.float32)).reshape(
            levels, MEMORY_ROWS, width
        ),
        "memory_scale": np.tile(np.array([0.5, 0.1], np.float32), (levels, 1)),
        "head_weight": rng.standard_normal((classes, encoder.features)).astype(np.float32),
        "head_bias": np.zeros(classes, np.float32),
        "scalars": TeachSettings().scalars(LAMBDA_V * bank.aligned, MEMORY_SHARE_WITH_MASKS),
    }
    supports = rng.standard_normal((10 * classes, encoder.features)).astype(np.float32)
    recipe = Recipe(names, tensors, supports, encoder.id, OperatingPoint.taught(names, 0.5, 0.5), bank.source)
    operators = onnx_from_graph(graph, recipe.tensors, folder / "model.onnx")
    recipe.save(folder / RECIPE_FILE)
    artifact = record_artifact(folder, "model.onnx", "fp32", operators)
    digest = sha256_of(folder / RECIPE_FILE)
    notes = ("random recipe, for measurements of speed and memory",)
    write_manifest(
        folder,
        Manifest(encoder, (artifact,), RECIPE_FILE, digest, smoothing_px(encoder), tool_versions(), notes),
    )
    return graph, folder
