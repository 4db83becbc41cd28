"""A clock over recorded motion: play, speed, loop, single frames; and recordings fitted to the links of a world."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float

from gworld.errors import InputError
from gworld.geometry import normalize_quat, pose_from_transform
from gworld.scene.episode import Episode
from gworld.scene.rollout import Rollout, poses_at
from gworld.scene.world import World

SPEEDS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass
class Player:
    """Where in a rollout we are: `time` in seconds from its first instant."""

    rollout: Rollout
    time: float = 0.0
    playing: bool = False
    speed: float = 1.0
    loop: bool = True

    @property
    def seconds(self) -> float:
        """How long the rollout is."""
        return float(self.rollout.times[-1] - self.rollout.times[0])

    @property
    def frame(self) -> int:
        """The last instant at or before now."""
        times = self.rollout.times - self.rollout.times[0]
        return max(0, int(torch.searchsorted(times, torch.tensor(self.time + 1e-9, dtype=times.dtype), right=True)) - 1)

    def advance(self, seconds: float) -> None:
        """Let time pass; at the end begin again, or stop."""
        if not self.playing:
            return
        self.time += seconds * self.speed
        if self.time >= self.seconds:
            self.time = self.time % self.seconds if self.loop and self.seconds > 0 else self.seconds
            self.playing = self.loop and self.seconds > 0

    def seek(self, frame: int) -> None:
        """Go to an instant by its number; numbers past the ends are cut."""
        row = min(max(frame, 0), len(self.rollout) - 1)
        self.time = float(self.rollout.times[row] - self.rollout.times[0])

    def poses(self) -> Float[np.ndarray, "L 7"]:
        """Poses of all links now."""
        return poses_at(self.rollout, float(self.rollout.times[0]) + self.time).numpy()

    @property
    def std(self) -> Float[np.ndarray, " L"] | None:
        """How sure the place of every link is now: standard deviations in metres; None where nothing tells."""
        std = self.rollout.link_std
        if std is None:
            return None
        times = (self.rollout.times - self.rollout.times[0]).numpy()
        late = min(self.frame + 1, len(times) - 1)
        share = 0.0 if late == self.frame else (self.time - times[self.frame]) / (times[late] - times[self.frame])
        return torch.lerp(std[self.frame], std[late], float(min(max(share, 0.0), 1.0))).numpy()

    @cached_property
    def top(self) -> float:
        """Where a scale of uncertainty ends: the largest standard deviation, rounded up to one digit."""
        most = 0.0 if self.rollout.link_std is None else float(self.rollout.link_std.max())
        digit = 10.0 ** math.floor(math.log10(max(most, 1e-6)))
        return digit * math.ceil(max(most, 1e-6) / digit - 1e-6)


def fit_rollout(rollout: Rollout, world: World) -> Rollout:
    """The rollout with exactly the world's links, in its order; links it does not tell of stay at rest.

    Raises `InputError` where not one link of the world is in it.
    """
    rest = pose_from_transform(world.rest_poses())
    poses = rest.expand(len(rollout), -1, -1).clone()
    names = [link.name for link in world.links]
    known = {name: row for row, name in enumerate(rollout.link_names) if name in names}
    if not set(known) - {names[0]}:
        raise InputError(
            f"the motion is of links {', '.join(rollout.link_names[:6])}; the world has {', '.join(names[:6])}. "
            "Name the world it was made in with `--world`."
        )
    std = None if rollout.link_std is None else torch.zeros(len(rollout), len(names))
    for name, row in known.items():
        poses[:, names.index(name)] = rollout.link_poses[:, row].float()
        if std is not None and rollout.link_std is not None:
            std[:, names.index(name)] = rollout.link_std[:, row].float()
    poses[:, 0] = rest[0]
    return replace(rollout, link_poses=poses, link_names=tuple(names), link_std=std)


def rollout_of(episode: Episode, source: str) -> Rollout:
    """What an episode says of its links' motion; where a link is not tracked it stays where it was seen last.

    Raises `InputError` for an episode without link poses.
    """
    if episode.link_poses is None or not len(episode):
        raise InputError(
            f"`{source}` holds no link poses, so there is no motion to show. Track it first: `gworld track`."
        )
    poses = episode.link_poses.float().clone()
    for link in range(poses.shape[1]):
        seen = torch.isfinite(poses[:, link]).all(dim=1)
        if not bool(seen.any()):
            poses[:, link] = poses.new_tensor([0.0, 0, 0, 1, 0, 0, 0])
            continue
        rows = torch.arange(len(poses))
        last = torch.where(seen, rows, -1).cummax(0).values
        first = int(rows[seen][0])
        poses[:, link] = poses[torch.where(last < 0, first, last), link]
    poses[..., 3:] = normalize_quat(poses[..., 3:])
    return Rollout(episode.times.double(), poses, episode.link_names, dict(episode.actions))
