"""TeachSettings: valid values, and the paper's method."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from planted import (
    BANK,
    LABELS,
    LEVELS,
    QUICK,
    WIDTH,
    plant,
    teach,
    towards_defects,
)

from export.teaching import fit_recipe as fit_recipe_module
from export.teaching.settings import TeachSettings, Temperatures

PAPER = {
    "steps": (400, "not given: this project's"),
    "start": ("random", "eq. 9 names no start"),
    "frame_loss": (0.0, "eq. 8-17 have none"),
    "head": ("paper", "eq. 20-22"),
    "alpha": (0.8, "section 4.1, eq. 23"),
    "lambda_v": (1.0, "eq. 17: A^Z + A^V"),
    "memory_share": (0.0, "eq. 17 has none"),
    "temperatures": (Temperatures(100, 100, 100, 1), "eq. 11, 15: CLIP's; eq. 19: literally"),
}


def test_paper_head_reads_class_tokens_only() -> None:
    quick = replace(QUICK, steps=5)
    paper, pooled = (teach(plant(LABELS), settings=replace(quick, head=kind)) for kind in ("paper", "pooled"))
    beyond = np.s_[:, LEVELS * WIDTH :]
    assert not paper.tensors["head_weight"][beyond].any()
    assert pooled.tensors["head_weight"][beyond].all()
    assert paper.tensors["head_weight"][:, : LEVELS * WIDTH].all()
    assert paper.teaching["settings"]["head"] == "paper"
    with pytest.raises(ValueError, match="there are: pooled, paper"):
        replace(quick, head="other")


@pytest.mark.parametrize("alpha", [0.8, 0.6])
def test_alpha_of_the_recipe_is_that_of_the_settings(alpha: float) -> None:
    assert TeachSettings().alpha == 0.8, "eq. 23"
    recipe = teach(plant(LABELS), settings=replace(QUICK, steps=2, alpha=alpha))
    assert recipe.tensors["scalars"][0] == pytest.approx(alpha)


def test_paper_settings_are_documented_with_their_source() -> None:
    paper = TeachSettings.paper()
    names = [field.name for field in fields(TeachSettings)]
    assert list(PAPER) == names
    assert {name: getattr(paper, name) for name in names} == {name: value for name, (value, _) in PAPER.items()}
    assert TeachSettings.paper.__doc__ is not None
    assert all(f"        {name}:" in TeachSettings.paper.__doc__ for name in names)


def test_paper_recipe_has_no_addition_of_this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fit_recipe_module, "out_of_fold_maps", lambda *given: pytest.fail("the paper's method does not use them")
    )
    settings = replace(TeachSettings.paper(), steps=20)
    bank = replace(BANK, aligned=True, projection=towards_defects())
    recipe = teach(plant(LABELS), settings=settings, bank=bank)
    np.testing.assert_allclose(recipe.tensors["scalars"], [0.8, 1, 0, 100, 100, 1])
    assert recipe.teaching["map_starts_at"] == "random"
    assert recipe.teaching["text_prior"] == {}
    assert not recipe.tensors["head_weight"][:, LEVELS * WIDTH :].any()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"head": "other"}, 'head "other" is unknown; there are: pooled, paper'),
        ({"start": "zero"}, 'start "zero" is unknown; there are: auto, random, text'),
        ({"alpha": 1.5}, "alpha must lie in"),
        ({"steps": -1}, "steps must be finite and not negative, not -1"),
        ({"lambda_v": float("nan")}, "lambda_v must be finite and not negative, not nan"),
        ({"memory_share": -1.0}, "memory_share must be finite and not negative"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(TeachSettings(), **changes)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_temperatures_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="the temperature fit must be finite and above 0"):
        Temperatures(fit=value)
