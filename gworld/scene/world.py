"""The world you can act in: Gaussians, the links that own them, the entities that own the links."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import transform_from_pose
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians
from gworld.scene.links import IDENTITY_POSE, Link

EntityKind = Literal["static", "agent", "object"]


@dataclass(frozen=True)
class ActionSpec:
    """What an agent can be told: one name, unit and range per component of its action vector."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.names), len(self.units), len(self.low), len(self.high)}
        if len(sizes) != 1:
            raise InputError(
                f"an action spec has {len(self.names)} names, {len(self.units)} units, {len(self.low)} lower and "
                f"{len(self.high)} upper limits; equal numbers are needed."
            )
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not low <= high:
                raise InputError(f"action `{name}` has limits {low} .. {high}; the lower one must come first.")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Entity:
    """A body: the static scene, an agent that acts, or an object that is acted upon; `links` index `World.links`.

    `source` is the robot model (URDF or MJCF) as a path inside the world's `agents/` folder.
    """

    name: str
    kind: EntityKind
    links: tuple[int, ...]
    action: ActionSpec | None = None
    source: str | None = None


@dataclass(frozen=True)
class World:
    """Everything that does not change while acting.

    Link 0 is the static world. gravity [3] m/s^2 in world axes; `metric` is True where lengths are metres; `background`
    is the colour (0..1) seen where no Gaussian is, None where nobody said. `folder` is where the world was read from;
    `dynamics` and `refiner` are the checkpoint folders bound to it, which saving takes along. `World.load` reads a
    world folder; it is provided by `gworld.formats.world`, which `gworld.World` loads.
    """

    gaussians: Gaussians
    links: tuple[Link, ...] = (Link("world"),)
    entities: tuple[Entity, ...] = (Entity("scene", "static", (0,)),)
    cameras: Cameras | None = None
    gravity: tuple[float, float, float] = (0.0, 0.0, -9.81)
    metric: bool = False
    folder: Path | None = None
    background: tuple[float, float, float] | None = None
    dynamics: Path | None = None
    refiner: Path | None = None

    load: ClassVar[Callable[[str | Path], World]]

    def __post_init__(self) -> None:
        count = len(self.links)
        if count == 0:
            raise InputError("a world has no links; link 0, the static world, is needed.")
        _check_links(self.links)
        _check_entities(self.entities, count)
        owners = self.gaussians.links
        if len(owners) and (int(owners.min()) < 0 or int(owners.max()) >= count):
            raise InputError(
                f"Gaussians name links {int(owners.min())}..{int(owners.max())}; the world has {count}: 0..{count - 1}."
            )
        colour = self.background
        if colour is not None and not (len(colour) == 3 and all(0.0 <= value <= 1.0 for value in colour)):
            raise InputError(
                f"the world's background is {colour}; three numbers from 0 to 1 (red, green, blue) are needed."
            )

    @property
    def agents(self) -> tuple[Entity, ...]:
        """The entities that take actions."""
        return tuple(entity for entity in self.entities if entity.kind == "agent")

    def rest_poses(self) -> Float[Tensor, "L 4 4"]:
        """`world_from_link [L,4,4]` with every link where it was reconstructed."""
        return transform_from_pose(torch.tensor([link.pose for link in self.links], dtype=torch.float32))


@dataclass(frozen=True)
class WorldState:
    """All that a step needs, so that ten runs of a thousand steps equal one of ten thousand.

    world_from_link [L,4,4]; velocities [L,6] (linear m/s, angular rad/s, world axes); history [H,L,7] earlier poses,
    newest last; actuators {agent: [S]} internal actuator state; rng the state of the step's generator; time in seconds.
    """

    world_from_link: Float[Tensor, "L 4 4"]
    velocities: Float[Tensor, "L 6"]
    history: Float[Tensor, "H L 7"]
    actuators: dict[str, Tensor] = field(default_factory=dict)
    rng: UInt8[Tensor, " R"] | None = None
    time: float = 0.0


def rest_state(world: World) -> WorldState:
    """The state in which nothing moves and every link is at its rest pose."""
    count = len(world.links)
    return WorldState(world.rest_poses(), torch.zeros(count, 6), torch.zeros(0, count, 7))


def _check_links(links: tuple[Link, ...]) -> None:
    names = [link.name for link in links]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two links are called `{twice}`; link names must differ.")
    if any(abs(a - b) > 1e-6 for a, b in zip(links[0].pose, IDENTITY_POSE, strict=False)):
        raise InputError(f"link 0, `{links[0].name}`, is the world and stands at the identity, not at {links[0].pose}.")
    for index, link in enumerate(links):
        if len(link.pose) != 7 or not all(abs(value) < 1e9 for value in link.pose):
            raise InputError(f"link `{link.name}` has the pose {link.pose}; 7 finite numbers are needed.")
        if abs(math.hypot(*link.pose[3:]) - 1.0) > 1e-3:
            raise InputError(f"link `{link.name}` has the rotation {link.pose[3:]}; a unit quaternion is needed.")
        if not -1 <= link.parent < index:
            raise InputError(f"link `{link.name}` has parent {link.parent}; a link that stands before it is needed.")


def _check_entities(entities: tuple[Entity, ...], count: int) -> None:
    owner: dict[int, str] = {}
    for entity in entities:
        for link in entity.links:
            if not 0 <= link < count:
                raise InputError(f"entity `{entity.name}` owns link {link}; the world has {count} links.")
            if link in owner:
                raise InputError(
                    f"link {link} belongs to both `{owner[link]}` and `{entity.name}`; one owner is needed."
                )
            owner[link] = entity.name
    names = [entity.name for entity in entities]
    if len(set(names)) != len(names):
        raise InputError(f"entity names {names} are not all different.")
