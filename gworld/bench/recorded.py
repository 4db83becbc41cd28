"""Recorded scenes for the benches of simulation: filmed, reconstructed from their films, and stepped by the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.data.simulated import Trace, film_trace, simulate_episode, trace_episode
from gworld.data.simulators import Simulation, SimulatorState, open_scene
from gworld.data.simulators_options import SceneOptions
from gworld.data.simulators_world import scene_world
from gworld.dynamics.saved import load_model
from gworld.dynamics.state import Motion, motion_from_poses, twists_between
from gworld.errors import InputError
from gworld.files import find_asset
from gworld.geometry import transform_from_pose
from gworld.reconstruct.moving import MovingOptions, read_footage, reconstruct_moving
from gworld.reconstruct.options import FitOptions
from gworld.scene.world import World, WorldState
from gworld.simulate.learned import Learned
from gworld.simulate.stepper import AgentBody, Kinematics, Stepper, agent_bodies

FPS = 20.0
CAMERAS = 24
SCANS = ("random", "random", "extreme", "extreme", "adversarial", "expert")
"""Behaviours in the episodes that are filmed for the reconstruction, seeds 0, 1, ..: bodies stand elsewhere in each, so
all ground shows, and arms turn all their sides to the light."""
SCANNED, INSTANTS = 2.0, 5
"""Seconds of each of them, and in how many of its instants the cameras take a picture."""
CONTEXT = 3
STATE = "simulator"
"""Under which a world's memory holds the true simulator's own state."""


@dataclass(frozen=True)
class Recorded:
    """A scene: its simulation, and a world with the robots' models in `folder`."""

    simulation: Simulation
    world: World
    folder: Path


