"""MuJoCo as a source of truth: scenes with several agents, stepped by named actions, their state known exactly."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from gworld.data.simulators_driver import SceneDriver, links_below, mujoco_library, own_joints, scene_cameras
from gworld.data.simulators_mjcf import AGENT_NAMES, AgentPlan, Blueprint, Goal
from gworld.data.simulators_options import SceneOptions
from gworld.errors import InputError, UsageError
from gworld.scene.cameras import Cameras
from gworld.scene.links import IDENTITY_POSE, Link
from gworld.scene.world import ActionSpec, Entity

if TYPE_CHECKING:
    import mujoco

    from gworld.data.simulators_view import Picture

SCENES = {"push": "push_scene", "arms": "arms_scene", "street": "street_scene"}
SUBSTEP = 0.005
"""The longest step of the physics in seconds."""


class SimulatorState(NamedTuple):
    """All that the next step depends on: joint positions and velocities as MuJoCo orders them, servo targets, the time
    in seconds, and the solver's last accelerations, from which it starts."""

    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray
    time: float
    warmstart: np.ndarray


@dataclass(frozen=True)
class Actor:
    """An agent in a simulation: its spec, links (indices), joints with their places in qpos, hand site (or link).

    `kind` is `pusher`, `arm`, `vehicle`, or `robot` for other people's; `model` the robot alone as MJCF, where known,
    and `pictures` the files that it names.
    """

    name: str
    kind: str
    spec: ActionSpec
    links: tuple[int, ...]
    joints: tuple[str, ...]
    qpos: tuple[int, ...]
    hand: str
    model: str = ""
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@runtime_checkable
class Driver(Protocol):
    """What turns commands into motion: our own scenes, or somebody else's environment."""

    def reset(self, seed: int) -> dict[str, Goal]:
        """Begin an episode and say what the agents are to do."""

    def advance(self, commands: dict[str, np.ndarray], after: Callable[[], None]) -> None:
        """One action step; `after` is called after each step of the physics."""

    def null(self, agent: str) -> np.ndarray:
        """The action that holds everything where it is."""

    def outcome(self) -> bool | None:
        """Whether the task is done, None where the goals say."""


