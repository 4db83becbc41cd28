"""What agents are to do, and how well they do it: reach, push to a goal, keep apart, or a function of your own."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.state import Motion
from gworld.errors import InputError, UsageError
from gworld.scene.world import World

TaskKind = Literal["reach", "push_to_goal", "keep_apart"]
Scores = tuple[dict[str, Tensor], Tensor]
"""Reward {agent: [W]} of a step, and whether the task is done [W]."""
Judge = Callable[[World, Motion, Motion], Scores]
"""A task of one's own: (world, state before, state after) -> reward of each agent, and whether it is done."""


@dataclass(frozen=True)
class Task:
    """One task for one or several agents.

    `reach`: `link` of the agent (its last one when empty) comes within `radius` of `target`. `push_to_goal`: `object`
    (the first when empty) comes within `radius` of `target`, height aside. `keep_apart`: no two agents come nearer than
    `radius`; done (lost) when they do. A link is where the middle of its Gaussians is. `target` in metres in the world.
    """

    kind: TaskKind = "reach"
    """What is to be done."""
    agents: tuple[str, ...] = ()
    """Whose task it is; everyone's when empty."""
    link: str = ""
    """The link that reaches, by its name in the world or in the robot."""
    object: str = ""
    """The object that is pushed."""
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where to: x y z."""
    room: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """How far from there, along each axis, the target of an episode is drawn."""
    radius: float = 0.05
    """How near is near enough, in metres."""
    bonus: float = 1.0
    """Reward for each step at which it is."""

    def __post_init__(self) -> None:
        """Refuse what is no task."""
        if self.kind not in get_args(TaskKind):
            raise UsageError(f"there is no task `{self.kind}`; there are {', '.join(get_args(TaskKind))}.")
        if not 0 < self.radius < 1e6 or not all(0 <= part < 1e6 for part in self.room):
            raise UsageError(f"the task has radius {self.radius} and room {self.room}; above 0, and 0 or more, fit.")


def parse_task(text: str | Path | Task | Judge, world: World) -> Task | Judge:
    """A task by a short name (about what the world holds, with a target drawn near it), a YAML or JSON file of `Task`'s
    fields, or a function `module:function` of your own.

    A file holds plain values only and runs nothing; `module:function` runs that module. Raises `InputError` for a file
    that is none, `UsageError` for a name that cannot be found.
    """
    if isinstance(text, Task) or callable(text):
        return text
    if str(text) in get_args(TaskKind):
        return _usual_task(cast(TaskKind, str(text)), world)
    if ":" in str(text) and not Path(text).exists():
        return cast(Judge, find_function(str(text)))
    from gworld.config import config_from, read_recipe

    return config_from(Task, read_recipe(Path(text)), source=f"`{text}`")


def find_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names; importing it runs the module's code."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"`{name}` cannot be imported ({error}); `module:function` on Python's path is needed."
        ) from None
    if not callable(found):
        raise UsageError(f"`{name}` is no function; `module:function` is needed.")
    return cast(Callable[..., Any], found)


class Judged:
    """A task in a world: which links it is about, and the targets [W,3] of this episode."""

    def __init__(self, task: Task | Judge, world: World) -> None:
        self.world = world
        self.task = task if isinstance(task, Task) else Task("keep_apart")
        self._own = None if isinstance(task, Task) else task
        names = [agent.name for agent in world.agents]
        strange = sorted(set(self.task.agents) - set(names))
        if strange or not names:
            raise InputError(f"the task is for agent `{strange[0] if strange else 'any'}`; the world has {names}.")
        self.agents = self.task.agents or tuple(names)
        self.targets = torch.zeros(1, 3)
        self._links = {agent.name: agent.links for agent in world.agents}
        self._middles = link_middles(world)
        if self.task.kind == "push_to_goal":
            self._object = object_link(world, self.task.object)
        if self.task.kind == "keep_apart" and len(self.agents) < 2 and self._own is None:
            raise InputError("keep_apart needs two agents at least; the world, or the task, has one.")

    def draw(self, generators: Sequence[torch.Generator]) -> None:
        """Draw the targets of a new episode, one world after the other."""
        drawn = torch.stack([torch.rand(3, generator=generator) for generator in generators]) * 2 - 1
        self.targets = torch.tensor(self.task.target) + drawn * torch.tensor(self.task.room)

    def score(self, agents: Sequence[str] = (), row: int = 0) -> Callable[[Motion, Motion], Tensor]:
        """What a planner maximises for some agents (all when empty) with the targets of world `row`: their rewards."""
        own = copy.copy(self)
        own.targets = self.targets[row : row + 1]
        names = list(agents) or list(self.agents)

        def score(before: Motion, after: Motion) -> Tensor:
            reward, _ = own.judge(before, after)
            return torch.stack([reward[name] for name in names if name in reward]).sum(0)

        return score

    def measure(self, motion: Motion) -> dict[str, Float[Tensor, " W"]]:
        """For each agent the distance (m) that the task is about: to the target, or to the nearest other agent."""
        places = self._places(motion)
        if self.task.kind == "push_to_goal":
            gap = places[:, self._object, :2] - self.targets.to(places)[:, :2]
            return {agent: gap.norm(dim=-1) for agent in self.agents}
        if self.task.kind == "reach":
            return {agent: (places[:, self.tip(agent)] - self.targets.to(places)).norm(dim=-1) for agent in self.agents}
        found = {}
        for agent in self.agents:
            others = [link for other in self.agents if other != agent for link in self._links[other]]
            found[agent] = torch.cdist(places[:, list(self._links[agent])], places[:, others]).flatten(1).amin(1)
        return found

    def judge(self, before: Motion, after: Motion) -> Scores:
        """Reward of each agent for one step, and whether the task is done: progress in metres, and a bonus at its end.

        Pushing counts the pusher's nearing the object a little too, so that there is something to follow from afar.
        """
        if self._own is not None:
            return self._own(self.world, before, after)
        then, now = self.measure(before), self.measure(after)
        if self.task.kind == "keep_apart":
            lost = torch.stack([gap < self.task.radius for gap in now.values()]).any(0)
            return {agent: (gap / self.task.radius - 1).clamp(-1, 1) for agent, gap in now.items()}, lost
        met = {agent: gap < self.task.radius for agent, gap in now.items()}
        reward = {agent: then[agent] - now[agent] + self.task.bonus * met[agent] for agent in self.agents}
        if self.task.kind == "push_to_goal":
            for agent in self.agents:
                reward[agent] = reward[agent] + 0.1 * (self._nearing(agent, before) - self._nearing(agent, after))
        return reward, torch.stack(list(met.values())).all(0)

    def tip(self, agent: str) -> int:
        """The link of an agent that is to reach."""
        if self.task.link:
            names = [link.name for link in self.world.links]
            wanted = [self.task.link, f"{agent}/{self.task.link}"]
            found = [names.index(name) for name in wanted if name in names and names.index(name) in self._links[agent]]
            if not found:
                raise InputError(f"agent `{agent}` has no link `{self.task.link}`.")
            return found[0]
        return self._links[agent][-1]

    def _places(self, motion: Motion) -> Float[Tensor, "W L 3"]:
        """Where the links' middles are."""
        poses = motion.world_from_link
        return (poses[..., :3, :3] @ self._middles.to(poses)[..., None])[..., 0] + poses[..., :3, 3]

    def _nearing(self, agent: str, motion: Motion) -> Float[Tensor, " W"]:
        places = self._places(motion)
        return (places[:, list(self._links[agent])] - places[:, self._object, None]).norm(dim=-1).amin(1)


