"""What a fit can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gworld.reconstruct.appearance import AppearanceOptions

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
