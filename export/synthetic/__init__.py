"""SEM-like frames with defects and exact masks, for `make demo`, tests, benchmarks and the embedded encoder."""

from .frames import CLASSES, MIN_FOOTPRINT, SyntheticFrame, make_frame, suitable_layouts, write_dataset
from .layouts import LAYOUTS

__all__ = [
    "CLASSES",
    "LAYOUTS",
    "MIN_FOOTPRINT",
    "SyntheticFrame",
    "make_frame",
    "suitable_layouts",
    "write_dataset",
]
