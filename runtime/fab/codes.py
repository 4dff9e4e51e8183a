"""The codes of a fab: which number of the yield system stands for which verdict.

[codes]
good = 11                   # 0 and -1 mean "no class" in KLARF: a manual class of theirs never counts
bridge = 12
unknown = 98
"cannot decide" = 99
"not read" = 97             # may be left out: such defects then keep the code that they have

[names]                     # may be left out: names for the class lookup of the KLARF file
bridge = "Bridging"         # default: the name of the class
"""

from __future__ import annotations

import hashlib
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_bounded
from ..jsonfields import listed
from ..operating_point import VERDICTS, same_name_key, unprintable
from ..terminal import show
from .lot_errors import LotError

NOT_READ, NO_IMAGE = "not read", "no image"
"""What a defect is called whose images could not be read, and one that has none. No class may have these names."""
MAX_BYTES = 2**20
MAX_NAME = 128
LEAST, MOST = -(2**31), 2**31 - 1
"""Class numbers of KLARF 1.8 are int32."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes by verdict, checked against the classes of a recipe.

    numbers: by verdict: every class, "unknown", "cannot decide", and "not read" where that has a code.
    names: what the class lookup calls each code.
    sha256: of the file's content, in hex.
    """

    numbers: Mapping[str, int]
    names: Mapping[int, str]
    sha256: str

    @classmethod
    def load(cls, path: str | Path, classes: Sequence[str]) -> Codes:
        """Read codes for these classes. Raises LotError with all faults of the file."""
        content = read_bounded(Path(path), MAX_BYTES, LotError)
        try:
            document = tomllib.loads(content.decode())
        except UnicodeDecodeError as exc:
            raise LotError(path, f"is not UTF-8 text ({exc.reason} at byte {exc.start}); save it as UTF-8") from exc
        except (ValueError, RecursionError) as exc:
            raise LotError(path, f"is not readable TOML ({exc})") from exc
        faults: list[str] = []
        numbers = _numbers(document, classes, faults)
        names = _names(document, numbers, faults)
        if faults:
            raise LotError(path, listed(faults))
        return cls(numbers, names, hashlib.sha256(content).hexdigest())


def _numbers(document: dict[str, Any], classes: Sequence[str], faults: list[str]) -> dict[str, int]:
    """The table [codes], in the order of the classes."""
    taken = sorted({name for name in classes if same_name_key(name) in (NOT_READ, NO_IMAGE)})
    faults.extend(
        f'the recipe has a class "{name}", which here means defects that were not judged: teach it under another name'
        for name in taken
    )
    faults.extend(
        f"[{show(name)}] is not known; the tables are [codes] and [names]"
        for name in document
        if name not in ("codes", "names")
    )
    table = document.get("codes")
    if not isinstance(table, dict):
        faults.append("has no table [codes], which gives each class its number")
        return {}
    wanted = (*classes, *VERDICTS)
    faults.extend(f'"{name}" has no code in [codes]' for name in wanted if name not in table)
    known = (*wanted, NOT_READ)
    for name, code in table.items():
        if name not in known:
            faults.append(
                f'"{show(name)}" in [codes] is no class of the recipe; it knows {", ".join(map(show, known))}'
            )
        elif not isinstance(code, int) or isinstance(code, bool):
            faults.append(f'the code of "{show(name)}" must be a whole number, not {show(code)}')
        elif not LEAST <= code <= MOST:
            faults.append(f'the code of "{show(name)}" must lie in {LEAST} to {MOST}, not be {show(code)}')
    sound = {name: table[name] for name in known if isinstance(table.get(name), int)}
    return {name: code for name, code in sound.items() if not isinstance(code, bool) and LEAST <= code <= MOST}


def _names(document: dict[str, Any], numbers: Mapping[str, int], faults: list[str]) -> dict[int, str]:
    """What the lookup calls each code: by [names], else the verdict itself. One code has one name."""
    table = document.get("names", {})
    if not isinstance(table, dict):
        faults.append("[names] must be a table of texts")
        table = {}
    for name, text in table.items():
        if name not in numbers:
            faults.append(f'"{show(name)}" in [names] has no code in [codes]')
        elif not isinstance(text, str) or unprintable(text) or len(text) > MAX_NAME or '"' in text:
            faults.append(
                f'the name of "{show(name)}" must be 1 to {MAX_NAME} characters without quotes and line breaks, not '
                f"{show(text)}"
            )
    called: defaultdict[int, dict[str, list[str]]] = defaultdict(dict)
    for verdict, code in numbers.items():
        text = table.get(verdict, verdict)
        called[code].setdefault(text if isinstance(text, str) else verdict, []).append(verdict)
    for code, texts in called.items():
        if len(texts) > 1:
            users = ", ".join(f'"{show(verdict)}"' for verdicts in texts.values() for verdict in verdicts)
            faults.append(f"code {code} is used for {users}: give each its own, or one name for all in [names]")
    for code, texts in called.items():
        name = next(iter(texts))
        if '"' in name:
            faults.append(f"code {code} needs a name without quotes in [names], because its class is called {name}")
    return {code: next(iter(texts)) for code, texts in called.items()}
