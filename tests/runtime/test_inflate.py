"""ISA-L and zlib behind one interface: the same bytes, the same refusals, and isal may be absent."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import encoded
from PIL import Image

from runtime import inflate
from runtime.frames import read_frame

NOISE = np.random.default_rng(5).integers(0, 256, (70, 90), dtype=np.uint8)
RAW = NOISE.tobytes()
WHOLE = zlib.compress(RAW)


def test_the_library_of_this_process_is_named() -> None:
    assert inflate.LIBRARY.startswith(("ISA-L", "zlib 1."))


@pytest.mark.parametrize("size", [len(RAW), len(RAW) + 1, 100])
def test_a_stream_inflates_to_the_size_asked_for(inflating: str, size: int) -> None:
    stream = inflate.inflater()
    assert stream.decompress(memoryview(WHOLE), size) == RAW[:size]
    assert stream.eof == (size >= len(RAW))


def test_a_stream_inflates_in_steps_until_its_end(inflating: str) -> None:
    stream, found, data = inflate.inflater(), b"", WHOLE
    while not stream.eof:
        found += stream.decompress(data, 999)
        data = b""
    assert found == RAW


@pytest.mark.parametrize("cut", [1, 4, 500])
def test_a_stream_that_ends_early_has_no_end_and_wants_more(inflating: str, cut: int) -> None:
    stream = inflate.inflater()
    stream.decompress(WHOLE[:-cut], len(RAW) + 1)
    assert not stream.eof
    assert stream.needs_input


def test_a_stream_longer_than_asked_for_does_not_want_more(inflating: str) -> None:
    stream = inflate.inflater()
    stream.decompress(zlib.compress(bytes(10_000)), 100)
    assert not stream.eof
    assert not stream.needs_input


@pytest.mark.parametrize("size", [len(RAW), len(RAW) + 1])
@pytest.mark.parametrize("at", [0, 1, 2, 40, -4, -1])
def test_a_damaged_stream_raises(inflating: str, at: int, size: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[at] ^= 0x7E
    with pytest.raises(Exception, match="Error -"):
        inflate.inflater().decompress(bytes(damaged), size)


def test_checksums_are_those_of_zlib(inflating: str) -> None:
    assert (inflate.crc32(RAW), inflate.adler32(RAW)) == (zlib.crc32(RAW), zlib.adler32(RAW))


def test_no_more_is_held_than_was_asked_for() -> None:
    bomb = zlib.compress(bytes(10_000_000), 9)
    tracemalloc.start()
    try:
        inflate.ZlibInflater().decompress(bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_frames_have_the_same_pixels_where_isal_is_not_installed(tmp_path: Path) -> None:
    grey = Image.fromarray(NOISE)
    (tmp_path / "a.png").write_bytes(encoded(grey))
    file = io.BytesIO()
    tifffile.imwrite(file, NOISE, compression="deflate", metadata=None)
    (tmp_path / "a.tif").write_bytes(file.getvalue())
    (tmp_path / "broken.png").write_bytes(encoded(grey)[:-100])
    code = """
import sys
sys.modules["isal"] = None
from pathlib import Path
import numpy as np
from runtime import inflate
from runtime.errors import FrameError
from runtime.frames import read_frame
folder = Path(sys.argv[1])
np.save(folder / "found.npy", np.stack([read_frame(folder / "a.png"), read_frame(folder / "a.tif")]))
try:
    read_frame(folder / "broken.png")
except FrameError:
    print(inflate.LIBRARY)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("zlib ")
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), np.stack([NOISE, NOISE]))
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png"), NOISE)
