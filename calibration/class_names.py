"""Names that a class may have: one that can be printed, is no verdict, and can be a folder of a data folder."""

from __future__ import annotations

from runtime.folders import SYSTEM_FOLDERS
from runtime.line_log import MAX_NAME
from runtime.operating_point import is_verdict, unprintable

MAX_NAME_BYTES = 200
"""Of the names of folders and files; file systems take 255, a temporary name and a suffix included."""
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
"""Names that Windows keeps for devices, with any suffix."""


def class_fault(name: str) -> str:
    """Why no class may have this name; "" if one may."""
    if unprintable(name) or name != name.strip():
        return f"no class may be called {name[:MAX_NAME]!a}: it cannot be printed, or begins or ends with a blank"
    if len(name) > MAX_NAME:
        return f"no class may have a name of {len(name):,} characters; {MAX_NAME} are the most"
    return f'no class may be called "{name}": that is a verdict' if is_verdict(name) else ""


def folder_fault(name: str) -> str:
    """Why a class cannot be a folder of a data folder; "" if it can."""
    if any(mark in name for mark in "/\\:\0") or name.startswith(".") or name.endswith("."):
        return f'"{name}" is no name for a folder: it holds / \\ or :, or begins or ends with a dot'
    if name.lower() in SYSTEM_FOLDERS or name.lower().partition(".")[0].rstrip() in _DEVICES:
        return f'"{name}" is a name of the system, which is never read: call the class otherwise'
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f'"{name[:40]}..." is too long for a folder: {MAX_NAME_BYTES} bytes are the most'
    return ""
