"""The one place that imports ONNX Runtime: nothing about this machine or its frames leaves it.

From version 1.29 on ONNX Runtime keeps a device id and a store of events in the home folder and looks for the collector
of its maker. `ORT_DISABLE_TELEMETRY=1` stops all of it, if it is in the environment before the import; a call of
`disable_telemetry_events` afterwards does not. So it is set here whatever it was, for child processes too. On Windows
there is that call alone: the system's own tracing has one event by then, which says that the engine was loaded.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

VARIABLE = "ORT_DISABLE_TELEMETRY"
OTHER_VARIABLE = "ORT_TELEMETRY_DISABLED"
"""What builds of another time ask for."""
_log = logging.getLogger("sem_clip")


def _switch_off() -> bool:
    """Set the variable; whether ONNX Runtime was imported before without it."""
    too_late = sys.modules.get("onnxruntime") is not None and os.environ.get(VARIABLE) != "1"
    os.environ[VARIABLE] = os.environ[OTHER_VARIABLE] = "1"
    return too_late


_too_late = _switch_off()  # with the package, so that a program that imports ONNX Runtime later is covered as well


def import_onnxruntime() -> Any:
    """ONNX Runtime's module. Raises ImportError where it is not installed.

    Warns once, in the log, if the program around this package had imported it before with its telemetry on.
    """
    global _too_late
    if _switch_off() or _too_late:
        _log.warning(
            "ONNX Runtime was imported before this package, with its telemetry on, which cannot be undone: import "
            "`runtime` first, or set %s=1 in the environment",
            VARIABLE,
        )
        _too_late = False
    import onnxruntime

    if sys.platform == "win32":
        onnxruntime.disable_telemetry_events()
    return onnxruntime
