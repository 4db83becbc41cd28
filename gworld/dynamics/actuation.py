"""How an agent's action moves its own joints, and how these give way to what their links meet.

Components of an action drive the joints of the agent's kinematic chain. What kind a component is (`position`,
`velocity`, `opening`) and its number among the agent's components choose its learned response, which agents of one make
share. An unknown component (NaN) leaves its joint to a learned fading of its present motion.

An agent's memory is [W,3V]: joint values, their rates, and how much farther its servos aim than its motion tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gworld.agents.kinematics import clamp_values, forward_kinematics, jacobian, rest_values
from gworld.agents.tree import Skeleton
from gworld.dynamics.layers import clamp_through, coefficient
from gworld.dynamics.linkage import Linkage
from gworld.dynamics.state import Motion, twists_between
from gworld.dynamics.tokens import Agent, Scene, shape_values

KINDS = ("position", "velocity", "opening")
ROWS = 16
"""Components of an action that have a response of their own; those after them share the last."""
PARTS = 4
"""Parts of a step in which drives that act alone are followed."""

FADE = 0.05
"""Seconds in which the motion of a joint without a command fades by the learned factor."""


@dataclass(frozen=True)
class Drive:
    """The kinematics of one agent: its chain, where it stands, and what each action component moves.

    `links` are scene links in the order of the chain's bodies `bodies`; `values` [A] the joint value that component
    drives (or several, one row each in `targets`), `kinds` [A] an index into `KINDS`; values that are told lie `offset`
    and `slope` times the component away.
    """

    skeleton: Skeleton
    base: Tensor
    links: tuple[int, ...]
    bodies: tuple[int, ...]
    values: tuple[int, ...]
    components: tuple[int, ...]
    kinds: tuple[int, ...]
    slope: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Which learned response each of the driven values has, among those of its kind."""
        return tuple(min(component, ROWS - 1) for component in self.components)


@dataclass(frozen=True)
class Joints:
    """The joints of one agent: values and rates [W,V], where its servos aim [W,V]."""

    values: Float[Tensor, "W V"]
    rates: Float[Tensor, "W V"]
    aims: Float[Tensor, "W V"]


@dataclass(frozen=True)
class Yield:
    """How joints give way over a substep to an impulse at its start: by how much it changes the mean rates [W,V] and,
    over that, the rates that are left of it at the end [W,V], after the drives worked against it."""

    ease: Float[Tensor, "W V"]
    keeps: Float[Tensor, "W V"]


