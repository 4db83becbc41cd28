"""Appearance must change no motion: objects recoloured, retextured, relit; and reshaped at equal mass and inertia."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import Row, at_least, at_most
from gworld.bench.speed import told_law
from gworld.data.laws import DT, draw_trials, law_poses, law_world
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.rollout import predict_poses
from gworld.dynamics.state import motion_from_poses
from gworld.dynamics.tokens import compile_scene
from gworld.scene.world import World

STEPS = 29


def rows(given: BenchInput) -> Iterator[Row]:
    """Largest change of any pose over several collisions, of a network with all its operators at work."""
    films = 2 if given.quick else 12
    for name, model in (("untrained", Dynamics(NetworkConfig(seed=given.seed))), ("trained", told_law(Dynamics()))):
        worst = dict.fromkeys(("recoloured", "retextured", "relit"), 0.0)
        for trial in draw_trials("collision", films, given.seed):
            world, context = law_world(trial), law_poses(trial)[None, :3]
            plain = moved(model, world, context)
            for kind in worst:
                change = (moved(model, edited(world, kind, given.seed), context) - plain).abs().max()
                worst[kind] = max(worst[kind], float(change))
        for kind, value in worst.items():
            yield at_most(f"{kind}, change of motion, {name} network", value, "units", 0.0)
    yield from reshape_rows(films, given.seed)


def moved(model: Dynamics, world: World, context: Tensor) -> Tensor:
    """Poses [T,L,4,4] that the network predicts in a world."""
    with torch.no_grad():
        return predict_poses(model, compile_scene([world], DT), motion_from_poses(context, DT), {}, STEPS)[0]


def edited(world: World, kind: str, seed: int) -> World:
    """The world with other colours, a random texture, or light that depends on the direction."""
    sh = world.gaussians.sh
    generator = torch.Generator().manual_seed(seed)
    if kind == "recoloured":
        sh = sh.flip(-1)
    elif kind == "retextured":
        sh = torch.randn(sh.shape, generator=generator)
    else:
        sh = torch.cat([0.5 * sh[:, :1], 0.3 * torch.randn(len(sh), 3, 3, generator=generator)], dim=1)
    return replace(world, gaussians=replace(world.gaussians, sh=sh))


def reshape_rows(films: int, seed: int) -> Iterator[Row]:
    """A ball a tenth larger, its mass and inertia left: nothing changes before the first contact, something after."""
    model = told_law(Dynamics())
    before, after = 0.0, 0.0
    for trial in draw_trials("collision", films, seed):
        context = law_poses(trial)[None, :3]
        scene = compile_scene([law_world(trial)], DT)
        solids = scene.solids
        wider = replace(scene, solids=replace(solids, radius=1.1 * solids.radius, bound=1.1 * solids.bound))
        start = motion_from_poses(context, DT)
        with torch.no_grad():
            change = predict_poses(model, wider, start, {}, STEPS) - predict_poses(model, scene, start, {}, STEPS)
        wide = float(trial.radii.sum()) * 1.1
        gaps = torch.from_numpy(trial.centers[3:, 0] - trial.centers[3:, 1]).norm(dim=-1) - wide
        free = int((gaps > 0).long().cumprod(0).sum())
        before = max(before, float(change[0, :free].abs().max()) if free else 0.0)
        after = max(after, float(change.abs().max()))
    yield at_most("reshaped at equal mass, change before the first contact", before, "units", 0.0)
    yield at_least("reshaped at equal mass, largest change after it", after, "units", 0.01)
