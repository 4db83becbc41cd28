"""The network: one step of W worlds under the actions of all agents.

A step is cut into substeps. In each, forces give accelerations, contacts within the substep are found with their
instants, impulses change velocities there, and places follow exactly for accelerations that are constant over it.
Every operator is shared by all links and pairs, in local and relative quantities, and can be left out by its flag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gworld.agents.kinematics import clamp_values
from gworld.dynamics.actuation import (
    Actuation,
    Drive,
    Joints,
    centred,
    chain_poses,
    driven_agents,
    place_links,
)
from gworld.dynamics.contact import (
    Bodies,
    Candidates,
    Contacts,
    Shapes,
    body_shapes,
    find_contacts,
    near_pairs,
    rate_at,
)
from gworld.dynamics.forces import PairForces
from gworld.dynamics.free import Free
from gworld.dynamics.impulses import Changes, Matter, Response, pressed, solve_contacts, spread_impulses
from gworld.dynamics.linkage import body_changes
from gworld.dynamics.materials import Materials, Nature, friction_of, restitution_of
from gworld.dynamics.residual import Residual
from gworld.dynamics.separate import separate
from gworld.dynamics.state import Motion, motion_from_poses
from gworld.dynamics.support import Grounded, Support, keep_flat, keep_upright, lifted
from gworld.dynamics.tokens import Scene, shape_values
from gworld.geometry import matrix_from_quat, quat_from_rotvec, transform_from

LATER = ("materials.mix",)
"""Coefficients that older checkpoints lack and that change nothing where they are not learned."""


@dataclass(frozen=True)
class NetworkConfig:
    """Size and make-up of the network."""

    width: int = 16
    """Hidden units of each small perceptron."""
    substeps: int = 2
    """Parts into which a step is cut."""
    sweeps: int = 12
    """Sweeps of the contact solver where contacts share a body."""
    length: float = 1.0
    """Unit of length in metres of learned accelerations: about the size of an object."""
    belief: int = 1
    """Numbers inferred about each link."""
    gravity: bool = True
    """Use the learned fall and drag."""
    contact: bool = True
    """Use contact impulses."""
    forces: bool = False
    """Use forces across a distance."""
    support: bool = False
    """Objects lie on a plane and slide with dry friction."""
    actuation: bool = True
    """Agents' links follow their actions; else they keep their velocity."""
    residual: bool = True
    """Use the bounded residual."""
    seed: int = 0


@dataclass(frozen=True)
class Told:
    """What holds over a whole step: the step's length in parts, natures of links, matter of bodies, who lies on
    something, and what the agents whose actions drive joints were told [W,A]."""

    seconds: float
    nature: Nature
    matter: Matter
    grounded: Grounded | None
    drives: Mapping[str, Drive]
    actions: Mapping[str, Tensor]
    servo: Tensor | None


@runtime_checkable
class Model(Protocol):
    """What predicts motion: the network and everything it is compared with."""

    belief: int

    def step(
        self,
        scene: Scene,
        motion: Motion,
        actions: Mapping[str, Tensor] | None = None,
        drives: Mapping[str, Drive] = {},
    ) -> Motion:
        """The motion `scene.dt` later."""


