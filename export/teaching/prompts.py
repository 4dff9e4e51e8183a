"""Prompts: templates x states per class, from an editable TOML file (paper section 3.1)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import PromptError

DEFAULT_FILE = Path(__file__).with_name("prompts.toml")
GENERIC_FILE = Path(__file__).with_name("prompts_generic.toml")
"""Prompts without knowledge of wafers, to measure the gain of the expert ones (paper, Table 3)."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """A checked prompt file. states: by class. generic: states of classes without a section; may be empty."""

    file: Path
    subject: str
    templates: tuple[str, ...]
    states: Mapping[str, tuple[str, ...]]
    generic: tuple[str, ...]

    def for_class(self, name: str) -> list[str]:
        """All prompts of a class, templates x states. Raises PromptError if the file has none for it."""
        states = self.states_of(name)
        return [template.replace("{}", state) for template in self.templates for state in states]

    def states_of(self, name: str) -> list[str]:
        """The states of a class with the object in them, without templates. Raises PromptError like `for_class`."""
        states = self.states.get(name)
        if states is None:
            words = name.replace("_", " ").replace("-", " ")
            states = tuple(state.replace("{class}", words) for state in self.generic)
        if not states:
            raise PromptError(
                f'{self.file}: no prompts for class "{name}"; add a section [classes.{name}] with '
                f'states = ["{{}} with ..."], or a [generic] section'
            )
        return [state.replace("{}", self.subject) for state in states]

    def generic_classes(self, classes: Sequence[str]) -> list[str]:
        """Those of `classes` that have no section of their own."""
        return [name for name in classes if name not in self.states]


def load_prompts(file: str | Path | None = None) -> Prompts:
    """Read a prompt file (the shipped one by default). Raises PromptError with all faults."""
    path = DEFAULT_FILE if file is None else Path(file)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PromptError(f"there is no prompt file {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise PromptError(f"{path} is not readable TOML: {exc}") from exc
    faults: list[str] = []
    unknown = sorted(document.keys() - {"object", "templates", "generic", "classes"})
    faults += [f'"{key}" is not known here' for key in unknown]
    subject = document.get("object")
    if not isinstance(subject, str) or not subject.strip():
        faults.append('object must be a phrase, such as "SEM image of a wafer"')
    templates = _phrases(document.get("templates"), "templates", faults)
    generic = _generic(document.get("generic", {}), faults)
    classes = document.get("classes")
    states: dict[str, tuple[str, ...]] = {}
    if not isinstance(classes, dict) or not classes:
        faults.append("there is no section [classes.<name>]")
    else:
        for name, section in classes.items():
            states[name] = _states(section if isinstance(section, dict) else {}, f"classes.{name}", faults)
    if faults:
        raise PromptError(f"{path}: " + "; ".join(faults))
    return Prompts(path, str(subject), templates, states, generic)


def _generic(section: Any, faults: list[str]) -> tuple[str, ...]:
    if not isinstance(section, dict):
        faults.append("generic must be a section [generic]")
        return ()
    return _states({"states": [], **section}, "generic", faults, empty_ok=True)


def _states(section: Mapping[str, Any], where: str, faults: list[str], *, empty_ok: bool = False) -> tuple[str, ...]:
    """The states of a section, which may hold nothing else."""
    faults += [f'"{where}.{key}" is not known here' for key in sorted(section.keys() - {"states"})]
    return _phrases(section.get("states"), f"{where}.states", faults, empty_ok=empty_ok)


def _phrases(value: Any, where: str, faults: list[str], *, empty_ok: bool = False) -> tuple[str, ...]:
    """A list of phrases, each with exactly one {}."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value) or not (value or empty_ok):
        faults.append(f"{where} must be a list of phrases")
        return ()
    faults += [f'{where}: "{item}" needs exactly one {{}}' for item in value if item.count("{}") != 1]
    return tuple(value)


@dataclass(frozen=True, slots=True)
class RecordedPrompts(Prompts):
    """The prompts that a recipe records, and those of a file for classes that it lacks. recorded: by class."""

    recorded: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, recorded: Mapping[str, Sequence[str]], prompts: Prompts) -> RecordedPrompts:
        """recorded: as in a recipe's `teaching`."""
        own = {field.name: getattr(prompts, field.name) for field in fields(Prompts)}
        return cls(**own, recorded={name: tuple(phrases) for name, phrases in recorded.items()})

    def for_class(self, name: str) -> list[str]:
        """As `Prompts.for_class`, for a class that is not recorded."""
        return list(self.recorded[name]) if name in self.recorded else Prompts.for_class(self, name)
