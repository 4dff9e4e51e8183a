"""Arrays on disk, for features that memory cannot hold."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def scratch_array(folder: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float16]]:
    """A float16 array of `shape` in an unnamed file of `folder`; the file goes with the array."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float16, "w+", shape=shape)
