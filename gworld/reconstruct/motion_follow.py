"""From instant to instant: a first state, then each state from the one before, and a search where a body is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.reconstruct.motion_bodies import Bodies, Posture, between, moved
from gworld.reconstruct.motion_film import Film, Level, Shot, shot_at
from gworld.reconstruct.motion_fit import Prior, Solved, Weights, alike, costs, fit_state, search
from gworld.reconstruct.motion_options import TrackOptions

WANDER = 0.02
"""Metres by which a body's farthest point may differ from where its velocity takes it, per square root of 1/50 s."""
MEMORY = 0.5
"""Share of the velocity that is taken over from before."""
LEAPS = (-0.1, -0.07, -0.04, 0.04, 0.07, 0.1)
"""Metres of a body's farthest point by which other valleys are looked for, along the directions least bound."""
LOOSE, LEAST = 2, 0.995
"""How many such directions are looked along; the share of the cost that remains at most for a leap to be taken."""
FLAT = 2.0
"""Cost (of a normal distribution's: two standard deviations) below which a state so far away is not ruled out."""
APART, RIVAL = 0.03, 1.5
"""Metres of a body's farthest point from which two states are two guesses; how many times the better one's cost the
other may have and still be followed."""
USUAL = 15
STARTS = 3
"""Independent searches for a first state."""
BELIEVED = 0.05
"""Share of the limits below which a given start is good enough for arms to be fitted, and to take colours, there."""
FRESH, DOUBTFUL = Weights(1.0, 1.0), Weights(0.5, 1.0)


@dataclass(frozen=True, eq=False)
class Given:
    """Recorded joint values as states [T,S] (NaN where unknown), and how firmly each component is held there [T,P]."""

    states: Float[Tensor, "T S"]
    precision: Float[Tensor, "T P"]

    def at(self, rows: np.ndarray) -> Given:
        """Those of some times."""
        return Given(self.states[rows], self.precision[rows])


@dataclass(frozen=True, eq=False)
class Followed:
    """States [T,S], Gauss-Newton matrices [T,P,P] (inverse covariances), misfits [T], and where a body was lost [T]."""

    states: Float[Tensor, "T S"]
    matrices: Float[Tensor, "T P P"]
    misfit: Float[Tensor, " T"]
    lost: Tensor


def given_joints(
    bodies: Bodies, times: np.ndarray, joints: Mapping[str, Float[Tensor, "T V"]], options: TrackOptions
) -> Given:
    """Recorded joint values in the layout of states; raises `InputError` when they do not fit."""
    states = bodies.start.expand(len(times), -1).clone()
    states[:] = torch.nan
    precision = torch.zeros(len(times), bodies.size, dtype=torch.float64)
    sigma = max(options.joint_sigma, 1e-5)
    at = 0
    for arm in bodies.arms:
        width = len(arm.skeleton.free_joints)
        if arm.name in joints:
            values = joints[arm.name].double()
            if tuple(values.shape) != (len(times), width):
                raise InputError(
                    f"the joints of `{arm.name}` have shape {list(values.shape)}; {[len(times), width]} is needed."
                )
            states[:, arm.start : arm.start + width] = values
            known = values[:, arm.free].isfinite()
            precision[:, at : at + len(arm.free)] = known / sigma**2
        at += len(arm.free)
    unknown = set(joints) - {arm.name for arm in bodies.arms}
    if unknown:
        raise InputError(f"joint values are given for {', '.join(sorted(unknown))}, which is no robot that is tracked.")
    return Given(states, precision)


def find_start(
    bodies: Bodies,
    levels: dict[int, Level],
    films: list[Film],
    time: float,
    given: Given,
    options: TrackOptions,
    start: Float[Tensor, " S"],
    *,
    wide: bool,
) -> Float[Tensor, " S"]:
    """A first state: searched around the start as far as the options allow (when `wide`), then fitted."""
    shots = {shrink: shot_at(films, time, level) for shrink, level in levels.items()}
    start = _with_given(start, given, 0)
    spread = []
    for arm in bodies.arms:
        span = (bodies.high - bodies.low)[arm.start + arm.free].clamp(max=6.2)
        spread.append(options.search * span / 2 + 1e-3)
    for thing in bodies.things:
        spread.append(torch.tensor([options.reach] * 3 + [10 * options.reach] * 3).double() @ thing.axes.abs() + 1e-4)
    reach = torch.cat(spread) * (given.precision[0] == 0)
    prior = Prior(start, torch.where(given.precision[0] > 0, given.precision[0], 9.0 / reach.clamp_min(1e-6) ** 2))
    tries = [start]
    if wide and (options.search > 0 or options.reach > 0):
        generator = torch.Generator().manual_seed(options.seed)
        for _ in range(STARTS):
            # Objects first: they are few numbers, and an arm would lend itself to cover them.
            middle = start
            if bodies.things and bodies.arms:
                alone = reach * (torch.arange(bodies.size) >= bodies.size - sum(t.axes.shape[1] for t in bodies.things))
                middle = search(bodies, levels[8], shots[8], start, alone, generator, count=48, rounds=12)[0]
            if bodies.things and bodies.arms and options.search <= BELIEVED:
                tries.append(middle)
                continue
            tries += list(search(bodies, levels[8], shots[8], middle, reach, generator, weights=DOUBTFUL)[:2])
    slow = replace(options, steps=10)
    weights = DOUBTFUL if wide else FRESH
    solved = [_descend(bodies, levels, shots, prior, state, slow, weights) for state in tries]
    return min(solved, key=lambda one: one.cost).state


