"""The frames of an archive: files, folders, URIs of object stores, and Parquet files that hold frames as bytes.

They are listed once, where the run begins, as an Arrow table: `source` (the frame's name in the answers), `path` (what
to open, as bytes, since a name need not be UTF-8) and `row` (of a Parquet file; null for a frame that is a file).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import FrameError, PredictorError
from ..folders import MASK_SUFFIX, SYSTEM_FOLDERS, find_frames, is_folder
from ..frames import SUFFIXES
from ..parquet import arrow_errors, rows_at_once
from ..rows import printed
from .frame_rows import frame_columns, parquet_file
from .stores import Stored, is_uri

PARQUET_SUFFIX = ".parquet"
MAX_NAME_BYTES = 1 << 15
_NAMES_TOGETHER = 10_000
_SHOWN = 3


def list_archive(paths: Sequence[str], unread: list[FrameError]) -> Any:
    """The frames below some paths, as the table that the module describes; each file once.

    A folder with Parquet files directly in it stands for these; any other is searched for frames as `find_frames` does.
    Below a URI, hidden and system folders and masks are left out in the same way. Local paths become absolute: workers
    have other current folders. What cannot be read goes to `unread`.
    Raises FrameError where a folder or a URI holds no frames, PredictorError where a name stands for two frames.
    """
    import pyarrow as pa

    parts = []
    files: list[str] = []
    listed = (found for name in paths for found in (_remote(name, unread) if is_uri(name) else _here(name, unread)))
    for found in dict.fromkeys(listed):
        if not _is_packed(found):
            files.append(found)
            continue
        try:
            parts.append(_members(found))
        except FrameError as exc:
            unread.append(exc)
        except arrow_errors() as exc:
            unread.append(FrameError(found, f"cannot be read as Parquet ({exc})"))
    names = pa.array([printed(file) for file in files], pa.large_string())
    opened = pa.array([os.fsencode(file) for file in files], pa.large_binary())
    parts.append(pa.table({"source": names, "path": opened, "row": pa.nulls(len(files), pa.int64())}))
    table = pa.concat_tables(parts)
    _refuse_twins(table)
    return table


def _is_packed(name: str) -> bool:
    path = Stored.of(name).path if is_uri(name) else name
    return PurePosixPath(path).suffix.lower() == PARQUET_SUFFIX


def _stands_in(name: str) -> bool:
    """Whether a file of a folder stands for the frames of it."""
    return _is_packed(name) and not name.startswith(".")


def _here(name: str, unread: list[FrameError]) -> list[str]:
    if not name:
        raise FrameError(name, "an empty name is no path; the current folder is .")
    path = Path(name).absolute()
    if not is_folder(path):
        return [str(path)] if _is_packed(path.name) else find_frames([str(path)], unread)
    packed = sorted(str(file) for file in path.glob("*.*") if _stands_in(file.name))
    return packed or find_frames([str(path)], unread)


def _remote(uri: str, unread: list[FrameError]) -> list[str]:
    """The frames, or the Parquet files, below a URI; the URI itself where it is no folder."""
    from pyarrow import fs

    stored = Stored.of(uri)
    filesystem, root = stored.open()
    try:
        if filesystem.get_file_info(root).type != fs.FileType.Directory:
            return [uri]  # a worker opens it, and says what is wrong with it
        found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except arrow_errors() as exc:  # also for names that no store takes
        unread.append(FrameError(uri, f"cannot be listed ({exc})"))
        return []
    below = [PurePosixPath(info.path).relative_to(root) for info in found if info.is_file]
    packed = sorted(path for path in below if len(path.parts) == 1 and _stands_in(path.name))
    frames = packed or _frames(below)
    if not frames:
        raise FrameError(uri, f"holds no frames ({', '.join(SUFFIXES)}) and no Parquet files")
    return [str(stored.below(str(path))) for path in frames]


def _frames(files: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """The pictures that are frames, by the rules of `runtime.folders`; pictures that this program wrote count."""
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    below = [path for path in images if path.parts[0] == "images"]
    images = below or images
    with_frames = {folder for path in images for folder in path.parents if folder.name == "images"}
    stems = defaultdict(set)
    for path in images:
        stems[path.parent].add(path.stem.lower())
    frames = []
    for path in images:
        folders = [PurePosixPath(*path.parts[: depth + 1]) for depth in range(len(path.parts) - 1)]
        hidden = any(part.startswith(".") or part.lower() in SYSTEM_FOLDERS for part in path.parts)
        truth = any(
            folder.name.lower() == "ground_truth"
            or (folder.name.lower() == "masks" and folder.with_name("images") in with_frames)
            for folder in folders
        )
        stem = path.stem.lower()
        mask = stem.endswith(MASK_SUFFIX) and stem.removesuffix(MASK_SUFFIX) in stems[path.parent]
        if not (hidden or truth or mask):
            frames.append(path)
    return sorted(frames)


def _members(file: str) -> Any:
    """The frames of a Parquet file. Raises FrameError, and errors of pyarrow."""
    import pyarrow as pa

    with parquet_file(file) as (opened, index):
        column = frame_columns(opened, file)[0]
        together = rows_at_once(index, _NAMES_TOGETHER, (column,))
        parts = [_names(batch.column(0), file) for batch in opened.iter_batches(together, columns=[column])]
    names = pa.chunked_array(parts, pa.large_string()).combine_chunks()
    if names.null_count:
        raise FrameError(file, f"has {names.null_count} frames without a name in its column {column}")
    return pa.table(
        {
            "source": names,
            "path": pa.repeat(pa.scalar(os.fsencode(file), pa.large_binary()), len(names)),
            "row": pa.array(range(len(names)), pa.int64()),
        }
    )


def _names(found: Any, file: str) -> Any:
    """The column as `large_string`. Raises FrameError for names that are no text, and for longer ones than files have,
    of which a small file can hold many."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        found.validate(full=True)
    except pa.ArrowInvalid as exc:
        raise FrameError(file, "has names that are no UTF-8 text: it is damaged, or not a text column") from exc
    longest = pc.max(pc.binary_length(found)).as_py() or 0
    if longest > MAX_NAME_BYTES:
        raise FrameError(file, f"has a name of {longest:,} bytes, more than the {MAX_NAME_BYTES:,} allowed")
    return found.cast(pa.large_string())


def _refuse_twins(table: Any) -> None:
    import pyarrow.compute as pc

    counts = pc.value_counts(table.column("source"))
    twins = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if twins:
        names = ", ".join(twins[:_SHOWN]) + (", ..." if len(twins) > _SHOWN else "")
        raise PredictorError(
            f"{len(twins)} names stand for two or more frames ({names}): answers are told apart by their names, so "
            "give each frame its own"
        )
