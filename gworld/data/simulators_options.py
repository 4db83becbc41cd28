"""What a simulated scene can be told. Read before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from gworld.errors import UsageError


@dataclass(frozen=True)
class SceneOptions:
    """What a scene holds and how it is watched."""

    agents: int = 2
    """How many agents act, 1 to 6."""
    objects: int = 3
    """How many loose objects there are, 0 to 8."""
    fps: float = 20.0
    """Actions, states and frames per second."""
    cameras: int = 3
    """Fixed cameras around the scene."""
    ego: bool = False
    """One more camera on each agent (a wrist, a windscreen) where the scene has a place for it."""
    width: int = 320
    """Width of the pictures in pixels."""
    height: int = 240
    """Height of the pictures in pixels."""
    layout: int = 0
    """Draws sizes, colours and patterns; 0 is the plain scene."""
    vary: float = 0.0
    """Masses and frictions of the objects change from episode to episode by up to this factor's power of e."""

    def __post_init__(self) -> None:
        """Refuse what no scene can hold."""
        limits = {"agents": (1, 6), "objects": (0, 8), "cameras": (0, 64), "fps": (1, 200), "vary": (0, 3)}
        limits |= {"width": (16, 4096), "height": (16, 4096)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} {getattr(self, name)} was asked for; {low} to {high} is possible.")
