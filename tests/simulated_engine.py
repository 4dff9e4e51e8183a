"""A TensorRtBackend on the simulated GPU, and what it must answer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from conftest import make_encoder
from fake_gpu import Engine, FakeDevice, fake_module
from numpy.typing import NDArray

from runtime.backends.trt import TensorRtBackend
from runtime.manifest import Artifact
from runtime.recipe import Recipe

ENCODER = make_encoder()
MOST_CLASSES = 5


def frames(*first_pixels: int) -> NDArray[np.uint8]:
    batch = np.zeros((len(first_pixels), 64, 64), np.uint8)
    batch[:, 0, 0] = first_pixels
    return batch


class Opened:
    """A backend on fakes, in a folder with a plan."""

    def __init__(self, folder: Path, product: str = "tensorrt", **changes: Any) -> None:
        self.device = changes.pop("device", None) or FakeDevice()
        batch = changes.pop("batch", (1, 4, 8))
        self.engine = changes.pop("engine", None) or Engine(ENCODER, self.device, batch, MOST_CLASSES)
        plan = folder / "bundle" / "engine.plan"
        plan.parent.mkdir(exist_ok=True)
        plan.write_bytes(b"plan")
        self.artifact = Artifact(
            "engine.plan", "engine", "fp16", hashlib.sha256(b"plan").hexdigest(), 4, {}, {}, {"product": product}
        )
        module = changes.pop("module", None) or fake_module(self.engine)
        self.folder = plan.parent
        self.backend = TensorRtBackend(
            plan.parent, self.artifact, ENCODER, product, gpu=changes.get("gpu"), device=self.device, module=module
        )


def check(backend: TensorRtBackend, pixels: NDArray[np.uint8], recipe: Recipe) -> None:
    outputs = backend.run(pixels, recipe)
    bias = recipe.tensors["head_bias"][0]
    first = pixels[:, 0, 0].astype(int)
    assert outputs.probabilities.shape == (len(pixels), len(recipe.classes))
    np.testing.assert_array_equal(outputs.probabilities.argmax(1), first % len(recipe.classes))
    np.testing.assert_allclose(outputs.probabilities.max(1), bias + 0.5)
    np.testing.assert_array_equal(outputs.features[:, 0], first)
    np.testing.assert_allclose(outputs.defect_map[:, 0, 0] * 255, first, rtol=1e-6)
    assert outputs.features.shape == (len(pixels), ENCODER.features)
