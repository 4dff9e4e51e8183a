"""Whether the frames of a lot are still like those that the recipe was calibrated on.

`calibrate` keeps in the recipe, for every class that verdicts name, the scores and novelties of its frames and how many
were rejected. Per class, so that a lot with more defects of one kind is no drift. For each class with frames enough on
both sides three tests compare a lot with that:

    novelty, score    two-sample Kolmogorov-Smirnov: any change of the distribution
    rejects           Fisher's exact test, one-sided: more `unknown` and `cannot decide` than in calibration

A lot drifts if any test's p value is at most ERROR_RATE divided by the number of tests (Bonferroni). A test that no lot
of these values could fail, as of rejects where nothing was rejected, is left out first (Tarone 1990): it would
only lower the limit for the others. If nothing has
changed, and frames are drawn one by one, at most one lot in 100 is called so. Frames of one wafer are alike and lots
differ a little, so real lots are called more often.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..operating_point import VERDICTS, OperatingPoint
from ..recipe import Recipe

REFERENCE = "reference"
"""The key of a recipe's `calibration` that holds it."""
ERROR_RATE = 0.01
LEAST_REFERENCE, LEAST_LOT = 20, 10
"""Frames of a class, in calibration and in the lot, below which nothing is tested."""
KEPT = 200
"""Values of a distribution that are kept: all of a smaller sample, else as many quantiles. A lot is compared with them
as with a sample of that size, which makes the test careful and not eager."""
DIGITS = 5
"""Decimals that are compared, so that the rounding of another engine is no change."""
_Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Frames whose verdict names one class, or would name it if it did not abstain.

    frames: how many. score, novelty: sorted, all of them or quantiles. rejected: how many were left undecided.
    """

    frames: int
    score: _Values
    novelty: _Values
    rejected: int


@dataclass(frozen=True, slots=True)
class Change:
    """One test of one class. before, here: medians, or rates of rejects. p: of the test alone.

    least: the smallest p that the same values could give, if they fell to calibration and lot in another way.
    """

    what: str
    label: str
    before: float
    here: float
    frames: int
    p: float
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Drift:
    """The tests of one lot. why_not: why nothing could be tested, or "". untested: classes that were not, and why."""

    changes: tuple[Change, ...] = ()
    untested: tuple[str, ...] = ()
    why_not: str = ""

    @property
    def alarms(self) -> tuple[Change, ...]:
        """The changes that chance does not explain, the surest first."""
        return tuple(sorted((c for c in self.changes if c.p * len(self.changes) <= ERROR_RATE), key=lambda c: c.p))

    def line(self, lot: str) -> str:
        """What became of it, on one line."""
        if self.why_not:
            return f"drift: cannot be tested: {self.why_not}"
        tests = f"{len(self.changes)} test{'s' if len(self.changes) > 1 else ''}"
        if self.alarms:
            return f"drift: lot {lot} drifts ({len(self.alarms)} of {tests})"
        return f"drift: none seen at these counts of frames ({tests})"

    def sentences(self) -> list[str]:
        """The alarms in words, with how sure each is."""
        return [self._sentence(change) for change in self.alarms]

    def _sentence(self, change: Change) -> str:
        tests = len(self.changes)
        odds = change.p * tests
        often = f"1 of {1 / odds:,.0f} lots" if odds > 1e-9 else "1 of a billion lots"
        if change.what == "rejects":
            moved = f"rejects are {change.here:.1%}, and were {change.before:.1%} in calibration"
        else:
            direction = "higher" if change.here > change.before else "lower" if change.here < change.before else "other"
            moved = (
                f"{change.what} is {direction} than in calibration (median {change.here:.4g}, was {change.before:.4g})"
            )
        return (
            f"{change.label}: {moved}; by chance at most {often} would show such a change "
            f"(p = {change.p:.1e}, {change.frames} frames, {tests} tests)"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        alarms = self.alarms
        return {
            "drifts": bool(alarms) if not self.why_not else None,
            "error_rate": ERROR_RATE,
            "tests": [
                {
                    "class": change.label,
                    "what": change.what,
                    "before": change.before,
                    "here": change.here,
                    "frames": change.frames,
                    "p": change.p,
                    "alarm": change in alarms,
                }
                for change in self.changes
            ],
            "untested": list(self.untested),
            **({"why_not": self.why_not} if self.why_not else {}),
        }


class Collector:
    """Collects what the tests need of a lot or of calibration frames: 16 bytes a frame."""

    def __init__(self) -> None:
        self._scores: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self._novelties: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self._rejected: Counter[str] = Counter()

    def add(self, label: str, score: float, novelty: float, verdict: str) -> None:
        """One frame. label: the class that the verdict names, or would name if it did not abstain."""
        self._scores[label].append(score)
        self._novelties[label].append(novelty)
        self._rejected[label] += verdict in VERDICTS

    def groups(self) -> dict[str, Group]:
        """By class, in the order of their names."""
        return {
            label: Group(len(scores), _sample(scores), _sample(self._novelties[label]), self._rejected[label])
            for label, scores in sorted(self._scores.items())
        }


def reference_record(groups: Mapping[str, Group], point: OperatingPoint) -> dict[str, Any]:
    """What a recipe's `calibration` keeps under REFERENCE. point: the operating point of the verdicts."""
    return {
        "operating_point": _judging(point),
        "classes": {
            label: {
                "frames": group.frames,
                "rejected": group.rejected,
                "score": group.score.tolist(),
                "novelty": group.novelty.tolist(),
            }
            for label, group in groups.items()
        },
    }


