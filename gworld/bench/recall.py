"""Looking away and back: how far what was seen first is there again, and still looks like the true scene."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.recorded import FPS, film_rows, open_recorded, reconstruct_recorded, shipped_stepper
from gworld.bench.rows import Row, at_least, at_most
from gworld.data.simulated import simulate_episode
from gworld.geometry import matrix_from_quat, quat_from_rotvec, transform_from_pose
from gworld.render.metrics import psnr
from gworld.scene.cameras import Cameras
from gworld.scene.world import World, WorldState
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.observe import Observer
from gworld.simulate.stepper import Kinematics, Stepper

AWAY, BACK = 600, 100
"""Steps in which the camera turns away, and in which it comes back."""
SEED = 8000
CEILING = 99.0
"""dB shown for pictures that are equal."""


def rows(given: BenchInput) -> Iterator[Row]:
    """PSNR of the view after the loop against the first view and against the truth; with and without dynamics."""
    away, back = (30, 10) if given.quick else (AWAY, BACK)
    with tempfile.TemporaryDirectory() as folder:
        recorded = open_recorded("push", Path(folder), width=160 if given.quick else 320)
        world, _ = reconstruct_recorded(recorded, 0.2 if given.quick else 1.0)
        simulation = recorded.simulation
        still = dict.fromkeys(simulation.agents, "null")
        trace, _ = simulate_episode(simulation, still, SEED + given.seed, (away + back + 1) / FPS)
        truth = film_rows(simulation, trace, [0, away + back], [0])[:, 0]
        poses = transform_from_pose(torch.from_numpy(trace.link_poses[0]).float())
        start = WorldState(poses, torch.zeros(len(poses), 6), torch.zeros(0, len(poses), 7))
        for stepper in (Kinematics(world), shipped_stepper("push", world)):
            name = "kinematics" if isinstance(stepper, Kinematics) else "learned dynamics"
            first, last, moved, unseen = loop(world, stepper, start, away, back)
            same = float(psnr(last, first))
            value = CEILING if same == float("inf") else same
            loops = f"{name}, after {away} + {back} steps, against its own first view"
            yield at_least(loops, value, "dB", CEILING, None, "99: equal bit for bit")
            yield at_most(f"{name}, numbers of the first view that differ", int((last != first).sum()), "", 0)
            yield at_least(f"{name}, against the true scene then", float(psnr(last, truth[1])), "dB", 30.0,
                           float(psnr(first, truth[0])), "baseline: the first view against the truth")  # fmt: skip
            yield at_most(f"{name}, farthest that a thing moved meanwhile", 1e3 * moved, "mm", 0.1)
            yield Row(f"{name}, of the first view in sight at the turning point", 100 * unseen, "%")
        simulation.close()


def loop(
    world: World, stepper: Stepper, start: WorldState, away: int, back: int
) -> tuple[Tensor, Tensor, float, float]:
    """First and last view [H,V,3], how far links moved (m), and how much of the first view the farthest one shares."""
    assert world.cameras is not None
    camera = replace(world.cameras[0], names=(), links=())

    def turned(time: float) -> Cameras:
        step = time * FPS
        share = min(step / away, max(0.0, (away + back - step) / back))
        angle = torch.tensor([0.0, torch.pi * round(share, 9), 0.0])
        pose = camera.world_from_camera.clone()
        pose[0, :3, :3] = pose[0, :3, :3] @ matrix_from_quat(quat_from_rotvec(angle)) if share > 0 else pose[0, :3, :3]
        return replace(camera, world_from_camera=pose)

    engine, look = Engine(world, stepper, EngineOptions(1 / FPS)), Observer(world, turned)
    engine.reset(0, start)
    held = engine.hold()
    first = last = farthest = look(engine.motion).rgb
    places = engine.motion.world_from_link[..., :3, 3]
    for step in range(1, away + back + 1):
        engine.step(held)
        if step in (away // 2, away, away + back):
            last = look(replace(engine.motion, time=step / FPS)).rgb
            farthest = last if step == away else farthest
    assert first is not None and last is not None and farthest is not None
    moved = float((engine.motion.world_from_link[..., :3, 3] - places).norm(dim=-1).max())
    alike = ((farthest - first).abs().amax(-1) < 0.02).float().mean()
    return first[0, 0].clamp(0, 1), last[0, 0].clamp(0, 1), moved, float(alike)
