"""`sem-clip triton-repository`: a bundle as models that a Triton server loads.

    OUT/sem_clip/              config.pbtxt, 1/model.onnx, 2/model.onnx ...   a recipe in each version
    OUT/sem_clip_any_recipe/   config.pbtxt, 1/model.onnx                     each request brings a recipe
    OUT/sem_clip_tensorrt/     config.pbtxt, 1/sm89.plan ...                  the same, with the bundle's engines

A batch has one recipe. So the first model alone lets the server put requests together. Triton refuses that of a model
whose requests bring a recipe, because the recipe's tensors have no batch side.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..backends.base import graph_inputs, graph_outputs, read_onnx
from ..backends.choice import ENGINE_PRECISIONS, onnx_artifact
from ..errors import BundleError, PredictorError, RecipeError
from ..files import new_folder, read_bounded, require_folder, write_atomically
from ..manifest import FORMAT, VERSION, Artifact, Encoder, Manifest, read_artifact, use_bundle
from ..onnxrecipe import with_initializers
from ..recipe import MAX_BYTES, MAX_CLASSES, TENSORS, Recipe, tensors_digest
from .served import MAX_VERSIONS, NAME, PREFIX, HeldRecipe, Served
from .triton_config import ModelConfig, Tensor

MAX_BATCH = 64
DELAY_US = 1000
"""How long the server holds a request back so that others can join it. A frame takes the CPU 20 ms and more."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SYSTEM = "linux-"
_TARGET = re.compile(r"[0-9A-Za-z.+-]{1,40}")
"""Version and compute capability of an engine: they go into names of files and into the server's configuration."""
"""Of the servers that have a backend for plans."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a repository is to hold.

    name: of its models. recipes: files, one version each; without any, the bundle's own. precision: by default fp16 on
    a GPU and fp32 on a CPU. instances: copies of a model that run at the same time. threads: CPU threads of each copy,
    0 for all cores. engines: files of the bundle, where it holds several TensorRT engines for one GPU.
    """

    name: str = NAME
    recipes: Sequence[Path] = ()
    precision: str | None = None
    gpu: bool = False
    instances: int = 1
    threads: int = 0
    engines: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Taught:
    """A recipe, the hash of its file, and where it came from."""

    recipe: Recipe
    sha256: str
    where: str


def write_repository(bundle: Path, out: Path, wishes: Wishes, *, force: bool = False) -> list[str]:
    """Write the models to a new folder; returns a line for each. An interrupted run leaves no folder.

    force: replace an earlier repository.
    Raises PredictorError for names and places that cannot be, BundleError, RecipeError, BackendUnavailable for a
    precision or an engine that the bundle does not hold.
    """
    if not _NAME.fullmatch(wishes.name):
        raise PredictorError(f'"{wishes.name}" cannot name a model: use letters, digits, "_", "-" and "."')
    refuse_existing(out, force=force)
    if bundle.resolve() in out.resolve().parents:
        raise PredictorError(f"{out} lies in the bundle, which holds its own files alone: choose another place")

    def write(manifest: Manifest, recipe: Recipe) -> list[str]:
        return _write(bundle, manifest, recipe, out, wishes)

    return use_bundle(bundle, write)


def refuse_existing(out: Path, *, force: bool) -> None:
    """Raise PredictorError if `out` exists and may not be replaced: without `force`, and for anything but models of
    this command."""
    require_folder(out.parent)
    if not os.path.lexists(out):
        return
    if not force:
        raise PredictorError(f"{out} exists; add --force to replace it, or choose another name")
    if out.is_symlink() or not out.is_dir():
        raise PredictorError(f"{out} exists and is not a folder; choose another name")
    foreign = [entry.name for entry in out.iterdir() if not _is_own(entry)]
    if foreign:
        raise PredictorError(
            f"{out} holds {foreign[0]!r}, which sem-clip did not write, and --force replaces own models only: choose "
            "another name"
        )


def _is_own(model: Path) -> bool:
    config = model / "config.pbtxt"
    return config.is_file() and f'"{PREFIX}format"'.encode() in read_bounded(config, 2**20, BundleError)


def _write(bundle: Path, manifest: Manifest, own: Recipe, out: Path, wishes: Wishes) -> list[str]:
    taught = _recipes(wishes, manifest, own)
    plans = _plans(bundle, manifest, wishes) if wishes.gpu else {}
    lines: list[str] = []
    replaces = out.exists()
    place = _aside(out) if replaces else out
    with new_folder(place) as folder:
        # int8 ONNX files are for the CPU, and 8-bit engines are built from a form of their own.
        if not (plans and wishes.precision == "int8"):
            artifact, content = _onnx(bundle, manifest, wishes)
            lines += _fixed(folder, manifest, artifact, content, taught, wishes)
            lines.append(_any_recipe(folder, manifest, artifact, content, wishes))
        if plans:
            lines.append(_tensorrt(folder, bundle, manifest, plans, wishes))
    if replaces:
        shutil.rmtree(out)
        place.rename(out)
    return lines