def read_reference(recipe: Recipe) -> dict[str, Group] | str:
    """The reference of a recipe, or why drift cannot be tested with it.

    The record of calibration is informative, so what is malformed there is no error.
    """
    again = "run `sem-clip calibrate` to make it"
    record = recipe.calibration.get(REFERENCE)
    if record is None:
        return f"the recipe keeps no scores of calibration frames: {again}"
    if not isinstance(record, Mapping) or not isinstance(record.get("classes"), Mapping):
        return f"the recipe's scores of calibration frames cannot be read: {again}"
    if record.get("operating_point") != _judging(recipe.operating_point):
        return f"the operating point has changed since calibration, and with it the classes it names: {again}"
    groups = {}
    for label, entry in record["classes"].items():
        group = _group(entry)
        if group is None:
            return f"the recipe's scores of calibration frames cannot be read: {again}"
        groups[label] = group
    return groups


def find_drift(lot: Mapping[str, Group], reference: Mapping[str, Group] | str) -> Drift:
    """Compare a lot with calibration. reference: as of `read_reference`."""
    if isinstance(reference, str):
        return Drift(why_not=reference)
    changes: list[Change] = []
    untested: list[str] = []
    for label, here in lot.items():
        before = reference.get(label)
        kept = 0 if before is None else before.frames
        if before is None or kept < LEAST_REFERENCE or here.frames < LEAST_LOT:
            untested.append(
                f"{label}: {here.frames} frames here (at least {LEAST_LOT} are needed) and {kept} in calibration "
                f"(at least {LEAST_REFERENCE})"
            )
            continue
        changes += _tests(label, before, here)
    fit = _fit_to_fire(changes)
    untested += [
        f"{change.label}: {change.what}: no lot with these values could be surer than chance explains"
        for change in changes
        if change not in fit
    ]
    why_not = "" if fit else f"no class has frames enough: {'; '.join(untested) or 'no image was read'}"
    return Drift(tuple(fit), tuple(untested), why_not)


