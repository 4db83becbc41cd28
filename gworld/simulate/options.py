"""What `generate` can be told: where episodes may begin, and what they may do. Read before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from gworld.errors import UsageError


@dataclass(frozen=True)
class StartOptions:
    """How far from where the world has them things begin."""

    objects: float = 1.0
    """How much of the room that there is objects are spread over, 0 to 1; each turns about the vertical too."""
    joints: float = 0.5
    """How much of their range joints are spread over, about where they are, 0 to 1."""
    gap: float = 0.01
    """Metres at least between bodies."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not (0 <= self.objects <= 1 and 0 <= self.joints <= 1 and 0 <= self.gap < 10):
            raise UsageError(f"the start {self} cannot be drawn; parts from 0 to 1 and a gap of 0 or more fit.")


@dataclass(frozen=True)
class Limits:
    """What a rollout may do before it is thrown away."""

    penetration: float = 0.01
    """Metres that bodies may be in each other or below what they stand on, beyond what they are where they rest."""
    speed: float = 5.0
    """The fastest that any link may move, m/s."""
    outside: float = 0.1
    """Metres that bodies may be beyond the box of the scene."""
    untouched: float = 0.02
    """Metres that an object may move without anything coming near it."""
    doubt: float = 0.2
    """Metres by which an object's place may differ between runs from a slightly different start."""

    def __post_init__(self) -> None:
        """Refuse limits that nothing keeps."""
        if not all(value > 0 for value in (self.penetration, self.speed, self.outside, self.untouched, self.doubt)):
            raise UsageError(f"the limits {self} cannot be kept; all are above 0.")
