"""Kernels that TensorRT for RTX compiled, on disk in a folder next to the bundle; the bundle is never written to."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from ..files import write_atomically
from ..host import Gpu
from ..manifest import Artifact

MAX_BYTES = 2**30
_DIGEST_BYTES = 32
_log = logging.getLogger("sem_clip")


class KernelFile:
    """The kernels of one engine for one kind of GPU and driver: a SHA-256, then what the product serialized."""

    def __init__(self, folder: Path, artifact: Artifact, gpu: Gpu | None) -> None:
        where = "unknown" if gpu is None else f"{gpu.compute_capability}-{gpu.driver}-{gpu.name}"
        name = f"{artifact.sha256[:16]}-{hashlib.sha256(where.encode()).hexdigest()[:16]}.kernels"
        folder = folder.absolute()
        self.path = folder.with_name(f"{folder.name}.cache") / name

    def read(self) -> bytes | None:
        """The kernels; None if the file is missing, too large or damaged."""
        try:
            if self.path.stat().st_size > MAX_BYTES:
                return None
            content = self.path.read_bytes()
        except OSError:
            return None
        digest, kernels = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(kernels).digest() == digest:
            return kernels
        _log.warning("%s: is damaged; compiling anew", self.path)
        return None

    def write(self, kernels: bytes) -> None:
        """Keep the kernels. If the folder cannot be written, a warning is logged and the next start compiles again."""
        content = hashlib.sha256(kernels).digest() + kernels
        try:
            if not self.path.exists() or self.path.read_bytes() != content:
                write_atomically(self.path, content)
        except OSError as exc:
            _log.warning("%s: cannot be written (%s); kernels are compiled at each start", self.path, exc.strerror)
