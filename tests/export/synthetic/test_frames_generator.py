"""The generator of synthetic frames: what it promises about frames, masks, streams and folders."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from export.pretrain.windows import HELD_OUT_LAYOUTS
from export.synthetic import (
    CLASSES,
    LAYOUTS,
    MIN_FOOTPRINT,
    SyntheticFrame,
    make_frame,
    suitable_layouts,
    write_dataset,
)
from export.synthetic import frames as synthetic
from export.synthetic.layouts import _PAINTERS, FEATURELESS, STACKED, paint_site

DEFECTS = CLASSES[1:]
PAIRS = [(label, layout) for label in CLASSES for layout in suitable_layouts(label)]


def check_frame(frame: SyntheticFrame, size: tuple[int, int]) -> None:
    for pixels in (frame.image, frame.mask):
        assert pixels.dtype == np.uint8
        assert pixels.shape == size
    assert set(np.unique(frame.mask)) <= {0, 255}
    covered = int(np.count_nonzero(frame.mask))
    if frame.label == "good":
        assert covered == 0
    else:
        assert MIN_FOOTPRINT <= covered <= 0.3 * frame.mask.size
    assert frame.image[: size[0] - frame.text_bar_rows].std() > 1


def test_equal_arguments_give_equal_bytes() -> None:
    for label in CLASSES:
        first, second = (make_frame(label, 11, size=(96, 128), text_bar=True) for _ in range(2))
        assert first.image.tobytes() == second.image.tobytes()
        assert first.mask.tobytes() == second.mask.tobytes()
        assert first.layout == second.layout


def test_global_random_state_stays_unchanged() -> None:
    np.random.seed(1)  # noqa: NPY002
    untouched = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    make_frame("particle", 3, size=(64, 64))
    assert np.random.random() == untouched  # noqa: NPY002


@pytest.mark.parametrize("label", CLASSES)
def test_seeds_differ(label: str) -> None:
    frames = [make_frame(label, seed, size=(80, 80), layout="lines") for seed in range(6)]
    assert len({frame.image.tobytes() for frame in frames}) == 6
    if label != "good":
        assert len({frame.mask.tobytes() for frame in frames}) == 6


@pytest.mark.parametrize(("label", "layout"), PAIRS)
@pytest.mark.parametrize("text_bar", [False, True])
def test_every_class_is_made_on_every_layout(label: str, layout: str, text_bar: bool) -> None:
    for seed, size in enumerate([(64, 64), (120, 96)]):
        frame = make_frame(label, seed, size=size, layout=layout, text_bar=text_bar)
        check_frame(frame, size)
        assert (frame.label, frame.layout, frame.seed) == (label, layout, seed)


@pytest.mark.parametrize("label", DEFECTS)
def test_defect_changes_the_frame_where_the_mask_is(label: str) -> None:
    for seed in range(8):
        frame = make_frame(label, seed, size=(160, 160))
        clean = make_frame("good", seed, size=(160, 160), layout=frame.layout)
        change = np.abs(frame.image.astype(int) - clean.image)
        inside = frame.mask > 0
        assert change[inside].mean() > 3, (seed, frame.layout)
        # Shadows and charging reach a little further, the wake of a particle that fills a tenth of the frame more;
        # nothing may tint the whole frame and give the class away.
        far = ~ndimage.binary_dilation(inside, iterations=10)
        assert np.median(change[far]) == 0, (seed, frame.layout)
        most = 0.5 if inside.mean() < 0.1 else 1.0
        assert change[far].mean() < min(most, 0.1 * change[inside].mean()), (seed, frame.layout)


def test_particles_on_bare_films_are_large_or_many() -> None:
    """Nothing else in such a frame tells its magnification; beside a pattern a particle has the pattern's scale."""

    def largest(layout: str) -> float:
        return max(float(np.mean(make_frame("particle", seed, layout=layout).mask > 0)) for seed in range(40))

    assert largest("lines") < 0.1
    assert largest("blank") > 0.15
    pieces = [ndimage.label(make_frame("particle", seed, layout="blank").mask)[1] for seed in range(40)]
    assert max(pieces) >= 5


