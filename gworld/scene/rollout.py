"""Rollouts: how every link moved while the agents acted, and all that is needed to say where that came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import normalize_quat, slerp


@dataclass(frozen=True)
class Rollout:
    """Predicted motion of one world: T instants, L links, any number of agents.

    times [T] float64 seconds, strictly increasing; link_poses [T,L,7] float32 `x y z qw qx qy qz` (metres, world from
    link) with `link_names` in the same order; actions maps an agent's name to [T,A] in its own units, NaN where
    unknown; seeds are those that drew the randomness; `renderer` names what rendered it, `world` where it came from;
    `link_std` [T,L] metres, where the model tells it, is the standard deviation (per axis) of each link's place.
    """

    times: Float[Tensor, " T"]
    link_poses: Float[Tensor, "T L 7"]
    link_names: tuple[str, ...]
    actions: Mapping[str, Float[Tensor, "T A"]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    renderer: str = ""
    world: str = ""
    link_std: Float[Tensor, "T L"] | None = None

    def __post_init__(self) -> None:
        count, links = len(self.times), len(self.link_names)
        if self.times.ndim != 1 or self.times.dtype != torch.float64 or count == 0:
            raise InputError(
                f"Rollout.times has shape {list(self.times.shape)} and type {self.times.dtype}; [T] float64 seconds "
                "with T >= 1 are needed."
            )
        if not bool(torch.isfinite(self.times).all()) or bool((self.times.diff() <= 0).any()):
            raise InputError(
                "Rollout.times is not strictly increasing; every instant must be later than the one before."
            )
        if tuple(self.link_poses.shape) != (count, links, 7) or not self.link_poses.is_floating_point():
            raise InputError(
                f"Rollout.link_poses has shape {list(self.link_poses.shape)}; [{count}, {links}, 7] is needed."
            )
        if not bool(torch.isfinite(self.link_poses).all()):
            raise InputError("Rollout.link_poses holds NaN or infinity; finite poses are needed.")
        if self.link_std is not None:
            told = tuple(self.link_std.shape) == (count, links) and bool(torch.isfinite(self.link_std).all())
            if not told or bool((self.link_std < 0).any()):
                raise InputError(f"Rollout.link_std is not [{count}, {links}] finite numbers >= 0, as is needed.")
        for agent, values in self.actions.items():
            if values.ndim != 2 or len(values) != count:
                raise InputError(f"Rollout.actions[{agent!r}] has shape {list(values.shape)}; [{count}, A] is needed.")

    def __len__(self) -> int:
        return len(self.times)


def poses_at(rollout: Rollout, time: float) -> Float[Tensor, "L 7"]:
    """Poses of all links at `time` seconds: positions linear, rotations along the shortest arc between two instants.

    Before the first and after the last instant the nearest pose is kept. Raises `InputError` for a time that is NaN.
    """
    times = rollout.times
    if time != time:
        raise InputError("poses_at was asked for the time NaN; a number of seconds is needed.")
    late = int(torch.searchsorted(times, torch.tensor(time, dtype=times.dtype), right=True))
    if late == 0 or late == len(times):
        return rollout.link_poses[min(late, len(times) - 1)]
    start, end = rollout.link_poses[late - 1], rollout.link_poses[late]
    weight = float((time - times[late - 1]) / (times[late] - times[late - 1]))
    place = torch.lerp(start[:, :3], end[:, :3], weight)
    facing = slerp(normalize_quat(start[:, 3:]), normalize_quat(end[:, 3:]), start.new_full((len(start),), weight))
    return torch.cat([place, facing], dim=-1)


def resample_rollout(rollout: Rollout, times: Float[Tensor, " S"]) -> Rollout:
    """The same motion at other instants (float64 seconds, strictly increasing); each takes the action in force then."""
    held = torch.searchsorted(rollout.times, times, right=True).sub(1).clamp(0, len(rollout) - 1)
    poses = torch.stack([poses_at(rollout, float(time)) for time in times])
    actions = {agent: values[held] for agent, values in rollout.actions.items()}
    std = None if rollout.link_std is None else rollout.link_std[held]
    return replace(rollout, times=times, link_poses=poses, actions=actions, link_std=std)


def link_motion(rollout: Rollout, link: str) -> Float[Tensor, "T 7"]:
    """Poses of one link over time; raises `InputError` when no link has that name."""
    if link not in rollout.link_names:
        raise InputError(f"the rollout has no link {link!r}; it has {', '.join(rollout.link_names[:12])}.")
    return rollout.link_poses[:, rollout.link_names.index(link)]
