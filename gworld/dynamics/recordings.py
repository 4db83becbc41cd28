"""Recordings as the network reads them: episodes of link poses and actions, and windows drawn from them.

A window is three frames that tell the state and the steps after them. Contacts are rare and teach most, so half of the
windows drawn hold a sudden change of velocity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.dynamics.actuation import Actuation, Drive, full_memory
from gworld.dynamics.state import Motion, motion_from_poses
from gworld.dynamics.tokens import Scene, compile_scene, scene_to, select_worlds
from gworld.errors import InputError
from gworld.scene.episode import Episode
from gworld.scene.world import World

CONTEXT = 3
PAST = 12
"""Frames before a window whose actions are remembered."""


@dataclass(frozen=True)
class Recordings:
    """E episodes of T steps on one clock: the scene's worlds are the episodes.

    poses [E,T,L,7]; actions {agent: [E,T,A]}, NaN where unknown; joints {agent: [E,T,V]} values of the agents' chains,
    whose kinematics are `drives`.
    """

    scene: Scene
    poses: Float[Tensor, "E T L 7"]
    actions: dict[str, Tensor] = field(default_factory=dict)
    joints: dict[str, Tensor] = field(default_factory=dict)
    drives: dict[str, Drive] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.poses)


@dataclass(frozen=True)
class Batch:
    """Windows: their worlds, the motion at their start, the true poses [B,H,L,7] after it and the actions [B,H,A]."""

    scene: Scene
    start: Motion
    poses: Float[Tensor, "B H L 7"]
    actions: dict[str, Tensor]


def gather_recordings(
    worlds: Sequence[World],
    episodes: Sequence[Episode],
    drives: Mapping[str, Drive] | None = None,
    scene: Scene | None = None,
) -> Recordings:
    """Episodes and the world of each (or one world for all), as tensors; `scene` is these worlds' where it is known.

    Episodes are cut to the shortest. Raises `InputError` when clocks or links differ, or poses are not tracked.
    """
    if not episodes or len(worlds) not in (1, len(episodes)):
        raise InputError(
            f"{len(episodes)} episodes and {len(worlds)} worlds are given; one world each, or one, is needed."
        )
    steps = min(len(episode) for episode in episodes)
    if steps < CONTEXT + 1:
        raise InputError(f"an episode has {steps} steps; at least {CONTEXT + 1} are needed to learn motion.")
    dt = float((episodes[0].times[-1] - episodes[0].times[0]) / (len(episodes[0]) - 1))
    scene = compile_scene(worlds, dt) if scene is None else replace(scene, dt=dt)
    if len(worlds) == 1:
        scene = select_worlds(scene, torch.zeros(len(episodes), dtype=torch.int64))
    poses = torch.zeros(len(episodes), steps, len(scene.link_names), 7)
    poses[..., 3] = 1.0
    for index, episode in enumerate(episodes):
        if not torch.allclose(episode.times.diff(), torch.full((len(episode) - 1,), dt).to(episode.times), rtol=1e-2):
            raise InputError(f"episode {index} is not sampled every {dt:g} s like the first; resample it.")
        poses[index] = _poses_of(episode, scene.link_names, steps, poses[index])
    actions = {a.name: _table(episodes, "actions", a.name, steps, len(a.action)) for a in scene.agents}
    joints = {name: _table(episodes, "joints", name, steps, 0) for name in drives or {}}
    return Recordings(scene, poses, actions, joints, dict(drives or {}))


def split_recordings(data: Recordings, held_out: float, generator: torch.Generator) -> tuple[Recordings, Recordings]:
    """Training and validation episodes, drawn once."""
    order = torch.randperm(len(data), generator=generator)
    count = max(1, round(held_out * len(data)))
    return select_recordings(data, order[count:]), select_recordings(data, order[:count])


def select_recordings(data: Recordings, rows: Int[Tensor, " B"]) -> Recordings:
    """Some of the episodes."""
    return replace(
        data,
        scene=select_worlds(data.scene, rows),
        poses=data.poses[rows],
        actions={name: value[rows] for name, value in data.actions.items()},
        joints={name: value[rows] for name, value in data.joints.items()},
    )


def recordings_to(data: Recordings, device: torch.device | str) -> Recordings:
    """Move to a device."""
    return replace(
        data,
        scene=scene_to(data.scene, device),
        poses=data.poses.to(device),
        actions={name: value.to(device) for name, value in data.actions.items()},
        joints={name: value.to(device) for name, value in data.joints.items()},
    )


def jolts(data: Recordings) -> Float[Tensor, "E T"]:
    """Largest change of velocity of any object at each frame, in radii per step: large where something was struck."""
    place = data.poses[..., :3]
    second = place[:, 2:] - 2 * place[:, 1:-1] + place[:, :-2]
    size = second.norm(dim=-1) * (data.scene.free & data.scene.present)[:, None]
    size = size.amax(dim=-1) / data.scene.scale[:, None]
    return torch.cat([size[:, :1], size, size[:, -1:]], dim=1)


def window_table(data: Recordings, horizon: int) -> tuple[Int[Tensor, "N 2"], Float[Tensor, " N"]]:
    """Every (episode, frame of start) with three frames before and `horizon` after, and how often to draw each.

    Starts at which a velocity cannot be read, because something was struck in the three frames, are left out where
    others remain; windows with a jolt and those without are drawn equally often.
    """
    size = jolts(data).cpu()
    usual = size.flatten().median()
    sharp = size > torch.maximum(4 * usual, torch.tensor(0.02))
    frames = data.poses.shape[1]
    rows, calm, struck = [], [], []
    for start in range(CONTEXT - 1, frames - horizon):
        episodes = torch.arange(len(data))
        rows.append(torch.stack([episodes, torch.full_like(episodes, start)], dim=1))
        calm.append(~sharp[:, start - 1])
        struck.append(sharp[:, start : start + horizon].any(dim=1))
    table, quiet, hit = torch.cat(rows), torch.cat(calm), torch.cat(struck)
    kept = quiet if int(quiet.sum()) >= 8 else torch.ones_like(quiet)
    table, hit = table[kept], hit[kept]
    share = torch.where(hit, 0.5 / hit.sum().clamp_min(1), 0.5 / (~hit).sum().clamp_min(1))
    return table, share / share.sum()


def cut_batch(
    data: Recordings, rows: Int[Tensor, "B 2"], horizon: int, beliefs: int = 1, actuation: Actuation | None = None
) -> Batch:
    """The windows that begin at (episode, frame) `rows`; with the `actuation` of whoever predicts them, servos aim
    where the actions of up to `PAST` frames before brought them, else as their motion tells."""
    episode, start = rows.to(data.poses.device).unbind(1)
    scene = select_worlds(data.scene, episode)
    context = torch.stack([data.poses[episode, start - CONTEXT + 1 + k] for k in range(CONTEXT)], dim=1)
    motion = motion_from_poses(context, data.scene.dt, beliefs)
    memory = {}
    for name, values in data.joints.items():
        agent = next((agent for agent in scene.agents if agent.name == name), None)
        if actuation is None or agent is None or name not in data.drives:
            memory[name] = full_memory(values[episode, start], rates_at(values, data.scene.dt, episode, start))
            continue
        frames = start[:, None] + torch.arange(-PAST, 1, device=start.device)
        told = data.actions[name][episode[:, None], frames[:, :-1].clamp_min(0)]
        told = torch.where((frames[:, :-1] >= 0)[..., None], told, torch.nan)
        passed = values[episode[:, None], frames.clamp_min(0)]
        memory[name] = actuation.recall(agent, data.drives[name], passed, told, data.scene.dt)
    poses = torch.stack([data.poses[episode, start + 1 + k] for k in range(horizon)], dim=1)
    actions = {
        name: torch.stack([value[episode, start + k] for k in range(horizon)], dim=1)
        for name, value in data.actions.items()
    }
    return Batch(scene, replace(motion, memory=memory), poses, actions)


def rates_at(values: Float[Tensor, "E T V"], dt: float, episode: Tensor, start: Tensor) -> Float[Tensor, "B V"]:
    """Rates at frames [B], exact where they grow evenly over the two steps before."""
    now, last, before = (values[episode, start - k] for k in range(3))
    return (1.5 * (now - last) - 0.5 * (last - before)) / dt


def _poses_of(episode: Episode, names: Sequence[str], steps: int, blank: Tensor) -> Tensor:
    if episode.link_poses is None:
        raise InputError("an episode has no tracked link poses; run `gworld track` on it first.")
    found = blank.clone()
    for index, name in enumerate(names):
        if name in episode.link_names:
            found[:, index] = episode.link_poses[:steps, episode.link_names.index(name)]
    if not bool(torch.isfinite(found).all()):
        raise InputError("an episode has poses that are not known (NaN); cut it to the tracked part.")
    return found


def _table(episodes: Sequence[Episode], kind: str, name: str, steps: int, width: int) -> Tensor:
    rows = [getattr(episode, kind).get(name) for episode in episodes]
    width = width or next((row.shape[1] for row in rows if row is not None), 0)
    blank = torch.full((steps, width), torch.nan)
    return torch.stack([blank if row is None else row[:steps].float() for row in rows])
