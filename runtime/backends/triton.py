"""A client of an inference server as a backend: pictures are read and maps are drawn here, the server only computes.

The server may be Triton, or another of the V2 protocol over gRPC. `sem-clip triton-repository` writes its models. A
server would answer by any recipe that it holds. So encoder, recipe and version are compared when it is opened, when
the recipe changes, after a failure, and every RECHECK_S seconds.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import real_number, whole_number
from ..encoder import MAX_SIDE
from ..errors import BackendError, BackendUnavailable, raised_by_handler
from ..manifest import Encoder
from ..recipe import TENSORS, Recipe, tensors_digest
from ..serving.served import WRITE, Served
from .base import OUTPUTS, Backend, Outputs, Signature, graph_inputs, graph_outputs
from .v2_model import CallError, Description, V2Model

RECHECK_S = 5.0
"""How old the last look at the model's parameters may be. A look takes about a millisecond."""
TIMEOUT_S, MAX_TIMEOUT_S = 30.0, 3600.0
MAX_IN_FLIGHT = 64


@dataclass(frozen=True, slots=True, eq=False)
class _Route:
    """How frames are asked for by one recipe: of which version, and with which tensors besides them."""

    recipe: Recipe
    version: str
    tensors_sha256: str
    inputs: list[Any]


class TritonBackend(Backend):
    """Runs one model of an inference server: `Predictor("bundle", backend=TritonBackend("server:8001", "sem_clip"))`.

    url: HOST:PORT of the server's gRPC service. model: its name there.
    version: number of the model's version. By default the one that holds the recipe in use; where recipes come with
        the requests, the highest.
    timeout_s: how long one batch may take, over the network and in the server's queue.
    in_flight: how many batches are on their way at once; the server computes one while others travel.
    ssl_roots: PEM file of the certificates to trust. By default the connection is not encrypted.

    served: what the model says of itself. where: its name and address, for messages.

    Raises BackendUnavailable, with what to do: for a server that is gone, a model that is not there, not ready, or does
    not say which encoder and recipe it holds. `check_encoder` and `warm_up` raise it for those of another bundle.
    """

    name = "triton"

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: int | None = None,
        timeout_s: float = TIMEOUT_S,
        in_flight: int = 4,
        ssl_roots: str | Path | None = None,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise ValueError(f"model must be the name of a model on the server, not {model!r:.60}")
        self._asked = None if version is None else whole_number("version", version, 1)
        timeout_s = real_number("timeout_s", timeout_s, 1e-3, MAX_TIMEOUT_S)
        self.in_flight = whole_number("in_flight", in_flight, 1, MAX_IN_FLIGHT)
        self._lock = threading.Lock()
        self._looked_at = -RECHECK_S
        self._route: _Route | None = None
        self._model: V2Model | None = V2Model(url, model, timeout_s, None if ssl_roots is None else Path(ssl_roots))
        self.where = self._model.where
        try:
            found, self.served = self._look(self._model)
            self._signature: tuple[Signature, Signature] = found.inputs, found.outputs
            self._versions = found.versions
            self.max_batch = min(self.served.max_batch, found.max_batch or self.served.max_batch)
            self.precision = self.served.precision
            self._title = f"{found.server} at {url}, model {model}"
            self.description = f"{self._title} ({self.precision})"
        except BaseException:
            self.close()
            raise

    def check_encoder(self, encoder: Encoder) -> None:
        """As `Backend.check_encoder`."""
        if self.served.encoder_id != encoder.id:
            raise BackendUnavailable(
                f"{self.where} computes with encoder {self.served.encoder_id[:12]}, this bundle holds "
                f"{encoder.id[:12]} ({encoder.architecture}): open the bundle that the server's repository was written "
                "from, or write the repository from this one"
            )
        inputs, outputs = self._signature
        needed = graph_inputs(encoder)
        if self.served.recipes:
            needed = {"frames": needed["frames"]}
        faults = [*_differences(inputs, needed), *_differences(outputs, graph_outputs(encoder))]
        if faults:
            raise BackendUnavailable(
                f"{self.where} is not a model of this bundle: {'; '.join(faults[:5])}: write the server's repository "
                "from this bundle"
            )

    def warm_up(self, recipe: Recipe) -> None:
        """Look for the recipe on the server, and have one black frame answered by it.

        Raises BackendUnavailable for a recipe that the server does not hold, and for a server that does not answer.
        """
        model = self._opened()
        try:
            self._look_again(model)
            route = self._route_of(model, recipe)
            height, width = self._signature[0]["frames"][1][1:]
            self._answer(model, np.zeros((1, height, width), np.uint8), route)
        except CallError as exc:
            raise self._unavailable(model, exc) from exc
        except BackendError as exc:
            raise BackendUnavailable(str(exc)) from exc
        version = f" version {route.version}" if route.version else ""
        self.description = f"{self._title}{version} ({self.precision})"

    def run(self, frames: NDArray[np.uint8], recipe: Recipe) -> Outputs:
        """As `Backend.run`."""
        model = self._opened()
        try:
            with model.under_way():
                if time.monotonic() - self._looked_at >= RECHECK_S:
                    self._look_again(model)
                return self._answer(model, frames, self._route_of(model, recipe))
        except Exception as exc:
            if raised_by_handler(exc):
                raise
            self._looked_at = -RECHECK_S  # a server that was started anew may hold something else
            if isinstance(exc, BackendError):
                raise
            what = exc if isinstance(exc, BackendUnavailable) else f"{self.where} failed on {len(frames)} frames: {exc}"
            raise BackendError(str(what)) from exc

    def close(self) -> None:
        """End the connection once the batches under way are answered."""
        model, self._model, self._route = self._model, None, None
        if model is not None:
            model.close()

    def _opened(self) -> V2Model:
        model = self._model  # keeps it alive if close() is called meanwhile
        if model is None:
            raise BackendError(f"the connection to {self.where} is closed")
        return model

    def _look(self, model: V2Model) -> tuple[Description, Served]:
        """Raises BackendUnavailable."""
        try:
            found = model.describe("" if self._asked is None else str(self._asked))
        except CallError as exc:
            raise self._unavailable(model, exc) from exc
        served = Served.read(found.parameters, self.where)
        shape = found.inputs.get("frames", ("", ()))[1]
        if len(shape) != 3 or not all(1 <= side <= MAX_SIDE for side in shape[1:]):
            raise BackendUnavailable(f"{self.where} takes no frames [batch, height, width] of a fixed size: {WRITE}")
        if served.recipes and not set(map(str, served.recipes)) >= set(found.versions):
            raise BackendUnavailable(
                f"{self.where} has the versions {', '.join(found.versions)[:200]}, and its parameters tell of "
                f"{', '.join(map(str, served.recipes))[:200]}: write its repository anew"
            )
        return found, served

    def _look_again(self, model: V2Model) -> None:
        """Raise BackendUnavailable where the model is another than the one that was opened."""
        found, served = self._look(model)
        same = ("encoder_id", "value_path", "precision", "model_sha256", "max_batch")
        changed = [name for name in same if getattr(served, name) != getattr(self.served, name)]
        if changed or (found.inputs, found.outputs) != self._signature or bool(served.recipes) != self._holds_recipes:
            raise BackendUnavailable(
                f"{self.where} was replaced since it was opened ({', '.join(changed) or 'signature'}): open it again"
            )
        with self._lock:
            self.served, self._versions = served, found.versions
            route = self._route
            if route is not None and self._holder(served, route.tensors_sha256) != route.version:
                self._route = None
        # Not before: until then, other threads look as well, and none is answered by what may have been replaced.
        self._looked_at = time.monotonic()

    @property
    def _holds_recipes(self) -> bool:
        return bool(self.served.recipes)

    def _route_of(self, model: V2Model, recipe: Recipe) -> _Route:
        """Raises BackendUnavailable for a recipe that the server cannot answer by."""
        with self._lock:
            route = self._route
            if route is None or route.recipe is not recipe:
                self._require(recipe)
                digest = tensors_digest(recipe)
                version = self._holder(self.served, digest)
                if version is None:
                    raise BackendUnavailable(self._not_held(recipe))
                sent = {} if self.served.recipes else {name: recipe.tensors[name] for name in TENSORS}
                self._route = route = _Route(recipe, version, digest, model.inputs(sent))
            return route

    def _require(self, recipe: Recipe) -> None:
        served = self.served
        if recipe.encoder_id != served.encoder_id:
            raise BackendUnavailable(
                f"{self.where} computes with encoder {served.encoder_id[:12]}, the recipe was taught on "
                f"{recipe.encoder_id[:12]}: teach it again, or write the server's repository from the other bundle"
            )
        if recipe.lambda_v > 0 and not served.value_path:
            raise BackendUnavailable(
                f"{self.where} leaves the V path out, which the recipe needs (lambda_v {recipe.lambda_v:g}): write the "
                "server's repository from this bundle"
            )
        if len(recipe.classes) > served.most_classes:
            raise BackendUnavailable(
                f"{self.where} takes up to {served.most_classes} classes, the recipe has {len(recipe.classes)}: build "
                "its engine with more (--most-classes), or use the ONNX model"
            )

    def _holder(self, served: Served, digest: str) -> str | None:
        """The version that answers by a recipe; None if none does."""
        if not served.recipes:
            numbers = [int(version) for version in self._versions if version.isdecimal()]
            return str(self._asked or (max(numbers) if numbers else "") or "")
        held = [v for v, recipe in served.recipes.items() if recipe.tensors_sha256 == digest and self._is_there(v)]
        if held and not self._versions and len(served.recipes) == 1:
            return ""  # a server without versions knows no number
        return str(max(held)) if held else None

    def _is_there(self, version: int) -> bool:
        return self._asked in (None, version) and (not self._versions or str(version) in self._versions)

    def _not_held(self, recipe: Recipe) -> str:
        held = "; ".join(
            f"version {version}: recipe {found.sha256[:12]} of {len(found.classes)} classes"
            for version, found in sorted(self.served.recipes.items())[:10]
        )
        return (
            f"{self.where} does not hold the recipe in use, of {len(recipe.classes)} classes "
            f"({', '.join(recipe.classes)[:100]}), but {held}: add it as a version (sem-clip triton-repository BUNDLE "
            "OUT --recipe FILE), or use the model that takes a recipe with each request"
        )

    def _answer(self, model: V2Model, frames: NDArray[np.uint8], route: _Route) -> Outputs:
        """Raises CallError, BackendError."""
        size = self._signature[0]["frames"][1][1:]
        if frames.shape[1:] != size:
            raise BackendError(f"{self.where} takes frames of {list(size)}, not of {list(frames.shape[1:])}")
        inputs = [*model.inputs({"frames": frames}), *route.inputs]
        outputs = Outputs(*model.infer(inputs, OUTPUTS, route.version))
        needed = len(frames), len(route.recipe.classes)
        if outputs.probabilities.shape != needed:
            raise BackendError(
                f"{self.where} answers with probabilities {list(outputs.probabilities.shape)}, the recipe needs "
                f"{list(needed)} (frames, classes): the server's model is not what its parameters say; write it anew"
            )
        return outputs

    def _unavailable(self, model: V2Model, exc: CallError) -> BackendUnavailable:
        if exc.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"):
            advice = f"see that the server runs, and that {model.url} is its gRPC service (Triton's port is 8001)"
        elif exc.code == "NOT_FOUND":
            advice = "give the name of a model that is ready, or see the server's log for why this one is not"
        else:
            advice = "see the server's log"
        return BackendUnavailable(f"{self.where} cannot be used ({exc}): {advice}")


def _differences(found: Signature, needed: Signature) -> list[str]:
    """Where tensors of a model are not those of a bundle: names, types, ranks, sides. A side of -1 varies."""
    faults = [f"it has {name:.60}, which is not of the bundle's format" for name in found if name not in needed]
    for name, (kind, shape) in needed.items():
        there = found.get(name)
        if there is None:
            faults.append(f"it lacks {name}")
        elif there[0] != kind or not _agree(name, there[1], shape):
            faults.append(f"{name} is {there[0]:.20} {list(there[1])[:8]}, not {kind} {list(shape)}")
    return faults


def _agree(name: str, found: tuple[int, ...], needed: tuple[int, ...]) -> bool:
    """Whether ranks and fixed sides agree, and the number of frames is free. Answers are measured as they come."""
    answer = name in OUTPUTS
    if len(found) != len(needed) or ((answer or name == "frames") and found[0] != -1):
        return False
    return all(a == b or b == -1 or (answer and a == -1) for a, b in zip(found, needed, strict=True))
