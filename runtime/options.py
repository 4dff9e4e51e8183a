"""Options that several commands share, and checks of their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from .arguments import MAX_THREADS, gpu_device
from .backends import NAMES, require_gpu
from .fab.sem_values import LEAST_PIXEL_NM, MOST_PIXEL_NM
from .manifest import PRECISIONS
from .serving.server_options import add_server_arguments, chosen_backend


def add_bundle_argument(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Declare the bundle to work on. note: what this command needs of it."""
    text = "bundle folder, as `sem-clip build` writes it"
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help=f"{text}; {note}" if note else text)


def add_engine_arguments(
    parser: argparse.ArgumentParser, *, backends: Sequence[str] = NAMES, several: Collection[str] = ()
) -> argparse._ArgumentGroup:
    """Declare --backend, --precision, --device and --threads: the same for every command that runs a bundle.

    backends: the names to accept. several: those of ("backend", "precision") that take a list. A list is a tuple of
    names, empty by default, which means all; a single backend is "auto" by default, a single precision None.
    Returns the group, for options of one command alone.
    """
    group = parser.add_argument_group("engine")
    if "backend" not in several:
        backends = (*backends, "triton")
    server = "; triton: the inference server at --url, no engine of this host" if "triton" in backends else ""
    fake = "; fake: no engine, made-up answers, to test an integration" if "fake" in backends else ""
    names = f"{', '.join(backends)}{server}{fake}"
    if "backend" in several:
        _add_list(group, "--backend", backends, f"some of {names} (default: all that run on this host)")
    else:
        text = f"one of {names} (default: auto, the first of the others that runs on this host)"
        _add_name(group, "--backend", backends, text, "auto")
    known = ", ".join(PRECISIONS)
    if "precision" in several:
        _add_list(group, "--precision", PRECISIONS, f"some of {known} (default: all that the bundle holds)")
    else:
        default = "all" if "backend" in several else "fp16 on a GPU, else fp32"
        text = f"one of {known}; the bundle must hold it; bf16: openvino alone, from other files (default: {default})"
        _add_name(group, "--precision", PRECISIONS, text, None)
    add_device_argument(group)
    group.add_argument(
        "--threads",
        type=at_least(0, MAX_THREADS),
        default=0,
        metavar="N",
        help=f"CPU threads of the engine, 0 to {MAX_THREADS}; fewer leave cores to other work (default: 0, all cores)",
    )
    if "backend" not in several:
        add_server_arguments(group)
    return group


def add_device_argument(group: argparse._ActionsContainer, what: str = "run on") -> None:
    """Declare --device, one of this host's GPUs."""
    group.add_argument(
        "--device",
        type=_device,
        metavar="GPU",
        help=f"GPU to {what}: its index, or its UUID as `nvidia-smi -L` prints it (default: the first that CUDA shows)",
    )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of Predictor that `add_engine_arguments` declares for a single engine.

    Raises BackendUnavailable for a device that is not there, or that the backend does not use; for --backend triton as
    `chosen_backend`.
    """
    if args.device is not None:  # here, for a backend that Predictor gets opened
        require_gpu((args.backend,), args.device)
    options = {name: getattr(args, name) for name in ("precision", "device", "threads")}
    return {"backend": chosen_backend(args), **options}


def _device(text: str) -> int | str | None:
    try:
        return gpu_device(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _add_name(
    group: argparse._ArgumentGroup, option: str, known: Sequence[str], text: str, default: str | None
) -> None:
    group.add_argument(option, type=name_of(option[2:], known), default=default, metavar="NAME", help=text)


def _add_list(group: argparse._ArgumentGroup, option: str, known: Sequence[str], text: str) -> None:
    group.add_argument(
        option, type=names_of(option[2:], known), action=_Collect, default=(), metavar="NAME,...", help=text
    )


def add_pixel_size(parser: argparse._ActionsContainer, note: str) -> None:
    """Declare --pixel-size. note: what holds without it."""
    parser.add_argument(
        "--pixel-size",
        type=pixel_sides,
        metavar="NM",
        help="side of a pixel in nm, or WIDTHxHEIGHT of one, for frames whose files do not tell; with it, regions have "
        f"sizes in nm ({note})",
    )


def pixel_sides(text: str) -> tuple[float, float]:
    """A type of arguments: "7.344" or "7.344x9.1" as the sides (x, y) of a pixel in nm."""
    wide, cross, high = text.lower().partition("x")
    try:
        sides = float(wide), float(high if cross else wide)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is no size in nm, such as 7.344 or 7.344x9.1') from None
    if not all(LEAST_PIXEL_NM <= side <= MOST_PIXEL_NM for side in sides):
        raise argparse.ArgumentTypeError(f"must lie in {LEAST_PIXEL_NM:g} to {MOST_PIXEL_NM:g} nm, not {text}")
    return sides


def add_removed(parser: argparse.ArgumentParser, option: str, instead: str) -> None:
    """Declare an option of an earlier version: it is an error that names the way to take now."""
    parser.add_argument(
        option, action=_Removed, nargs="?", const=instead, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type of arguments: whole numbers from `least` on, and up to `most`."""

    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f'"{text}" is not a whole number') from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, not {value}")
        return value

    return whole


def name_of(what: str, known: Sequence[str]) -> Callable[[str], str]:
    """A type of arguments: one of the known names. what: what they name, such as "backend"."""

    def one(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f'there is no {what} "{text}"; choose from {", ".join(known)}')
        return text

    return one


def names_of(what: str, known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A type of arguments: known names with commas between them."""
    one = name_of(what, known)

    def several(text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one(part.strip()) for part in text.split(",")))

    return several


class _Collect(argparse.Action):
    """Joins the lists of an option that is given several times; a name counts once."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, tuple(dict.fromkeys((*getattr(namespace, self.dest), *values))))


class _Removed(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        parser.error(f"{option} is gone: {self.const}")