def follow(
    bodies: Bodies,
    levels: dict[int, Level],
    films: list[Film],
    times: np.ndarray,
    start: Float[Tensor, " S"],
    given: Given,
    options: TrackOptions,
    progress: Callable[[int, int], None] | None = None,
    *,
    guide: Float[Tensor, "T S"] | None = None,
    shrinks: tuple[int, ...] = (),
) -> Followed:
    """Fit each instant from the one before at its velocity, and from the `guide` and the second best guess so far where
    those are apart from it; where the fit jumps, search for a better one, around it and around where the bodies were
    last found.

    What is usual is told by instants at which the bodies were found, so that a bad fit never becomes usual.

    `shrinks` are the sizes at which pictures are compared, coarse to fine: those of the options when empty."""
    generator = torch.Generator().manual_seed(options.seed)
    state, velocity = start, torch.zeros(bodies.size, dtype=torch.float64)
    misfits, fair = list[float](), list[float]()
    states, matrices, lost = [], [], list[bool]()
    sound, rival = start, None
    whole, shrinks = _used(options), shrinks or _used(options)
    if options.posture > 0:
        bodies = replace(bodies, posture=Posture(start, options.posture))
    for row, time in enumerate(times):
        gap = float(time - times[row - 1]) if row else 0.0
        shots = {shrink: shot_at(films, float(time), levels[shrink]) for shrink in shrinks + whole}
        ahead = _with_given(moved(bodies, state, velocity * gap), given, row)
        others = (None if guide is None else guide[row], rival)
        starts = [ahead] + [_with_given(other, given, row) for other in others if other is not None]
        sigma = WANDER * max(gap / 0.02, 1.0) ** 0.5 / bodies.reach
        firm = given.precision[row] + 1.0 / sigma**2
        sizes = whole if row == 0 else shrinks
        solved, prior, rival = _rivals(bodies, levels, shots, Prior(ahead, firm, velocity), starts, options, sizes)
        solved = _leap(bodies, levels, shots, prior, solved, options)
        usual = float(np.median(fair[-USUAL:])) if fair else solved.misfit
        astray = len(fair) > 2 and solved.misfit > options.jump * usual
        if astray:
            wide = shot_at(films, float(time), levels[8])
            around = (solved.state, sound) if lost[-1] else (solved.state,)
            solved = _again(bodies, levels, wide, shots, prior, solved, around, generator=generator, options=options)
        if row:
            velocity = MEMORY * velocity + (1 - MEMORY) * between(bodies, state, solved.state) / gap
        state = solved.state
        states.append(state)
        matrices.append(solved.matrix)
        misfits.append(solved.misfit)
        lost.append(astray and solved.misfit > options.jump * usual)
        if not lost[-1]:
            fair.append(solved.misfit)
            sound = state
        if progress is not None:
            progress(row + 1, len(times))
    return Followed(torch.stack(states), torch.stack(matrices), torch.tensor(misfits), torch.tensor(lost))


def _rivals(
    bodies: Bodies,
    levels: dict[int, Level],
    shots: dict[int, Shot],
    prior: Prior,
    starts: list[Tensor],
    options: TrackOptions,
    sizes: tuple[int, ...],
) -> tuple[Solved, Prior, Tensor | None]:
    """The best of the fits from starts that are apart, the prior of its start, and the next best while it is apart.

    The other guess is followed too: a body that leaves the pictures covers nothing that could misfit, and what is seen
    a moment later tells which of two guesses was right.
    """
    tries: list[tuple[Solved, Prior]] = []
    for number, start in enumerate(starts):
        if any(not _apart(bodies, start, one) for one in starts[:number]):
            continue
        own = replace(prior, state=start)
        tries.append((_descend(bodies, levels, shots, own, start, options, shrinks=sizes), own))
    if len(tries) == 1:
        return (*tries[0], None)
    found = costs(bodies, torch.stack([one.state for one, _ in tries]), levels[min(sizes)], shots[min(sizes)])
    order = found.argsort().tolist()
    best = tries[order[0]]
    others = [
        tries[row][0].state
        for row in order[1:]
        if bool(found[row] < RIVAL * found[order[0]]) and _apart(bodies, best[0].state, tries[row][0].state)
    ]
    return (*best, others[0] if others else None)


