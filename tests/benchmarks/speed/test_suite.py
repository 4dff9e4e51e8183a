"""speed.suite: every section on the toy bundle with tiny settings, the report's schema, Markdown and charts."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_encoder, make_recipe, write_bundle
from PIL import Image

from benchmarks.speed import SECTIONS, suite
from benchmarks.speed.charts import charts
from benchmarks.speed.engines import EngineName, Subject
from benchmarks.speed.frames import suitable_size, write_frames
from benchmarks.speed.growth import with_classes
from benchmarks.speed.host import end_to_end
from benchmarks.speed.report import _SECTIONS as REPORTED
from benchmarks.speed.report import markdown, table
from benchmarks.speed.soak import drift
from benchmarks.speed.suite import Settings, TorchOptions, measure
from runtime import BundleError, FakeBackend, FrameError, FrameOptions, SemClipError
from runtime.manifest import load_bundle

pytestmark = pytest.mark.slow

TINY = Settings(
    batches=(1, 3),
    batch=2,
    rounds=2,
    latency_s=0.01,
    children=1,
    frames=4,
    stream_frames=(4, 12),
    repeats=1,
    classes=(2, 5),
    quick=True,
)
WITH_TORCH = "torch eager/fp32"


@pytest.fixture(scope="module")
def report(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole report of the toy bundle, read back from JSON."""
    settings = replace(TINY, precisions=("fp32", "fp16"), backends=("cpu",), soak_minutes=0.02)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.speed.roofline.PEAK_SIZES", (64, 128))
        patch.setattr("benchmarks.speed.growth.FRAME_SIZES", ((48, 64), (120, 160)))
        found = measure(toy_bundle, tmp_path_factory.mktemp("work"), settings, torch=TorchOptions("toy", None))
    return dict(json.loads(json.dumps(found, allow_nan=False)))


def test_the_schema_is_stable(report: dict[str, Any]) -> None:
    assert (report["format"], report["version"]) == ("sem-clip-benchmark", 1)
    assert set(report) == {
        *("format", "version", "taken", "seconds", "machine", "load_after"),
        *("bundle", "settings", "skipped", "sections"),
    }
    assert tuple(report["sections"]) == (*SECTIONS, "soak")
    sections = report["sections"]
    percentiles = {"p50", "p90", "p95", "p99", "max", "n"}
    for row in sections["latency"]["warm"]:
        assert set(row) == {"engine", "run_ms", "predict_ms"}
        assert set(row["run_ms"]) == set(row["predict_ms"]) == percentiles
    assert set(sections["throughput"][0]) == {
        *("engine", "batch", "frames_per_second", "best_frames_per_second", "base", "times_base", "rounds")
    }
    assert set(sections["split"][0]["ms"]) == {"decode", "resize", "copy_in", "compute", "copy_out", "postprocess"}
    assert set(sections["host"]) == {"limit", "fake", "feeding", "end_to_end"}
    assert set(sections["memory"]) == {"engines", "stream"}
    assert set(sections["growth"]) == {"threads", "frame_sizes", "tiles", "classes"}
    assert set(sections["roofline"]) == {"flops", "peak", "reached"}


def test_every_engine_is_in_every_section(report: dict[str, Any]) -> None:
    engines = {"cpu/fp32", "cpu/fp16"}
    sections = report["sections"]
    assert set(report["bundle"]["engines"]) == engines
    for rows in (
        sections["latency"]["warm"],
        sections["latency"]["cold"],
        sections["split"],
        sections["host"]["end_to_end"],
        sections["memory"]["engines"],
        *sections["growth"].values(),
    ):
        assert {row["engine"] for row in rows} == engines
    for rows in (sections["throughput"], sections["roofline"]["reached"]):
        assert {row["engine"] for row in rows} == {*engines, WITH_TORCH}


def test_ratios_are_against_torch_where_it_is_given(report: dict[str, Any]) -> None:
    rows = report["sections"]["throughput"]
    assert [row["batch"] for row in rows] == [1, 1, 1, 3, 3, 3]
    assert {row["base"] for row in rows} == {WITH_TORCH}
    assert [row["times_base"] for row in rows if row["engine"] == WITH_TORCH] == [1, 1]
    assert all(row["frames_per_second"] > 0 for row in rows)
    assert [item["name"] for item in report["skipped"]] == ["torch compile/fp32"]


