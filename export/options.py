"""Options of the commands that teach, export and build engines, and what they stand for. Cheap to import: no torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.options import add_pixel_size, at_least
from runtime.targets import ENGINE_PRODUCTS

from .errors import ExportError

if TYPE_CHECKING:
    from runtime.recipe import FrameOptions

    from .teaching.tile_size import Tiling

DEFAULT_ARCH = "sem_tiny"
DEMO_SHOTS = 10
METHOD_NAMES = ("default", "paper")
"""Those of teach.METHODS, which costs torch to import."""
WHITE_LEVEL = 65535
VIEWS = 8
TEACHING_DEFAULTS = {
    "shots": DEMO_SHOTS,
    "method": "default",
    "views": VIEWS,
    "seed": 0,
    "ignore_top": 0,
    "ignore_bottom": 0,
    "white_level": WHITE_LEVEL,
}
"""Of those options that have another default where a recipe is taught again."""
BATCH = (1, 32, 64)
MOST_CLASSES = 64


def add_teaching_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to teach, and with which encoder."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="labelled frames: images/<class>/ (one class is `good`), optional masks/<class>/ and groups.csv (default: "
        "generated frames)",
    )
    data.add_argument(
        "--shots", type=int, default=DEMO_SHOTS, metavar="K", help=f"support frames per class (default: {DEMO_SHOTS})"
    )
    add_frame_arguments(data)
    data.add_argument(
        "--ignore",
        choices=("auto",),
        help="auto: find the rows of text bars, by the tool's metadata or in the frames themselves, and fix them in "
        "the recipe; later frames that deny them get a warning (default: --ignore-top and --ignore-bottom)",
    )
    add_pixel_size(data, "default: what the frames' files say")
    add_tile_arguments(data)
    teaching = parser.add_argument_group("teaching")
    teaching.add_argument(
        "--method",
        choices=METHOD_NAMES,
        default="default",
        help="paper: SEM-CLIP as published, without the additions that docs/method.md describes (default: default)",
    )
    teaching.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts (TOML), an edited copy of export/teaching/prompts.toml, for encoders with a text tower (default: "
        "that file)",
    )
    teaching.add_argument(
        "--views",
        type=int,
        default=VIEWS,
        metavar="N",
        help="variations of each support to encode, at least 1; fewer teach faster and less well (default: 8)",
    )
    teaching.add_argument(
        "--seed", type=int, default=0, metavar="N", help="draws the supports and starts the fit, from 0 on (default: 0)"
    )
    teaching.add_argument(
        "--support-cache",
        metavar="DIR|none",
        help="keep encoded supports here, so that teaching again encodes only new frames; up to 4 GB, oldest use first "
        "out (default: sem-clip/supports in your cache folder)",
    )
    _add_encoder_arguments(parser)


def _add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    encoder = parser.add_argument_group("encoder")
    encoder.add_argument(
        "--arch",
        metavar="NAME|FILE",
        help=f"architecture, or open_clip configuration file (default: {DEFAULT_ARCH}, whose weights are included; for "
        "`teach`, the bundle's)",
    )
    weights = encoder.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights of --arch: safetensors, or a plain state dict"
    )
    weights.add_argument(
        "--pretrained", metavar="TAG", help="or weights that open_clip downloads by this tag, such as laion400m_e32"
    )
    weights.add_argument(
        "--random-weights", action="store_true", help="or none: untrained, for tests and measurements of speed"
    )


def add_frame_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare how frames are read; `frame_options` takes them."""
    for edge in ("top", "bottom"):
        parser.add_argument(
            f"--ignore-{edge}",
            type=int,
            default=0,
            metavar="ROWS",
            help=f"pixel rows to cut off at the {edge} of every frame, such as a text bar (default: 0)",
        )
    parser.add_argument(
        "--white-level",
        type=int,
        default=WHITE_LEVEL,
        metavar="VALUE",
        help="grey value that counts as white in 16-bit frames, 1 to 65535; 4095 where the tool stores 12 bits "
        "(default: 65535)",
    )