class Simulation:
    """A scene in MuJoCo. Link k of the scene is MuJoCo's body k; link 0 is the world.

    `agents` maps names to actors, `objects` are links that move by themselves, `goals` what each agent is to do (drawn
    at `reset`, may be replaced), `cameras` the fixed ones first, then those on links.
    """

    def __init__(
        self, name: str, options: SceneOptions, model: Any, data: Any, driver: Driver, agents: tuple[Actor, ...],
        cameras: Cameras | None,
    ) -> None:  # fmt: skip
        self.name, self.options, self.model, self.data, self.driver = name, options, model, data, driver
        self.agents = {agent.name: agent for agent in agents}
        self.cameras = cameras
        self.goals: dict[str, Goal] = {}
        self.link_names = tuple(model.body(i).name or (f"body{i}" if i else "world") for i in range(model.nbody))
        owned = {link for agent in agents for link in agent.links}
        free = {int(model.jnt_bodyid[j]) for j in range(model.njnt) if model.jnt_type[j] == 0}
        self.objects = tuple(self.link_names[link] for link in sorted(free - owned))
        self._force = np.zeros((model.nbody, model.nbody))
        self._painter: Any = None

    @property
    def links(self) -> tuple[Link, ...]:
        """The links with the poses they have now as rest poses."""
        poses = [IDENTITY_POSE, *map(tuple, self.link_poses()[1:].tolist())]
        parents = [-1, *map(int, self.model.body_parentid[1:])]
        return tuple(Link(*each) for each in zip(self.link_names, poses, parents, strict=True))

    @property
    def entities(self) -> tuple[Entity, ...]:
        """The static scene (all links that nobody owns), the agents, the objects."""
        agents = [Entity(actor.name, "agent", actor.links, actor.spec) for actor in self.agents.values()]
        objects = [Entity(name, "object", self._below(self.link_names.index(name))) for name in self.objects]
        owned = {link for entity in (*agents, *objects) for link in entity.links}
        rest = tuple(link for link in range(self.model.nbody) if link not in owned)
        return (Entity("scene", "static", rest), *agents, *objects)

    def reset(self, seed: int) -> None:
        """Begin an episode: the same seed gives the same start and the same goals."""
        self.goals = self.driver.reset(seed)
        self._force[:] = 0.0

    def step(self, actions: Mapping[str, np.ndarray]) -> None:
        """Act for 1 / fps seconds; an agent without an action, or a component that is NaN, holds still.

        Actions are clamped to their limits. Raises `InputError` for a wrong length or an unknown agent.
        """
        commands = {}
        for name in actions:
            if name not in self.agents:
                raise InputError(f"there is no agent `{name}` in `{self.name}`; there are {', '.join(self.agents)}.")
        for name, actor in self.agents.items():
            hold = self.driver.null(name)
            action = np.asarray(actions.get(name, hold), np.float64)
            if action.shape != (len(actor.spec),):
                raise InputError(f"agent `{name}` was given {action.shape} numbers; {len(actor.spec)} are needed.")
            commands[name] = np.clip(np.where(np.isnan(action), hold, action), actor.spec.low, actor.spec.high)
        self._force[:] = 0.0
        count = 0

        def after() -> None:
            nonlocal count
            count += 1
            self._add_forces()

        self.driver.advance(commands, after)
        self._force /= max(count, 1)
        broken = sum(int(self.data.warning[kind].number) for kind in (4, 5, 6))  # bad qpos, qvel, qacc: it was reset
        if broken or not np.isfinite(self.data.qpos).all():
            raise InputError(
                f"`{self.name}` became unstable at {self.data.time:.2f} s; use another seed or milder actions."
            )

    def null_action(self, agent: str) -> np.ndarray:
        """The action [A] under which the agent holds what it has: servos their targets, drives no speed."""
        return self.driver.null(agent)

    def state(self) -> SimulatorState:
        """A copy of the state; `restore` continues from it bit for bit (in our own scenes)."""
        d = self.data
        return SimulatorState(d.qpos.copy(), d.qvel.copy(), d.ctrl.copy(), float(d.time), d.qacc_warmstart.copy())

    def restore(self, state: SimulatorState) -> None:
        """Continue from a state, perhaps one that was changed."""
        d = self.data
        d.qpos[:], d.qvel[:], d.ctrl[:], d.time = state.qpos, state.qvel, state.ctrl, state.time
        mujoco_library().mj_forward(self.model, d)
        d.qacc_warmstart[:] = state.warmstart
        self._force[:] = 0.0

    def show(self, qpos: np.ndarray) -> None:
        """Put every link where joint positions say, for drawing; velocities and the time stay."""
        self.data.qpos[:] = qpos
        mujoco_library().mj_kinematics(self.model, self.data)

    def link_poses(self) -> Float[np.ndarray, "L 7"]:
        """`world_from_link` of all links now, `x y z qw qx qy qz`, float64."""
        return np.concatenate([self.data.xpos, self.data.xquat], axis=1)

    def link_pose(self, link: str) -> Float[np.ndarray, " 7"]:
        """`world_from_link` of one link now."""
        index = self.link_names.index(link)
        return np.concatenate([self.data.xpos[index], self.data.xquat[index]])

    def joints(self, agent: str) -> np.ndarray:
        """The agent's joint values [J] now, rad or m, as `agents[agent].joints` names them."""
        return self.data.qpos[list(self.agents[agent].qpos)].copy()

    def hand(self, agent: str) -> Float[np.ndarray, " 3"]:
        """Where the agent's touching point is, in metres."""
        name = self.agents[agent].hand
        place = self.data.body(name).xpos if name in self.link_names else self.data.site(name).xpos
        return np.array(place)

    def contacts(self) -> Float[np.ndarray, "L L"]:
        """Normal force in N between each pair of links, the mean over the last step; symmetric."""
        return self._force + self._force.T

    def radius(self, link: str) -> float:
        """Radius in metres of an upright cylinder about the link's origin that holds its geoms."""
        index = self.link_names.index(link)
        first, count = int(self.model.body_geomadr[index]), int(self.model.body_geomnum[index])
        extents = [_reach(self.model, geom) for geom in range(first, first + count)]
        return max(extents, default=0.0)

    def success(self) -> bool | None:
        """Whether every agent's goal is met now; None when there are none."""
        outcome = self.driver.outcome()
        if outcome is not None or not self.goals:
            return outcome
        return all(self.reached(agent) for agent in self.goals)

    def reached(self, agent: str) -> bool:
        """Whether one agent's goal is met now: its body within the radius, as seen from above."""
        goal = self.goals[agent]
        return bool(np.hypot(*(self.link_pose(goal.body)[:2] - goal.position[:2])) <= goal.radius)

    def draw(self, camera: int, truth: bool = True) -> Picture:
        """The picture of one camera now, with depth and links (0 and -1 without `truth`); raises `MissingBackendError`
        where nothing can draw."""
        from gworld.data.simulators_view import Painter

        if self.cameras is None:
            raise UsageError(f"`{self.name}` was opened without cameras.")
        if self._painter is None:
            self._painter = Painter(self.model, self.cameras.width, self.cameras.height)
        return self._painter.draw(self.data, self.cameras, camera, truth)

    def close(self) -> None:
        """Free the drawing context, where there is one."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None

    def _below(self, root: int) -> tuple[int, ...]:
        return links_below(self.model, root)

    def _add_forces(self) -> None:
        data = self.data
        if data.ncon == 0:
            return
        contact = data.contact
        at = contact.efc_address
        bodies = self.model.geom_bodyid[contact.geom]
        force = np.where(at >= 0, data.efc_force[at], 0.0)
        if self.model.opt.cone == 0:  # pyramidal: the normal force is the sum over the edges
            force = np.array([_pyramid(data, int(a), int(d)) for a, d in zip(at, contact.dim, strict=True)])
        np.add.at(self._force, (bodies[:, 0], bodies[:, 1]), force)


def open_scene(name: str, options: SceneOptions = SceneOptions()) -> Simulation:  # noqa: B008 (frozen)
    """Build one of our own scenes (`push`, `arms`, `street`) at the start of seed 0.

    Raises `UsageError` for an unknown name and `MissingBackendError` where MuJoCo is not installed.
    """
    if name not in SCENES:
        raise UsageError(f"there is no scene `{name}`; there are {', '.join(SCENES)}, and simulators as gym:ID.")
    mujoco = mujoco_library()
    build: Any = getattr(importlib.import_module(f"gworld.data.simulators_{name}"), SCENES[name])
    substeps = max(1, int(np.ceil(1.0 / options.fps / SUBSTEP - 1e-9)))
    blueprint: Blueprint = build(options.agents, options.objects, options.layout, 1.0 / options.fps / substeps)
    model = mujoco.MjModel.from_xml_string(blueprint.xml, dict(blueprint.pictures))
    data = mujoco.MjData(model)
    driver = SceneDriver(blueprint, model, data, options.fps, options.vary)
    actors = tuple(_actor(model, plan, blueprint.pictures) for plan in blueprint.agents)
    simulation = Simulation(
        name,
        options,
        model,
        data,
        driver,
        actors,
        scene_cameras(blueprint, options.width, options.height, options.cameras, options.ego, model),
    )
    simulation.reset(0)
    return simulation


def _actor(model: mujoco.MjModel, plan: AgentPlan, pictures: Mapping[str, bytes]) -> Actor:
    links = links_below(model, model.body(plan.root).id)
    joints, qpos = own_joints(model, links, f"{plan.name}/")
    named = {file: data for file, data in pictures.items() if f'"{file}"' in plan.model}
    return Actor(plan.name, plan.kind, plan.spec, links, joints, qpos, plan.hand, plan.model, named)


def _reach(model: mujoco.MjModel, geom: int) -> float:
    """How far a geom reaches from its link's origin, seen along the link's z."""
    x, y, _ = model.geom_pos[geom]
    kind, (a, b, _) = int(model.geom_type[geom]), model.geom_size[geom]
    if kind == 6:
        return float(np.hypot(abs(x) + a, abs(y) + b))
    return float(np.hypot(x, y) + (a if kind in (2, 5) else model.geom_rbound[geom]))


def _pyramid(data: Any, address: int, dimension: int) -> float:
    edges = max(1, 2 * (dimension - 1))
    return float(data.efc_force[address : address + edges].sum()) if address >= 0 else 0.0


__all__ = ["AGENT_NAMES", "Actor", "Goal", "SceneOptions", "Simulation", "SimulatorState", "open_scene"]