class Dynamics(nn.Module):
    """The network; `step` is its one verb."""

    def __init__(self, config: NetworkConfig = NetworkConfig()) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        self.config = config
        self.belief = config.belief
        self.materials = Materials(config.width, generator)
        self.free = Free(config.length, generator)
        self.forces = PairForces(config.length, generator)
        self.support = Support(config.length, generator)
        self.actuation = Actuation(generator)
        self.residual = Residual(config.width, generator)

    def step(
        self,
        scene: Scene,
        motion: Motion,
        actions: Mapping[str, Tensor] | None = None,
        drives: Mapping[str, Drive] = {},
    ) -> Motion:
        """The motion `scene.dt` later.

        `actions` maps an agent's name to its action [W,A] of this step, NaN (or the agent missing) where unknown;
        `drives` holds the kinematics of agents whose actions move joints.
        """
        config = self.config
        held = torch.where(scene.free[:, None], motion.twists, torch.zeros_like(motion.twists))
        joints, told = self._tell(scene, motion, actions or {}, drives if config.actuation else {})
        shapes = body_shapes(scene, self.materials.skin)
        bodies = bodies_of(scene, motion, held)
        near = None
        for _ in range(config.substeps):
            joints, bodies, matter = self._drive(scene, bodies, joints, told)
            if near is None:
                wide = replace(bodies, push=self._push(scene, bodies, told.nature))
                near = near_pairs(scene, shapes, wide, scene.dt, matter.linkage)
                grounded = self.support.find(scene, shapes, bodies) if config.support else None
                told = replace(told, grounded=grounded)
            if told.grounded is not None:
                matter = lying(scene, matter, told.grounded, bodies)
            joints, bodies, told = self._substep(scene, shapes, bodies, near, replace(told, matter=matter), joints)
        memory = {name: self.actuation.pack(drives[name], own) for name, own in joints.items()}
        motion = replace(motion, twists=held, memory={**motion.memory, **memory})
        motion = place_links(scene, motion, drives, {name: own.values for name, own in joints.items()})
        return replace(_motion(scene, motion, bodies), time=motion.time + scene.dt)

    def _tell(
        self, scene: Scene, motion: Motion, actions: Mapping[str, Tensor], drives: Mapping[str, Drive]
    ) -> tuple[dict[str, Joints], Told]:
        """The joints at the start of a step, and what holds over it."""
        joints, told = {}, {}
        for agent, drive in driven_agents(scene, drives):
            joints[agent.name] = self.actuation.unpack(drive, motion.memory[agent.name])
            blank = motion.twists.new_full((len(scene), len(agent.action)), torch.nan)
            told[agent.name] = actions.get(agent.name, blank)
        seconds = scene.dt / self.config.substeps
        nature = self.materials(scene, motion.belief)
        servo = self.actuation.servo(seconds) if joints else None
        return joints, Told(seconds, nature, matter_of(scene, nature), None, drives, told, servo)

    def _drive(
        self, scene: Scene, bodies: Bodies, joints: dict[str, Joints], told: Told
    ) -> tuple[dict[str, Joints], Bodies, Matter]:
        """Agents' joints after a substep in which they meet nothing, their links as they begin it with the velocities
        that take them there, and how they give way."""
        if told.servo is None:
            return joints, bodies, told.matter
        after, gives, rates, place, turn = {}, {}, [], bodies.place, bodies.turn
        count = scene.solid.shape[1]
        start = torch.arange(len(scene), device=place.device)[:, None] * count
        for agent, drive in driven_agents(scene, told.drives):
            now = joints[agent.name]
            action = told.actions[agent.name]
            later, ease = self.actuation.advance(agent, drive, now, action, told.seconds, told.servo)
            after[agent.name], gives[agent.name] = later, ease
            rates.append((later.values - now.values) / told.seconds)
            links = torch.tensor(drive.links, device=place.device)
            chain = chain_poses(drive, now.values)
            rows = (start + links).flatten()
            arm = (chain[..., :3, :3] @ shape_values(scene, "center")[:, links, :, None])[..., 0]
            arm = arm * scene.present[:, links, None]
            place = place.index_copy(0, rows, (chain[..., :3, 3] + arm).flatten(0, 1))
            turn = turn.index_copy(0, rows, chain[..., :3, :3].flatten(0, 1))
        linkage = centred(scene, self.actuation.linkage(scene, told.drives, joints, gives), turn)
        unit = (3.0 * self.materials.power * torch.log(scene.scale / self.config.length)).exp()  # of mass, in a scene
        linkage = replace(linkage, ease=linkage.ease * unit[:, None])
        speed, spin = body_changes(linkage, torch.cat(rates, dim=-1))
        driven = linkage.driven[:, None]
        speed, spin = torch.where(driven, speed, bodies.speed), torch.where(driven, spin, bodies.spin)
        return after, Bodies(place, turn, speed, spin, bodies.push), replace(told.matter, linkage=linkage)

    def observe(self, scene: Scene, poses: Tensor) -> Motion:
        """The motion at the last of three noisy poses [W,3,L,7]: the mean velocity over both steps, brought to the end
        of the second by the accelerations that the network knows of. Noise counts 3.6 times less than in differences
        that have to find the acceleration too. Links that are driven have their last velocity."""
        exact = motion_from_poses(poses, scene.dt, self.belief)
        mean = motion_from_poses(poses[:, ::2], 2.0 * scene.dt, self.belief)
        bodies = bodies_of(scene, mean, mean.twists)
        push = self._push(scene, bodies, self.materials(scene, mean.belief)).view(*scene.solid.shape, 3)
        twists = mean.twists + torch.cat([push * scene.dt, torch.zeros_like(push)], dim=-1)
        return replace(exact, twists=torch.where(scene.free[:, None], twists, exact.twists))

    def _substep(
        self, scene: Scene, shapes: Shapes, bodies: Bodies, near: Candidates, told: Told, joints: dict[str, Joints]
    ) -> tuple[dict[str, Joints], Bodies, Told]:
        nature, grounded, seconds = told.nature, told.grounded, told.seconds
        bodies = replace(bodies, push=self._push(scene, bodies, nature))
        weight = bodies.push * seconds
        if grounded is not None:
            bodies = self.support(scene, grounded, bodies, seconds)
        push, free = bodies.push, (scene.free & scene.present).flatten()[:, None]
        place = bodies.place + bodies.speed * seconds + 0.5 * push * seconds**2
        speed, spin, turning = bodies.speed + push * seconds, bodies.spin, bodies.spin * seconds
        if self.config.gravity:
            spin = torch.where(free, spin + self.free.spin(spin) * seconds, spin)
        if self.config.contact and len(near):
            contacts, overlaps = find_contacts(scene, shapes, bodies, near, seconds)
            place, gave = separate(scene, place, overlaps, told.matter, grounded)
            joints = joints if gave is None else _give_way(told, joints, gave, torch.zeros_like(gave))
            if len(contacts):
                now, later, grounded = self._collide(scene, bodies, contacts, told, weight)
                if later.rates is not None and now.rates is not None and told.matter.linkage is not None:
                    joints = _give_way(told, joints, later.rates, now.rates * told.matter.linkage.keeps)
                speed, spin = speed + keep_flat(grounded, now.speed), spin + keep_upright(grounded, now.spin)
                place = place + keep_flat(grounded, later.speed)
                turning = turning + keep_upright(grounded, later.spin)
        turn = matrix_from_quat(quat_from_rotvec(turning)) @ bodies.turn
        moved = Bodies(place, turn, speed, spin, push)
        if self.config.forces:
            later_push = self._push(scene, moved, nature)
            moved = replace(moved, speed=moved.speed + 0.5 * (later_push - push) * seconds)
        return joints, moved, replace(told, grounded=grounded)

    def _collide(
        self, scene: Scene, bodies: Bodies, contacts: Contacts, told: Told, weight: Tensor
    ) -> tuple[Changes, Changes, Grounded | None]:
        """What contacts change: velocities at the end of the substep, places by then, and who lies on after it, when
        `weight` [N,3] alone would change velocities so."""
        response = self.respond(scene, told.nature, bodies, told.matter, contacts, told.seconds)
        matter, grounded = told.matter, told.grounded
        impulse, press = solve_contacts(bodies, matter, contacts, response, self.config.sweeps)
        if grounded is not None and matter.linkage is not None:
            after = lifted(grounded, contacts, impulse, weight, matter, self.support.slows() * told.seconds)
            if not torch.equal(after.lies, grounded.lies):  # once more, with those free that are drawn up or tipped
                grounded, matter = after, lying(scene, matter, after, bodies)
                impulse, press = solve_contacts(bodies, matter, contacts, response, self.config.sweeps)
        left = (told.seconds - contacts.when)[:, None]
        now = spread_impulses(bodies, matter, contacts, impulse)
        later = spread_impulses(bodies, matter, contacts, impulse * left)
        if bool((contacts.lasts > 0).any()) and bool((bodies.push != 0).any()):
            steady = spread_impulses(bodies, matter, contacts, impulse * contacts.lasts[:, None]).speed / told.seconds
            sticks = (press > 0) & (
                (impulse - press[:, None] * contacts.normal).norm(dim=-1) < 0.99 * response.friction * press
            )
            gained = withstood(bodies, contacts, sticks, steady, told.seconds)
            later = replace(later, speed=later.speed + 0.5 * told.seconds * gained)
        return now, later, grounded

    def respond(
        self, scene: Scene, nature: Nature, bodies: Bodies, matter: Matter, contacts: Contacts, seconds: float
    ) -> Response:
        """Restitution and friction of contacts; what rests against a push does not bounce."""
        bounce = restitution_of(nature, contacts.a, contacts.b)
        closing = -(rate_at(bodies, contacts) * contacts.normal).sum(-1)
        pushed = ((bodies.push[contacts.a] - bodies.push[contacts.b]) * contacts.normal).sum(-1).abs() * seconds
        awake = closing.detach() > 2.0 * pushed.detach() + 1e-6 * scene.scale.min() / scene.dt
        bounce = torch.where(awake & ~pressed(matter, contacts), bounce, torch.zeros_like(bounce))
        left = (1.0 - bounce) * contacts.gap.clamp_min(0.0) / seconds  # what is not reached yet may close that fast
        return Response(bounce, friction_of(nature, contacts.a, contacts.b), left)

    def _push(self, scene: Scene, bodies: Bodies, nature: Nature) -> Tensor:
        """Accelerations [N,3] of all bodies; only objects have any."""
        shape = (*scene.solid.shape, 3)
        speed, place = bodies.speed.view(shape), bodies.place.view(shape)
        push = torch.zeros_like(speed)
        if self.config.gravity:
            push = push + self.free(scene, speed)
        if self.config.residual and self.residual.alive():
            push = push + self.residual(scene, speed)
        free = scene.free & scene.present
        if self.config.forces:
            # contacts need masses relative to each other in a scene, forces across a distance relative to all scenes
            size = 3.0 * self.materials.power * torch.log(scene.scale / self.config.length)[:, None]
            mass = (nature.log_mass + size).clamp(-20, 20).exp()
            push = push + self.forces(scene, place, torch.where(free, mass, torch.zeros_like(mass)))
        return torch.where(free[..., None], push, torch.zeros_like(push)).view(-1, 3)


