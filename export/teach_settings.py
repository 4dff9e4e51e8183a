"""How to teach: every choice of few-shot fine-tuning that is not the data's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAPER_ALPHA = 0.8
"""The class mix of eq. 23 as the paper sets it."""


@dataclass(frozen=True, slots=True)
class TeachSettings:
    """How to teach. views per support; steps and batch of the transformation layers' Adam; the rest as in the recipe.

    learning_rate: of that Adam; layers that start at the text learn faster (fit_map.TEXT_RATE).
    tau_fit: logit scale while fitting, CLIP's. The taught map is then nearly binary; the recipe gets the softer `tau`,
    which ranks frames and pixels as well or better and makes the map less sensitive to rounding.
    frame_loss: weight of the loss of whole frames beside that of their cells (`fit_map`); not with head "paper".
    head: "pooled" reads the tokens under the map beside the class tokens (heads.map_features); "paper" reads the class
    tokens alone (eq. 20-22), all other weights of the head are zero.
    head_l2: weight decay of the logistic regression, on features brought to one scale (`head_scale`); of a head that
    starts from what an aligned text tower says it is stronger, the fewer the shots (PRIOR_L2).
    memory_share: what the memory's map counts beside the others; None lets the supports choose
    (`choose_memory_share`). It is 0 with head "paper".
    lambda_v: the V path's share of the map; None lets the supports choose (`choose_lambda_v`), but takes 0 where the
    text vectors are not aligned, and the paper's 1 with head "paper".
    last_level_only: the other levels' layers and head weights are zero, and they have no say (paper, Table 3).
    head_maps: under which maps of the supports the class head learns to read: "own", those of the recipe; or "others",
    those of layers that were taught without the frame: honest, but taught on fewer frames. None takes "others" where
    the layers start at the text (`starts_at_text`), "own" where they start at random.
    alpha: the class mix of eq. 23; None chooses it by cross-validation on the supports (`choose_alpha`).
    """

    views: int = 8
    steps: int = 500
    batch: int = 4
    learning_rate: float = 2e-3
    frame_loss: float = 1.0
    head: str = "pooled"
    head_l2: float = 1e-3
    head_maps: str | None = None
    last_level_only: bool = False
    alpha: float | None = None
    tau_fit: float = 100.0
    tau: float = 30.0
    tau_v: float = 100.0
    tau_s: float = 10.0
    lambda_v: float | None = None
    memory_share: float | None = None

    def scalars(self, alpha: float, lambda_v: float, lambda_m: float) -> NDArray[np.float32]:
        """The graph's `scalars`."""
        return np.array([alpha, lambda_v, lambda_m, self.tau, self.tau_v, self.tau_s], np.float32)