class Actuation(nn.Module):
    """Learned response of joints to commands; one row of numbers for each component of each kind.

    Told a velocity, a joint's rate nears `gain` times it with the time constant exp(`lag`) seconds and changes by at
    most exp(`thrust`) per second, as a motor does that is driven in proportion to its error. Told a place, an aim moves
    there at no more than exp(`pace`) and no farther ahead of the joint than exp(`lead`) (both in parts of the range,
    per second), and the joint follows it as a servo does, with its own frequency exp(`swing`) rad/s and damping
    exp(`damp`). A joint resists contact with the inertia exp(`heft`).
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        shape = (len(KINDS), ROWS)
        self.gain = nn.Parameter(0.3 + 0.05 * torch.randn(shape, generator=generator))
        self.lag = nn.Parameter(-2.0 + 0.05 * torch.randn(shape, generator=generator))
        self.thrust = nn.Parameter(torch.full(shape, 2.0))
        self.swing = nn.Parameter(2.0 + 0.05 * torch.randn(shape, generator=generator))
        self.damp = nn.Parameter(torch.zeros(shape))
        self.pace = nn.Parameter(torch.zeros(shape))
        self.lead = nn.Parameter(torch.zeros(shape))
        self.heft = nn.Parameter(1.0 + 0.1 * torch.randn(shape, generator=generator))
        self.fade = coefficient(0.5, 0.05, generator)

    def forward(
        self, scene: Scene, motion: Motion, actions: Mapping[str, Tensor], drives: Mapping[str, Drive], used: bool
    ) -> tuple[Motion, Tensor]:
        """The motion with agents' links where this step takes them when they meet nothing, and the mean twists
        [W,L,6] on the way.

        Objects are untouched; link 0 and agents without a drive stand still.
        """
        held = torch.where(scene.free[:, None], motion.twists, torch.zeros_like(motion.twists))
        memory, moved = dict(motion.memory), {}
        for agent, drive in driven_agents(scene, drives) if used else ():
            told = actions.get(agent.name)
            action = held.new_full((len(scene), len(agent.action)), torch.nan) if told is None else told
            values, memory[agent.name] = self.respond(scene, agent, drive, memory[agent.name], action)
            moved[agent.name] = values
        motion = place_links(scene, replace(motion, twists=held, memory=memory), drives, moved)
        return motion, motion.twists

    def respond(
        self, scene: Scene, agent: Agent, drive: Drive, memory: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Joint values [W,V] after a step in which nothing is met, and the new memory [W,3V]."""
        joints, seconds = self.unpack(drive, memory), scene.dt / PARTS
        servo = self.servo(seconds)
        for _ in range(PARTS):
            joints, _ = self.advance(agent, drive, joints, action, seconds, servo)
        return joints.values, self.pack(drive, joints)

    def servo(self, seconds: float) -> Float[Tensor, "K R 2 2"]:
        """What `seconds` make of a servo's error and its rate: the transition of x'' = -w^2 x - 2 d w x'."""
        swing, damp = self.swing.clamp(-2.0, 7.0).exp(), self.damp.clamp(-3.0, 3.0).exp()
        zero, one = torch.zeros_like(swing), torch.ones_like(swing)
        rates = torch.stack([zero, one, -(swing**2), -2.0 * damp * swing], dim=-1).unflatten(-1, (2, 2))
        return torch.linalg.matrix_exp(rates * seconds)

    def advance(
        self, agent: Agent, drive: Drive, joints: Joints, action: Tensor, seconds: float, servo: Tensor
    ) -> tuple[Joints, Yield]:
        """The joints after `seconds` in which nothing is met, and how they would give way to an impulse meanwhile;
        `servo` is the transition of that time."""
        values, rates, aims = joints.values, joints.rates, joints.aims
        low, high = (action.new_tensor(limit) for limit in (agent.action.low, agent.action.high))
        clamped = torch.minimum(torch.maximum(action, low), high)[:, list(drive.components)]
        kind, row, slot, slope, offset = _tables(drive, values)
        told = clamped * slope + offset
        known = torch.isfinite(told)
        told = torch.where(known, told, torch.zeros_like(told))
        value, rate, aim = values[:, slot], rates[:, slot], aims[:, slot]
        span = (high - low)[list(drive.components)] * slope.abs()

        lag = clamp_through(self.lag, -8.0, 3.0).exp()[kind, row]
        most = clamp_through(self.thrust, -5.0, 12.0).exp()[kind, row]
        wanted = clamp_through(self.gain, 0.0, 2.0)[kind, row] * told
        way, fast, part = _approach(rate, wanted, lag, most, seconds)
        kept = (-(1.0 - part) * seconds / lag).exp()
        gives = part + (1.0 - part) * lag / seconds * (1.0 - (-seconds / lag).exp())

        pace, lead = (p.clamp(-8.0, 8.0).exp()[kind, row] * span for p in (self.pace, self.lead))
        aimed = aim + torch.minimum(torch.maximum(told - aim, -pace * seconds), pace * seconds)
        aimed = torch.minimum(torch.maximum(aimed, value - lead), value + lead)
        ramp, turn = (aimed - aim) / seconds, servo[kind, row]
        behind = -self.trail()[kind, row] * ramp
        error, change = value - aim - behind, rate - ramp
        follow = aimed + behind + turn[:, 0, 0] * error + turn[:, 0, 1] * change - value
        paced = ramp + turn[:, 1, 0] * error + turn[:, 1, 1] * change

        steers = kind == KINDS.index("velocity")
        faded = clamp_through(self.fade, 1e-3, 1.0) ** (seconds / FADE) * rate
        way = torch.where(known, torch.where(steers, way, follow), faded * seconds)
        rate = torch.where(known, torch.where(steers, fast, paced), faded)
        aim = torch.where(known & ~steers, aimed, value + way)
        gives = torch.where(steers, gives, turn[:, 0, 1] / seconds).clamp_min(1e-3)
        kept = torch.where(steers, kept, turn[:, 1, 1]) / gives
        gives = gives * (-self.heft.clamp(-8, 10))[kind, row].exp()
        blank = torch.zeros_like(values)
        after = Joints(values.index_add(1, slot, way), rates.index_copy(1, slot, rate), aims.index_copy(1, slot, aim))
        ease, keeps = (blank.index_copy(1, slot, part.expand_as(value)) for part in (gives, kept))
        return self.limit(drive, after), Yield(ease, keeps)

    def recall(
        self, agent: Agent, drive: Drive, values: Float[Tensor, "B K V"], told: Float[Tensor, "B K-1 A"], seconds: float
    ) -> Float[Tensor, "B S"]:
        """The memory at the last of K frames `seconds` apart, of which joint values are known, and actions before the
        last: where servos aim by then. A gripper that holds something aims far within it."""
        rates = (1.5 * (values[:, -1] - values[:, -2]) - 0.5 * (values[:, -2] - values[:, -3])) / seconds
        low, high = (told.new_tensor(limit) for limit in (agent.action.low, agent.action.high))
        kind, row, slot, slope, offset = _tables(drive, values)
        part = list(drive.components)
        wanted = torch.minimum(torch.maximum(told, low), high)[..., part] * slope + offset
        span = (high - low)[part] * slope.abs()
        pace, lead = (p.clamp(-8.0, 8.0).exp()[kind, row] * span for p in (self.pace, self.lead))
        reached, trail = values[..., slot], self.trail()[kind, row]
        ways = reached.diff(dim=1)
        pasts = torch.cat([1.5 * ways[:, :1] - 0.5 * ways[:, 1:2], 0.5 * (ways[:, :-1] + ways[:, 1:])], dim=1) / seconds
        pasts = torch.cat([pasts, rates[:, None, slot]], dim=1)
        usual = reached + trail * torch.where(kind == KINDS.index("velocity"), 0.0, pasts)  # as the motion tells
        aims = usual[:, 0]
        for frame in range(1, reached.shape[1]):
            ramp = (wanted[:, frame - 1] - aims).clamp(-pace * seconds, pace * seconds)
            aims = torch.minimum(torch.maximum(aims + ramp, reached[:, frame] - lead), reached[:, frame] + lead)
            moves = (ways[:, frame - 1] / torch.where(ramp.abs() > 0.01 * pace * seconds, ramp, torch.inf)).clamp(0, 1)
            aims = torch.lerp(aims, usual[:, frame], moves)  # what moves with its aim tells where that is
            aims = torch.where(torch.isfinite(aims), aims, usual[:, frame])
        aims = torch.where(kind == KINDS.index("velocity"), usual[:, -1], aims)
        return self.pack(drive, Joints(values[:, -1], rates, values[:, -1].index_copy(1, slot, aims)))

    def linkage(
        self, scene: Scene, drives: Mapping[str, Drive], joints: Mapping[str, Joints], gives: Mapping[str, Yield]
    ) -> Linkage:
        """How all agents' joints move their links where these are now."""
        reach, ease, keeps, group = [], [], [], torch.arange(scene.solid.shape[1], device=scene.solid.device)
        for agent, drive in driven_agents(scene, drives):
            values = joints[agent.name].values
            names = [drive.skeleton.links[body].name for body in drive.bodies]
            links = torch.tensor(drive.links, device=values.device)
            part = jacobian(drive.skeleton, values, names, drive.base.to(values))
            blank = part.new_zeros(len(values), len(group), *part.shape[2:])
            reach.append(blank.index_copy(1, links, part))
            ease.append(gives[agent.name].ease)
            keeps.append(gives[agent.name].keeps)
            group[links] = drive.links[0]
        start = torch.arange(len(scene), device=group.device)[:, None] * len(group)
        whole = [torch.cat(parts, dim=-1) for parts in (reach, ease, keeps)]
        return Linkage(whole[0].flatten(0, 1), whole[1], whole[2], (start + group).flatten())

    def limit(self, drive: Drive, joints: Joints) -> Joints:
        """The joints within their limits, at rest where they stand at one."""
        inside = clamp_values(drive.skeleton, joints.values)
        return Joints(inside, torch.where(inside == joints.values, joints.rates, torch.zeros_like(inside)), joints.aims)

    def unpack(self, drive: Drive, memory: Float[Tensor, "W S"]) -> Joints:
        """An agent's joints out of its memory."""
        values, rates, spare = memory.chunk(3, dim=-1)
        return Joints(values, rates, values + self._behind(drive, rates) + spare)

    def pack(self, drive: Drive, joints: Joints) -> Float[Tensor, "W S"]:
        """An agent's memory of its joints."""
        spare = joints.aims - joints.values - self._behind(drive, joints.rates)
        return torch.cat([joints.values, joints.rates, spare], dim=-1)

    def _behind(self, drive: Drive, rates: Tensor) -> Tensor:
        """How far joints that move evenly at `rates` are behind where they aim."""
        kind, row, slot, _, _ = _tables(drive, rates)
        lag = torch.where(kind == KINDS.index("velocity"), torch.zeros_like(rates[0, slot]), self.trail()[kind, row])
        return torch.zeros_like(rates).index_copy(1, slot, lag * rates[:, slot])

    def trail(self) -> Tensor:
        """Seconds by which servos are behind an aim that moves evenly."""
        return 2.0 * (self.damp.clamp(-3.0, 3.0) - self.swing.clamp(-2.0, 7.0)).exp()


