"""Objects that lie on a plane: they stay flat on it and slide with dry friction, learned as a deceleration.

What stands on an edge, rolls, or is pushed so high up that it would rather tip than slide does not lie: contact alone
moves it.
Friction under a flat body opposes its motion as a whole: sliding and turning share one limit, the body's own radius of
gyration being the lever. A push below the limit moves nothing, and what rests stays at rest exactly.
Source: Goyal, Ruina, Papadopoulos, "Planar sliding with dry friction", 1991 (ellipsoidal limit surface).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gworld.dynamics.contact import Bodies, Contacts, Shapes
from gworld.dynamics.impulses import Matter
from gworld.dynamics.layers import clamp_through, coefficient
from gworld.dynamics.tokens import FAR, Scene, shape_values
from gworld.geometry import matrix_from_quat, quat_from_rotvec

NEAR = 0.15
"""Height over a plane, as part of the scale, below which a body lies on it: Gaussians end a little inside a surface."""

FLAT = 0.05
"""Height over its lowest point, as part of the scale, below which a point of a body stands on what carries it."""
BROAD = 0.5
"""How far, of how far a body reaches, what it stands on reaches to every side when it lies."""
TURNS = 0.25
"""Speed (scales per second) of a rim that leaves the plane, above which a body does not lie."""
SIDES = 12


@dataclass(frozen=True)
class Grounded:
    """Bodies [N] that lie on something, its normal [N,3], how high above it they have their centres of mass [N] and how
    far what they stand on reaches to each of `SIDES` sides `side` [N,SIDES,3] from below these [N,SIDES]."""

    lies: Tensor
    up: Tensor
    high: Tensor
    side: Tensor
    reach: Tensor


class Support(nn.Module):
    """Dry friction of flat bodies on what carries them."""

    def __init__(self, length: float, generator: torch.Generator) -> None:
        super().__init__()
        self.length = length
        self.brake = coefficient(0.0, 0.1, generator)  # logarithms, so that any size is a few steps away
        self.lever = coefficient(0.0, 0.05, generator)

    def forward(self, scene: Scene, grounded: Grounded, bodies: Bodies, seconds: float) -> Bodies:
        """Bodies braked over `seconds`, their pushes and motion kept in the plane they lie on.

        They are moved ahead by what they go farther than with the speed they end at: places are exact.
        """
        speed, spin = keep_flat(grounded, bodies.speed), keep_upright(grounded, bodies.spin)
        gyration = shape_values(scene, "inertia").diagonal(dim1=-2, dim2=-1).amax(-1).sqrt().view(-1, 1)
        reach = self.lever.clamp(-5, 5).exp() * gyration
        pace = (speed.square().sum(-1, keepdim=True) + (spin * reach).square().sum(-1, keepdim=True) + 1e-16).sqrt()
        brake = self.slows()
        kept = (1.0 - brake * seconds / pace).clamp_min(0.0)
        ahead = 0.5 * (1.0 + kept) * (pace / brake).clamp_max(seconds) - kept * seconds
        kept = torch.where(grounded.lies[:, None], kept, torch.ones_like(kept))
        ahead = torch.where(grounded.lies[:, None], ahead, torch.zeros_like(ahead))
        turn = matrix_from_quat(quat_from_rotvec(spin * ahead)) @ bodies.turn
        push = keep_flat(grounded, bodies.push)
        return Bodies(bodies.place + speed * ahead, turn, speed * kept, spin * kept, push)

    def slows(self) -> Tensor:
        """What friction takes off the speed of what slides, m/s^2."""
        return self.length * clamp_through(self.brake, -10.0, 10.0).exp()

    def find(self, scene: Scene, shapes: Shapes, bodies: Bodies) -> Grounded:
        """Objects whose lowest point is on a plane that faces up, and that do not rise."""
        worlds, links = scene.solid.shape
        up = -scene.down[:, None].expand(worlds, links, 3).reshape(-1, 3)
        free = (scene.free & scene.present).flatten() & (up.norm(dim=-1) > 0.5)
        floor = (scene.planes[..., :3] * -scene.down[:, None]).sum(-1) > 0.98
        level = torch.where(floor, scene.planes[..., 3], -FAR).amax(dim=-1) if floor.shape[1] else -FAR * scene.scale
        side = _sides(up)
        lowest, reach = -shapes.radius, shapes.radius[:, None].expand(-1, SIDES)
        rough = (free & (shapes.row >= 0)).nonzero()[:, 0]
        size, flat = scene.scale.repeat_interleave(links), torch.ones_like(free)
        if len(rough):
            points = scene.solids.points[shapes.row[rough]] @ bodies.turn[rough].detach().transpose(-1, -2)
            height = (points * up[rough, None]).sum(-1)
            below = height.amin(-1)
            stands = height - below[:, None] < FLAT * size[rough, None]
            across = points @ side[rough].transpose(-1, -2)
            carried = torch.where(stands[..., None], across, -FAR).amax(1)
            lowest, reach = lowest.index_copy(0, rough, below), reach.index_copy(0, rough, carried)
            flat = flat.index_copy(0, rough, (carried > BROAD * across.amax(1)).all(-1))
        height = (bodies.place.detach() * up).sum(-1) + lowest - level.repeat_interleave(links)
        rising = (bodies.speed.detach() * up).sum(-1) > 2.0 * size
        spin = bodies.spin.detach()
        tilts = (spin - (spin * up).sum(-1, keepdim=True) * up).norm(dim=-1) * shapes.bound.clamp_min(0) > TURNS * size
        return Grounded(free & (height < NEAR * size) & ~rising & flat & ~tilts, up, -lowest, side, reach)


def _sides(up: Tensor) -> Tensor:
    """Directions [N,SIDES,3] all around `up` [N,3], evenly."""
    least = torch.nn.functional.one_hot(up.abs().argmin(-1), 3).to(up)
    first = torch.nn.functional.normalize(torch.linalg.cross(up, least), dim=-1)
    second = torch.linalg.cross(up, first)
    angle = torch.arange(SIDES, device=up.device, dtype=up.dtype) * (2.0 * torch.pi / SIDES)
    return angle.cos()[:, None] * first[:, None] + angle.sin()[:, None] * second[:, None]


def lifted(
    grounded: Grounded, contacts: Contacts, impulse: Tensor, fall: Tensor, matter: Matter, brake: Tensor
) -> Grounded:
    """Who still lies under impulses [Q,3] on the contacts: not what they draw up by more than its weight, `fall` [N,3]
    being what that alone would do to a velocity meanwhile, nor what they tip.

    A body tips where the weight it stands with and the friction under it, at most `brake` [N,1] or one (m/s) times its
    mass, could balance what pushes it only from beside what it stands on.
    """
    up, zero = grounded.up, torch.zeros_like(grounded.up)
    along = zero.index_add(0, contacts.a, impulse).index_add(0, contacts.b, -impulse)
    twist = zero.index_add(0, contacts.a, torch.linalg.cross(contacts.arm_a, impulse))
    twist = twist.index_add(0, contacts.b, -torch.linalg.cross(contacts.arm_b, impulse))
    along, twist = along * matter.inverse_mass[:, None], twist * matter.inverse_mass[:, None]
    drawn = (along * up).sum(-1)
    weight = -(fall * up).sum(-1)
    sliding = along - drawn[:, None] * up
    part = (brake / sliding.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1.0)  # more than that makes it slide
    stands = (weight - part[:, 0] * drawn).clamp_min(1e-9)
    turned = part * (twist + grounded.high[:, None] * torch.linalg.cross(up, sliding))
    center = -torch.linalg.cross(up, turned) / stands[:, None]
    beside = ((grounded.side @ center[..., None])[..., 0] > grounded.reach).any(-1) & (weight > 1e-6)
    return replace(grounded, lies=grounded.lies & ~(beside | (drawn > weight.clamp_min(0.0) + 1e-3)).detach())


def keep_flat(grounded: Grounded | None, part: Tensor) -> Tensor:
    """Vectors [N,3] without what leaves the plane that a body lies on."""
    if grounded is None:
        return part
    off = (part * grounded.up).sum(-1, keepdim=True) * grounded.up
    return torch.where(grounded.lies[:, None], part - off, part)


def keep_upright(grounded: Grounded | None, spin: Tensor) -> Tensor:
    """Turning [N,3] about the normal alone, of bodies that lie."""
    if grounded is None:
        return spin
    along = (spin * grounded.up).sum(-1, keepdim=True) * grounded.up
    return torch.where(grounded.lies[:, None], along, spin)
