"""What a model on an inference server says of itself: texts by name, the `parameters` of its config.pbtxt.

A server answers by any recipe that it holds, and no answer shows which. So the client compares these texts with its
bundle before the first frame. Field names have the prefix PREFIX, because a server adds parameters of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..encoder import sha256_field
from ..errors import BackendUnavailable
from ..jsonfields import Fields, listed, parse_json
from ..recipe import MAX_CLASSES, MIN_CLASSES
from ..targets import STORED_PRECISIONS

PREFIX = "sem_clip_"
FORMAT = 1
NAME = "sem_clip"
"""Of the model that `sem-clip triton-repository` writes, unless told otherwise."""
MAX_BATCH = 4096
MAX_VERSIONS = 100
"""Each is a copy of the model in the server's memory."""
WRITE = "write the server's model repository with: sem-clip triton-repository BUNDLE OUT"


@dataclass(frozen=True, slots=True)
class HeldRecipe:
    """A recipe that is a part of a model.

    tensors_sha256: of what the server computes with (`recipe.tensors_digest`); this is compared. sha256: of the recipe
    file, for people. classes: the K names, in the order of the probabilities.
    """

    tensors_sha256: str
    sha256: str
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """One model of a server.

    encoder_id, value_path: as in `manifest.Encoder`. precision: of the artifact. model_sha256: of the bundle's file
    before a recipe was put into it. max_batch, most_classes: the largest request. bundle: format and version of the
    manifest. recipes: by model version, the recipe in it; empty where each request brings its own.
    """

    encoder_id: str
    value_path: bool
    precision: str
    model_sha256: str
    max_batch: int
    most_classes: int
    bundle: str
    recipes: Mapping[int, HeldRecipe]

    def parameters(self) -> dict[str, str]:
        """As texts by name, all ASCII."""
        held = {
            str(version): {
                "tensors_sha256": recipe.tensors_sha256,
                "sha256": recipe.sha256,
                "classes": list(recipe.classes),
            }
            for version, recipe in self.recipes.items()
        }
        values = {
            "format": str(FORMAT),
            "encoder_id": self.encoder_id,
            "value_path": "true" if self.value_path else "false",
            "precision": self.precision,
            "model_sha256": self.model_sha256,
            "max_batch": str(self.max_batch),
            "most_classes": str(self.most_classes),
            "bundle": self.bundle,
            "recipes": json.dumps(held),
        }
        return {PREFIX + name: value for name, value in values.items()}

    @classmethod
    def read(cls, parameters: Mapping[str, str], where: str) -> Served:
        """The inverse of `parameters`; names of others are ignored. where: the model and its server, for messages.

        Raises BackendUnavailable, with what to do, for a model that says nothing, or nothing sound, of itself.
        """
        texts = {name.removeprefix(PREFIX): text for name, text in parameters.items() if name.startswith(PREFIX)}
        if "format" not in texts:
            raise BackendUnavailable(
                f"{where} does not say by which encoder and recipe it answers, for it has no parameters {PREFIX}...: "
                f"{WRITE}"
            )
        if texts["format"] != str(FORMAT):
            raise BackendUnavailable(
                f"{where} has parameters of format {texts['format']:.20}, this client knows {FORMAT}: update sem-clip, "
                f"or {WRITE}"
            )
        faults: list[str] = []
        fields = Fields({name: _value(name, text, faults) for name, text in texts.items()}, "parameters", faults)
        fields.whole("format", FORMAT, FORMAT)
        served = cls(
            encoder_id=sha256_field(fields, "encoder_id"),
            value_path=fields.flag("value_path"),
            precision=fields.text("precision"),
            model_sha256=sha256_field(fields, "model_sha256"),
            max_batch=fields.whole("max_batch", 1, MAX_BATCH),
            most_classes=fields.whole("most_classes", MIN_CLASSES, MAX_BATCH),
            bundle=fields.text("bundle"),
            recipes=_recipes(fields.mapping("recipes"), faults),
        )
        if served.precision not in STORED_PRECISIONS:
            fields.fault("precision", f"must be one of {', '.join(STORED_PRECISIONS)}")
        fields.finish()
        if faults:
            raise BackendUnavailable(f"{where} has faulty parameters ({'; '.join(listed(faults)[:5])}): {WRITE}")
        return served


def _value(name: str, text: str, faults: list[str]) -> Any:
    """The value of a text, by the kind that its name has; the text itself where it is none of that kind."""
    if name in ("format", "max_batch", "most_classes"):
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text
    if name == "value_path":
        return {"true": True, "false": False}.get(text, text)
    if name == "recipes":
        try:
            return parse_json(text, faults)
        except (ValueError, RecursionError):
            return text
    return text


def _recipes(entries: Mapping[str, Any], faults: list[str]) -> dict[int, HeldRecipe]:
    found = {}
    if len(entries) > MAX_VERSIONS:
        faults.append(f"parameters.recipes must hold at most {MAX_VERSIONS} versions, not {len(entries):,}")
        return {}
    for version, entry in entries.items():
        fields = Fields(entry, f"parameters.recipes.{version[:20]}", faults)
        if not (version.isascii() and version.isdecimal() and len(version) < 19):
            faults.append(f'parameters.recipes must be by the number of a version, not "{version[:20]}"')
            continue
        found[int(version)] = HeldRecipe(
            tensors_sha256=sha256_field(fields, "tensors_sha256"),
            sha256=sha256_field(fields, "sha256"),
            classes=fields.texts("classes", MAX_CLASSES),
        )
        fields.finish()
    return found