def test_a_cold_start_is_the_sum_of_its_steps(report: dict[str, Any]) -> None:
    for row in report["sections"]["latency"]["cold"]:
        steps = [row[step] for step in ("interpreter_ms", "import_ms", "open_ms", "first_ms")]
        assert row["total_ms"] == pytest.approx(sum(steps))
        assert min(steps) > 0


def test_growth_has_a_row_for_each_requested_size(report: dict[str, Any]) -> None:
    growth = report["sections"]["growth"]
    assert sorted({row["classes"] for row in growth["classes"]}) == [2, 5]
    assert {1, report["machine"]["cores"]} <= {row["threads"] for row in growth["threads"]}
    assert [(row["tile"], row["tiles"]) for row in growth["tiles"]] == [(0, 1)] * 2 + [(128, 9)] * 2 + [(64, 25)] * 2
    assert [row["frame_size"] for row in growth["frame_sizes"]] == [[48, 64]] * 2 + [[120, 160]] * 2
    assert [row["answered"] for row in report["sections"]["memory"]["stream"]] == [4, 12]


def test_markdown_has_every_section_and_no_python(report: dict[str, Any]) -> None:
    text = markdown(report)
    for title in (
        *("Latency", "Throughput", "Where the time goes", "Host side", "Memory", "How cost grows", "Roofline", "Soak"),
        "Left out",
    ):
        assert f"\n## {title}" in text
    assert "cpu/fp16" in text
    assert "torch compile/fp32: left out by --quick" in text
    assert not any(mark in text for mark in ("None", "nan", "{", "['"))


def test_markdown_of_some_sections_has_only_those(report: dict[str, Any]) -> None:
    text = markdown({**report, "skipped": [], "sections": {"split": report["sections"]["split"]}})
    assert text.count("\n## ") == 1


def test_tables_print_three_significant_digits() -> None:
    text = table(["a", "b"], [[1234.5, 0.012345], [None, "x|y"]])
    assert text.splitlines() == ["| a | b |", "|---|---|", "| 1,234 | 0.0123 |", "| – | x\\|y |"]


def test_charts_exist_for_the_measured_sections(report: dict[str, Any]) -> None:
    drawn = charts(report)
    assert set(drawn) == {"throughput.png", "split.png", "growth.png"}
    for content in drawn.values():
        with Image.open(io.BytesIO(content)) as picture:
            assert min(picture.size) > 150
            assert len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 20
    assert charts({"sections": {"host": report["sections"]["host"]}}) == {}


def test_a_bundle_of_one_frame_size_is_measured_at_that_size(tmp_path: Path) -> None:
    encoder = make_encoder(input_size=(96, 128))
    recipe = make_recipe(encoder=encoder, frame=FrameOptions(ignore_bottom=12))
    assert suitable_size(encoder, recipe.frame) == (108, 128)
    bundle = write_bundle(tmp_path / "bundle", encoder=encoder, recipe=recipe)
    settings = replace(TINY, backends=("fake",), sections=("throughput", "split", "host", "growth"))
    sections = measure(bundle, tmp_path / "work", settings)["sections"]
    assert sections["host"]["limit"]["frame_size"] == [108, 128]
    assert sections["growth"]["frame_sizes"] == []
    assert "frame (height" not in markdown_of(sections)


def markdown_of(sections: dict[str, Any]) -> str:
    machine = {"processor": "", "instructions": [], "cores": 1, "memory_mb": None, "load": None, "system": ""}
    return markdown(
        {
            "machine": {**machine, "thread_limits": {}, "versions": {}},
            "bundle": {"folder": "b", "architecture": "", "weights": "", "classes": 3, "engines": {}},
            "settings": {},
            "load_after": None,
            "taken": "",
            "seconds": 0.0,
            "skipped": [],
            "sections": sections,
        }
    )


def test_given_frames_are_used(fake_bundle: Path, tmp_path: Path) -> None:
    write_frames(tmp_path / "mine", 3, (50, 70))
    settings = replace(TINY, backends=("fake",), sections=("host",))
    report = measure(fake_bundle, tmp_path / "work", settings, [str(tmp_path / "mine")])
    assert report["sections"]["host"]["limit"]["frame_size"] == [50, 70]


