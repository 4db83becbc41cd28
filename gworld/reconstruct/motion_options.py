"""What motion tracking can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gworld.reconstruct.motion_rig import RigOptions


@dataclass(frozen=True)
class TrackOptions:
    """How poses and joints are followed through calibrated video."""

    objects: Literal["free", "planar"] = "free"
    """How objects may move: free in six degrees, or planar (slide on the plane of `rig.plane` and turn about it)."""
    hold: tuple[str, ...] = ()
    """Joints that keep their value at rest: AGENT/JOINT, or JOINT for every agent that has one of that name."""
    fixed: tuple[str, ...] = ()
    """Agents and objects that do not move and keep their pose at rest."""
    refine_cameras: bool = False
    """Bring the cameras to agree on the plane of `rig.plane`, from each one's first picture, before tracking."""
    refine_base: bool = False
    """Refine where the robots' roots stand, from pictures of the whole recording, before tracking."""
    rig: RigOptions = field(default_factory=RigOptions)
    """The static plane, and how far cameras may be off."""
    square: tuple[str, ...] = ()
    """Links that never turn against their robot's root (a tool that is only carried about), at the turn by quarters
    that is nearest to the given start."""
    square_sigma: float = 0.005
    """How far such links are believed to turn all the same (radians)."""
    square_rise: float = 0.0
    """How far such links rise above, or sink below, where they start (metres, along the root's z axis); 0: any way."""
    posture: float = 0.0
    """How far joints are believed to stray from where they start (radians, metres), 0: any way; a few that stray far
    are believed before many that stray a little. What no camera sees of an arm then wanders less: controllers of
    redundant arms hold its posture."""
    base_sigma: float = 0.02
    """How far off a robot's given root is believed to be (metres; radians: the same over half a metre)."""
    joint_sigma: float = 0.0
    """How far off recorded joint values are believed to be (rad, m); 0 takes them as they are."""
    search: float = 1.0
    """Share of its limits over which a joint is searched at the start; 0 believes the given start."""
    reach: float = 0.05
    """How far an object may be from its given start (metres; radians: ten times as many); 0 believes it."""
    stride: int = 1
    """Fit every this many-th instant; those between are interpolated by the smoother."""
    finest: int = 2
    """Pictures are compared at this fraction of their size at the end (1: all pixels)."""
    sharp: bool = False
    """Draw bodies no wider than they are: the renderer widens every Gaussian by half a pixel, which makes small bodies
    too large and so turns them; for dense bodies (spacing of a few pixels at most), as thin ones grow transparent."""
    steps: int = 4
    """Gauss-Newton steps per frame at most."""
    smoothness: float = 1.0
    """How strongly motion is smoothed; 1 believes the accelerations that were measured, 0 does not smooth."""
    jump: float = 1.6
    """Search anew where a frame fits worse than usual by this factor."""
    paint: bool = True
    """Refine the colours of what moves, and the cameras' exposure."""
    seed: int = 0
    """Seed of all searches."""


@dataclass(frozen=True)
class PlaneOptions:
    """How plates are laid on a plane."""

    pitch: float = 1.5
    """Pixels from one Gaussian to the next, of the camera that sees the place finest."""
    far: float = 4.0
    """Nothing is laid farther from a camera than this (metres)."""
    steps: int = 40
    """Steps in which the colours are fitted."""