def withstood(bodies: Bodies, contacts: Contacts, sticks: Tensor, steady: Tensor, seconds: float) -> Tensor:
    """The part of what pushes do to velocities [N,3] in `seconds` that lasting contacts take away, when these change
    velocities by `steady` [N,3]: it is withstood all along, so it moves nothing meanwhile.

    All of it where a contact [Q] `sticks`, what is along the change where they slide.
    """
    held = torch.zeros_like(bodies.speed[:, 0]).index_add(0, contacts.a, sticks.to(steady))
    held = held.index_add(0, contacts.b, sticks.to(steady))[:, None] > 0
    size = steady.square().sum(-1, keepdim=True).clamp_min(1e-16)
    share = -seconds * (steady * bodies.push).sum(-1, keepdim=True) / size
    return torch.where(held, seconds * bodies.push, -share.clamp(0.0, 1.0) * steady)


def matter_of(scene: Scene, nature: Nature) -> Matter:
    """Inverse masses and inertias of all bodies; links that no law moves have none."""
    free = scene.free & scene.present
    weight = torch.where(free, (-nature.log_mass.clamp(-20, 20)).exp(), torch.zeros_like(nature.log_mass))
    ease = weight[..., None, None] * shape_values(scene, "ease")
    return Matter(weight.flatten(), ease.flatten(0, 1))


