"""How to teach: the settings, and the paper's method as one choice of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

HEADS = ("pooled", "paper")
STARTS = ("auto", "random", "text")


@dataclass(frozen=True, slots=True)
class Temperatures:
    """Logit scales: factors of cosines before a softmax. Raises ValueError unless they are finite and above 0.

    fit: of the map while its layers are taught (CLIP's). map: of the map in use, softer. value: of the V path (eq. 15).
    text: of P_S (eq. 19).
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
    """How to teach; docs/method.md measures the effect of each.

    steps: of Adam for the transformation layers; 0 leaves them where they start.
    start: where those layers start: "random"; "text", the tower's own projection, which needs an aligned text tower; or
        "auto", at the text if that finds the supports' defects untaught (`fit_map.starts_at_text`), else at random.
    frame_loss: weight of the loss of whole frames, relative to that of their cells (`fit_map`).
    head: "pooled" reads the class tokens and the tokens under the map (`heads.map_features`), and starts from the text
        if that is aligned; "paper" reads the class tokens only (eq. 20-22) and starts at zero.
    alpha: the class mix of eq. 23.
    lambda_v: weight of the V path's map (eq. 16-17). None: LAMBDA_V if the text is aligned, else 0.
    memory_share: weight of the memory bank's map, relative to the others. None: by what taught the map
        (`fit_memory.memory_share`).
    temperatures: logit scales.

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
        """SEM-CLIP as in the paper (ICCAD 2024), used with a smoothing of 4 px at 240 px (`teach.METHODS`).

        If the paper gives no value, this project's applies: focal and dice loss, views, means where eq. 12, 16 and 17
        have sums (so that a map lies in [0, 1]), class tokens of unit length (eq. 20). The layer of eq. 21 is fitted by
        L-BFGS with a weight decay of 1e-3 and balanced classes; the paper uses Adam.

        steps: not given.
        start: eq. 9 names a linear layer and no start: random.
        frame_loss: eq. 8-17 have no loss of whole frames: 0.
        head: z_C of eq. 20, the class tokens of all levels, and the linear layer of eq. 21-22.
        alpha: 0.8, section 4.1 and eq. 23.
        lambda_v: 1, A = A^Z + A^V of eq. 17.
        memory_share: eq. 17 has no memory: 0.
        temperatures: eq. 11 and 15 give none; both take CLIP's 100, since a two-way softmax of cosines at 1 hardly
            leaves 0.5. Eq. 19 gives none either; its softmax over classes is taken literally: 1.
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
        """The graph's input `scalars`, float32 [6]."""
        t = self.temperatures
        return np.array([self.alpha, lambda_v, lambda_m, t.map, t.value, t.text], np.float32)
