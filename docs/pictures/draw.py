"""Draw the pictures of README and docs from what the project's own commands wrote. See docs/development.md.

python docs/pictures/draw.py BUNDLE FRAME [FRAME ...]      # overlays.png: frame, defect map, outline
python docs/pictures/draw.py PICTURE.png [PICTURE.png ...] # smaller copies of confusion.png, throughput.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from runtime import Prediction, Predictor

FOLDER = Path(__file__).parent
CUT, SIDE, GAP = 288, 144, 4
"""Pixels of a frame that are shown, around its strongest region; the side of each in the picture; between them."""
COLOURS, STEP = 192, 8
WIDEST = 700


def strip(bundle: str, frames: list[str]) -> Image.Image:
    """Three pictures of each frame, side by side: the frame, its defect map, the outline of what was found."""
    sheet = Image.new("RGB", (3 * (SIDE + GAP) - GAP, len(frames) * (SIDE + GAP) - GAP), "white")
    with Predictor(bundle) as predictor:
        for row, (frame, result) in enumerate(zip(frames, predictor.predict(frames), strict=True)):
            box = _cut(result)
            grey = Image.fromarray(np.uint8(255 * result.defect_map()))
            for column, picture in enumerate((Image.open(frame), grey, result.overlay())):
                small = picture.convert("RGB").crop(box).resize((SIDE, SIDE), Image.Resampling.BOX)
                sheet.paste(small, (column * (SIDE + GAP), row * (SIDE + GAP)))
    return sheet


def _cut(result: Prediction) -> tuple[int, int, int, int]:
    """The square around the strongest region, inside the frame."""
    height, width = result.frame_size
    x, y = result.regions[0].centroid if result.regions else (width / 2, height / 2)
    left, top = (round(min(max(at - CUT / 2, 0), side - CUT)) for at, side in ((x, width), (y, height)))
    return left, top, left + CUT, top + CUT


def save(picture: Image.Image, name: str) -> None:
    """Write a PNG of few colours into this folder, and print its size."""
    target = FOLDER / name
    coarse = picture.convert("RGB").point(lambda value: min(255, (value + STEP // 2) // STEP * STEP))
    coarse.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
    print(f"{target}: {picture.width} x {picture.height}, {target.stat().st_size:,} bytes")


def main(words: list[str]) -> None:
    """Draw what the arguments name."""
    if not words:
        sys.exit(__doc__)
    if Path(words[0]).is_dir():
        save(strip(words[0], words[1:]), "overlays.png")
        return
    for path in map(Path, words):
        picture = Image.open(path)
        picture.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
        save(picture, path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
