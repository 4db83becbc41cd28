"""What turns commands into motion in our own scenes: servos with bounded speed, tyres, random starts, cameras."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gworld.data.simulators_mjcf import Blueprint, Goal
from gworld.data.simulators_street import tyre_forces
from gworld.errors import MissingBackendError
from gworld.scene.cameras import Cameras, intrinsics, look_at

if TYPE_CHECKING:
    import mujoco

LEAD = 0.15
"""How far a servo's target runs ahead of its joint, in radians (or metres): a blocked one stores up no leap."""
SETTLE = 0.4
"""Seconds in which loose objects come to rest before an episode begins."""


@cache
def mujoco_library() -> Any:
    """MuJoCo, told how to draw without a screen before it is first imported; without OpenGL it still computes.

    Raises `MissingBackendError` where it is not installed.
    """
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    wanted = os.environ.get("MUJOCO_GL")
    try:
        try:
            import mujoco
        except (AttributeError, RuntimeError, OSError):  # what it lets out where the OpenGL asked for is not there
            os.environ["MUJOCO_GL"] = "disabled"
            import mujoco
    except ImportError as error:
        raise MissingBackendError(
            f"simulated scenes need the package mujoco ({error}). Run `pip install 'gworld[sim]'`."
        ) from error
    finally:
        if wanted is not None:
            os.environ["MUJOCO_GL"] = wanted
    return mujoco


class SceneDriver:
    """Drives one of our own scenes: servo targets that move at a bounded speed, tyres, random starts."""

    def __init__(self, blueprint: Blueprint, model: Any, data: Any, fps: float, vary: float) -> None:
        self.blueprint, self.model, self.data, self.vary = blueprint, model, data, vary
        self.plans = {plan.name: plan for plan in blueprint.agents}
        self.substeps = round(1.0 / fps / blueprint.timestep)
        names = [[a[0] for a in plan.actuators] for plan in blueprint.agents]
        self.slots = [[model.actuator(n).id if n else -1 for n in group] for group in names]
        self.cars = [plan.name for plan in blueprint.agents if plan.kind == "vehicle"]
        self.plain = (model.body_mass.copy(), model.body_inertia.copy(), model.geom_friction.copy())

    def reset(self, seed: int) -> dict[str, Goal]:
        """Draw a start and goals, and with `vary` the objects' masses and frictions."""
        mujoco, model, data = mujoco_library(), self.model, self.data
        rng = np.random.default_rng([seed, 7])
        values, goals = self.blueprint.place(rng)
        model.body_mass[:], model.body_inertia[:], model.geom_friction[:] = self.plain
        if self.vary:
            for name in self.blueprint.objects:
                body = model.body(name).id
                mass, friction = np.exp(rng.uniform(-self.vary, self.vary, 2))
                model.body_mass[body] *= mass
                model.body_inertia[body] *= mass
                model.geom_friction[model.geom_bodyid == body, 0] *= friction
        mujoco.mj_setConst(model, data)
        mujoco.mj_resetData(model, data)
        for name, value in values.items():
            data.joint(name).qpos[:] = value
        mujoco.mj_forward(model, data)
        for slot in (slot for group in self.slots for slot in group if slot >= 0):
            data.ctrl[slot] = self._holding(slot)
        mujoco.mj_step(model, data, round(SETTLE / model.opt.timestep))
        data.qvel[:], data.time = 0.0, 0.0
        mujoco.mj_forward(model, data)
        data.qacc_warmstart[:] = 0.0  # so that a recorded state and this one go on alike
        return goals

    def advance(self, commands: dict[str, np.ndarray], after: Callable[[], None]) -> None:
        """Step the physics to the next action."""
        mujoco, model, data = mujoco_library(), self.model, self.data
        slots, targets, rates, pedals = [], [], [], np.zeros(len(self.cars))
        for plan, own in zip(self.blueprint.agents, self.slots, strict=True):
            for (_, factor, rate), slot, value in zip(plan.actuators, own, commands[plan.name], strict=True):
                if slot < 0:
                    pedals[self.cars.index(plan.name)] = value
                else:
                    slots.append(slot)
                    targets.append(factor * value)
                    rates.append(rate * model.opt.timestep)
        chosen, wanted, most = np.array(slots, int), np.array(targets), np.array(rates)
        joints = model.jnt_qposadr[model.actuator_trnid[chosen, 0]]
        lead = np.where([self._is_servo(slot) for slot in slots], LEAD, np.inf)
        for _ in range(self.substeps):
            now, here = data.ctrl[chosen], data.qpos[joints]
            target = now + np.clip(wanted - now, -most, most)
            data.ctrl[chosen] = np.clip(target, here - lead, here + lead)
            if self.cars:
                self._roll(pedals)
            mujoco.mj_step(model, data)
            after()
        mujoco.mj_kinematics(model, data)  # poses of the new state: a step leaves those of the state before

    def null(self, agent: str) -> np.ndarray:
        """Servo targets as they are, no speed, no acceleration."""
        plan = self.plans[agent]
        slots = self.slots[self.blueprint.agents.index(plan)]
        values = np.zeros(len(slots))
        for index, (slot, (_, factor, _)) in enumerate(zip(slots, plan.actuators, strict=True)):
            if slot >= 0 and self._is_servo(slot) and plan.kind != "vehicle":
                values[index] = self.data.ctrl[slot] / factor
        return values

    def outcome(self) -> bool | None:
        """The goals say."""
        return None

    def _is_servo(self, slot: int) -> bool:
        return bool(self.model.actuator_biasprm[slot, 1])  # it pulls towards a position

    def _holding(self, slot: int) -> float:
        joint = int(self.model.actuator_trnid[slot, 0])
        return float(self.data.qpos[self.model.jnt_qposadr[joint]]) if self._is_servo(slot) else 0.0

    def _roll(self, pedals: np.ndarray) -> None:
        data = self.data
        rows = [[data.joint(f"{car}/{joint}") for joint in ("x", "y", "turn", "steer_left")] for car in self.cars]
        turn, steer = (np.array([row[k].qpos[0] for row in rows]) for k in (2, 3))
        speed = np.array([[row[k].qvel[0] for k in (0, 1, 2)] for row in rows])
        force, torque = tyre_forces(turn, speed[:, :2], speed[:, 2], steer, pedals)
        for index, car in enumerate(self.cars):
            applied = data.xfrc_applied[self.model.body(f"{car}/chassis").id]
            applied[:2], applied[5] = force[index], torque[index]