def _usual_task(kind: TaskKind, world: World) -> Task:
    if kind == "keep_apart":
        return Task(kind, radius=0.1)
    reach = kind == "reach"
    about = world.agents[0].links[-1] if reach and world.agents else object_link(world, "")
    pose = world.rest_poses()[about]
    x, y, z = (pose[:3, :3] @ link_middles(world)[about] + pose[:3, 3]).tolist()
    room = (0.15, 0.15, 0.1 if reach else 0.0)
    return Task(kind, agents=(world.agents[0].name,) if reach else (), target=(x, y, z), room=room)


def link_middles(world: World) -> Float[Tensor, "L 3"]:
    """The mean of each link's Gaussians, in the link's frame; its origin where it has none."""
    rows = world.gaussians.links.long().cpu()
    means = world.gaussians.means.detach().float().cpu()
    sums = torch.zeros(len(world.links), 3).index_add_(0, rows, means)
    counts = torch.bincount(rows, minlength=len(world.links)).clamp_min(1)
    middles = sums / counts[:, None]
    middles[0] = 0.0
    return middles


def object_link(world: World, name: str) -> int:
    """The link of an object, of the first one when no name is given; raises `InputError` when there is none."""
    objects = {entity.name: entity.links[0] for entity in world.entities if entity.kind == "object" and entity.links}
    if not objects or (name and name not in objects):
        raise InputError(f"the world has no object `{name}` to push; it has {', '.join(objects) or 'none'}.")
    return objects[name] if name else next(iter(objects.values()))
