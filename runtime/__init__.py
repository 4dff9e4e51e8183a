"""Run SEM-CLIP bundles: classify and segment SEM frames without torch.

    from runtime import Predictor

    with Predictor("bundle/") as predictor:
        result = predictor("frame.png")

Importing this package loads no inference engine; `Predictor` does, when it opens a bundle.
"""

from .backends import Backend, FakeBackend, Outputs
from .errors import (
    BackendError,
    BackendUnavailable,
    BundleError,
    FrameError,
    PredictorError,
    QueueFullError,
    RecipeError,
    SemClipError,
)
from .maps import Region
from .operating_point import OperatingPoint
from .prediction import FailedFrame, Prediction
from .predictor import Predictor
from .recipe import FrameOptions, Recipe

__all__ = [
    "Backend",
    "BackendError",
    "BackendUnavailable",
    "BundleError",
    "FailedFrame",
    "FakeBackend",
    "FrameError",
    "FrameOptions",
    "OperatingPoint",
    "Outputs",
    "Prediction",
    "Predictor",
    "PredictorError",
    "QueueFullError",
    "Recipe",
    "RecipeError",
    "Region",
    "SemClipError",
]
