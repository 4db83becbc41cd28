"""Who did it: one agent's actions exchanged, the other's held. What changes must lie where the one could act."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.follow import Effort, learn_stage
from gworld.bench.follow_data import FPS, Stage, act, stage_recordings
from gworld.bench.rows import Row, at_least
from gworld.dynamics.network import Dynamics
from gworld.dynamics.recordings import cut_batch
from gworld.dynamics.rollout import predict_poses
from gworld.dynamics.tokens import Scene, shape_values

KINDS = ("expert", "random", "extreme", "adversarial")
START = 5
NEAR = 0.01
"""Gap (m) of bounding spheres below which two links are taken to touch, in either of the two futures."""


def rows(given: BenchInput) -> Iterator[Row]:
    """Rows of the scene `push`; simulators need the extra `sim`."""
    effort = Effort(8, 2, 0, 60, 6) if given.quick else Effort(tests=12)
    with tempfile.TemporaryDirectory() as folder:
        stage = open_and_learn(Path(folder), effort, given.seed)
        yield from attrib_rows("push", *stage, effort, given.seed)


def open_and_learn(folder: Path, effort: Effort, seed: int) -> tuple[Stage, Dynamics]:
    """The scene `push` with two agents and a model of it."""
    from gworld.bench.follow_data import open_stage

    stage = open_stage("push", 2, 3, folder)
    return stage, learn_stage(stage, effort, seed)


def attrib_rows(name: str, stage: Stage, model: Dynamics, effort: Effort, seed: int) -> Iterator[Row]:
    """The part of all change that what the exchanged agent owns or reached explains, by kind of behaviour."""
    steps, inside, whole = round(3.0 * FPS), 0.0, 0.0
    for kind in KINDS:
        seeds = range(7000 + seed, 7000 + seed + effort.tests)
        data = stage_recordings(stage, act(stage, kind, seeds, 3.0 + START / FPS + 0.1))
        batch = cut_batch(
            data, torch.tensor([[e, START] for e in range(len(data))]), steps, model.belief, model.actuation
        )
        first = batch.scene.agents[0].name
        swapped = {**batch.actions, first: batch.actions[first].roll(1, 0)}
        with torch.no_grad():
            futures = [
                predict_poses(model, batch.scene, batch.start, told, steps, data.drives)
                for told in (batch.actions, swapped)
            ]
        change = (futures[0] - futures[1])[..., :3, 3].norm(dim=-1)
        allowed = reached(batch.scene, futures[0], 0) | reached(batch.scene, futures[1], 0)
        part, total = float((change * allowed).sum()), float(change.sum())
        inside, whole = inside + part, whole + total
        moved = float((change[:, -1][allowed[:, -1]] > 1e-4).float().mean())
        note = f"{len(data)} pairs; {100 * moved:.0f} % of the links that it may change do"
        yield at_least(f"{name}, {kind}, change explained", 100.0 * part / max(total, 1e-9), "%", 99.0, None, note)
        yield Row(f"{name}, {kind}, largest change not explained", 1e3 * float((change * ~allowed).max()), "mm")
    yield at_least(f"{name}, all kinds, change explained", 100.0 * inside / max(whole, 1e-9), "%", 99.0)


def reached(scene: Scene, poses: Tensor, agent: int) -> Tensor:
    """Links [W,T,L] that the agent owns, has touched by then, or that something it has touched has touched."""
    bound = torch.where(scene.present, shape_values(scene, "bound"), -1e3)
    center = shape_values(scene, "center")
    place = poses[..., :3, 3] + (poses[..., :3, :3] @ center[:, None, ..., None])[..., 0]
    gap = (place[:, :, :, None] - place[:, :, None]).norm(dim=-1) - bound[:, None, :, None] - bound[:, None, None]
    owner = torch.arange(gap.shape[-1])
    for one in scene.agents:
        owner[list(one.links)] = one.links[0]
    same = owner[:, None] == owner[None, :]
    touch = (gap < NEAR) | same
    touch[..., 0, 1:] = touch[..., 1:, 0] = False
    found = torch.zeros(gap.shape[0], gap.shape[-1], dtype=torch.bool)
    found[:, list(scene.agents[agent].links)] = True
    over = []
    for step in range(gap.shape[1]):
        for _ in range(gap.shape[-1]):
            wider = (touch[:, step] & found[:, None]).any(-1) | found
            if bool((wider == found).all()):
                break
            found = wider
        over.append(found)
    return torch.stack(over, dim=1)
