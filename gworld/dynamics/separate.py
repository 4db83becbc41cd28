"""What overlaps is moved apart, the lighter body farther, so that the common centre of mass stays."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.contact import Overlaps
from gworld.dynamics.impulses import Matter
from gworld.dynamics.support import Grounded, keep_flat
from gworld.dynamics.tokens import Scene

SLACK = 1e-4
"""Overlap, as part of the scale, that is let be."""


def separate(
    scene: Scene, place: Float[Tensor, "N 3"], overlaps: Overlaps, matter: Matter, grounded: Grounded | None
) -> Float[Tensor, "N 3"]:
    """Places with overlaps removed (of a body with several, in part); velocities stay as they are."""
    slack = SLACK * scene.scale[overlaps.a // scene.solid.shape[1]]
    rows = (overlaps.depth > slack).nonzero()[:, 0]
    if len(rows) == 0:
        return place
    a, b = overlaps.a[rows], overlaps.b[rows]
    weight_a, weight_b = matter.inverse_mass[a], matter.inverse_mass[b]
    ones = torch.ones_like(weight_a)
    count = torch.zeros_like(matter.inverse_mass).index_add(0, a, ones).index_add(0, b, ones)
    most = torch.maximum(torch.where(weight_a > 0, count[a], ones), torch.where(weight_b > 0, count[b], ones))
    step = (overlaps.depth[rows] - 0.5 * slack[rows]) / (weight_a + weight_b).clamp_min(1e-12) / most
    push = (step[:, None] * overlaps.normal[rows]).detach()
    apart = torch.zeros_like(place).index_add(0, a, push * weight_a[:, None])
    return place + keep_flat(grounded, apart.index_add(0, b, -push * weight_b[:, None]))
