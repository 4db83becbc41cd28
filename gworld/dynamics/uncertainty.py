"""How sure a prediction is: the spread of disturbed copies of a world, made true to errors on held-out recordings.

Every copy begins a little off, its objects a little heavier or lighter than shape tells and its agents told a little
else than they are; where contact makes much of little, copies part. Spreads become standard deviations by one factor
for each group of links and each horizon, such that the share of held-out errors within an interval is what it says.
Source of the factors: split conformal prediction (Vovk, Gammerman, Shafer, 2005).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.actuation import Drive, actuation_of
from gworld.dynamics.network import Model
from gworld.dynamics.recordings import CONTEXT, Recordings, cut_batch
from gworld.dynamics.rollout import predict_poses, roll_out
from gworld.dynamics.state import Motion, motion_from_states
from gworld.dynamics.tokens import Scene, compile_scene, select_worlds
from gworld.errors import InputError
from gworld.scene.rollout import Rollout
from gworld.scene.world import World, WorldState

KEY = "uncertainty"
"""Name under which a checkpoint's values hold a calibration."""
GROUPS = ("agents", "moving", "still")
"""Links of agents; objects that move in the prediction or in any copy of it; objects that move in none."""
NINETY = 2.5003
"""90 % of a normal distribution in space lie within so many standard deviations (per axis) of its middle."""
STILL = 1e-3
"""How far (m) an object may be moved and still count as still."""


@dataclass(frozen=True)
class SpreadConfig:
    """How copies are disturbed."""

    copies: int = 6
    """Disturbed copies beside the prediction itself."""
    place: float = 2e-3
    """Standard deviation of places at the start, m."""
    speed: float = 5e-3
    """Of velocities at the start, m/s, of objects that move."""
    mass: float = 0.3
    """Of the logarithm of objects' masses."""
    told: float = 0.03
    """Of commands, in parts of themselves."""
    floor: float = 2e-4
    """Spread (m) that every prediction has."""
    seed: int = 0


@dataclass(frozen=True)
class Calibration:
    """Factors from spreads to standard deviations: `factors[g][k]` for group g after `seconds[k]`, linear between."""

    seconds: tuple[float, ...]
    factors: tuple[tuple[float, ...], ...]
    config: SpreadConfig = SpreadConfig()

    def __post_init__(self) -> None:
        rising = list(self.seconds) == sorted(set(self.seconds)) and len(self.seconds) > 0
        whole = len(self.factors) == len(GROUPS) and all(len(row) == len(self.seconds) for row in self.factors)
        if not rising or not whole or not all(math.isfinite(f) and f >= 0 for row in self.factors for f in row):
            raise InputError(
                f"an uncertainty has {len(self.seconds)} horizons and {len(self.factors)} groups; rising horizons and "
                f"finite factors for {', '.join(GROUPS)} are needed."
            )


@dataclass(frozen=True)
class Foretold:
    """Predicted poses [W,T,L,4,4], the spread of copies about their places [W,T,L] in metres, and groups [W,T,L]."""

    poses: Float[Tensor, "W T L 4 4"]
    spread: Float[Tensor, "W T L"]
    group: Tensor


@torch.no_grad()
def foretell(
    model: Model,
    scene: Scene,
    start: Motion,
    actions: Mapping[str, Float[Tensor, "W T A"]],
    steps: int,
    drives: Mapping[str, Drive] | None = None,
    config: SpreadConfig = SpreadConfig(),
) -> Foretold:
    """Predict W worlds and their disturbed copies together."""
    motion, told = disturb(scene, start, actions, config)
    rows = torch.arange(len(scene), device=start.twists.device).repeat(config.copies + 1)
    poses = predict_poses(model, select_worlds(scene, rows), motion, told, steps, drives)
    places = poses[..., :3, 3].unflatten(0, (config.copies + 1, len(scene)))
    spread, group = part_copies(scene, start, places, config)
    return Foretold(poses[: len(scene)], spread, group)


