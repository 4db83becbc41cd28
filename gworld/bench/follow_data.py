"""Episodes of a simulated scene for the follow bench: states only, their world from the scene's own Gaussians."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gworld.data.simulated import Trace, run_trace, simulate_episode, trace_episode
from gworld.data.simulators import Simulation, SimulatorState, open_scene
from gworld.data.simulators_options import SceneOptions
from gworld.data.simulators_world import scene_world
from gworld.dynamics.actuation import Drive
from gworld.dynamics.drives import world_drives
from gworld.dynamics.recordings import Recordings, gather_recordings
from gworld.dynamics.tokens import Scene, compile_scene
from gworld.scene.world import World

FPS = 20.0
NUDGE = 1e-3
"""By how much (m) the ceiling row's objects are displaced at the start."""


@dataclass(frozen=True)
class Stage:
    """A scene: its simulation, the world that its Gaussians make, what its agents' actions drive, and what the network
    reads of it."""

    simulation: Simulation
    world: World
    drives: dict[str, Drive]
    scene: Scene


def open_stage(name: str, agents: int, objects: int, folder: Path) -> Stage:
    """Open a scene and read its world; robot models are written below `folder`."""
    simulation = open_scene(name, SceneOptions(agents=agents, objects=objects, fps=FPS, cameras=1))
    simulation.reset(0)
    world = scene_world(simulation, folder=folder)
    return Stage(simulation, world, world_drives(world), compile_scene([world], 1.0 / FPS))


def act(stage: Stage, behaviour: str, seeds: Sequence[int], seconds: float) -> list[Trace]:
    """What happens when all agents behave so, one trace per seed."""
    policy = dict.fromkeys(stage.simulation.agents, behaviour)
    return [simulate_episode(stage.simulation, policy, seed, seconds)[0] for seed in seeds]


def stage_recordings(stage: Stage, traces: Sequence[Trace]) -> Recordings:
    """Traces as the network reads them."""
    episodes = [trace_episode(stage.simulation, trace, {}) for trace in traces]
    return gather_recordings([stage.world], episodes, stage.drives, stage.scene)


def nudged(
    stage: Stage, trace: Trace, start: int, steps: int, seed: int, actions: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Poses [steps,L,7] of the true simulator under the same actions (or others [steps,A]), its objects displaced by a
    millimetre at the start."""
    simulation = stage.simulation
    simulation.reset(trace.seed)
    qpos = trace.qpos[start].copy()
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(simulation.objects))
    first = len(qpos) - 7 * len(simulation.objects)
    for index, turn in enumerate(angle):
        qpos[first + 7 * index : first + 7 * index + 2] += NUDGE * np.array([np.cos(turn), np.sin(turn)])
    warm = np.zeros(simulation.model.nv)
    simulation.restore(SimulatorState(qpos, trace.qvel[start], trace.ctrl[start], float(trace.times[start]), warm))
    told = {name: rows[start : start + steps + 1] for name, rows in trace.actions.items()}
    if actions is not None:  # the last is not felt any more
        told = {name: torch.cat([rows, rows[-1:]]).double().numpy() for name, rows in actions.items()}
    tables = {name: iter(rows) for name, rows in told.items()}
    sources = {name: (lambda rows=rows: next(rows)) for name, rows in tables.items()}
    again = run_trace(simulation, sources, steps + 1)
    return torch.from_numpy(again.link_poses[1:]).float()
