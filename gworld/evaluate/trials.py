"""Predicted motions beside true ones: errors over the horizon with intervals, and per body, with their baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gworld.evaluate.charts import Line
from gworld.scene.world import World
from gworld.simulate.score import DISPLACED, body_errors, coast, displaced, interval

ROWS = ("prediction", "constant velocity", "copy")
STILL = 1e-3
"""Metres a body that truly rests may seem to move."""


@dataclass(frozen=True)
class Trial:
    """One prediction: times [T] in seconds from its start, poses [T,L,4,4], those that were true (None where nothing is
    known), and the twists [L,6] that everything had at the start."""

    name: str
    times: Float[Tensor, " T"]
    predicted: Float[Tensor, "T L 4 4"]
    truth: Float[Tensor, "T L 4 4"] | None = None
    twists: Float[Tensor, "L 6"] | None = None

    @property
    def seconds(self) -> float:
        """Seconds between two instants."""
        return float(self.times[1:].diff().median()) if len(self.times) > 2 else float(self.times[-1])


@dataclass(frozen=True)
class BodyRow:
    """A body's error at the end, over all trials (metres, medians) and how far it truly went."""

    body: str
    moved: float
    error: float
    coast: float
    copy: float


def rows_of(trial: Trial) -> dict[str, Float[Tensor, "T L 4 4"]]:
    """The prediction and its baselines as motions on the trial's clock, from the true start."""
    start = trial.predicted[0] if trial.truth is None else trial.truth[0]
    twists = start.new_zeros(len(start), 6) if trial.twists is None else trial.twists
    return {
        "prediction": trial.predicted,
        "constant velocity": coast(start, twists, trial.times),
        "copy": start.expand(len(trial.times), -1, -1, -1),
    }


def horizon_lines(world: World, trials: Sequence[Trial], kind: str, instants: int = 40) -> list[Line]:
    """Median error in millimetres over time of the bodies of a kind (`object` or `agent`) that truly moved by then,
    with the 10th to 90th percentile of the prediction shaded; nothing where none moved."""
    judged = [trial for trial in trials if trial.truth is not None]
    if not judged:
        return []
    last = max(float(trial.times[-1]) for trial in judged)
    clock = np.linspace(0, last, instants + 1)[1:]
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ROWS}
    samples = [_errors(world, trial, kind) for trial in judged]
    for instant in clock:
        pooled: dict[str, list[float]] = {name: [] for name in ROWS}
        for trial, (moved, errors) in zip(judged, samples, strict=True):
            if instant > float(trial.times[-1]) + 0.5 * trial.seconds:
                continue
            row = int((trial.times - instant).abs().argmin())
            for body, way in moved.items():
                if float(way[: row + 1].max()) > DISPLACED:
                    for name in ROWS:
                        pooled[name].append(1e3 * float(errors[name][body][row]))
        for name in ROWS:
            found[name].append(interval(pooled[name]))
    if not np.isfinite([middle for middle, _, _ in found["prediction"]]).any():
        return []
    lines = []
    for name, values in found.items():
        middle, low, high = (list(part) for part in zip(*values, strict=True))
        first = name == "prediction"
        lines.append(
            Line(name, clock.tolist(), middle, dashed=not first, low=low if first else (), high=high if first else ())
        )
    return lines


def body_rows(world: World, trials: Sequence[Trial]) -> list[BodyRow]:
    """Each body's errors at the ends of the trials that have a truth."""
    judged = [trial for trial in trials if trial.truth is not None]
    found = []
    for entity in world.entities:
        if entity.kind == "static" or not entity.links or not judged:
            continue
        samples = [_errors(world, trial, entity.kind) for trial in judged]
        moved = interval([float(ways[entity.name].max()) for ways, _ in samples])[0]
        ends = [interval([float(errors[name][entity.name][-1]) for _, errors in samples])[0] for name in ROWS]
        found.append(BodyRow(entity.name, moved, *ends))
    return found


def false_motion(world: World, trials: Sequence[Trial]) -> tuple[int, int]:
    """How many resting objects were left where they are to a millimetre, of how many that truly rest."""
    kept = total = 0
    for trial in trials:
        if trial.truth is None:
            continue
        ways, _ = _errors(world, trial, "object")
        strayed = displaced(world, trial.predicted)
        for body, way in ways.items():
            if float(way.max()) < 1e-4:
                total += 1
                kept += float(strayed[body].max()) <= STILL
    return kept, total


def _errors(world: World, trial: Trial, kind: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """How far each body of a kind truly went [T], and the errors [T] of every row."""
    assert trial.truth is not None
    names = [entity.name for entity in world.entities if entity.kind == kind]
    ways = displaced(world, trial.truth)
    truth = trial.truth
    errors = {row: body_errors(world, poses, truth) for row, poses in rows_of(trial).items()}
    return {name: ways[name] for name in names if name in ways}, errors


def ends(trial: Trial, world: World) -> float:
    """The largest error of any body at the end of a trial in metres; NaN without truth."""
    if trial.truth is None:
        return float("nan")
    return max(float(error[-1]) for error in body_errors(world, trial.predicted, trial.truth).values())


def pick(trials: Sequence[Trial], world: World, count: int) -> list[Trial]:
    """The trials to be shown: from the worst to the best at their ends, evenly; the first ones without truth."""
    if not trials:
        return []
    order = sorted(trials, key=lambda trial: -np.nan_to_num(ends(trial, world), nan=0.0))
    places = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
    return [order[place] for place in places]