def test_a_broken_frame_stops_the_benchmark(fake_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    settings = replace(TINY, backends=("fake",), sections=("host",))
    with pytest.raises(FrameError, match=r"broken\.png"):
        measure(fake_bundle, tmp_path / "work", settings, [str(tmp_path / "broken.png")])


def test_a_missing_bundle_is_refused_before_measuring(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle folder"):
        measure(tmp_path / "absent", tmp_path / "work", TINY)
    assert list(tmp_path.iterdir()) == []


def test_torch_of_another_encoder_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SemClipError, match="--arch sem_tiny with random weights is not the encoder of this bundle"):
        measure(toy_bundle, tmp_path / "work", TINY, torch=TorchOptions("sem_tiny", None))


def test_without_the_export_extra_torch_is_refused_with_the_remedy(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.speed.torch_runs", None)
    with pytest.raises(SemClipError, match=r"sem-clip\[export\]"):
        measure(toy_bundle, tmp_path / "work", TINY, torch=TorchOptions("toy", None))


def test_a_larger_batch_than_an_engine_takes_is_left_out(
    fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "benchmarks.speed.engines.open_backend", lambda *a, **k: FakeBackend(make_encoder(), max_batch=2)
    )
    settings = replace(TINY, backends=("fake",), sections=("throughput", "growth"))
    sections = measure(fake_bundle, tmp_path / "work", settings)["sections"]
    assert [row["batch"] for row in sections["throughput"]] == [1]
    assert {row["batch"] for row in sections["growth"]["classes"]} == {2}
    with pytest.raises(SemClipError, match="no engine takes a batch of 3; the largest here is 2"):
        measure(fake_bundle, tmp_path / "again", replace(settings, batches=(3,)))


def test_every_section_is_measured_and_reported() -> None:
    assert SECTIONS == tuple(suite._SECTIONS) == Settings().sections
    assert (*SECTIONS, "soak") == tuple(REPORTED)


def test_end_to_end_compares_the_stream_with_the_engine(fake_bundle: Path, tmp_path: Path) -> None:
    manifest, recipe = load_bundle(fake_bundle)
    paths = write_frames(tmp_path, 4, (64, 64))
    engine = FakeBackend(manifest.encoder, delay_s=0.05)
    subject = Subject(fake_bundle, manifest, recipe, {EngineName("fake", None): engine}, paths, 0)
    row = end_to_end(subject, batch=4, rounds=2, repeats=1)[0]
    assert 0.1 < row["stream_over_engine"] < 1.1
    assert row["engine_frames_per_second"] < 4 / 0.05


def test_generated_frames_repeat_with_their_seed_and_have_the_size_of_real_files(tmp_path: Path) -> None:
    first, second = write_frames(tmp_path / "a", 2, (120, 160)), write_frames(tmp_path / "b", 2, (120, 160))
    assert [Path(p).read_bytes() for p in first] == [Path(p).read_bytes() for p in second]
    with Image.open(first[0]) as picture:
        assert (picture.mode, picture.size) == ("L", (160, 120))
    # Noise does not compress; a blank frame would decode several times faster.
    assert Path(first[0]).stat().st_size > 0.4 * 120 * 160


def test_a_recipe_of_any_number_of_classes() -> None:
    recipe = with_classes(make_recipe(), 9)
    assert len(recipe.classes) == 9
    assert recipe.tensors["head_weight"].shape == (9, 385)
    assert recipe.tensors["transform_weight"] is not None


def test_drift_and_growth_of_a_soak() -> None:
    windows = [
        {"minute": float(m), "frames_per_second": 100.0 - m, "resident_mb": 50.0 if m == 1 else 200.0 + 2 * m}
        for m in range(1, 11)
    ]
    found = drift(windows)
    assert found["frames_per_second"] == pytest.approx(94.5)
    assert found["drift_percent_per_minute"] == pytest.approx(-100 / 94.5)
    assert found["last_over_first"] == pytest.approx(90 / 99)
    assert found["growth_mb_per_minute"] == pytest.approx(2)
    assert found["growth_mb"] == pytest.approx(16)