def links_below(model: mujoco.MjModel, root: int) -> tuple[int, ...]:
    """A body and all that hang from it."""
    found = {root}
    for body in range(root + 1, model.nbody):
        if int(model.body_parentid[body]) in found:
            found.add(body)
    return tuple(sorted(found))


def own_joints(
    model: mujoco.MjModel, links: tuple[int, ...], prefix: str = ""
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and places in qpos of the links' single-valued joints that follow no other."""
    follow = {int(model.eq_obj1id[e]) for e in range(model.neq) if model.eq_type[e] == 2 and model.eq_obj2id[e] >= 0}
    chosen = [
        j for j in range(model.njnt)
        if int(model.jnt_bodyid[j]) in links and model.jnt_type[j] in (2, 3) and j not in follow
    ]  # fmt: skip
    names = tuple((model.joint(j).name or f"joint{j}").removeprefix(prefix) for j in chosen)
    return names, tuple(int(model.jnt_qposadr[j]) for j in chosen)


def scene_cameras(
    blueprint: Blueprint, width: int, height: int, count: int, ego: bool, model: mujoco.MjModel
) -> Cameras | None:
    """A ring of fixed cameras, then one on each agent where asked for."""
    ring = blueprint.ring
    K, poses, names, links = [], [], [], []
    target = torch.tensor(ring.target)
    for number in range(count):
        around = ring.start + 2 * np.pi * number / count
        rise = ring.elevations[number % len(ring.elevations)]
        toward = np.array([np.cos(rise) * np.cos(around), np.cos(rise) * np.sin(around), np.sin(rise)])
        K.append(intrinsics(width, height, ring.fov_y))
        poses.append(look_at(target + ring.distance * torch.tensor(toward, dtype=torch.float32), target))
        names.append(f"camera{number}")
        links.append(0)
    for eye in blueprint.eyes if ego else ():
        place = torch.tensor(eye.place, dtype=torch.float32)
        K.append(intrinsics(width, height, eye.fov_y))
        up = torch.tensor(eye.up, dtype=torch.float32)
        poses.append(look_at(place, place + torch.tensor(eye.toward, dtype=torch.float32), up))
        names.append(eye.link.partition("/")[0] + "_eye")
        links.append(int(model.body(eye.link).id))
    if not K:
        return None
    return Cameras(torch.stack(K), torch.stack(poses), width, height, names=tuple(names), links=tuple(links))