def actuation_of(model: object) -> Actuation | None:
    """How whatever predicts motion lets actions drive joints; None where it does not."""
    found = getattr(model, "actuation", None)
    return found if isinstance(found, Actuation) else None


def driven_agents(scene: Scene, drives: Mapping[str, Drive]) -> list[tuple[Agent, Drive]]:
    """The agents of a scene whose actions drive joints."""
    return [(agent, drives[agent.name]) for agent in scene.agents if agent.name in drives]


def chain_poses(drive: Drive, values: Float[Tensor, "W V"]) -> Float[Tensor, "W n 4 4"]:
    """Where an agent's links are for joint values."""
    return forward_kinematics(drive.skeleton, values, drive.base.to(values))[..., list(drive.bodies), :, :]


def place_links(scene: Scene, motion: Motion, drives: Mapping[str, Drive], values: Mapping[str, Tensor]) -> Motion:
    """The motion with agents' links where their joints put them, and the mean twists of a step that took them there."""
    poses, twists = motion.world_from_link, motion.twists
    for name, reached in values.items():
        links = torch.tensor(drives[name].links, device=poses.device)
        chain = chain_poses(drives[name], reached)
        twists = twists.index_copy(1, links, twists_between(motion.world_from_link[:, links], chain, scene.dt))
        poses = poses.index_copy(1, links, chain)
    return replace(motion, world_from_link=poses, twists=twists)


