"""benchmarks.accuracy.ablations: what each ablation changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import make_recipe

from benchmarks.accuracy import ablations
from benchmarks.accuracy.ablations import FITTED_ABLATIONS, ablate
from export.teaching.settings import TeachSettings


@pytest.mark.parametrize(
    ("name", "expected"),
    [("no_p_s", (1.0, 1.0, 0.3)), ("no_p_c", (0.0, 1.0, 0.3))],
)
def test_a_scalar_ablation_changes_only_scalars_of_the_recipe(name: str, expected: tuple[float, float, float]) -> None:
    recipe = make_recipe()
    scalars = recipe.tensors["scalars"].copy()
    scalars[:3] = 0.8, 1.0, 0.3
    recipe = replace(recipe, tensors={**recipe.tensors, "scalars": scalars})
    changed = ablate(name, recipe, None, None, None)  # type: ignore[arg-type]
    assert changed.tensors["scalars"][:3].tolist() == pytest.approx(expected)
    assert all(np.array_equal(changed.tensors[n], recipe.tensors[n]) for n in recipe.tensors if n != "scalars")


@pytest.mark.parametrize("name", FITTED_ABLATIONS)
def test_a_fitted_ablation_is_another_fit_of_the_same_supports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablations, "fit_supports", lambda encoded, encoder, stages, settings: settings)
    encoded: Any = None
    assert ablate(name, make_recipe(), encoded, None, None) == FITTED_ABLATIONS[name]  # type: ignore[arg-type]
    assert FITTED_ABLATIONS[name] != TeachSettings()
