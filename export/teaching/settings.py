"""How to teach: what a user may set, and the paper's method as one setting of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

HEADS = ("pooled", "paper")
STARTS = ("auto", "random", "text")


@dataclass(frozen=True, slots=True)
class Temperatures:
    """Logit scales: cosines are multiplied with them before a softmax.

    fit: of the map while its layers are taught, CLIP's. The taught map is then nearly binary; in use the softer `map`
    ranks frames and pixels as well or better, and makes the map less sensitive to rounding. value: of the V path (eq.
    15). text: of P_S (eq. 19). Raises ValueError for one that is not above 0.
    """

    fit: float = 100.0
    map: float = 30.0
    value: float = 100.0
    text: float = 10.0

    def __post_init__(self) -> None:
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if not 0 < value < math.inf:
                raise ValueError(f"the temperature {field_.name} must be finite and above 0, not {value}")


@dataclass(frozen=True, slots=True)
class TeachSettings:
    """How to teach. docs/method.md says what each is worth.

    steps: of the transformation layers' Adam; 0 leaves them where they start.
    start: where those layers start: "random"; "text", the tower's own projection, which takes an aligned text tower; or
        "auto", at the text where that finds the supports' defects untaught (`fit_map.starts_at_text`).
    frame_loss: weight of the loss of whole frames beside that of their cells (`fit_map`).
    head: "pooled" reads the tokens under the map beside the class tokens (`heads.map_features`), and starts from what
        an aligned text tower says; "paper" reads the class tokens alone (eq. 20-22) and starts at zero.
    alpha: the class mix of eq. 23.
    lambda_v: the V path's share of the map (eq. 16-17). None: LAMBDA_V where the text vectors are aligned, else 0.
    memory_share: the share of the memory bank's map beside the others. None: by what taught the map
        (`fit_memory.memory_share`).
    temperatures: see there.

    Raises ValueError for a name that is unknown and for numbers out of range.
    """

    steps: int = 400
    start: str = "auto"
    frame_loss: float = 1.0
    head: str = "pooled"
    alpha: float = 0.8
    lambda_v: float | None = None
    memory_share: float | None = None
    temperatures: Temperatures = field(default_factory=Temperatures)

    def __post_init__(self) -> None:
        for name, known in (("head", HEADS), ("start", STARTS)):
            if getattr(self, name) not in known:
                raise ValueError(f'{name} "{getattr(self, name)}" is unknown; there are: {", ".join(known)}')
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], not {self.alpha}")
        for name in ("steps", "frame_loss", "lambda_v", "memory_share"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {getattr(self, name)}")

    @classmethod
    def paper(cls) -> TeachSettings:
        """SEM-CLIP as the paper has it (ICCAD 2024), beside a smoothing of 4 px at 240 px (`teach.METHODS`).

        Where the paper is silent, this project's choice stands: focal and dice loss, views, means where eq. 12, 16 and
        17 have sums (so that a map lies in [0, 1]), class tokens of unit length (eq. 20), and L-BFGS with a weight
        decay of 1e-3 and balanced classes for the layer of eq. 21, of which the paper says "Adam".

        steps: silent.
        start: eq. 9 names a linear layer and no start; it starts at random.
        frame_loss: eq. 8-17 know no loss of whole frames: 0.
        head: z_C of eq. 20, the class tokens of all levels, and the linear layer of eq. 21-22.
        alpha: 0.8, section 4.1 and eq. 23.
        lambda_v: 1, A = A^Z + A^V of eq. 17.
        memory_share: eq. 17 has no memory: 0.
        temperatures: eq. 11 and 15 print none; CLIP's 100 stands for both, for a two-way softmax of cosines at 1 hardly
        leaves 0.5. Eq. 19 prints none either; its softmax over classes is taken literally: 1.
        """
        return cls(
            start="random",
            frame_loss=0.0,
            head="paper",
            alpha=0.8,
            lambda_v=1.0,
            memory_share=0.0,
            temperatures=Temperatures(fit=100.0, map=100.0, value=100.0, text=1.0),
        )

    def scalars(self, lambda_v: float, lambda_m: float) -> NDArray[np.float32]:
        """The graph's `scalars`."""
        t = self.temperatures
        return np.array([self.alpha, lambda_v, lambda_m, t.map, t.value, t.text], np.float32)
