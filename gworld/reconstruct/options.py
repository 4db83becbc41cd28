"""What a fit, the world's frame and the search for a robot's base can be told. Read before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Background = Literal["black", "white", "random", "learned"]


@dataclass(frozen=True)
class Rates:
    """Learning rates of the Gaussians' columns (Adam)."""

    means: float = 6.4e-4
    """Positions, as a share of the scene's width per step; falls to `means_end` of it."""
    means_end: float = 0.01
    """What is left of the positions' rate at the end."""
    quats: float = 1e-3
    """Rotations."""
    scales: float = 5e-3
    """Logarithms of scales."""
    opacities: float = 5e-2
    """Logits of opacities."""
    colours: float = 2.5e-3
    """Mean colours; view-dependent colour learns at a twentieth of it."""


@dataclass(frozen=True)
class AppearanceOptions:
    """Which corrections are learned per picture, how fast, and how strongly they are held back."""

    exposure: bool = True
    """Learn a gain and an offset per picture and colour channel (exposure, white balance, black level)."""
    exposure_rate: float = 1e-2
    """Learning rate of exposure; like the other two it falls to a tenth."""
    exposure_weight: float = 1e-2
    """How strongly exposure is drawn to none."""
    poses: bool | None = None
    """Refine camera poses; None: where they were found by structure from motion, not where they were given."""
    pose_rate: float = 3e-5
    """Learning rate of poses: radians, and shares of the scene's width."""
    pose_weight: float = 1e-4
    """How strongly poses are drawn to where they were."""
    distortion_px: float = 0.0
    """Largest shift in pixels of a smooth per-picture distortion; 0 learns none."""
    distortion_rate: float = 1e-2
    """Learning rate of the distortion, in shares of its bound."""


@dataclass(frozen=True)
class FitOptions:
    """How Gaussians are fitted to posed pictures."""

    budget: str = ""
    """Wall time to plan for: 90s, 5m, 1h. Empty: `steps` decide."""
    steps: int = 7000
    """Training steps where no budget is given; each draws one picture."""
    epochs: int = 200
    """With a budget, each picture is fitted at most so often and the run may end early: what is fitted more often is
    learned by heart (0: no bound)."""
    gaussians: int = 0
    """How many Gaussians at most; 0 plans them by budget or steps, and by the number of views."""
    longest: int = 1296
    """Longest side of the pictures that are fitted, in pixels."""
    density: Literal["mcmc", "classic"] = "mcmc"
    """How Gaussians are moved and added: mcmc (fixed budget, no tuning) or classic (clone, split, prune)."""
    sh_degree: int = 3
    """Degree of view-dependent colour, 0 to 3."""
    ssim_weight: float = 0.2
    """Share of SSIM in the loss; the rest is L1."""
    opacity_weight: float = 0.003
    """Regulariser that fades Gaussians no picture needs (mcmc)."""
    scale_weight: float = 0.01
    """Regulariser that shrinks Gaussians, in scene widths (mcmc)."""
    depth_weight: float = 0.1
    """Weight of the measured depth's L1 error, in scene widths, where views have depth."""
    background: Background = "black"
    """What stands behind the Gaussians."""
    antialiased: bool = False
    """Compensate Gaussians below a pixel's size."""
    rates: Rates = field(default_factory=Rates)
    """Learning rates."""
    appearance: AppearanceOptions = field(default_factory=AppearanceOptions)
    """Corrections per picture."""
    refine_every: int = 100
    """Steps between two changes of density."""
    hold_out: int = 8
    """Every this many-th view is set aside to score the fit; 0 fits all views."""
    score_every: int = 10
    """How many times the held-out views are scored on the way."""
    save_every: float = 60.0
    """Seconds between two checkpoints, and between two previews."""
    seed: int = 0
    """Seed of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to fit; auto takes a CUDA device where there is one."""
    backend: str = "auto"
    """Render backend: auto, native-cuda, gsplat, native-cpu, reference."""


@dataclass(frozen=True)
class FrameOptions:
    """How the world is turned upright and brought to metres."""

    up: str = "auto"
    """Which way is up in the poses: auto (from cameras, floors and walls), keep, `+z`, `-y`, or three numbers."""
    scale_from: str = ""
    """A known length, `A@X,Y+B@X,Y to A@X,Y+B@X,Y = 0.42 m`: two points, each marked in pictures A and B by pixels."""
    clock: float = 2.0
    """With a robot's or an IMU's log: its clock may be off by up to so many seconds."""
    hand: float = 0.05
    """With a robot's log: by what share distances between hand positions may be off in a world called metric."""
    imu: float = 0.05
    """With an IMU's log: by what share the scale may be unsure (one standard error) in a world called metric."""


@dataclass(frozen=True)
class LookOptions:
    """How a robot's root is searched for in pictures."""

    reach: float = 0.15
    """Metres by which the root may be off on each axis."""
    turn: float = 0.26
    """Radians by which it may be turned about the vertical."""
    tilt: float = 0.2
    """Radians by which it may be tilted; never more than `turn`."""
    instants: int = 8
    """Instants of the recording, spread over its postures, that are compared."""
    finest: int = 1
    """Pictures are compared at this fraction of their size at the end (1: all pixels)."""
    population: int = 64
    """Guesses of the search."""
    rounds: int = 24
    """Generations of the search."""
    least: float = 0.1
    """Drawing the robot must explain at least this share of how its pixels differ from the scene behind it."""
    density: float = 12_000.0
    """Gaussians per square metre of the robot."""
    seed: int = 0
    """Seed of the search."""
