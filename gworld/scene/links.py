"""Links: rigid frames that own Gaussians. Torch-free, so that file tools can name them."""

from __future__ import annotations

from dataclasses import dataclass

IDENTITY_POSE = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Link:
    """A rigid frame: its name, its rest pose `x y z qw qx qy qz` (world_from_link, metres) and its parent's index.

    Link 0 is the static world itself, at the identity; -1 means no parent.
    """

    name: str
    pose: tuple[float, ...] = IDENTITY_POSE
    parent: int = -1