def _onnx(bundle: Path, manifest: Manifest, wishes: Wishes) -> tuple[Artifact, bytes]:
    """The ONNX file to serve, and its content."""
    precision = wishes.precision or ("fp16" if wishes.gpu else "fp32")
    if wishes.gpu and precision == "int8":
        raise PredictorError(
            "the bundle holds no int8 TensorRT engine that fits, and int8 ONNX files are for the CPU: leave --gpu out, "
            "or choose --precision fp16"
        )
    artifact = onnx_artifact(bundle, manifest, precision)
    return artifact, read_onnx(bundle, artifact)


def _aside(out: Path) -> Path:
    """Where a repository is written that is to replace one. Raises PredictorError where something lies there."""
    aside = out.with_name(out.name + ".new")
    if os.path.lexists(aside):
        raise PredictorError(f"{aside} is in the way, from a run that was interrupted: move it to {out}, or remove it")
    return aside


def _recipes(wishes: Wishes, manifest: Manifest, own: Recipe) -> list[_Taught]:
    """The recipes of the versions 1, 2, ... Raises RecipeError."""
    taught = [_Taught(own, manifest.recipe_sha256, manifest.recipe_file)]
    if wishes.recipes:
        taught = [_read_recipe(path, manifest.encoder) for path in wishes.recipes]
    if len(taught) > MAX_VERSIONS:
        raise PredictorError(f"{len(taught)} recipes are too many, for the server loads one model each: {MAX_VERSIONS}")
    seen: dict[str, str] = {}
    for one in taught:
        there = seen.setdefault(tensors_digest(one.recipe), one.where)
        if there != one.where:
            raise RecipeError(one.where, f"is the same recipe as {there} but for its thresholds: give one of them")
    return taught


def _read_recipe(path: Path, encoder: Encoder) -> _Taught:
    content = read_bounded(path, MAX_BYTES, RecipeError)
    recipe = Recipe.from_bytes(content, where=str(path))
    encoder.check(recipe, where=str(path))
    return _Taught(recipe, hashlib.sha256(content).hexdigest(), str(path))


def _fixed(
    folder: Path, manifest: Manifest, artifact: Artifact, content: bytes, taught: list[_Taught], wishes: Wishes
) -> list[str]:
    """The model with a recipe in each version."""
    lines, held = [], {}
    for version, one in enumerate(taught, start=1):
        try:
            changed = with_initializers(content, {name: one.recipe.tensors[name] for name in TENSORS})
        except ValueError as exc:
            raise BundleError(artifact.file, f"{exc}, so no recipe can be put into it: build the bundle again") from exc
        write_atomically(folder / wishes.name / str(version) / "model.onnx", changed)
        classes = one.recipe.classes
        held[version] = HeldRecipe(tensors_digest(one.recipe), one.sha256, classes)
        lines.append(f"{wishes.name} version {version}: {one.where}, {len(classes)} classes")
    encoder = manifest.encoder
    config = ModelConfig(
        name=wishes.name,
        backend="onnxruntime",
        max_batch=MAX_BATCH,
        inputs=[Tensor("frames", "uint8", encoder.input_size)],
        outputs=[Tensor(name, kind, shape[1:]) for name, (kind, shape) in graph_outputs(encoder).items()],
        parameters=_parameters(_served(manifest, artifact, held), wishes),
        gpu=wishes.gpu,
        instances=wishes.instances,
        delay_us=DELAY_US,
    )
    _write_config(folder, config)
    return lines


def _any_recipe(folder: Path, manifest: Manifest, artifact: Artifact, content: bytes, wishes: Wishes) -> str:
    """The model that takes a recipe with each request; without one, it judges by the bundle's own."""
    name = f"{wishes.name}_any_recipe"
    write_atomically(folder / name / "1" / "model.onnx", content)
    config = ModelConfig(
        name=name,
        backend="onnxruntime",
        max_batch=0,
        inputs=_inputs(manifest.encoder, optional=True),
        outputs=_outputs(manifest.encoder),
        parameters=_parameters(_served(manifest, artifact, {}), wishes),
        gpu=wishes.gpu,
        instances=wishes.instances,
    )
    _write_config(folder, config)
    return f"{name}: the recipe comes with each request"