def _give_way(told: Told, joints: dict[str, Joints], shift: Tensor, rates: Tensor) -> dict[str, Joints]:
    """Joints displaced [W,V] by what their links met, and their rates changed, side by side for all agents."""
    widths, found = [own.values.shape[1] for own in joints.values()], {}
    parts = zip(joints.items(), shift.split(widths, 1), rates.split(widths, 1), strict=True)
    for (name, own), way, change in parts:
        values, speeds = own.values + way, own.rates + change
        inside = clamp_values(told.drives[name].skeleton, values)
        found[name] = Joints(inside, torch.where(inside == values, speeds, torch.zeros_like(speeds)), own.aims)
    return found


def lying(scene: Scene, matter: Matter, grounded: Grounded, bodies: Bodies) -> Matter:
    """Matter of which bodies that lie turn about the normal alone: the inertia about it counts, not its inverse's."""
    inertia = bodies.turn @ shape_values(scene, "inertia").flatten(0, 1) @ bodies.turn.transpose(-1, -2)
    about = (grounded.up[:, None] @ inertia @ grounded.up[:, :, None])[:, 0, 0]
    ease = matter.inverse_mass / about.clamp_min(1e-12)
    return replace(matter, lies=grounded.lies, up=grounded.up, ease_up=ease)


