"""Episodes: what was recorded while agents acted, the food of dynamics and refiner."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.scene.cameras import Cameras

Behaviour = Literal["expert", "random", "extreme", "adversarial", "null", "replay", "human", "mixed", "unknown"]
"""Who chose the actions: mixing kinds unknowingly ruins planning, so it is kept with every episode; `mixed` where its
agents differ."""

TABLES = ("actions", "joints", "signals")
"""The fields of an episode that hold a table of T rows for each of several names."""


@dataclass(frozen=True)
class Video:
    """One camera's footage: the file, its frames' times [F] in seconds on the episode's clock, masks and depth.

    The frames are number `first` .. `first + F - 1` of the file, in order of display: several episodes may share one.
    """

    name: str
    path: Path
    times: Float[Tensor, " F"]
    masks: Path | None = None
    depth: Path | None = None
    first: int = 0


@dataclass(frozen=True)
class Episode:
    """One recording on one clock.

    times [T] seconds, increasing; actions {agent: [T,A]} where NaN means unknown; joints {agent: [T,J]} rad or m;
    signals {name: [T,S]} other numbers recorded at every step (hand poses, contacts, rewards); names the columns'
    names, by table: {"actions/left": ("elbow", ..)}; behaviours {agent: who chose its actions}, where known; link_poses
    [T,L,7] world_from_link with `link_names`, NaN where not tracked; cameras the calibration of `videos`, in their
    order; task what was asked for, in words; origin how an episode that was generated was made, as plain values (texts,
    numbers, lists, mappings): its seed, what was varied.
    """

    times: Float[Tensor, " T"]
    actions: dict[str, Float[Tensor, "T A"]] = field(default_factory=dict)
    joints: dict[str, Float[Tensor, "T J"]] = field(default_factory=dict)
    link_poses: Float[Tensor, "T L 7"] | None = None
    link_names: tuple[str, ...] = ()
    videos: tuple[Video, ...] = ()
    cameras: Cameras | None = None
    behaviour: Behaviour = "unknown"
    success: bool | None = None
    source: str = ""
    licence: str = ""
    task: str = ""
    signals: dict[str, Float[Tensor, "T S"]] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = len(self.times)
        if steps > 1 and not bool((self.times[1:] > self.times[:-1]).all()):
            raise InputError(f"an episode of {steps} steps has times that do not increase; sort or repair its clock.")
        for kind in TABLES:
            for agent, values in getattr(self, kind).items():
                if len(values) != steps:
                    raise InputError(f"{kind} of `{agent}` have {len(values)} rows; the episode has {steps} times.")
                columns = self.names.get(f"{kind}/{agent}", ())
                if columns and len(columns) != values.shape[1]:
                    raise InputError(
                        f"{kind} of `{agent}` have {values.shape[1]} columns, {len(columns)} names; one each is needed."
                    )
        if self.link_poses is not None and tuple(self.link_poses.shape) != (steps, len(self.link_names), 7):
            raise InputError(
                f"link_poses has shape {list(self.link_poses.shape)}; {[steps, len(self.link_names), 7]} is needed."
            )
        if self.cameras is not None and len(self.cameras) != len(self.videos):
            raise InputError(
                f"{len(self.cameras)} cameras are given for {len(self.videos)} videos; one each is needed."
            )

    def __len__(self) -> int:
        return len(self.times)
