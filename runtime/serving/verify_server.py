"""`sem-clip verify --backend triton`: an inference server answers the golden frames as an engine of this host would."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..backends.triton import TritonBackend
from ..errors import BackendUnavailable, PredictorError
from ..golden import Golden, load_golden
from ..lifetime import in_engine
from ..manifest import Manifest, use_bundle
from ..peak import Peak
from ..qualification import Check, Subject, qualify
from ..recipe import Recipe
from ..verification import Result, record

BATCHES = (1, 2, 8, 32)


def verify_server(folder: Path, backend: TritonBackend, *, seconds: float) -> dict[str, Any]:
    """The record of one model of a server, JSON-ready. seconds: for the timed part. Closes the backend.

    Raises BundleError for a bundle without sound golden frames; BackendUnavailable for a server of another encoder,
    and for a model that holds its recipes: recipe swaps and other numbers of classes cannot be tried on it.
    """

    def load(manifest: Manifest, recipe: Recipe) -> tuple[Manifest, Recipe, Golden]:
        return manifest, recipe, load_golden(folder, manifest, recipe)

    with backend:
        manifest, recipe, golden = use_bundle(folder, load)
        backend.check_encoder(manifest.encoder)
        if backend.served.recipes:
            raise BackendUnavailable(
                f"{backend.where} holds its recipes, so it cannot be asked by others: verify the model that takes a "
                "recipe with each request (sem_clip_any_recipe), which computes with the same file"
            )
        sizes = tuple(size for size in BATCHES if size <= backend.max_batch)
        subject = Subject.of(manifest, recipe, golden, backend, sizes, backend.served.most_classes)
        print(f"verify  {backend.where} ...", file=sys.stderr)
        checks = tuple(_checks(subject, seconds))
        about = backend.name, backend.precision, "a model of a server", backend.served.model_sha256
        result = Result(*about, backend.description, checks, tolerance=subject.tolerance)
    peak = Peak(None, 0, "", "not measured: the server computes")
    return record(folder, manifest, golden, [result], peak)


def _checks(subject: Subject, seconds: float) -> list[Check]:
    try:
        with in_engine():
            subject.backend.warm_up(subject.recipe)
    except PredictorError as exc:
        return [Check("warm-up", False, str(exc))]
    return qualify(subject, seconds)