def disturb(
    scene: Scene, start: Motion, actions: Mapping[str, Float[Tensor, "W T A"]], config: SpreadConfig
) -> tuple[Motion, dict[str, Tensor]]:
    """The motion of W worlds and then of their copies, `copies` times W more, and what their agents are told."""
    count = len(scene)
    rows = torch.arange(count, device=start.twists.device).repeat(config.copies + 1)
    generator = torch.Generator().manual_seed(config.seed)
    motion = _disturbed(scene, start, rows, count, config, generator)
    told = {}
    for name, value in actions.items():
        noise = torch.randn(config.copies * count, 1, value.shape[2], generator=generator).to(value)
        told[name] = torch.cat([value, value.repeat(config.copies, 1, 1) * (1.0 + config.told * noise)])
    return motion, told


def part_copies(
    scene: Scene, start: Motion, places: Float[Tensor, "C W T L 3"], config: SpreadConfig
) -> tuple[Float[Tensor, "W T L"], Tensor]:
    """How far copies part from the prediction, the first of `places`, and the group of every link by then [W,T,L]."""
    off = (places[1:] - places[:1]).square().sum(-1).mean(0) / 3.0
    way = (places - start.world_from_link[:, None, :, :3, 3]).norm(dim=-1).amax(0)
    moving = torch.where(way > STILL + 4.0 * config.place, 1, 2)
    group = torch.where(scene.free, moving, torch.zeros_like(moving))
    return (off + config.floor**2).sqrt() * scene.present[:, None], group


def calibrate(
    model: Model,
    data: Recordings,
    seconds: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0),
    starts: int = 4,
    config: SpreadConfig = SpreadConfig(),
) -> Calibration:
    """Factors for which 90 % of the errors on recordings that were not learned from lie within 90 % intervals.

    Raises `InputError` when the recordings are shorter than the longest horizon.
    """
    found, truth = foretell_windows(model, data, max(seconds), starts, config)
    error = (found.poses[..., :3, 3] - truth).norm(dim=-1)
    return factors_from(found, error, data, seconds, config)


def factors_from(
    found: Foretold,
    error: Float[Tensor, "W T L"],
    data: Recordings,
    seconds: tuple[float, ...],
    config: SpreadConfig,
) -> Calibration:
    """Factors for which 90 % of these errors lie within 90 % intervals."""
    factors = []
    for group in range(len(GROUPS)):
        row: list[float] = []
        for second in seconds:
            step = round(second / data.scene.dt) - 1
            counted = (found.group[:, step] == group) & data.scene.present.any(0)
            ratio = error[:, step][counted] / (NINETY * found.spread[:, step][counted]).clamp_min(1e-9)
            row.append(_quantile(ratio, 0.9) if len(ratio) else (row[-1] if row else 1.0))
        factors.append(tuple(row))
    return Calibration(seconds, tuple(factors), config)


def pick_windows(found: Foretold, rows: Tensor) -> Foretold:
    """Some of the windows that were foretold."""
    return Foretold(found.poses[rows], found.spread[rows], found.group[rows])


def foretell_windows(
    model: Model, data: Recordings, seconds: float, starts: int, config: SpreadConfig
) -> tuple[Foretold, Float[Tensor, "N T L 3"]]:
    """Predictions from starts spread over recordings, and the true places; raises `InputError` when too short."""
    steps = round(seconds / data.scene.dt)
    last = data.poses.shape[1] - steps - 1
    if last < CONTEXT - 1:
        raise InputError(f"recordings of {data.poses.shape[1]} steps were given; {steps + CONTEXT} are needed.")
    frames = torch.linspace(CONTEXT - 1, last, starts).round().long().unique()
    windows = torch.tensor([[episode, int(frame)] for episode in range(len(data)) for frame in frames])
    batch = cut_batch(data, windows, steps, model.belief, actuation_of(model))
    found = foretell(model, batch.scene, batch.start, batch.actions, steps, data.drives, config)
    return found, batch.poses[..., :3]


def deviations(found: Foretold, dt: float, calibration: Calibration) -> Float[Tensor, "W T L"]:
    """Standard deviations (m, per axis) of predicted places."""
    return deviations_of(found.spread, found.group, dt, calibration)