def _tensorrt(folder: Path, bundle: Path, manifest: Manifest, plans: dict[str, Artifact], wishes: Wishes) -> str:
    """The TensorRT engines, by compute capability, as one model that takes a recipe with each request."""
    name = f"{wishes.name}_tensorrt"
    files = {}
    for capability, plan in plans.items():
        files[capability] = f"sm{capability.replace('.', '')}.plan"
        write_atomically(folder / name / "1" / files[capability], read_artifact(bundle, plan))
    first = next(iter(plans.values()))
    versions = ", ".join(sorted({str(plan.target.get("version")) for plan in plans.values()}))
    served = _served(
        manifest,
        first,
        {},
        most=min(int(plan.target["batch"][2]) for plan in plans.values()),
        most_classes=min(int(plan.target["most_classes"]) for plan in plans.values()),
    )
    config = ModelConfig(
        name=name,
        backend="tensorrt",
        max_batch=0,
        inputs=_inputs(manifest.encoder, optional=False),
        outputs=_outputs(manifest.encoder),
        parameters=served.parameters(),
        gpu=True,
        instances=wishes.instances,
        files=files,
        comment=f"The server must have TensorRT {versions}.",
    )
    _write_config(folder, config)
    capabilities = ", ".join(plans)
    return f"{name}: engines of TensorRT {versions} for compute capability {capabilities}; each request brings a recipe"


def _plans(bundle: Path, manifest: Manifest, wishes: Wishes) -> dict[str, Artifact]:
    """The bundle's TensorRT engines by compute capability. Raises BundleError where one capability has several."""
    precision = wishes.precision or ENGINE_PRECISIONS[0]
    graphs = {a.sha256 for a in manifest.artifacts if a.kind == "onnx" and a.precision == precision}
    engines = [a for a in manifest.artifacts if a.kind == "engine" and a.target.get("product") == "tensorrt"]
    unknown = sorted(set(wishes.engines) - {engine.file for engine in engines})
    if unknown:
        there = ", ".join(engine.file for engine in engines) or "none"
        raise BundleError(bundle, f"holds no TensorRT engine {unknown[0]}; it holds {there}")
    found: dict[str, Artifact] = {}
    for engine in engines:
        target = engine.target
        fits = engine.precision == precision and target.get("onnx_sha256") in graphs and _is_servable(engine)
        fits &= str(target.get("os")).startswith(_SYSTEM)
        if not fits or (wishes.engines and engine.file not in wishes.engines):
            continue
        other = found.setdefault(str(target.get("compute_capability")), engine)
        if other is not engine:
            raise BundleError(
                bundle,
                f"holds several TensorRT engines for compute capability {target.get('compute_capability')}: choose one "
                f"with --engine {other.file} or --engine {engine.file}",
            )
    left_out = [file for file in wishes.engines if file not in {engine.file for engine in found.values()}]
    if left_out:
        raise BundleError(
            bundle,
            f"holds {left_out[0]}, which no such server can run: it must be of precision {precision}, for Linux, "
            "built from the bundle's present ONNX file, and for batches from 1 frame on",
        )
    return found


def _is_servable(engine: Artifact) -> bool:
    """Whether an engine's record names version and GPU and has its bounds, with batches of 1 frame among them."""
    texts = engine.target.get("version"), engine.target.get("compute_capability")
    if not all(isinstance(text, str) and _TARGET.fullmatch(text) for text in texts):
        return False
    batch, classes = engine.target.get("batch"), engine.target.get("most_classes")
    if not isinstance(batch, list) or len(batch) != 3 or not all(type(size) is int for size in (*batch, classes)):
        return False
    return bool(batch[0] == 1 <= batch[2])


def _served(
    manifest: Manifest,
    artifact: Artifact,
    recipes: dict[int, HeldRecipe],
    *,
    most: int = MAX_BATCH,
    most_classes: int = MAX_CLASSES,
) -> Served:
    encoder = manifest.encoder
    return Served(
        encoder_id=encoder.id,
        value_path=encoder.value_path,
        precision=artifact.precision,
        model_sha256=artifact.sha256,
        max_batch=most,
        most_classes=most_classes,
        bundle=f"{FORMAT} {VERSION}",
        recipes=recipes,
    )


def _parameters(served: Served, wishes: Wishes) -> dict[str, str]:
    """Those of this project, and those of the server's ONNX Runtime."""
    threads = {"intra_op_thread_count": str(wishes.threads)} if wishes.threads else {}
    return served.parameters() | threads


def _inputs(encoder: Encoder, *, optional: bool) -> list[Tensor]:
    """All inputs with their batch; optional: the recipe's have values in the file."""
    return [
        Tensor(name, kind, shape, optional and name in TENSORS) for name, (kind, shape) in graph_inputs(encoder).items()
    ]


def _outputs(encoder: Encoder) -> list[Tensor]:
    return [Tensor(name, kind, shape) for name, (kind, shape) in graph_outputs(encoder).items()]


def _write_config(folder: Path, config: ModelConfig) -> None:
    write_atomically(folder / config.name / "config.pbtxt", config.text().encode("ascii"))
