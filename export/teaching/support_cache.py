"""Encoded supports on disk: teaching again encodes only new frames.

A folder of safetensors files. The name of each is the SHA-256 of everything that its content depends on, so an entry is
never out of date. The files are not trusted: a damaged entry, or one that does not match its name, counts as absent and
is written again.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError, deserialize
from safetensors.torch import save
from torch import Tensor

from runtime.files import open_plain, write_atomically

from ..errors import ExportError

MAX_BYTES = 4_000_000_000
"""About 180 supports of 8 views each with ViT-B/16-plus-240, whose entries are 22 MB."""
NO_CACHE = "none"
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
_DIGEST = "sha256"
_DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8"}
_MOST_HEADER_BYTES = 4096
_log = logging.getLogger("sem_clip")

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of every tensor of an entry."""


class SupportCache:
    """Named groups of tensors in a folder, of `max_bytes` in all; the least recently used are removed first.

    Only files named like entries are counted and removed. Processes may share the folder: an entry gets its name once
    it is complete, and equal names have equal content. Raises ExportError if the folder cannot be written to.

    hits: how many entries were read so far.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.hits = 0
        self._writes = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # permissions are not enough: a disk may be read-only
                pass
        except OSError as exc:
            raise ExportError(
                f"encoded supports cannot be kept in {folder} ({exc.strerror}): give another folder with "
                f"--support-cache, or turn it off with --support-cache {NO_CACHE}"
            ) from exc

    def read(self, key: str, layout: Layout) -> dict[str, Tensor] | None:
        """The tensors written under `key`, or None if there are none of this layout. Marks the entry as used."""
        path = self._path(key)
        most = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in layout.values()) + _MOST_HEADER_BYTES
        try:
            with io.BufferedReader(open_plain(path)) as stream:
                tensors = _parse(stream.read(most + 1), key, layout)  # a longer file does not parse
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as exc:
            _log.warning("a cached support cannot be used, so the frame is encoded again: %s: %s", path, exc)
            return None
        with suppress(OSError):  # another user's folder, or removed meanwhile
            os.utime(path)
        self.hits += 1
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors under `key`. If the disk is full or refuses, log one warning and write nothing from then on.

        An entry larger than `max_bytes` is not stored.
        """
        if not self._writes:
            return
        content = save({**tensors, _DIGEST: _digest(key, tensors)})
        try:
            if self._make_room(len(content)):
                write_atomically(self._path(key), content)
        except OSError as exc:
            self._writes = False
            _log.warning("encoded supports are no longer kept in %s: %s", self.folder, exc.strerror)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _make_room(self, size: int) -> bool:
        """Remove the least recently used entries until `size` more bytes fit; returns whether they fit."""
        entries = []
        with os.scandir(self.folder) as found:
            for entry in found:
                with suppress(FileNotFoundError):  # another process makes room, too
                    if _ENTRY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        about = entry.stat(follow_symlinks=False)
                        entries.append((about.st_mtime_ns, about.st_size, entry.path))
        total = sum(entry[1] for entry in entries)
        for _, held, path in sorted(entries):
            if total + size <= self.max_bytes or size > self.max_bytes:
                break
            with suppress(OSError):  # being read, on Windows
                Path(path).unlink(missing_ok=True)
                total -= held
        return total + size <= self.max_bytes


def open_cache(named: str | None) -> SupportCache | None:
    """The cache that `--support-cache` names: a folder, "none", or None for the user's cache folder.

    Raises ExportError for an empty name, and if a named folder cannot be written to. For the user's cache folder that
    is a warning, and there is no cache.
    """
    if named is not None and named.lower() == NO_CACHE:
        return None
    if named == "":  # an unset shell variable: entries would go to the current folder
        raise ExportError(f'--support-cache is empty: name a folder, or write "{NO_CACHE}"')
    if named is not None:
        return SupportCache(Path(named))
    folder = default_folder()
    if not folder.is_absolute():  # it would be a folder called "~" in the current one
        _log.warning("encoded supports are not kept: this user has no home folder; name one with --support-cache")
        return None
    try:
        return SupportCache(folder)
    except ExportError as exc:
        _log.warning("%s", exc)
        return None


def default_folder() -> Path:
    """~/.cache/sem-clip/supports or below XDG_CACHE_HOME; on Windows below LOCALAPPDATA."""
    return user_cache_path("sem-clip", appauthor=False) / "supports"


def _parse(content: bytes, key: str, layout: Layout) -> dict[str, Tensor]:
    """The tensors of an entry. Raises SafetensorError or ValueError if it was not written under this key."""
    found = dict(deserialize(content))  # type: ignore[no-untyped-call]
    expected = {**layout, _DIGEST: ((hashlib.sha256().digest_size,), torch.uint8)}
    if {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in found.items()} != {
        name: (shape, _DTYPES[dtype]) for name, (shape, dtype) in expected.items()
    }:
        raise ValueError("its tensors are not those that were written")
    tensors = {
        name: torch.frombuffer(found[name]["data"], dtype=dtype).reshape(shape)
        for name, (shape, dtype) in expected.items()
    }
    written = tensors.pop(_DIGEST)
    if not torch.equal(written, _digest(key, tensors)):
        raise ValueError("its content does not match its name")
    return tensors


def _digest(key: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """SHA-256 of key and tensors, uint8 [32]: the file format has no checksum of its own."""
    digest = hashlib.sha256(key.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