def deviations_of(
    spread: Float[Tensor, "W T L"], group: Tensor, dt: float, calibration: Calibration
) -> Float[Tensor, "W T L"]:
    """Standard deviations (m, per axis) of places whose copies part by `spread`, links being of these groups."""
    times = dt * torch.arange(1, spread.shape[1] + 1, dtype=torch.float64)
    knots = torch.tensor(calibration.seconds, dtype=torch.float64)
    right = torch.searchsorted(knots, times).clamp(1, max(len(knots) - 1, 1)).clamp(max=len(knots) - 1)
    left = (right - 1).clamp_min(0)
    weight = ((times - knots[left]) / (knots[right] - knots[left]).clamp_min(1e-9)).clamp(0.0, 1.0)
    table = torch.tensor(calibration.factors, dtype=torch.float64)
    factors = (table[:, left] * (1 - weight) + table[:, right] * weight).to(spread)
    return spread * factors.T[torch.arange(len(times))[None, :, None], group]


def roll_out_surely(
    model: Model,
    world: World,
    state: WorldState,
    actions: Mapping[str, Float[Tensor, "T A"]],
    steps: int,
    dt: float,
    calibration: Calibration,
    drives: Mapping[str, Drive] | None = None,
) -> tuple[Rollout, WorldState]:
    """`roll_out` with the standard deviation of every link's place in `Rollout.link_std`; the motion is the same."""
    from gworld.dynamics.rollout import with_memory

    rollout, end = roll_out(model, world, state, actions, steps, dt, drives)
    start = with_memory(motion_from_states([state], model.belief), drives or {})
    batched = {name: value[None] for name, value in actions.items()}
    found = foretell(model, compile_scene([world], dt), start, batched, steps, drives, calibration.config)
    std = deviations(found, dt, calibration)[0]
    return replace(rollout, link_std=torch.cat([torch.zeros_like(std[:1]), std]).float()), end


def calibration_from(values: Mapping[str, object]) -> Calibration | None:
    """The calibration among a checkpoint's values, where `save_model` was given one; None without.

    Raises `InputError` when it is damaged.
    """
    data = values.get(KEY)
    if data is None:
        return None
    try:
        if not isinstance(data, dict):
            raise TypeError("no object")
        factors = tuple(tuple(float(value) for value in row) for row in data["factors"])
        config = SpreadConfig(**{name: type(getattr(SpreadConfig(), name))(v) for name, v in data["config"].items()})
        return Calibration(tuple(float(value) for value in data["seconds"]), factors, config)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"the checkpoint's calibration of uncertainty is damaged ({str(error)[:80]}); take the checkpoint again "
            "from where it came."
        ) from error


def _disturbed(
    scene: Scene, start: Motion, rows: Tensor, count: int, config: SpreadConfig, generator: torch.Generator
) -> Motion:
    """The motion, then its disturbed copies; objects stay on what they lie on: only level places are changed."""
    copies = len(rows) - count
    objects = (scene.free & scene.present)[rows[count:]][..., None]
    up = -scene.down[rows[count:], None]

    def noise(width: int) -> Tensor:
        drawn = torch.randn(copies, scene.solid.shape[1], width, generator=generator)
        return drawn.to(start.twists) * objects

    def level(part: Tensor) -> Tensor:
        return part - (part * up).sum(-1, keepdim=True) * up

    frames, twists, belief = (value[rows].clone() for value in (start.world_from_link, start.twists, start.belief))
    moves = start.twists[rows[count:], :, :3].norm(dim=-1, keepdim=True) > config.speed
    frames[count:, :, :3, 3] += config.place * level(noise(3))
    twists[count:, :, :3] += config.speed * level(noise(3)) * moves
    belief[count:, :, :1] += config.mass * noise(1)
    memory = {name: value[rows] for name, value in start.memory.items()}
    return replace(start, world_from_link=frames, twists=twists, belief=belief, memory=memory)


def _quantile(values: Tensor, share: float) -> float:
    """The conformal quantile: with n values, the ceil((n+1) share)-th."""
    order = values.sort().values
    return float(order[min(math.ceil((len(order) + 1) * share), len(order)) - 1])