def open_recorded(name: str, folder: Path, agents: int = 2, objects: int = 3, width: int = 320) -> Recorded:
    """Open one of our scenes at 20 steps per second, seed 0; its world holds true shapes and colours."""
    options = SceneOptions(agents, objects, FPS, CAMERAS, width=width, height=width * 3 // 4)
    simulation = open_scene(name, options)
    simulation.reset(0)
    world = scene_world(simulation, folder=folder / "bound")
    return Recorded(simulation, world, folder)


def reconstruct_recorded(recorded: Recorded, effort: float = 1.0) -> tuple[World, float]:
    """The world learned from films of the behaviours `SCANS`, and its plates' PSNR on cameras held out.

    Cameras and the bodies' poses are known, the bodies' shapes bound; nothing else of the truth is used.
    """
    simulation, episodes = recorded.simulation, []
    for seed, kind in enumerate(SCANS):
        trace, kinds = simulate_episode(simulation, dict.fromkeys(simulation.agents, kind), seed, SCANNED)
        trace = _thinned(trace)
        place = recorded.folder / f"scan-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        episodes.append(trace_episode(simulation, trace, kinds, film_trace(simulation, trace, place, truth=False)))
    footage = read_footage(recorded.world, episodes, INSTANTS)
    static = FitOptions(steps=round(1500 * effort), gaussians=24_000, sh_degree=0, hold_out=12, score_every=0)
    options = MovingOptions(static, steps=round(1500 * effort), spacing=0.008)
    world, fit = reconstruct_moving(recorded.world, footage, recorded.folder / "fit", options)
    return replace(world, folder=recorded.world.folder), fit.score.psnr if fit.score is not None else float("nan")


def _thinned(trace: Trace) -> Trace:
    """A trace's evenly chosen instants alone: what is not looked at need not be filmed."""
    rows = np.linspace(0, len(trace.times) - 1, INSTANTS).round().astype(int)
    tables = {name: getattr(trace, name)[rows] for name in ("times", "qpos", "qvel", "ctrl", "link_poses", "forces")}
    actions, joints = ({k: v[rows] for k, v in part.items()} for part in (trace.actions, trace.joints))
    return replace(trace, **tables, actions=actions, joints=joints)


def shipped_stepper(name: str, world: World, bodies: Mapping[str, AgentBody] | None = None) -> Stepper:
    """The dynamics that come with gworld for a scene, kinematics only where none do."""
    place = shipped_dynamics(name)
    bodies = agent_bodies(world) if bodies is None else bodies
    if place is None:
        return Kinematics(world, bodies)
    return Learned(world, load_model(place), 1 / FPS, bodies)


def shipped_dynamics(name: str) -> Path | None:
    """The folder of the dynamics that come with gworld for a scene; None where none do."""
    return find_asset(f"dynamics/{name}")


def state_at(trace: Trace, row: int) -> WorldState:
    """What three recorded frames tell: places and velocities of all links."""
    poses = torch.from_numpy(trace.link_poses[max(0, row - CONTEXT + 1) : row + 1]).float()
    motion = motion_from_poses(poses[None], 1 / FPS)
    return WorldState(motion.world_from_link[0], motion.twists[0], torch.zeros(0, poses.shape[1], 7))


def true_poses(trace: Trace, first: int, last: int) -> Float[Tensor, "T L 4 4"]:
    """The recorded motion from row `first` to `last`, both included."""
    return transform_from_pose(torch.from_numpy(trace.link_poses[first : last + 1]).float())


def told(trace: Trace, row: int) -> dict[str, Tensor]:
    """The actions in force from a row on."""
    return {name: torch.from_numpy(table[row]).float()[None] for name, table in trace.actions.items()}


def film_rows(simulation: Simulation, trace: Trace, rows: list[int], cameras: list[int]) -> Float[Tensor, "T C H V 3"]:
    """The footage of some cameras at some rows, in 0..1."""
    pictures = []
    for row in rows:
        simulation.show(trace.qpos[row])
        shown = [simulation.draw(camera, truth=False).rgb for camera in cameras]
        pictures.append(np.stack(shown))
    return torch.from_numpy(np.stack(pictures)).float() / 255


class TrueStepper:
    """The true simulator as what steps an engine: every planner, policy and task runs in it as in the model.

    The memory of each world holds the simulator's whole state [W, Q + V + U + 1 + V].
    """

    def __init__(self, recorded: Recorded) -> None:
        self.simulation, self.world = recorded.simulation, recorded.world
        self.bodies = agent_bodies(recorded.world)
        self.note = "the true simulator"

    def start(self, motion: Motion) -> Motion:
        """The motion with the simulator's present state where it has none."""
        if STATE in motion.memory:
            return motion
        packed = pack_state(self.simulation.state())[None].expand(len(motion), -1)
        return replace(motion, memory={**motion.memory, STATE: packed.contiguous()})

    def step(self, motion: Motion, actions: Mapping[str, Tensor], seconds: float) -> Motion:
        """Each world in turn, from its own state; unknown actions hold still."""
        if abs(seconds * self.simulation.options.fps - 1) > 1e-6:
            raise InputError(f"the simulator takes steps of {1 / self.simulation.options.fps:g} s, not {seconds:g} s.")
        states, poses = [], []
        for row in range(len(motion)):
            self.simulation.restore(self.unpack(motion.memory[STATE][row]))
            self.simulation.step({name: table[row].double().numpy() for name, table in actions.items()})
            states.append(pack_state(self.simulation.state()))
            poses.append(torch.from_numpy(self.simulation.link_poses()).float())
        after = transform_from_pose(torch.stack(poses))
        twists = twists_between(motion.world_from_link, after, seconds)
        memory = {**motion.memory, STATE: torch.stack(states)}
        return replace(motion, world_from_link=after, twists=twists, memory=memory, time=motion.time + seconds)

    def hold(self, motion: Motion, agent: str) -> Float[Tensor, "W A"]:
        """What the simulator itself calls holding still, in the state it was left in."""
        return torch.from_numpy(self.simulation.null_action(agent)).float().expand(len(motion), -1)

    def unpack(self, packed: Tensor) -> SimulatorState:
        """A simulator's state from its numbers."""
        model = self.simulation.model
        parts = packed.double().numpy()
        sizes = np.cumsum([model.nq, model.nv, model.nu, 1])
        qpos, qvel, ctrl, time, warm = np.split(parts, sizes)
        return SimulatorState(qpos, qvel, ctrl, float(time[0]), warm)


def pack_state(state: SimulatorState) -> Tensor:
    """A simulator's state as numbers, float64."""
    parts = (state.qpos, state.qvel, state.ctrl, np.array([state.time]), state.warmstart)
    return torch.from_numpy(np.concatenate(parts))


def paired_states(recorded: Recorded, seeds: range, nudge: float = 0.0) -> tuple[list[WorldState], list[WorldState]]:
    """The starts of these seeds for the model and for the true simulator; objects `nudge` metres off in the latter."""
    simulation, ours, true = recorded.simulation, [], []
    for seed in seeds:
        simulation.reset(seed)
        poses = transform_from_pose(torch.from_numpy(simulation.link_poses()).float())
        blank = torch.zeros(0, len(poses), 7)
        ours.append(WorldState(poses, torch.zeros(len(poses), 6), blank))
        state = simulation.state()
        if nudge:
            angles = np.random.default_rng([seed, 5]).uniform(0, 2 * np.pi, len(simulation.objects))
            first = len(state.qpos) - 7 * len(simulation.objects)
            for index, angle in enumerate(angles):
                state.qpos[first + 7 * index : first + 7 * index + 2] += nudge * np.array(
                    [np.cos(angle), np.sin(angle)]
                )
            simulation.restore(state)
            poses = transform_from_pose(torch.from_numpy(simulation.link_poses()).float())
        true.append(WorldState(poses, torch.zeros(len(poses), 6), blank, {STATE: pack_state(state)}))
    return ours, true
