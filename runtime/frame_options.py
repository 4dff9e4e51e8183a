"""How frames of a layer and a tool are read: a part of the recipe, the same for teaching and for serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .arguments import real_number, whole_number
from .fab.sem_bars import Bars
from .fab.sem_values import LEAST_PIXEL_NM, MOST_PIXEL_NM
from .jsonfields import Fields

FRAME_OPTION_RANGES = (("ignore_top", 0, 10**6), ("ignore_bottom", 0, 10**6), ("white_level", 1, 65535))
TILE_RANGES = (("tile", 8, 16384), ("overlap", 0, 16383))


@dataclass(frozen=True, slots=True)
class FrameOptions:
    """How frames of this layer and tool are read; the same for teaching and for serving. ValueError out of range.

    ignore_top, ignore_bottom: rows (pixels of the original frame) that hold text bars. They are cut off before the
        encoder sees the frame, so they affect neither map nor score nor teaching.
    white_level: the value of a 16-bit frame that becomes white (65535 unless the tool stores fewer bits).
    pixel_size_nm: sides (x, y) of a pixel in nm, for frames whose files do not tell; one number for square pixels.
    bars: how the ignored rows were found, if they were; frames that deny them get a warning.
    tile: frame pixels along a window of the encoder, 8 to 16384 (`runtime.windows`); 0 reads each frame as a whole.
    overlap: frame pixels that neighbouring tiles share at least, below `tile`; 0 without tiles.
    whole: the whole frame is read beside its tiles; False without tiles.
    """

    ignore_top: int = 0
    ignore_bottom: int = 0
    white_level: int = 65535
    pixel_size_nm: tuple[float, float] | None = None
    bars: Bars | None = None
    tile: int = 0
    overlap: int = 0
    whole: bool = False

    def __post_init__(self) -> None:
        for name, low, high in FRAME_OPTION_RANGES:
            object.__setattr__(self, name, whole_number(name, getattr(self, name), low, high))
        object.__setattr__(self, "pixel_size_nm", _sides(self.pixel_size_nm))
        if self.bars is not None and not isinstance(self.bars, Bars):
            raise ValueError(f"bars must be Bars, as find_bars gives them, not {self.bars!r:.60}")
        self._check_tiles()

    def _check_tiles(self) -> None:
        if not self.tile and (self.overlap or self.whole):
            raise ValueError("overlap and whole are of tiles, and tile is 0")
        if not self.tile:
            return
        for name, low, high in TILE_RANGES:
            object.__setattr__(self, name, whole_number(name, getattr(self, name), low, high))
        fault = _overlap_fault(self.tile, self.overlap)
        if fault:
            raise ValueError(f"overlap {fault}")
        if not isinstance(self.whole, bool):
            raise ValueError(f"whole must be True or False, not {self.whole!r:.60}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. What is not set has no key, so that older versions read it."""
        return {
            **{name: getattr(self, name) for name, _, _ in FRAME_OPTION_RANGES},
            **({} if self.pixel_size_nm is None else {"pixel_size_nm": list(self.pixel_size_nm)}),
            **({} if self.bars is None else {"bars": self.bars.to_dict()}),
            **({"tile": self.tile, "overlap": self.overlap, "whole": self.whole} if self.tile else {}),
        }

    @classmethod
    def read(cls, fields: Fields) -> FrameOptions:
        """The inverse of `to_dict`; faults go to `fields`."""
        values: dict[str, Any] = {name: fields.whole(name, low, high) for name, low, high in FRAME_OPTION_RANGES}
        if fields.has("pixel_size_nm"):
            sides = fields.numbers("pixel_size_nm", 2)
            if all(LEAST_PIXEL_NM <= side <= MOST_PIXEL_NM for side in sides):
                values["pixel_size_nm"] = sides
            else:
                fields.fault("pixel_size_nm", f"must lie in [{LEAST_PIXEL_NM:g}, {MOST_PIXEL_NM:g}]")
        if fields.has("bars"):
            values["bars"] = Bars.read(fields.inner("bars"))
        if fields.has("tile"):
            values |= {name: fields.whole(name, low, high) for name, low, high in TILE_RANGES}
            values["whole"] = fields.flag("whole")
            fault = _overlap_fault(values["tile"], values["overlap"])
            if fault:
                fields.fault("overlap", fault)
                values["overlap"] = 0
        fields.finish()
        return cls(**values)


def _overlap_fault(tile: int, overlap: int) -> str:
    """Why neighbouring tiles cannot share so many pixels; "" if they can."""
    return f"must be smaller than tile, which is {tile}, not {overlap}" if overlap >= tile else ""


def _sides(value: object) -> tuple[float, float] | None:
    """Sides of a pixel, from None, one number or two. Raises ValueError."""
    if value is None:
        return None
    sides = value if isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2:
        raise ValueError(f"pixel_size_nm must be one number or two, not {value!r:.60}")
    x, y = (real_number("pixel_size_nm", side, LEAST_PIXEL_NM, MOST_PIXEL_NM) for side in sides)
    return x, y