def _apart(bodies: Bodies, one: Tensor, other: Tensor) -> bool:
    return float((between(bodies, one, other).abs() * bodies.reach).amax()) > APART


def _used(options: TrackOptions) -> tuple[int, ...]:
    """Levels of a descent, coarse to fine."""
    return tuple(sorted({min(8, 2 * options.finest), options.finest}, reverse=True))


def _descend(
    bodies: Bodies,
    levels: dict[int, Level],
    shots: dict[int, Shot],
    prior: Prior,
    start: Tensor,
    options: TrackOptions,
    weights: Weights = FRESH,
    shrinks: tuple[int, ...] = (),
) -> Solved:
    """Coarse to fine."""
    state, solved = start, None
    for shrink in shrinks or _used(options):
        solved = fit_state(bodies, levels[shrink], shots[shrink], prior, state, options.steps, weights)
        state = solved.state
    assert solved is not None
    return solved


def _again(
    bodies: Bodies,
    levels: dict[int, Level],
    wide: Shot,
    shots: dict[int, Shot],
    prior: Prior,
    solved: Solved,
    around: tuple[Tensor, ...],
    *,
    generator: torch.Generator,
    options: TrackOptions,
) -> Solved:
    """The better of a fit and what searches around some states find, pictures alone deciding."""
    spread = 0.25 / bodies.reach * (prior.precision < 1e9)
    found = [
        state
        for middle in around
        for state in search(bodies, levels[8], wide, middle, spread, generator, count=48, rounds=8)[: 3 - len(around)]
    ]
    finest = _used(options)[-1]
    loose = replace(prior, precision=torch.where(prior.precision < 1e9, prior.precision * 1e-3, prior.precision))
    tries = [solved] + [_descend(bodies, levels, shots, loose, state, options) for state in found]
    bare = costs(bodies, torch.stack([one.state for one in tries]), levels[finest], shots[finest], FRESH)
    # The first keeps its place unless another explains the pictures clearly better.
    bare[0] *= 0.98
    return tries[int(bare.argmin())]


def _leap(
    bodies: Bodies,
    levels: dict[int, Level],
    shots: dict[int, Shot],
    prior: Prior,
    solved: Solved,
    options: TrackOptions,
) -> Solved:
    """The fit, or a better one beyond a ridge: a hand that turns about a stick has poses that look nearly alike.

    Steps along the directions that the pictures bind least are drawn; where one explains the pictures better, it is
    fitted. Directions along which a step costs next to nothing are taken for as loose as that says: the derivative's
    pictures differ by grain, which the fit's own matrix takes for evidence.
    """
    finest = _used(options)[-1]
    size = 1 / bodies.reach
    matrix = solved.matrix * torch.outer(size, size) + torch.eye(bodies.size, dtype=torch.float64)
    bound, found_ways = torch.linalg.eigh(matrix)
    ways = found_ways[:, :LOOSE].T * size * (prior.precision < 1e9)
    steps = torch.tensor((0.0, *LEAPS), dtype=torch.float64)[:, None, None] * ways
    line = moved(bodies, solved.state, steps.flatten(0, 1))
    found = costs(bodies, line, levels[finest], shots[finest])
    best = int(found.argmin())
    if best >= LOOSE and bool(found[best] < found[0]):
        fresh = _descend(bodies, levels, shots, prior, line[best], options, shrinks=(finest,))
        ends = costs(bodies, torch.stack([solved.state, fresh.state]), levels[finest], shots[finest])
        if bool(ends[1] < LEAST * ends[0]):
            return fresh
    rise = ((found - found[0]) / (2 * alike(levels[finest]))).view(-1, LOOSE)[1:]
    away = torch.tensor(LEAPS, dtype=torch.float64)[:, None]
    gone = (between(bodies, solved.state, line) * bodies.reach).norm(dim=-1).view(-1, LOOSE)[1:]
    stepped = gone > 0.5 * away.abs()  # what is recorded, or at its limit, stays: that costs nothing and tells nothing
    bend = torch.where((rise < FLAT) & stepped, 2 * rise.clamp_min(0) / away.square(), torch.inf).amin(0)
    less = (bound[:LOOSE] - 1.0 - bend).clamp_min(0) * bend.isfinite()
    flatter = solved.matrix - (found_ways[:, :LOOSE] * less) @ found_ways[:, :LOOSE].T / torch.outer(size, size)
    return replace(solved, matrix=flatter)


def _with_given(state: Tensor, given: Given, row: int) -> Tensor:
    recorded = given.states[row]
    return torch.where(recorded.isnan(), state, recorded)
