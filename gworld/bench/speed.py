"""Speed of the dynamics: milliseconds per step for ten objects, whether it stays so, what a long run does, sizes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.phys_models import law_recordings
from gworld.bench.rows import Row, at_most
from gworld.data.laws import Trial, draw_trials
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.recordings import cut_batch
from gworld.dynamics.state import Motion
from gworld.dynamics.tokens import Scene


def rows(given: BenchInput) -> Iterator[Row]:
    """Rows of one world with ten balls between walls, then of twenty worlds at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small tensors gain nothing from a second one
    try:
        yield from step_rows(200 if given.quick else 10_000, given.seed)
        yield from batch_rows(100 if given.quick else 2_000, given.seed)
    finally:
        torch.set_num_threads(threads)


def step_rows(steps: int, seed: int) -> Iterator[Row]:
    """Ten objects: the median step early and late, and whether everything stays finite and inside."""
    model, scene, motion = crowd(10, 1, seed)
    times, states = [], []
    used = time.process_time()
    with torch.no_grad():
        for _ in range(steps):
            start = time.perf_counter()
            motion = model.step(scene, motion)
            times.append(1e3 * (time.perf_counter() - start))
            states.append(motion)
    used = 1e3 * (time.process_time() - used) / steps
    window = min(100, steps // 2)
    early, late = statistics.median(times[10 : 10 + window]), statistics.median(times[-window:])
    yield at_most("ten objects, one step", statistics.median(times), "ms", 5.0)
    yield Row(
        "ten objects, one step, mean processor time", used, "ms", note="what a machine with other work shows truly"
    )
    yield Row("ten objects, one step, 90th percentile", statistics.quantiles(times, n=10)[-1], "ms")
    yield at_most(f"steps near {steps} over steps near 10", late / early, "x", 1.2)
    bad = sum(not bool(torch.isfinite(state.world_from_link).all()) for state in states)
    yield at_most(f"non-finite steps of {steps}", bad, "steps", 0)
    first, last = energy_of(model, scene, states[0]), energy_of(model, scene, states[-1])
    yield at_most(f"energy after {steps} steps over energy at the start", last / first, "x", 1.001)
    size = sum(p.numel() for p in model.parameters())
    yield Row("parameters", size, "", note=f"{4 * size} bytes")


def batch_rows(steps: int, seed: int) -> Iterator[Row]:
    """Twenty worlds as one batch."""
    model, scene, motion = crowd(10, 20, seed)
    bad, start = 0, time.perf_counter()
    with torch.no_grad():
        for _ in range(steps):
            motion = model.step(scene, motion)
            bad += not bool(torch.isfinite(motion.world_from_link).all())
    seconds = time.perf_counter() - start
    yield Row("twenty worlds of ten objects, one step of all", 1e3 * seconds / steps, "ms")
    yield at_most(f"non-finite steps of {steps}, twenty worlds", bad, "steps", 0)


def crowd(balls: int, worlds: int, seed: int) -> tuple[Dynamics, Scene, Motion]:
    """Elastic balls of 0.3 to 0.6 between walls 10 apart, and a network that was told their law."""
    data = law_recordings([_small(balls, seed + index) for index in range(worlds)])
    batch = cut_batch(data, torch.stack([torch.arange(worlds), torch.full((worlds,), 2)], dim=1), 1)
    return told_law(Dynamics(NetworkConfig(seed=seed))), batch.scene, batch.start


def told_law(model: Dynamics) -> Dynamics:
    """The network with the numbers that training on the collision law finds, to measure what does not depend on it."""
    with torch.no_grad():
        for name in ("fall", "drag", "spin_drag"):
            getattr(model.free, name).fill_(0.0)
        model.materials.power.fill_(2 / 3)
        model.materials.bounce.fill_(1.0)
        model.materials.grip.fill_(0.0)
        model.materials.skin.fill_(0.0)
        model.residual.gate.fill_(0.0)
        for parameter in model.materials.shape.parameters():
            parameter.zero_()
    return model


def energy_of(model: Dynamics, scene: Scene, motion: Motion) -> float:
    """Kinetic energy of all objects in the network's own masses."""
    with torch.no_grad():
        mass = model.materials(scene, motion.belief).log_mass.exp() * (scene.free & scene.present)
    return float((mass[..., None] * motion.twists[..., :3].square()).sum())


def _small(balls: int, seed: int) -> Trial:
    """Balls on places of a grid, in motion; four frames of it."""
    trial = draw_trials("combo", 1, seed, balls=1)[0]
    rng = torch.Generator().manual_seed(seed)
    line = torch.linspace(-3.6, 3.6, 4)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2)
    places = grid[torch.randperm(16, generator=rng)[:balls]].double()
    speeds = torch.randn(balls, 2, generator=rng).double()
    frames = torch.arange(4, dtype=torch.float64)[:, None, None] * 0.1
    radii = (0.3 + 0.3 * torch.rand(balls, generator=rng)).double().numpy()
    centers = (places + frames * speeds).numpy()
    return replace(trial, centers=centers, velocities=centers * 0, radii=radii, masses=radii**2)