@pytest.mark.parametrize("label", DEFECTS)
def test_layout_is_drawn_for_the_class(label: str) -> None:
    drawn = {make_frame(label, seed, size=(64, 64)).layout for seed in range(30)}
    assert drawn <= set(suitable_layouts(label))
    assert len(drawn) > 3


def test_same_site_shows_the_same_pattern() -> None:
    """Two shots of one site differ in noise and position, yet correlate far better than two sites do."""

    def likeness(a: SyntheticFrame, b: SyntheticFrame) -> float:
        spectra = [np.fft.fft2(f.image - f.image.mean()) for f in (a, b)]
        peak = np.fft.ifft2(spectra[0] * spectra[1].conj()).real.max()
        return float(peak / (a.image.std() * b.image.std() * a.image.size))

    size = (128, 128)
    here = make_frame("good", 1, size=size, layout="logic", site=5)
    again = make_frame("good", 2, size=size, layout="logic", site=5)
    elsewhere = make_frame("good", 2, size=size, layout="logic", site=6)
    assert not np.array_equal(here.image, again.image)
    assert likeness(here, again) > likeness(here, elsewhere) + 0.2


def test_text_bar_is_dark_with_light_text_and_holds_no_defect() -> None:
    for label in DEFECTS:
        for seed in range(4):
            frame = make_frame(label, seed, size=(100, 160), text_bar=True)
            rows = frame.text_bar_rows
            assert rows > 0
            bar = frame.image[-rows:]
            assert np.median(bar) < 50
            assert bar.max() > 120
            assert not frame.mask[-rows:].any()
    assert make_frame("good", 0).text_bar_rows == 0


def test_frames_may_be_large_and_oblong() -> None:
    for size in [(64, 200), (333, 71), (480, 480)]:
        check_frame(make_frame("scratch", 4, size=size, text_bar=True), size)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"label": "crack"}, "good, bridge, copper_residue, hole, infilm, particle, scratch"),
        ({"layout": "maze"}, "lines, contacts"),
        ({"label": "bridge", "layout": "blank"}, 'cannot show "bridge"; allowed: lines'),
        ({"label": "bridge", "layout": "grain"}, 'cannot show "bridge"; allowed: lines'),
        ({"size": (63, 200)}, "64 px or more"),
        ({"size": (200, 63)}, "64 px or more"),
        ({"seed": -1}, "0 or more"),
        ({"site": -1}, "0 or more"),
    ],
)
def test_errors_name_the_allowed_values(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        make_frame(**{"label": "good", "seed": 0, **arguments})  # type: ignore[arg-type]


def test_bridges_are_made_on_all_layouts_with_features() -> None:
    assert set(LAYOUTS) - set(suitable_layouts("bridge")) == {"blank", "grain", "rough"}
    assert suitable_layouts("hole") == LAYOUTS


def test_held_out_layouts_are_in_no_stack() -> None:
    assert not set(STACKED) & set(HELD_OUT_LAYOUTS)


def test_a_stack_shows_the_level_below() -> None:
    """Between the edges of the level on top, a stack is not one grey as its single layouts are."""

    def spread_of_ground(layout: str) -> float:
        surfaces = [paint_site(layout, np.random.default_rng(seed), (160, 160)) for seed in range(12)]
        return float(np.median([s.texture[s.edge < -2].std() for s in surfaces if (s.edge < -2).any()]))

    assert spread_of_ground("stack") > 1.5 * spread_of_ground("lines")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in FEATURELESS])
