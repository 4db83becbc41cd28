"""What finding masks and poses can be told. Read before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gworld.capture.matching import MatchOptions


@dataclass(frozen=True)
class MaskOptions:
    """What is ignored in the pictures: moving things, and what rides along with the camera."""

    source: str = "auto"
    """Where masks come from: `auto` looks for moving things in cameras that have no masks but those it found before,
    `none` keeps what is there, anything else is a folder of PNGs named after the pictures."""
    keep: Literal["white", "black"] = "white"
    """Which value in given masks is the static scene to use."""
    camera: Literal["auto", "still", "moving"] = "auto"
    """Whether the camera stood still or moved, where masks are looked for."""
    margin: float = 0.012
    """How far found masks are grown, in widths of the picture."""
    side: int = 320
    """Longer side in pixels of the pictures that moving things are looked for in."""


@dataclass(frozen=True)
class SolveOptions:
    """How poses are solved for."""

    refine_known: bool = False
    """Also refine the intrinsics of cameras whose intrinsics are known."""
    threads: int = 2
    """Threads."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True)
class GateOptions:
    """What poses must reach before a world is built on them."""

    registered: float = 0.35
    """Least share of pictures with a pose."""
    pictures: int = 10
    """Least number of pictures with a pose, of footage that has as many."""
    error: float = 2.5
    """Largest mean reprojection error, in pixels of a picture 640 pixels wide."""
    track: float = 2.8
    """Least mean number of pictures that see a point."""
    parallax: float = 2.5
    """Least median angle in degrees under which points are seen."""
    points: int = 100
    """Least number of points."""
    field: tuple[float, float] = (12.0, 130.0)
    """Horizontal fields of view in degrees that are plausible."""
    moving: float = 0.09
    """Largest share of coherent matches that may break the motion found."""


@dataclass(frozen=True)
class PoseOptions:
    """How poses are found and what they must reach."""

    matching: MatchOptions = field(default_factory=MatchOptions)
    solving: SolveOptions = field(default_factory=SolveOptions)
    gate: GateOptions = field(default_factory=GateOptions)
    triangulate: bool = True
    """With known poses: also triangulate points, to start the Gaussians from."""
