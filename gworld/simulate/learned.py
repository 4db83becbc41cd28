"""A learned dynamics network as a stepper: its checkpoint, the agents' drives, and one scene per number of worlds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.agents.tree import value_slots
from gworld.checkpoint import latest_checkpoint, load_checkpoint
from gworld.dynamics.actuation import KINDS, Drive, full_memory, joint_values
from gworld.dynamics.drives import make_drive
from gworld.dynamics.network import Dynamics, model_from
from gworld.dynamics.state import Motion
from gworld.dynamics.tokens import Scene, compile_scene, select_worlds
from gworld.dynamics.uncertainty import Calibration, calibration_from, deviations_of, disturb, part_copies
from gworld.errors import InputError, UsageError
from gworld.scene.world import World
from gworld.simulate.stepper import (
    ROUNDING,
    AgentBody,
    Kinematics,
    Stepper,
    agent_bodies,
    hold_action,
    read_state,
    rest_on_chain,
)


class Learned:
    """The network moves objects and the agents whose actions drive joints; other agents keep to their kinematics."""

    def __init__(
        self,
        world: World,
        model: Dynamics,
        seconds: float,
        bodies: Mapping[str, AgentBody] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.world, self.model, self.seconds, self.calibration = world, model.eval(), seconds, calibration
        self.bodies = agent_bodies(world) if bodies is None else dict(bodies)
        self.drives = {name: drive for name, body in self.bodies.items() if (drive := drive_of(world, body))}
        rest = {name: body for name, body in self.bodies.items() if name not in self.drives}
        self._others = Kinematics(world, rest)
        self._free = torch.zeros(len(world.links), dtype=torch.bool)
        self._free[[link for entity in world.entities if entity.kind == "object" for link in entity.links]] = True
        self._scene = compile_scene([world], seconds)
        self._scenes: dict[int, Scene] = {}
        self.note = "learned dynamics move objects and joints"
        if rest:
            self.note += f"; {', '.join(rest)} follow their kinematics"

    def start(self, motion: Motion) -> Motion:
        """The motion with joint values, read from where the links stand, and a blank belief where there is none."""
        motion = self._others.start(motion)
        memory, width, poses = dict(motion.memory), self.model.config.belief, motion.world_from_link
        for name, drive in self.drives.items():
            size = 3 * sum(place.stop - place.start for place in value_slots(drive.skeleton).values())
            known = memory.get(name)
            if known is None or known.shape[-1] != size:
                state = read_state(self.bodies[name], poses[:, list(drive.links)])
                poses = rest_on_chain(self.bodies[name], poses, state)
                memory[name] = full_memory(state.values)
        belief = motion.belief
        if belief.shape[-1] != width:
            belief = belief.new_zeros(*belief.shape[:-1], width)
        return replace(motion, world_from_link=poses, memory=memory, belief=belief)

    def step(self, motion: Motion, actions: Mapping[str, Tensor], seconds: float) -> Motion:
        """One step of the network; it was read for steps of one length and takes no other."""
        if not math.isclose(seconds, self.seconds, rel_tol=1e-9):
            raise InputError(f"the dynamics were set up for steps of {self.seconds:g} s; {seconds:g} s were asked for.")
        scene = self._scenes.get(len(motion))
        if scene is None:
            rows = torch.zeros(len(motion), dtype=torch.int64)
            scene = self._scenes[len(motion)] = select_worlds(self._scene, rows)
        after = self._rested(motion, self.model.step(scene, motion, actions, self.drives))
        if not self._others.bodies:
            return after
        carried = self._others.step(replace(after, memory=dict(motion.memory)), actions, seconds)
        links = [link for body in self._others.bodies.values() for link in body.entity.links]
        twists = after.twists.clone()
        twists[:, links] = carried.twists[:, links]
        own = {name: carried.memory[name] for name in self._others.bodies}
        return replace(after, world_from_link=carried.world_from_link, twists=twists, memory={**after.memory, **own})

    def _rested(self, before: Motion, after: Motion) -> Motion:
        """Objects without velocity stay by every bit: a rotation made straight anew differs in its last ones."""
        poses = after.world_from_link
        same = ((poses - before.world_from_link).abs() <= ROUNDING).flatten(2).all(2)
        same &= (after.twists == 0).all(-1) & self._free
        return replace(after, world_from_link=torch.where(same[..., None, None], before.world_from_link, poses))

    def deviations(
        self, start: Motion, actions: Mapping[str, Float[Tensor, "W T A"]], steps: int
    ) -> Float[Tensor, "W T L"]:
        """How sure the places are that links have under these actions: standard deviations (m, per axis) after each
        step, by disturbed copies of the worlds. Raises `UsageError` where the model was not calibrated."""
        if self.calibration is None:
            raise UsageError("these dynamics were not calibrated, so nothing tells how sure they are; train them anew.")
        config, count = self.calibration.config, len(start)
        scene = select_worlds(self._scene, torch.zeros(count, dtype=torch.int64))
        motion, told = disturb(scene, start, actions, config)
        places = []
        with torch.no_grad():
            for step in range(steps):
                motion = self.step(motion, {name: value[:, step] for name, value in told.items()}, self.seconds)
                places.append(motion.world_from_link[..., :3, 3])
        found = torch.stack(places, dim=1).unflatten(0, (config.copies + 1, count))
        return deviations_of(*part_copies(scene, start, found, config), self.seconds, self.calibration)

    def hold(self, motion: Motion, agent: str) -> Float[Tensor, "W A"]:
        """Targets where the joints are, no speed, no step."""
        drive = self.drives.get(agent)
        if drive is None:
            return self._others.hold(motion, agent)
        values = joint_values(motion.memory[agent])
        return hold_action(drive.skeleton, self.bodies[agent].spec, values)


def drive_of(world: World, body: AgentBody) -> Drive | None:
    """What each component of an agent's action drives; None for vehicles and hands."""
    if any(name.rpartition("/")[2] not in KINDS for name in body.spec.names):
        return None
    values = read_state(body, world.rest_poses()[None, list(body.entity.links)]).values[0]
    entity = replace(body.entity, action=body.spec)
    return make_drive(world, entity, body.skeleton, values, body.carriers)


def open_stepper(world: World, seconds: float, run: str | Path | None = None) -> Stepper:
    """The dynamics of `run`, else those bound to the world's folder, else kinematics only.

    A run is a training's folder or a checkpoint itself. Raises `InputError` when it holds no dynamics.
    """
    place = world.dynamics if run is None else Path(run)
    if place is None:
        return Kinematics(world)
    found = place if (place / "manifest.json").is_file() else latest_checkpoint(place)
    if found is None:
        raise InputError(f"`{place}` holds no dynamics checkpoint; train one with `gworld train`, or name another run.")
    checkpoint = load_checkpoint(found)
    model, sure = model_from(checkpoint.values, checkpoint.tensors), calibration_from(checkpoint.values)
    stepper = Learned(world, model, seconds, calibration=sure)
    stepper.note += "" if run is not None else f" (bound to the world: step {checkpoint.step})"
    return stepper
