"""Quasi-static pushing: a round stick against a flat shape that slides with dry friction and no inertia.

The block's motion is proportional to the force on it through an ellipsoidal limit surface (force f, moment m about the
centre of pressure: motion f, m / c^2); the stick sticks or slides at the contact by Coulomb's law. Both cases have a
closed form, so that many worlds and many settings are one batch.
Sources: Goyal, Ruina, Papadopoulos, "Planar sliding with dry friction", 1991; Lynch, Maekawa, Tanie, "Manipulation and
active sensing by pushing using tactile feedback", 1992.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.bench.realpush_data import Outline, Pushing, place

NAMES = ("pusher x", "pusher y", "log friction", "log lever", "pressure x", "pressure y", "reach")
"""Settings: by how much the tracked pusher is off (m), friction of the contact, lever of the pressure (m) and its
centre in the block (m), and how far the stick reaches beyond its radius (m; less where the outline is too wide)."""
SPREAD = (0.004, 0.004, 0.5, 0.2, 0.006, 0.006, 0.008)
"""Standard deviation that each is believed to have beforehand."""
PARTS = 2
"""Substeps of a step."""
HISTORY = 7
"""Steps before a window from which the pusher's error there is read."""
JITTER = 0.012
"""How far the pusher's error at one time is from its mean (m)."""
NOISE = 0.001
"""Error of tracked poses (m)."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """Settings [P], their standard deviations [P], and the cost at the start and at the end."""

    values: Float[Tensor, " P"]
    sigma: Float[Tensor, " P"]
    before: float
    after: float


def settings_at_first(outline: Outline) -> Float[Tensor, " 7"]:
    """What is believed beforehand: nothing off, friction 0.3, even pressure."""
    first = torch.zeros(len(NAMES), dtype=torch.float64)
    first[2], first[3] = torch.tensor(0.3).log(), torch.tensor(outline.spread).log()
    return first


def push_blocks(
    settings: Float[Tensor, "V 7"],
    given: Pushing,
    start: Float[Tensor, "#V W 3"],
    path: Float[Tensor, "#V W T 2"],
) -> Float[Tensor, "V W T 3"]:
    """Places of the block at all instants of the pusher's paths, the first being `start`; V settings, W worlds."""
    path = path + settings[:, None, None, :2]
    block = start.expand(len(settings), path.shape[1], 3)
    found = [block]
    for step in range(path.shape[2] - 1):
        move = (path[:, :, step + 1] - path[:, :, step]) / PARTS
        for part in range(PARTS):
            block = _give_way(settings, given, block, path[:, :, step] + (part + 1) * move, move)
        found.append(block)
    return torch.stack(found, dim=2)


def _give_way(settings: Tensor, given: Pushing, block: Tensor, stick: Tensor, move: Tensor) -> Tensor:
    """The block after a stick has moved by `move` to where it stands now."""
    grip, lever2 = settings[:, 2, None].exp(), (2.0 * settings[:, 3, None]).exp()
    middle, reach = settings[:, None, 4:6], given.radius + settings[:, 6, None]
    back = -block[..., 2]
    local, way = _turned(stick - block[..., :2], back), _turned(move, back)
    gap, normal = given.outline.distance(local)
    deep = (reach - gap).clamp_min(0.0)
    arm = local - normal * gap[..., None] - middle
    along = torch.stack([-normal[..., 1], normal[..., 0]], dim=-1)
    turn_n, turn_t = _cross(arm, normal), _cross(arm, along)
    ease_n, ease_t, ease_x = 1 + turn_n**2 / lever2, 1 + turn_t**2 / lever2, turn_n * turn_t / lever2
    slip = (way * along).sum(-1) * (deep > 0)
    whole = ease_n * ease_t - ease_x**2
    press = (-ease_t * deep - ease_x * slip) / whole
    drag = (ease_n * slip + ease_x * deep) / whole
    slides = (drag.abs() > grip * (-press).clamp_min(0.0)) | (press > 0)
    sign = torch.where(drag >= 0, 1.0, -1.0)
    lone = -deep / (ease_n - sign * grip * ease_x).clamp_min(1e-2)
    press, drag = torch.where(slides, lone, press), torch.where(slides, -sign * grip * lone, drag)
    force = press[..., None] * normal + drag[..., None] * along
    turned = block[..., 2] + _cross(arm, force) / lever2
    centre = block[..., :2] + _turned(middle + force, block[..., 2])
    return torch.cat([centre - _turned(middle.expand_as(force), turned), turned[..., None]], dim=-1)


def paths_from(given: Pushing, rows: Tensor, steps: int, before: int = 0) -> Float[Tensor, "1 N T 2"]:
    """The pusher's places from `before` steps before each start to `steps` after it."""
    return torch.stack([given.pusher[rows + k] for k in range(-before, steps + 1)], dim=1)[None]


