"""What skinning and the search for moving bodies can be told. Read before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SkinOptions:
    """How a surface is covered."""

    per_square_metre: float = 60_000.0
    """Gaussians per square metre of surface (60,000 puts them 4 mm apart)."""
    thickness: float = 0.06
    """Standard deviation along the normal over the spacing."""
    inset: float = 0.3
    """How far discs lie below the surface, over the spacing: it makes up for their blur, so that outlines fit."""
    opacity: float = 0.97
    """Opacity of each Gaussian."""
    headlight: float = 0.3
    """Share of the brightness that falls with the angle between view and normal (0: flat colours)."""
    maximum: int = 3_000_000
    """Refuse to make more Gaussians than this."""
    seed: int = 0
    """Seed of the spread; the same seed gives the same Gaussians."""


@dataclass(frozen=True)
class MotionOptions:
    """What counts as moving, and as moving together."""

    noise: float = 0.0
    """Metres by which tracked points scatter (one standard deviation); 0 estimates it from their jitter."""
    least_travel: float = 0.01
    """Metres that a point must travel to count as moving."""
    least_points: int = 12
    """A body has at least so many points."""
    most_bodies: int = 16
    """Look for at most so many bodies."""
    trials: int = 400
    """Motions that are suggested per body."""
    seed: int = 0
    """Seed of the suggestions."""
