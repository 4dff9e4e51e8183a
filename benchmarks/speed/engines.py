"""The engines to compare: every backend and precision that the bundle holds and this host can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.backends import NAMES, Backend, open_backend, require_gpu, uses_gpu
from runtime.backends.choice import precisions_held
from runtime.errors import BackendUnavailable, BundleError, PredictorError
from runtime.manifest import Manifest
from runtime.pipeline import Pipeline, Setup
from runtime.prediction import Prediction
from runtime.recipe import Recipe

_NO_ENGINES_OF_THEIR_OWN = ("auto", "fake")


@dataclass(frozen=True, slots=True)
class EngineName:
    """An engine as `Predictor(backend=, precision=, device=)` names it; None is the backend's own choice."""

    backend: str
    precision: str | None
    device: int | str | None = None

    def __str__(self) -> str:
        return f"{self.backend}/{self.precision}" if self.precision else self.backend


@dataclass(frozen=True, slots=True)
class Skipped:
    """An engine that was left out, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The subject of a measurement: a bundle, its recipe, its engines, and frames.

    frames: paths of images, all of one size. threads: per engine, 0 for all cores.
    """

    folder: Path
    manifest: Manifest
    recipe: Recipe
    engines: dict[EngineName, Backend]
    frames: list[str]
    threads: int

    @property
    def setup(self) -> Setup:
        """The recipe and frame options in use."""
        return Setup(self.recipe, self.recipe.frame)

    def pipeline(self, backend: Backend, batch: int) -> Pipeline:
        """The production path around one engine."""
        return Pipeline(self.manifest.encoder, self.manifest.smoothing_px, backend, min(batch, backend.max_batch))


def predict(pipeline: Pipeline, paths: Sequence[str], setup: Setup) -> list[Prediction]:
    """Files to Predictions in one batch, as `Predictor.predict` does it."""
    return pipeline.answer([pipeline.prepare(path, setup) for path in paths])


@contextmanager
def opened_engines(
    folder: Path,
    manifest: Manifest,
    backends: Sequence[str],
    precisions: Sequence[str],
    threads: int,
    device: int | str | None = None,
) -> Iterator[tuple[dict[EngineName, Backend], list[Skipped]]]:
    """Open all requested engines, and close them at the end.

    Without names, every backend is tried with every precision of the bundle, and those that cannot run are returned as
    skipped. A named backend must run with some precision, a named precision on some backend. If both are named, every
    pair must run. device: the GPU of backends that use one. Raises BackendUnavailable, BundleError.
    """
    if device is not None:
        require_gpu(backends or NAMES, device)
    opened: dict[EngineName, Backend] = {}
    failed: dict[EngineName, PredictorError] = {}
    with ExitStack() as stack:
        for name in _names(manifest, backends, precisions, device):
            try:
                opened[name] = stack.enter_context(open_engine(name, folder, manifest, threads))
            except (BackendUnavailable, BundleError) as exc:
                failed[name] = exc
        if backends and precisions and failed:
            raise next(iter(failed.values()))
        for wanted in (*backends, *precisions):
            if not any(wanted in (name.backend, name.precision) for name in opened):
                errors = [error for name, error in failed.items() if wanted in (name.backend, name.precision)]
                if len(errors) == 1:
                    raise errors[0]
                raise BackendUnavailable("; ".join(dict.fromkeys(map(str, errors))))
        if not opened:
            reasons = "; ".join(map(str, failed.values()))
            raise BackendUnavailable(f"{folder}: no engine of this bundle runs on this host: {reasons}")
        yield opened, [Skipped(str(name), str(error)) for name, error in failed.items()]


def open_engine(name: EngineName, folder: Path, manifest: Manifest, threads: int) -> Backend:
    """Open one engine. Raises BackendUnavailable, BundleError."""
    return open_backend(name.backend, folder, manifest, precision=name.precision, threads=threads, device=name.device)


def _names(
    manifest: Manifest, backends: Sequence[str], precisions: Sequence[str], device: int | str | None
) -> list[EngineName]:
    tried = backends or [name for name in NAMES if name not in _NO_ENGINES_OF_THEIR_OWN]
    held = sorted({artifact.precision for artifact in manifest.artifacts}, reverse=True)
    found = []
    for backend in tried:
        own = precisions_held(backend, manifest) if backend == "openvino" else held
        found += [
            EngineName(backend, None if backend == "fake" else precision, device if uses_gpu(backend) else None)
            for precision in precisions or own
        ]
    return list(dict.fromkeys(found))
