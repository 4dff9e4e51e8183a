"""Fixtures of the suite: the bundle of `--bundle`, or a random one of the toy encoder, and PNG frames for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.speed.frames import suitable_size, write_frames
from runtime import Predictor
from runtime.manifest import load_bundle


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of the suite."""
    parser.addoption("--bundle", type=Path, help="bundle to measure (default: a random one of the toy encoder)")
    parser.addoption("--backend", default="auto", help="engine to run it on (default: auto)")


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's folder."""
    given: Path | None = request.config.getoption("--bundle")
    if given is not None:
        return given
    from benchmarks.bundles import random_bundle

    return random_bundle("toy", None, tmp_path_factory.mktemp("bundle"))[1]


@pytest.fixture(scope="session")
def predictor(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Predictor]:
    """An open Predictor on the bundle."""
    with Predictor(bundle, backend=request.config.getoption("--backend")) as opened:
        yield opened


@pytest.fixture(scope="session")
def frames(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of 16 PNG frames."""
    manifest, recipe = load_bundle(bundle)
    return write_frames(tmp_path_factory.mktemp("frames"), 16, suitable_size(manifest.encoder, recipe.frame))