def add_tile_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare how large frames are read in tiles; `tiling` takes them."""
    parser.add_argument(
        "--tile",
        type=_tile,
        metavar="native|auto|none|PIXELS",
        help="read frames in tiles of so many pixels, 8 to 16384, for small defects in large frames; native: as the "
        "encoder reads; auto: by the masks' sizes, and say why; none: each frame as a whole (default: none; where a "
        "recipe is taught again, as it was)",
    )
    parser.add_argument(
        "--tile-overlap",
        type=at_least(0),
        metavar="PIXELS",
        help="pixels that neighbouring tiles share at least (default: an eighth of the tile)",
    )
    parser.add_argument(
        "--tile-whole",
        action="store_true",
        help="read the whole frame beside its tiles, for defects larger than a tile (default: the tiles alone)",
    )


def tiling(args: argparse.Namespace) -> Tiling | None:
    """The values of `add_tile_arguments`; None if nothing is said. Raises ExportError for an overlap out of range."""
    if args.tile in (None, "none") and (args.tile_overlap is not None or args.tile_whole):
        raise ExportError("--tile-overlap and --tile-whole are of tiles: add --tile native, auto or PIXELS")
    if args.tile is None:
        return None
    from runtime.recipe import FrameOptions

    from .teaching.tile_size import Tiling

    if isinstance(args.tile, int):
        try:
            FrameOptions(tile=args.tile, overlap=args.tile_overlap or 0)
        except ValueError as exc:
            raise ExportError(f"--tile-{exc}") from None
    return Tiling(args.tile, args.tile_overlap, args.tile_whole)


def _tile(text: str) -> int | str:
    from runtime.frame_options import TILE_RANGES

    if text in ("native", "auto", "none"):
        return text
    low, high = next((low, high) for name, low, high in TILE_RANGES if name == "tile")
    return at_least(low, high)(text)


def frame_options(args: argparse.Namespace) -> FrameOptions:
    """The values of `add_frame_arguments`. Raises ExportError for one that is out of range."""
    from runtime.recipe import FrameOptions

    if getattr(args, "ignore", None) and (args.ignore_top or args.ignore_bottom):
        raise ExportError("--ignore auto finds the rows: leave out --ignore-top and --ignore-bottom")
    size = getattr(args, "pixel_size", None)
    try:
        return FrameOptions(args.ignore_top, args.ignore_bottom, args.white_level, size)
    except ValueError as exc:
        name, _, rest = str(exc).partition(" ")
        raise ExportError(f"--{name.replace('_', '-')} {rest}") from None


def add_correction_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how `teach` takes corrections in. What is of the old recipe is None unless it is given."""
    again = parser.add_argument_group("teaching again")
    again.add_argument(
        "--corrections",
        type=Path,
        metavar="FILE",
        help="corrected frames, as `sem-clip review` writes them: they teach beside the supports of the old recipe, "
        "which lie in --data; one in five is held out. The recipes before and after are judged on these and on all "
        "frames of --data that taught neither. What is not given is as in the old recipe (default: teach anew)",
    )
    again.add_argument(
        "--recipe",
        type=Path,
        metavar="OLD",
        help="with --corrections, the recipe to begin with (default: the bundle's own)",
    )
    again.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="with --corrections, write the figures before and after to FILE (default: print them only)",
    )
    parser.set_defaults(**dict.fromkeys(TEACHING_DEFAULTS))


def take_teaching_defaults(args: argparse.Namespace) -> None:
    """What `teach` does where nothing is said. Raises ExportError for options that need --corrections."""
    for name in ("recipe", "json"):
        if getattr(args, name) is not None:
            raise ExportError(f"--{name} is of teaching again: add --corrections")
    for name, value in TEACHING_DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def add_graph_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the exported graphs are like."""
    frames = parser.add_argument_group("graph")
    frames.add_argument(
        "--frame-size",
        type=pixel_size,
        metavar="HxW",
        help="put the resize into the graph; the bundle then takes only frames of this height x width in pixels, with "
        "ignored rows (default: frames of any size)",
    )
    frames.add_argument(
        "--image-size",
        type=pixel_size,
        metavar="HxW",
        help="encode at this size in pixels; larger finds smaller defects, and the time grows faster than the area "
        "(default: the architecture's own)",
    )
    frames.add_argument(
        "--no-fp16",
        action="store_true",
        help="leave out model.fp16.onnx, which is for GPUs: a faster build; use it if the fp16 parity check fails",
    )


def add_target_arguments(parser: argparse._ActionsContainer, *, required: bool) -> None:
    """Declare which product's engine to build, and for which GPU."""
    parser.add_argument(
        "--engine",
        choices=ENGINE_PRODUCTS,
        required=required,
        help="product that builds and runs the engine"
        if required
        else "also build this engine, with the defaults of `sem-clip build-engine` (default: ONNX files only)",
    )
    parser.add_argument(
        "--compute-capability",
        metavar="N.N",
        help="GPU to build for, such as 8.9 for an RTX 4090; tensorrt-rtx only (default: the GPU of this machine)",
    )


def add_profile_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare the limits of an engine, and its arithmetic."""
    parser.add_argument(
        "--precision",
        choices=("fp16", "int8"),
        default="fp16",
        help="int8: build from the artifact that `sem-clip quantize --for tensorrt` added (default: fp16)",
    )
    parser.add_argument(
        "--batch",
        type=batch_range,
        default=BATCH,
        metavar="MIN,OPT,MAX",
        help="least, usual and largest batch, in frames; GPU memory grows with the largest (default: 1,32,64)",
    )
    parser.add_argument(
        "--most-classes",
        type=int,
        default=MOST_CLASSES,
        metavar="K",
        help=f"most classes of any recipe that the engine will run, 2 to 1024 (default: {MOST_CLASSES})",
    )
    parser.add_argument(
        "--accumulate",
        choices=("fp32", "fp16"),
        default="fp32",
        help="format in which matrix products are summed; fp16 is up to twice as fast on GeForce cards, with a larger "
        "error (default: fp32)",
    )


def batch_range(text: str) -> tuple[int, int, int]:
    """Read "1,32,64" as least, usual and largest batch."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f'"{text}" is not MIN,OPT,MAX, such as 1,32,64')
    return int(parts[0]), int(parts[1]), int(parts[2])


def pixel_size(text: str) -> tuple[int, int]:
    """Read "480x640" as (height, width), 16 ... 16384 px each."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and 16 <= int(height) <= 16384 and 16 <= int(width) <= 16384):
        raise argparse.ArgumentTypeError(f'"{text}" is not HEIGHTxWIDTH in pixels, such as 480x640')
    return int(height), int(width)