def _tests(label: str, before: Group, here: Group) -> list[Change]:
    """The three tests of one class."""
    tests = []
    for what in ("novelty", "score"):
        old, new = getattr(before, what), getattr(here, what)
        p, least = kolmogorov_smirnov(old, new), _least_difference(old, new)
        tests.append(Change(what, label, float(np.median(old)), float(np.median(new)), here.frames, p, least))
    rejected = before.rejected + here.rejected
    p = more_rejects(before.rejected, before.frames, here.rejected, here.frames)
    most = min(rejected, here.frames)
    least = more_rejects(rejected - most, before.frames, most, here.frames)
    rates = before.rejected / before.frames, here.rejected / here.frames
    return [*tests, Change("rejects", label, *rates, here.frames, p, least)]


def _fit_to_fire(changes: list[Change]) -> list[Change]:
    """The tests that could call a lot drifting if they alone were made.

    Each is chosen by the pooled values, which do not tell how they fell to both sides. So the error rate holds.
    """
    for count in range(1, len(changes) + 1):
        fit = [change for change in changes if change.least * count <= ERROR_RATE]
        if len(fit) <= count:
            return fit
    return []


def _least_difference(a: _Values, b: _Values) -> float:
    """The smallest p of `kolmogorov_smirnov` for these values: all of one sample lie above the other, or below."""
    both = np.sort(np.concatenate([a, b]))
    return min(kolmogorov_smirnov(both[:size], both[size:]) for size in (a.size, b.size))


def kolmogorov_smirnov(a: ArrayLike, b: ArrayLike) -> float:
    """The p value of the two-sample Kolmogorov-Smirnov test, two-sided.

    a, b: numbers, one or more each. By the limit distribution with Stephens' correction (1970), as in Press et al.,
    Numerical Recipes, section 14.3: close to the exact p for 10 values and more, and careful with ties.
    """
    first, second = np.sort(np.asarray(a, np.float64)), np.sort(np.asarray(b, np.float64))
    both = np.concatenate([first, second])
    below_first = np.searchsorted(first, both, side="right") / first.size
    below_second = np.searchsorted(second, both, side="right") / second.size
    distance = float(np.abs(below_first - below_second).max())
    root = math.sqrt(first.size * second.size / (first.size + second.size))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # where the series converges slowly, to 1
        return 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, math.fsum(terms)))


def more_rejects(rejected_before: int, before: int, rejected_here: int, here: int) -> float:
    """The p value of Fisher's exact test, one-sided: so many rejects here or more, if both rates were one."""
    rejected = rejected_before + rejected_here
    most = min(rejected, here)
    ways = _log_ways(before + here, rejected)
    terms = (
        _log_ways(here, k) + _log_ways(before, rejected - k) - ways
        for k in range(max(rejected_here, rejected - before), most + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))


def _log_ways(n: int, k: int) -> float:
    """The logarithm of n over k."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _sample(values: array[float]) -> _Values:
    ordered: _Values = np.sort(np.round(np.asarray(values, np.float64), DIGITS))
    if ordered.size > KEPT:
        ordered = ordered[((np.arange(KEPT) + 0.5) / KEPT * ordered.size).astype(int)]
    return ordered


def _judging(point: OperatingPoint) -> dict[str, Any]:
    """The part of an operating point that makes verdicts and scores."""
    return {name: value for name, value in point.to_dict().items() if name != "pixel_threshold"}


def _group(entry: Any) -> Group | None:
    """A group out of a recipe; None if it is malformed."""
    if not isinstance(entry, Mapping):
        return None
    frames, rejected = entry.get("frames"), entry.get("rejected")
    if type(frames) is not int or type(rejected) is not int or not 0 <= rejected <= frames <= 2**53:
        return None
    samples = []
    for name in ("score", "novelty"):
        values = entry.get(name)
        if not isinstance(values, list) or not 0 < len(values) <= min(KEPT, frames):
            return None
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 2 for v in values):
            return None
        samples.append(np.sort(np.asarray(values, np.float64)))
    return Group(frames, samples[0], samples[1], rejected)
