"""Lots made for tests: KLARF 1.2 files with stacks of frames that the fake backend answers as it is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from conftest import write_bundle

from runtime.cli import main
from runtime.recipe import Recipe

CODES = """
[codes]
good = 0
bridge = 12
hole = 13
unknown = 98
"cannot decide" = 99

[names]
good = "Unclassified"
"""


@dataclass(frozen=True)
class Spot:
    """A defect to write. pages: (image number, type) of each image."""

    id: int
    pages: Sequence[tuple[int, int]]
    manual: int = 0
    x_um: float = 0.0
    y_um: float = 0.0


def frame(label: int, *, defect: bool, shade: int = 0) -> np.ndarray:
    """A frame that the fake backend calls class `label` modulo 3; a defect scores near 1, others `shade`/255."""
    pixels = np.full((64, 64), shade, np.uint8)
    pixels[0, 0] = label
    if defect:
        pixels[16:48, 16:48] = 255
    return pixels


def write_stack(path: Path, frames: Sequence[np.ndarray]) -> Path:
    """One TIFF page a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for pixels in frames:
            writer.write(pixels, photometric="minisblack", metadata=None, contiguous=False)
    return path


def klarf_text(wafers: Sequence[tuple[str, str, Sequence[Spot]]], *, lot: str = "L7") -> str:
    """KLARF 1.2. wafers: name, file of its images, and defects."""
    lines = [
        "FileVersion 1 2;",
        "FileTimestamp 07-07-26 10:17:07;",
        'InspectionStationID "maker" "model" "tool-1";',
        "SampleType WAFER;",
        "ResultTimestamp 07-07-26 10:07:07;",
        f'LotID "{lot}";',
        "SampleSize 1 300;",
        'DeviceID "device";',
        'SetupID "setup" 07-07-26 09:07:07;',
        'StepID "step";',
        "DiePitch 1.0e+004 1.0e+004;",
        "ClassLookup 1",
        ' 0 "Unclassified";',
    ]
    columns = "DEFECTID XREL YREL XINDEX YINDEX XSIZE YSIZE CLASSNUMBER TEST MANSEMCLASS AUTOOFFSEMCLASS IMAGECOUNT"
    for slot, (wafer, stack, spots) in enumerate(wafers, 1):
        lines += [f'WaferID "{wafer}";', f"Slot {slot};", "SampleCenterLocation 0.0 0.0;", f"TiffFileName {stack};"]
        lines += [f"DefectRecordSpec 13 {columns} IMAGELIST ;", "DefectList"]
        for spot in spots:
            pages = "".join(f" {page} {kind}" for page, kind in spot.pages)
            count = len(spot.pages)
            lines.append(
                f" {spot.id} {spot.x_um} {spot.y_um} 0 0 1.5 1.5 0 1 {spot.manual} 0 {count} {count}{pages}"
                + (";" if spot is spots[-1] else "")
            )
    return "\n".join([*lines, "EndOfFile;"]) + "\n"


def write_lot(folder: Path, defects: int = 500, *, lot: str = "L7", name: str = "lot7.klarf") -> Path:
    """A lot of three wafers with one stack each, in `folder`; returns its KLARF file.

    Every third defect is a bridge, every third a hole, the others show nothing; each tenth has a second image.
    """
    rng = np.random.default_rng(5)
    wafers = []
    for wafer in range(3):
        frames: list[np.ndarray] = []
        spots = []
        for number in range(wafer, defects, 3):
            label = number // 3 % 3
            frames.append(frame(label, defect=label > 0, shade=int(rng.integers(20, 90))))
            pages = [(len(frames), 1)]
            if number % 10 == 0:
                frames.append(frame(0, defect=False))
                pages.append((len(frames), 2))
            x, y = rng.uniform(-1e5, 1e5, 2).round(3)
            spots.append(Spot(number + 1, pages, manual=(0, 12, 13)[label] if number % 4 else 0, x_um=x, y_um=y))
        write_stack(folder / f"stack{wafer + 1}.tif", frames)
        wafers.append((f"W{wafer + 1}", f"stack{wafer + 1}.tif", spots))
    path = folder / name
    path.write_text(klarf_text(wafers, lot=lot), encoding="ascii")
    return path


@dataclass(frozen=True)
class LotCase:
    """A bundle, a lot and its codes in one folder, and the command on them."""

    folder: Path
    bundle: Path
    lot: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def words(self, *more: object, lots: Sequence[Path] | None = None, out: Path | None = None) -> list[str]:
        """The command line."""
        options = ["--images", self.lot.parent, "--codes", self.folder / "codes.toml", "--out", out or self.out]
        lots = [self.lot] if lots is None else lots
        return ["classify-lot", *map(str, [self.bundle, *lots, *options, "--backend", "fake", *more])]

    def run(self, *more: object, lots: Sequence[Path] | None = None, out: Path | None = None) -> int:
        return main(self.words(*more, lots=lots, out=out))

    def lines(self) -> list[dict[str, Any]]:
        """The side file."""
        text = (self.out / f"{self.lot.name}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def make_case(folder: Path, defects: int = 30, *, recipe: Recipe | None = None) -> LotCase:
    """A bundle for the fake backend, a lot of `write_lot` and its codes."""
    (folder / "codes.toml").write_text(CODES, encoding="utf-8")
    return LotCase(folder, write_bundle(folder / "bundle", recipe=recipe), write_lot(folder / "in", defects))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def changed_lines(before: Path, after: Path) -> list[tuple[str, str]]:
    """The lines that differ, of two files with as many lines."""
    pairs = zip(before.read_text().splitlines(), after.read_text().splitlines(), strict=True)
    return [(old, new) for old, new in pairs if old != new]
