"""How a fit spends its time: a budget becomes steps, resolutions and a number of Gaussians.

A run's schedule is a function of its progress, 0 to 1. With a number of steps, progress is their share; with a time
budget it is time's: at set steps the pace is measured and the steps that are left are planned anew. What was decided is
written down before it is acted on (`plan.json`), and a resumed run repeats it instead of measuring again: the same
run, whatever the clock says the second time.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from gworld.errors import InputError, UsageError
from gworld.files import read_json, write_json

FILE = "plan.json"
LEVELS = 3
FINER = (0.1, 0.3)
"""Progress at which the pictures' sides double at the latest, from a quarter to the full size."""
ENOUGH = (20, 60)
"""Epochs after which they double at the latest: what is learned by heart of small pictures, no later step mends."""
HARMONICS = (0.15, 0.3, 0.45)
"""Progress at which the degree of the spherical harmonics grows."""
GROWN = 0.45
"""Progress at which the number of Gaussians reaches its budget."""
SETTLED = 0.85
"""Progress after which density is left alone."""
PER_VIEW, FEW_VIEWS = 550, 30_000
"""Gaussians that a view bears out, and how many few views are given all the same."""
FIRST_PLANS = (10, 30, 60)
PLAN_EVERY = 100
OVERDUE = 0.03
"""Share of the budget after which the rest is planned anew whatever the step: finer pictures may cost far more."""


@dataclass(frozen=True)
class Segment:
    """From `step` at `progress` on, `left` steps remain."""

    step: int
    progress: float
    left: int


def seconds_of(budget: str) -> float:
    """`90s`, `5m`, `1.5h` or plain seconds; 0 for an empty text. Raises `UsageError` for anything else."""
    if not budget:
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|)", budget.strip())
    value = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not 1 <= value <= 30 * 86400:
        raise UsageError(f"the budget is {budget!r}; a time such as 90s, 5m or 1h is needed.")
    return value


def planned_gaussians(budget: float, steps: int, device: str, views: int) -> int:
    """How many Gaussians a time budget (or, without one, a number of steps) can train, measured on two CPU cores; and
    no more than the views bear out: on 56 photos, after 12,000 steps, 30 thousand drew unseen views better by 0.9 dB
    than 60 thousand, and 98 thousand got worse the longer they were trained.
    """
    pace = 25.0 if device == "cpu" else 400.0
    seconds = budget or steps / pace
    trained = min(max(15_000, 25_000 * (seconds * pace / 1500) ** 0.6), 1_000_000 if device != "cpu" else 200_000)
    return int(min(trained, max(FEW_VIEWS, PER_VIEW * views)))


class Plan:
    """The segments of a run, the last one in force; kept in `run/plan.json`."""

    def __init__(self, run: Path, budget: float, steps: int, most: int = 0) -> None:
        """`steps` where there is no budget; `most` steps (0: any number) are taken where there is one."""
        self.path = run / FILE
        self.budget, self.most = budget, most if budget else 0
        self.segments = [Segment(0, 0.0, min(steps, self.most or steps))]
        self.planned: float | None = None  # when, in seconds since the start, this process last planned

    def replay(self) -> None:
        """Take up the decisions of an earlier process; raises `InputError` when the file is damaged."""
        if not self.path.exists():
            return
        rows = read_json(self.path)
        try:
            self.segments = [Segment(int(step), float(progress), int(left)) for step, progress, left in rows]
        except (TypeError, ValueError) as error:
            raise InputError(f"`{self.path}` is damaged ({error}). Start the fit again.") from error
        steps = [segment.step for segment in self.segments]
        sound = steps == sorted(set(steps)) and all(s.left > 0 and 0 <= s.progress < 1 for s in self.segments)
        if not steps or steps[0] != 0 or not sound:
            raise InputError(f"`{self.path}` is damaged (its steps are out of order). Start the fit again.")

    def at(self, step: int) -> Segment:
        """The segment in force at a step."""
        return next(segment for segment in reversed(self.segments) if segment.step <= step)

    def progress(self, step: int) -> float:
        """Share of the run that is done before this step; 1 or more when it is over."""
        segment = self.at(step)
        return segment.progress + (1 - segment.progress) * (step - segment.step) / segment.left

    def decide(self, step: int, elapsed: float, pace: float) -> None:
        """Plan the steps that are left by the time that is left, where this step plans and has not done so before.

        elapsed in seconds since the start, pace in seconds per step of late.
        """
        if self.planned is None:
            self.planned = elapsed
        late = step > FIRST_PLANS[0] and elapsed - self.planned > OVERDUE * self.budget
        due = late or step in FIRST_PLANS or (step > 0 and step % PLAN_EVERY == 0)
        if not self.budget or not due or step <= self.segments[-1].step or self.progress(step) >= 1:
            return
        self.planned = elapsed
        left = max(1, math.ceil((self.budget - elapsed) / max(pace, 1e-6)))
        if self.most:
            left = min(left, max(1, self.most - step))
        self.segments.append(Segment(step, self.progress(step), left))
        write_json(self.path, [[s.step, s.progress, s.left] for s in self.segments])


def level_at(progress: float, epochs: float) -> int:
    """Which resolution is fitted: LEVELS - 1 is the coarsest, 0 the finest. `epochs`: how often each view was met."""
    return sum(progress < start and epochs < most for start, most in zip(FINER, ENOUGH, strict=True))


def degree_at(progress: float, most: int) -> int:
    """Degree of the spherical harmonics."""
    return min(most, sum(progress >= start for start in HARMONICS))


def count_at(progress: float, first: int, most: int) -> int:
    """How many Gaussians there should be: from `first` to `most`, ever faster."""
    share = min(1.0, progress / GROWN)
    return round(first * (max(most, first) / first) ** share) if first else most
