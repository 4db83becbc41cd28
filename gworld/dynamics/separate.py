"""What overlaps is moved apart, the lighter body farther, so that the common centre of mass stays."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.contact import Overlaps
from gworld.dynamics.impulses import Matter, gives_along
from gworld.dynamics.linkage import Linkage, ease_at, point_reach
from gworld.dynamics.support import Grounded, keep_flat
from gworld.dynamics.tokens import Scene

SLACK = 1e-4
"""Overlap, as part of the scale, that is let be."""

STEEP = 0.2
"""Part of its ease in any direction that a chain has at least when it is moved out of an overlap."""


def separate(
    scene: Scene, place: Float[Tensor, "N 3"], overlaps: Overlaps, matter: Matter, grounded: Grounded | None
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "W V"] | None]:
    """Places with overlaps removed (of a body with several, in part), and by how much agents' joints gave way;
    velocities stay as they are."""
    slack = SLACK * scene.scale[overlaps.a // scene.solid.shape[1]]
    rows = (overlaps.depth > slack).nonzero()[:, 0]
    if len(rows) == 0:
        return place, None
    a, b = overlaps.a[rows], overlaps.b[rows]
    weight_a, weight_b = (gives_along(matter, each, overlaps.normal[rows]) for each in (a, b))
    link = matter.linkage
    if link is not None:
        along_a, gives_a = _give(link, a, overlaps.arm_a[rows], overlaps.normal[rows])
        along_b, gives_b = _give(link, b, overlaps.arm_b[rows], overlaps.normal[rows])
        weight_a, weight_b = weight_a + gives_a, weight_b + gives_b
    ones = torch.ones_like(weight_a)
    group = torch.arange(len(place), device=place.device) if link is None else link.group
    count = torch.zeros_like(matter.inverse_mass).index_add(0, group[a], ones).index_add(0, group[b], ones)
    count_a, count_b = count[group[a]], count[group[b]]
    most = torch.maximum(torch.where(weight_a > 0, count_a, ones), torch.where(weight_b > 0, count_b, ones))
    weight = weight_a + weight_b
    step = (overlaps.depth[rows] - 0.5 * slack[rows]) / weight.clamp_min(1e-12) / most
    step = torch.where(weight > 0, step, 0.0)  # what gives way along no normal stays where it is
    push = (step[:, None] * overlaps.normal[rows]).detach()
    apart = torch.zeros_like(place).index_add(0, a, push * matter.inverse_mass[a, None])
    place = place + keep_flat(grounded, apart.index_add(0, b, -push * matter.inverse_mass[b, None]))
    if link is None:
        return place, None
    worlds = a // (len(place) // len(link.ease))
    felt = (along_a - along_b) * step[:, None].detach()
    return place, (torch.zeros_like(link.ease).index_add(0, worlds, felt) * link.ease).detach()


def _give(link: Linkage, rows: Tensor, arm: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """How far points of driven links move along the normals per unit of each joint value, and how easily they do: at
    least `STEEP` of what they would across them, lest a chain that is pushed askew leaps away."""
    reach, ease = point_reach(link, rows, arm), ease_at(link, rows)
    along = (reach * normal[:, :, None]).sum(1)
    whole = (reach.square().sum(1) * ease).sum(-1)
    return along, torch.maximum((along.square() * ease).sum(-1), STEEP * whole)