def save_values(model: Dynamics) -> dict[str, object]:
    """What a checkpoint's manifest says of a model: its configuration."""
    return {"network": asdict(model.config)}


def model_from(values: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Dynamics:
    """The model of a checkpoint's values and tensors; raises `InputError` when they do not fit."""
    from gworld.config import config_from
    from gworld.errors import InputError

    network = values.get("network")
    if not isinstance(network, dict):
        raise InputError("the checkpoint holds no dynamics network; one written by `gworld train` is needed.")
    model = Dynamics(config_from(NetworkConfig, network, source="the checkpoint's network"))
    own = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    wanted = model.state_dict()
    own = {**{name: wanted[name] for name in LATER if name in wanted}, **own}  # of checkpoints from before these
    if set(own) != set(wanted) or any(own[name].shape != wanted[name].shape for name in wanted):
        raise InputError("the checkpoint's tensors are not those of its network; train it again.")
    model.load_state_dict(own)
    return model


def bodies_of(scene: Scene, motion: Motion, twists: Tensor) -> Bodies:
    """Motion about centres of mass."""
    turn = motion.world_from_link[..., :3, :3]
    arm = (turn @ shape_values(scene, "center")[..., None])[..., 0] * scene.present[..., None]
    place = motion.world_from_link[..., :3, 3] + arm
    speed = twists[..., :3] + torch.linalg.cross(twists[..., 3:], arm)
    flat = speed.reshape(-1, 3)
    return Bodies(
        place.reshape(-1, 3), turn.reshape(-1, 3, 3), flat, twists[..., 3:].reshape(-1, 3), torch.zeros_like(flat)
    )


def _motion(scene: Scene, motion: Motion, end: Bodies) -> Motion:
    """Poses and twists of the links; those that no law moves stand where the actuation put them."""
    worlds, links = scene.solid.shape
    free = (scene.free & scene.present)[..., None]
    turn = end.turn.view(worlds, links, 3, 3)
    turn = 1.5 * turn - 0.5 * turn @ (turn.transpose(-1, -2) @ turn)
    arm = (turn @ shape_values(scene, "center")[..., None])[..., 0]
    spin = end.spin.view(worlds, links, 3)
    origin = end.place.view(worlds, links, 3) - arm
    speed = end.speed.view(worlds, links, 3) - torch.linalg.cross(spin, arm)
    poses = torch.where(free[..., None], transform_from(turn, origin), motion.world_from_link)
    return replace(motion, world_from_link=poses, twists=torch.where(free, torch.cat([speed, spin], -1), motion.twists))