def read_offsets(settings: Float[Tensor, " 7"], given: Pushing, rows: Tensor) -> Float[Tensor, "N 2"]:
    """How far the pusher seems off at each start, from what the block did in the steps before it: the offset with which
    the law best explains them, drawn to none."""
    rows_ = rows.clamp_min(HISTORY)
    path, start = paths_from(given, rows_, 0, HISTORY), given.block[rows_ - HISTORY]
    truth = torch.stack([given.block[rows_ - HISTORY + k] for k in range(HISTORY + 1)], dim=1)
    spots = given.outline.spots[::4]
    tell = place(truth, spots)
    offset, step = torch.zeros(len(rows), 2, dtype=torch.float64), 5e-4
    shifts = torch.tensor([[0.0, 0.0], [step, 0.0], [0.0, step]], dtype=torch.float64)

    def error(offsets: Tensor) -> Tensor:
        moved = push_blocks(settings.expand(len(offsets), -1), given, start[None], path + offsets[:, :, None])
        return ((place(moved, spots) - tell) / (NOISE * (HISTORY * len(spots)) ** 0.5)).flatten(2)

    def cost(errors: Tensor, offsets: Tensor) -> Tensor:
        return errors.square().sum(-1) + (offsets / JITTER).square().sum(-1)

    eye = torch.eye(2, dtype=torch.float64)
    for _ in range(4):
        all_ = error(offset + shifts[:, None])
        slope = (all_[1:] - all_[:1]).permute(1, 0, 2) / step
        pull = (slope @ all_[0][..., None])[..., 0] + offset / JITTER**2
        hold = slope @ slope.transpose(-1, -2) + eye / JITTER**2
        ways = -torch.linalg.solve(hold, pull)
        tries = torch.stack([offset, offset + ways, offset + 0.3 * ways, offset + 0.1 * ways])
        best = cost(error(tries), tries).argmin(0)
        offset = tries.gather(0, best[None, :, None].expand(1, -1, 2))[0]
    return offset


def fit_settings(
    first: Float[Tensor, " P"],
    spread: tuple[float, ...],
    residuals: Callable[[Float[Tensor, "V P"]], Float[Tensor, "V N K"]],
    steps: int = 15,
    size: float = 0.01,
) -> Fitted:
    """Levenberg-Marquardt through the whole rollout, derivatives by differences: the settings with the least robust sum
    of squares of N residual vectors [K] (m; what is far beyond `size` counts ever less), drawn to `first`."""
    believed = torch.tensor(spread, dtype=torch.float64)
    values, damp = first.clone(), 1e-2
    costs: list[float] = []
    hold = torch.eye(len(first), dtype=torch.float64)
    for _ in range(steps):
        tries = torch.cat([values[None], values + torch.diag(0.01 * believed)])
        error = residuals(tries) / size
        weight = 1.0 / (1.0 + error[0].square().sum(-1))
        slope = ((error[1:] - error[:1]) * weight[:, None]).flatten(1) / 0.01  # in parts of `believed`
        own = (values - first) / believed
        count = len(weight) / 60.0  # windows overlap: about so many tell something new
        hold = slope @ slope.T / count + torch.eye(len(first), dtype=torch.float64)
        pull = slope @ (error[0] * weight[:, None]).flatten() / count + own
        costs.append(_cost(error[:1], values[None], first, believed, count)[0])
        ways = [torch.linalg.solve(hold + damp * k * torch.diag(hold.diagonal()), pull) for k in (0.01, 1.0, 100.0)]
        tries = torch.stack([values - way.clamp(-1.5, 1.5) * believed for way in ways])
        after = _cost(residuals(tries) / size, tries, first, believed, count)
        best = min(range(3), key=lambda index: after[index])
        if after[best] < costs[-1]:
            values, damp = tries[best], max(1e-6, damp * (0.1, 1.0, 10.0)[best])
        else:
            damp *= 30.0
        if damp > 1e4 or (after[best] < costs[-1] and costs[-1] - after[best] < 1e-4 * costs[-1]):
            costs.append(min(after[best], costs[-1]))
            break
    return Fitted(values, torch.linalg.inv(hold).diagonal().sqrt() * believed, costs[0], costs[-1])


def _cost(error: Tensor, tries: Tensor, first: Tensor, believed: Tensor, count: float) -> list[float]:
    robust = torch.log1p(error.square().sum(-1)).sum(-1) / count
    return (robust + ((tries - first) / believed).square().sum(-1)).tolist()


def plane_residuals(given: Pushing, found: Float[Tensor, "V W T 3"], rows: Tensor, at: list[int]) -> Tensor:
    """Displacements [V,W,K] (m) of the outline's points between found and true places at some steps, each vector's
    length the root mean square."""
    spots = given.outline.spots[::4]
    truth = torch.stack([given.block[rows + step] for step in at], dim=1)
    off = place(found[:, :, at], spots) - place(truth, spots)
    return off.flatten(2) / (len(at) * len(spots)) ** 0.5


def fit_planar(
    given: Pushing, sets: list[tuple[Tensor, int]], history: bool, steps: tuple[int, int] = (10, 5)
) -> Fitted:
    """The law's settings from windows (starts, steps) of training pushes; with `history`, given what each window's own
    past tells of the pusher's error there."""

    def residuals(tries: Tensor, offsets: list[Tensor]) -> Tensor:
        parts = []
        for (rows, count), offset in zip(sets, offsets, strict=True):
            moved = push_blocks(tries, given, given.block[rows][None], paths_from(given, rows, count) + offset[:, None])
            parts.append(plane_residuals(given, moved, rows, [count // 2, count]))
        return torch.cat(parts, dim=1)

    none = [torch.zeros(len(rows), 2, dtype=torch.float64) for rows, _ in sets]
    found = fit_settings(settings_at_first(given.outline), SPREAD, lambda tries: residuals(tries, none), steps[0])
    if not history:
        return found
    offsets = [read_offsets(found.values, given, rows) for rows, _ in sets]
    return fit_settings(found.values, SPREAD, lambda tries: residuals(tries, offsets), steps[1])


def _turned(vector: Tensor, angle: Tensor) -> Tensor:
    x, y = vector.unbind(-1)
    return torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], dim=-1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
