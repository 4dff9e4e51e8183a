"""The only module that imports ONNX Runtime and OpenVINO, with their telemetry off: no data about this machine or its
frames leave it.

Since version 1.29, ONNX Runtime keeps a device id and a store of events in the home folder and contacts a collector of
its maker. `ORT_DISABLE_TELEMETRY=1` prevents all of it if it is set before the import; a later call of
`disable_telemetry_events` does not. So it is always set here, also for child processes. Windows has only that call, and
by then the system's own tracing holds one event, which records that the engine was loaded.

OpenVINO sends an event to its maker when it is imported, and keeps a device id in the home folder, unless a file there
forbids it. It does so through openvino-telemetry, a package of its own, and does without where that is not installed.
So that package can no longer be imported once this module has imported OpenVINO.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import cache
from typing import Any

VARIABLE = "ORT_DISABLE_TELEMETRY"
OTHER_VARIABLE = "ORT_TELEMETRY_DISABLED"
"""The name in other builds."""
_SENDER = "openvino_telemetry"
_log = logging.getLogger("sem_clip")


def _switch_off() -> bool:
    """Set the variable; return whether ONNX Runtime was imported before without it."""
    too_late = sys.modules.get("onnxruntime") is not None and os.environ.get(VARIABLE) != "1"
    os.environ[VARIABLE] = os.environ[OTHER_VARIABLE] = "1"
    return too_late


_too_late = _switch_off()  # with the package, so that a program that imports ONNX Runtime later is covered as well


def import_onnxruntime() -> Any:
    """ONNX Runtime's module. Raises ImportError if it is not installed.

    Logs a warning once if the calling program had imported it before with its telemetry on.
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


def import_openvino() -> Any:
    """OpenVINO's module. Raises ImportError if it is not installed.

    Logs a warning if the calling program had imported it before with its telemetry on.
    """
    if sys.modules.get(_SENDER) is not None and "openvino" in sys.modules:
        _warn_of_openvino()
    else:
        sys.modules[_SENDER] = None  # type: ignore[assignment]  # the documented way to make an import fail
    import openvino

    return openvino


@cache
def _warn_of_openvino() -> None:
    """Once."""
    _log.warning(
        "OpenVINO was imported before this package, with its telemetry on, which cannot be undone: open a Predictor "
        "first, or run `opt_in_out --opt_out`"
    )
