"""Run SEM-CLIP bundles: classify and segment SEM frames without torch.

    from runtime import Predictor

    with Predictor("bundle/") as predictor:
        result = predictor("frame.png")

Importing this package loads no inference engine; `Predictor` does, when it opens a bundle.
"""

from typing import TYPE_CHECKING

from .backends import Backend, FakeBackend, Outputs
from .backends.triton import TritonBackend
from .errors import (
    BackendError,
    BackendUnavailable,
    BundleError,
    FrameError,
    PredictorError,
    QueueFullError,
    RecipeError,
    RowError,
    SemClipError,
)
from .frames import EncodedFrame
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
    "EncodedFrame",
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
    "RowError",
    "SemClipError",
    "TritonBackend",
    "__version__",
]

__version__: str
"""The version of sem-clip that is installed; "unknown" if this code runs from a folder that was not installed."""

if not TYPE_CHECKING:  # a type checker would take any name for one of this package

    def __getattr__(name: str) -> str:
        """Read `__version__` from the installed metadata when it is first asked for: that takes milliseconds."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import metadata

        try:
            found = metadata.version("sem-clip")
        except metadata.PackageNotFoundError:
            found = "unknown"
        globals()[name] = found
        return found
