"""A command that ends with its parent: `python -m runtime.watched COMMAND ...` is `sem-clip COMMAND ...`.

Its parent holds the other end of stdin and writes nothing. The system closes that end when the parent is gone, however
it ended. The command then ends as by SIGTERM, so that it removes its half-written files.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from .cli import main

STDIN = 0
PATIENCE_S = 10.0
"""So long may the command clean up. One that is deep in a library sees no signal."""
_STATUS = 128 + signal.SIGTERM


def end_with_parent() -> None:
    """Watch stdin from a thread of its own; end this process at its end."""
    threading.Thread(target=_watch, name="sem-clip-watched", daemon=True).start()


def _watch() -> None:
    try:
        while os.read(STDIN, 4096):
            pass
    except OSError:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_S)
    os._exit(_STATUS)


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