def centred(scene: Scene, linkage: Linkage, turn: Float[Tensor, "N 3 3"]) -> Linkage:
    """The linkage about centres of mass, of one about the links' origins."""
    arm = (turn @ shape_values(scene, "center").flatten(0, 1)[..., None])[..., 0]
    arm = arm * scene.present.flatten()[:, None]
    moving, turning = linkage.reach.split(3, dim=1)
    moving = moving + torch.linalg.cross(turning, arm[:, :, None].expand_as(turning), dim=1)
    return replace(linkage, reach=torch.cat([moving, turning], dim=1))


def full_memory(values: Float[Tensor, "W V"], rates: Float[Tensor, "W V"] | None = None) -> Float[Tensor, "W S"]:
    """The memory of an agent whose joints have these values and rates (none: at rest), aiming as its motion tells."""
    zero = torch.zeros_like(values)
    return torch.cat([values, zero if rates is None else rates, zero], dim=-1)


def rest_memory(drive: Drive, worlds: int) -> Tensor:
    """The memory of an agent at rest."""
    return full_memory(rest_values(drive.skeleton).expand(worlds, -1))


def joint_values(memory: Float[Tensor, "W S"]) -> Float[Tensor, "W V"]:
    """The joint values in an agent's memory."""
    return memory.chunk(3, dim=-1)[0]


def _tables(drive: Drive, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Kind, row, value, slope and offset of each driven value."""

    def whole(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=like.device)

    slope, offset = like.new_tensor(drive.slope), like.new_tensor(drive.offset)
    return whole(drive.kinds), whole(drive.rows), whole(drive.values), slope, offset


def _approach(
    rate: Tensor, aim: Tensor, lag: Tensor, most: Tensor, seconds: float
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The way gone in `seconds`, the rate at their end, and the part of them in which the drive gives all it has: the
    error shrinks evenly while it asks for more than there is, exponentially afterwards."""
    error = aim - rate
    evenly = ((error.abs() - most * lag) / most).clamp(0.0, seconds)
    later = error - error.sign() * most * evenly
    left = (-(seconds - evenly) / lag).exp()
    lost = 0.5 * (error + later) * evenly + later * lag * (1.0 - left)
    return aim * seconds - lost, aim - later * left, evenly / seconds
