"""The order in which bodies are listed must not matter: one step in double precision, links and agents permuted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.phys_models import law_recordings
from gworld.bench.rows import Row, at_most
from gworld.bench.speed import told_law
from gworld.data.laws import draw_trials
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.recordings import cut_batch
from gworld.dynamics.tokens import scene_to


def rows(given: BenchInput) -> Iterator[Row]:
    """Largest change of one step, and of twenty, when objects are listed in another order."""
    worlds = 2 if given.quick else 16
    for name, model in (("untrained", Dynamics(NetworkConfig(seed=given.seed))), ("trained", told_law(Dynamics()))):
        one, twenty = permuted_change(model.double(), worlds, given.seed)
        yield at_most(f"objects permuted, one step, {name} network", one, "units", 1e-6)
        yield Row(f"objects permuted, twenty steps, {name} network", twenty, "units", note="contacts amplify rounding")


def permuted_change(model: Dynamics, worlds: int, seed: int) -> tuple[float, float]:
    """Largest difference of poses after one and after twenty steps among crowded balls."""
    data = law_recordings(draw_trials("combo", worlds, seed, balls=5))
    batch = cut_batch(data, torch.stack([torch.arange(worlds), torch.full((worlds,), 2)], dim=1), 1)
    scene = scene_to(batch.scene, "cpu", torch.float64)
    poses, twists, belief = (getattr(batch.start, n).double() for n in ("world_from_link", "twists", "belief"))
    start = replace(batch.start, world_from_link=poses, twists=twists, belief=belief)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(5, generator=_generator(seed))])
    other = replace(start, world_from_link=poses[:, order], twists=twists[:, order], belief=belief[:, order])
    shuffled = replace(scene, solid=scene.solid[:, order])
    changes = []
    with torch.no_grad():
        for _ in range(20):
            start, other = model.step(scene, start), model.step(shuffled, other)
            changes.append(float((other.world_from_link - start.world_from_link[:, order]).abs().max()))
    return changes[0], changes[-1]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
