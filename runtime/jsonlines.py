"""The JSON lines of `predict`: to stdout, or to a file that is whole or absent."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import PredictorError
from .files import OutputFile
from .terminal import printable, require_stdout

TO_A_FILE = "name a file with --json"


@contextmanager
def json_lines(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes one object as one line: to stdout, or to `path`, which appears once it is whole.

    If the block fails after some lines, `path`.partial keeps them, and a message on stderr names it. A pipe or a device
    gets each line at once. Raises PredictorError without a stdout, or if the reader of a pipe leaves; OSError.
    """
    if path is None:
        require_stdout(TO_A_FILE)
        stdout = sys.stdout
        yield lambda line: print(json.dumps(line), file=stdout, flush=True)  # readers wait for each line
        return
    out, count = OutputFile(path), 0

    def write(line: Mapping[str, Any]) -> None:
        nonlocal count
        try:
            out.write((json.dumps(line) + "\n").encode())
        except BrokenPipeError:
            raise PredictorError(f"{path}: its reader left after {count} lines") from None
        count += 1

    try:
        yield write
        out.commit()
    except BaseException:
        if out.direct or not count:
            out.discard()
        elif (kept := out.keep()) is not None:
            print(f"the lines of {count} frames that were done are kept in {printable(kept)}", file=sys.stderr)
        raise
