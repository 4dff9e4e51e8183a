"""groups.csv: frames of one group share a physical origin, such as a wafer site, a tile or a paper's figure.

A recipe taught on some frames of a group is no evidence for the others, so a test never shares a group with a support.
The file has at least the columns path (as `images/<class>/<file>`), class and group, separated by commas, semicolons or
tabs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from runtime.files import open_plain
from runtime.folders import one_name

GROUPS = "groups.csv"
_COLUMNS = ("path", "class", "group")


def read_groups(folder: Path, roots: Sequence[str], faults: list[str]) -> dict[str, str] | None:
    """Group by path, or None without a groups.csv or where it cannot be read.

    roots: the folders of class folders, such as images. Adds everything that is wrong to `faults`.
    """
    path = folder / GROUPS
    try:
        # A spreadsheet starts UTF-8 with a byte order mark.
        with io.TextIOWrapper(io.BufferedReader(open_plain(path)), encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, delimiter=_delimiter(stream))
            return _groups_of(rows, roots, faults) if _has_columns(rows, faults) else None
    except FileNotFoundError:
        if path.is_symlink():
            faults.append("groups.csv is a link that leads to no file")
        return None
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        faults.append(f"groups.csv cannot be read: {exc}")
        return None


def _delimiter(stream: TextIO) -> str:
    """The separator of the first line: spreadsheets write that of their country."""
    head = stream.readline()
    stream.seek(0)
    fits = (mark for mark in ",;\t" if {*_COLUMNS} <= set(next(csv.reader([head], delimiter=mark), ())))
    return next(fits, ",")


def _has_columns(rows: csv.DictReader[str], faults: list[str]) -> bool:
    """Whether each column is there once."""
    names = list(rows.fieldnames or ())
    lacking = sorted({*_COLUMNS} - {*names})
    twice = sorted(name for name in _COLUMNS if names.count(name) > 1)
    if lacking:
        faults.append(f"groups.csv lacks the columns {', '.join(lacking)} (separated by commas, semicolons or tabs)")
    elif twice:
        faults.append(f"groups.csv has two columns {', '.join(twice)}")
    return not lacking and not twice


def _groups_of(rows: csv.DictReader[str], roots: Sequence[str], faults: list[str]) -> dict[str, str]:
    groups: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        if None in row:  # "Lot 1, site 2" without quotes would be read as "Lot 1"
            faults.append(f"groups.csv line {line} has more values than there are columns")
        key, label, group = (one_name(row[name] or "") for name in _COLUMNS)
        parts = key.split("/")
        if len(parts) != 3 or parts[0] not in roots:
            faults.append(f'groups.csv line {line}: "{key}" is not {roots[-1]}/<class>/<file>')
        elif parts[1] != label:
            faults.append(f"groups.csv line {line}: {key} is labelled {label}")
        elif key in groups:
            faults.append(f"groups.csv line {line}: {key} appears twice")
        else:
            groups[key] = group.strip()
    return groups
