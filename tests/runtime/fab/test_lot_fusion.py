"""Several images of one defect become one verdict by a stated rule."""

from __future__ import annotations

import pytest
from predictions import make_prediction

from runtime import FrameError
from runtime.fab.lot_fusion import Fusion


def fused(*images: tuple[str, float] | None) -> tuple[str, str | None]:
    """The verdict, and the image that decides: images a, b, c ... of these verdicts and scores; None is not read."""
    fusion = Fusion()
    for name, image in zip("abcdef", images, strict=False):
        if image is None:
            fusion.fail(name, "1", FrameError(name, "no such file"))
        else:
            verdict, score = image
            fusion.add(name, "1", make_prediction(verdict=verdict, score=score, reason="why"))
    return fusion.verdict()[0], fusion.best and fusion.best[0]


@pytest.mark.parametrize(
    ("images", "verdict", "decides"),
    [
        ([("good", 0.1)], "good", "a"),
        ([("good", 0.1), ("bridge", 0.6), ("good", 0.2)], "bridge", "b"),
        ([("bridge", 0.6), ("hole", 0.9)], "hole", "b"),
        ([("bridge", 0.6), ("hole", 0.6)], "bridge", "a"),
        ([("unknown", 0.95), ("bridge", 0.6)], "bridge", "b"),
        ([("good", 0.1), ("unknown", 0.3), ("cannot decide", 0.4)], "cannot decide", "c"),
        ([("good", 0.45), ("unknown", 0.3)], "unknown", "b"),
        ([("good", 0.1), ("good", 0.3)], "good", "b"),
        ([None, ("bridge", 0.6)], "bridge", "b"),
        ([None, ("unknown", 0.6)], "unknown", "b"),
        ([("good", 0.1), None], "not read", "a"),
        ([None, None], "not read", None),
        ([], "no image", None),
    ],
)
def test_the_rule(images: list[tuple[str, float] | None], verdict: str, decides: str | None) -> None:
    assert fused(*images) == (verdict, decides)


def test_the_reason_names_the_image_that_decides_and_those_that_were_not_read() -> None:
    fusion = Fusion()
    fusion.add("s.tif#1", "1", make_prediction(verdict="bridge", reason="bridge 0.9"))
    assert fusion.verdict() == ("bridge", "bridge 0.9")
    fusion.fail("s.tif#2", "2", FrameError("x", "there is no page 2"))
    assert fusion.verdict() == ("bridge", "s.tif#1: bridge 0.9; not read: s.tif#2: there is no page 2")
    assert fusion.images[1] == {"image": "s.tif#2", "type": "2", "error": "there is no page 2"}


def test_a_good_image_does_not_speak_for_one_that_was_not_read() -> None:
    fusion = Fusion()
    fusion.add("a", None, make_prediction(verdict="good", score=0.1))
    fusion.fail("b", None, "no such file")
    assert fusion.verdict() == ("not read", "not read: b: no such file; the other images show nothing")


def test_a_reason_stays_short_however_many_images_were_not_read() -> None:
    fusion = Fusion()
    for number in range(1000):
        fusion.fail(f"s.tif#{number}", "1", "no such file")
    verdict, reason = fusion.verdict()
    assert verdict == "not read"
    assert reason.endswith("s.tif#4: no such file; and 995 more")
    assert len(fusion.images) == 1000
