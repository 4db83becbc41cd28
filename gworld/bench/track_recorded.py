"""Recorded `push` and `arms`, filmed by the simulator's own renderer, tracked from their films alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gworld.agents.binding import load_robot
from gworld.bench.track_scene import Scene
from gworld.data.simulated import simulate_episode
from gworld.data.simulators import open_scene
from gworld.data.simulators_options import SceneOptions
from gworld.data.simulators_world import scene_world
from gworld.geometry import transform_from_pose
from gworld.reconstruct.motion_film import Film

FPS, WIDTH, HEIGHT = 20.0, 640, 480


def film_recorded(name: str, folder: Path, seconds: float, seed: int) -> Scene:
    """Two agents among two objects, acting as experts, before three cameras; truth in steps of 1/20 s."""
    simulation = open_scene(name, SceneOptions(agents=2, objects=2, fps=FPS, cameras=3, width=WIDTH, height=HEIGHT))
    try:
        trace, _ = simulate_episode(simulation, dict.fromkeys(simulation.agents, "expert"), seed, seconds)
        simulation.reset(seed)
        simulation.show(trace.qpos[0])
        world = scene_world(simulation, folder=folder)
        assert world.cameras is not None
        films = []
        for camera in range(len(world.cameras)):
            pictures = []
            for row in range(len(trace.times)):
                simulation.show(trace.qpos[row])
                pictures.append(simulation.draw(camera, truth=False).rgb)
            films.append(Film(trace.times, np.stack(pictures)))
    finally:
        simulation.close()
    poses = transform_from_pose(torch.from_numpy(trace.link_poses).double())
    robots = {agent.name: load_robot(world, agent.name) for agent in world.agents}
    joints = {agent: torch.from_numpy(values).double() for agent, values in trace.joints.items()}
    return Scene(world, robots, films, world.cameras, torch.from_numpy(trace.times), poses, joints, float("nan"))