def test_no_structure_is_finer_than_the_layout_returns(layout: str) -> None:
    """Roughness is held below the finest width, and a sliver in a good frame would pass for a bridge or a cut."""
    for seed in range(6):
        edge, _, finest = _PAINTERS[layout](np.random.default_rng(seed), (200, 220), 200 / 260)
        assert finest >= 1
        for material in (edge > 0, edge <= 0):
            # Opening by a disc of this radius takes away what is finer. A pixel is left for the raster, and corners.
            whole = np.pad(material, 20, mode="edge")
            core = ndimage.distance_transform_edt(whole) > finest - 1
            kept = ndimage.distance_transform_edt(~core) <= finest
            lost = (whole & ~kept)[20:-20, 20:-20].sum()
            assert lost <= 0.02 * material.sum()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "deeper" / "frames"
    calls: list[tuple[int, int]] = []
    write_dataset(path, per_class=4, size=(72, 80), seed=3, text_bar=True, progress=lambda *call: calls.append(call))
    total = 4 * len(CLASSES)
    assert calls == [(done, total) for done in range(1, total + 1)]
    return path


def read_groups(folder: Path) -> list[dict[str, str]]:
    with (folder / "groups.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_dataset_has_every_file_and_no_other(folder: Path) -> None:
    names = {f"{kind}/{label}/{n:04d}.png" for kind in ("images", "masks") for label in CLASSES for n in range(1, 5)}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == names | {"groups.csv"}
    assert [path.name for path in folder.parent.iterdir()] == ["frames"]


def test_dataset_table_agrees_with_the_files(folder: Path) -> None:
    rows = read_groups(folder)
    assert list(rows[0]) == ["path", "class", "has_mask", "mask_fraction", "width", "height", "group"]
    assert len({row["path"] for row in rows}) == len(rows) == 4 * len(CLASSES)
    for row in rows:
        assert row["path"].split("/")[:2] == ["images", row["class"]]
        assert row["has_mask"] == "1"
        mask_path = folder / row["path"].replace("images/", "masks/", 1)
        with Image.open(folder / row["path"]) as image, Image.open(mask_path) as mask:
            assert image.mode == mask.mode == "L"
            assert image.size == mask.size == (int(row["width"]), int(row["height"])) == (80, 72)
            truth = np.asarray(mask)
        assert set(np.unique(truth)) <= {0, 255}
        assert float(row["mask_fraction"]) == pytest.approx((truth > 0).mean(), abs=1e-6)
        assert (float(row["mask_fraction"]) > 0) == (row["class"] != "good")


def test_dataset_groups_mix_classes(folder: Path) -> None:
    groups: dict[str, list[str]] = {}
    for row in read_groups(folder):
        groups.setdefault(row["group"], []).append(row["class"])
    assert all(1 <= len(members) <= 3 and len(set(members)) == len(members) for members in groups.values())
    assert any(len(members) > 1 for members in groups.values())
    assert any("good" in members and len(members) > 1 for members in groups.values())


def test_dataset_is_determined_by_its_arguments(tmp_path: Path) -> None:
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        write_dataset(tmp_path / name, per_class=1, size=(64, 64), seed=seed)
    content = {
        name: {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in "abc"
    }
    assert content["a"] == content["b"]
    assert content["a"].keys() == content["c"].keys()
    assert content["a"] != content["c"]


def test_dataset_refuses_an_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        write_dataset(tmp_path, per_class=1, size=(64, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


@pytest.mark.parametrize("arguments", [{"per_class": 0}, {"size": (20, 20)}, {"seed": -1}])
def test_dataset_errors_leave_nothing(tmp_path: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        write_dataset(tmp_path / "frames", **{"per_class": 1, **arguments})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_dataset_crash_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def failing(label: str, seed: int, **options: object) -> SyntheticFrame:
        nonlocal made
        made += 1
        if made == 4:
            raise KeyboardInterrupt
        return make_frame(label, seed, size=(64, 64))

    monkeypatch.setattr(synthetic, "make_frame", failing)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "frames", per_class=1, size=(64, 64))
    assert list(tmp_path.iterdir()) == []
