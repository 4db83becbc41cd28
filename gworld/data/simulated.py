"""Episodes out of a simulation: states first, then each camera's film by playing the states back, into a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from gworld.data.behaviours import Source, draw_behaviours, make_source
from gworld.data.clips import write_clip
from gworld.data.simulators import Simulation, SimulatorState
from gworld.data.truth import write_truth
from gworld.errors import InputError, UsageError
from gworld.scene.episode import Behaviour, Episode, Video

STATE = ("simulator/qpos", "simulator/qvel", "simulator/ctrl")
"""Signals that hold the simulator's full state at every step, in MuJoCo's order."""
SEED = "simulator/seed"
"""Signal that holds the seed of the episode's start, which draws masses and frictions too."""
CONTACTS = "contacts"


@dataclass(frozen=True)
class Trace:
    """What happened in T steps: the state before each action, the action, and the forces while it was in force.

    times [T]; qpos [T,Q], qvel [T,V], ctrl [T,U]; actions {agent: [T,A]}; joints {agent: [T,J]}; link_poses [T,L,7];
    forces [T,L,L] mean normal force in N between links during the step.
    """

    times: Float[np.ndarray, " T"]
    qpos: Float[np.ndarray, "T Q"]
    qvel: Float[np.ndarray, "T V"]
    ctrl: Float[np.ndarray, "T U"]
    actions: dict[str, np.ndarray]
    joints: dict[str, np.ndarray]
    link_poses: Float[np.ndarray, "T L 7"]
    forces: Float[np.ndarray, "T L L"]
    success: bool | None
    seed: int = 0


def run_trace(simulation: Simulation, sources: Mapping[str, Source], steps: int) -> Trace:
    """Let the sources act for `steps` steps from the state that the simulation is in."""
    rows: dict[str, list[Any]] = {key: [] for key in ("times", "qpos", "qvel", "ctrl", "poses", "forces")}
    actions: dict[str, list[np.ndarray]] = {name: [] for name in sources}
    joints: dict[str, list[np.ndarray]] = {name: [] for name in simulation.agents}
    start = simulation.data.time
    done = simulation.success()
    for _ in range(steps):
        state = simulation.state()
        chosen = {name: np.asarray(source(), np.float64) for name, source in sources.items()}
        for key, value in zip(("times", "qpos", "qvel", "ctrl"), (state.time - start, *state[:3]), strict=True):
            rows[key].append(value)
        rows["poses"].append(simulation.link_poses())
        for name in simulation.agents:
            joints[name].append(simulation.joints(name))
        for name, action in chosen.items():
            actions[name].append(action)
        simulation.step(chosen)
        rows["forces"].append(simulation.contacts())
        done = simulation.success()
    stacked = {key: np.stack(values) for key, values in rows.items()}
    return Trace(
        stacked["times"], stacked["qpos"], stacked["qvel"], stacked["ctrl"],
        {name: np.stack(values) for name, values in actions.items()},
        {name: np.stack(values) for name, values in joints.items()},
        stacked["poses"], stacked["forces"], done,
    )  # fmt: skip


def simulate_episode(
    simulation: Simulation,
    policy: Mapping[str, str],
    seed: int,
    seconds: float,
    replayed: Episode | None = None,
    can_expert: bool = True,
) -> tuple[Trace, dict[str, Behaviour]]:
    """Reset to `seed` and act by the behaviours that `policy` names (`mixed` is drawn); the same seed, the same trace.

    When every agent replays and the episode knows the simulator's state, it also begins in that state.
    """
    steps = round(seconds * simulation.options.fps)
    if steps < 1:
        raise UsageError(f"{seconds} s at {simulation.options.fps} per second make no step; ask for a longer episode.")
    behaviours = draw_behaviours(policy, seed, can_expert)
    again = replayed is not None and set(behaviours.values()) == {"replay"}
    if again and replayed is not None and SEED in replayed.signals:
        seed = int(replayed.signals[SEED][0, 0])
    simulation.reset(seed)
    if again and replayed is not None:
        restore_step(simulation, replayed, 0)
    sources = {name: make_source(word, simulation, name, seed, replayed) for name, word in behaviours.items()}
    return replace(run_trace(simulation, sources, steps), seed=seed), behaviours


def restore_step(simulation: Simulation, episode: Episode, step: int) -> None:
    """Put a simulation into the state that a recorded episode has at `step`.

    Raises `InputError` for an episode that was not recorded in this scene.
    """
    tables = [episode.signals.get(name) for name in STATE]
    sizes = (simulation.model.nq, simulation.model.nv, simulation.model.nu)
    if any(table is None or table.shape[1] != size for table, size in zip(tables, sizes, strict=True)):
        raise InputError(f"the episode holds no state of `{simulation.name}` with {simulation.options.agents} agents.")
    qpos, qvel, ctrl = (table[step].double().numpy() for table in tables if table is not None)
    simulation.restore(SimulatorState(qpos, qvel, ctrl, float(episode.times[step]), np.zeros(simulation.model.nv)))


def trace_episode(
    simulation: Simulation, trace: Trace, behaviours: Mapping[str, Behaviour], videos: tuple[Video, ...] = ()
) -> Episode:
    """A trace as an episode: every link's pose, joints, actions, contact forces, and the simulator's own state."""
    kinds = set(behaviours.values())
    signals = dict(zip(STATE, map(torch.from_numpy, (trace.qpos, trace.qvel, trace.ctrl)), strict=True))
    signals[SEED] = torch.full((len(trace.times), 1), float(trace.seed), dtype=torch.float64)
    names = {f"actions/{name}": actor.spec.names for name, actor in simulation.agents.items()}
    names |= {f"joints/{name}": actor.joints for name, actor in simulation.agents.items()}
    upper = np.triu(np.ones(trace.forces.shape[1:], bool))
    pairs = np.argwhere((trace.forces > 0).any(axis=0) & upper)
    if len(pairs):
        signals[CONTACTS] = torch.from_numpy(trace.forces[:, pairs[:, 0], pairs[:, 1]]).float()
        links = simulation.link_names
        names[f"signals/{CONTACTS}"] = tuple(f"{links[a]}|{links[b]}" for a, b in pairs)
    goals = [
        f"{name}: bring {goal.body} to {goal.position[0]:.3f} {goal.position[1]:.3f}"
        for name, goal in simulation.goals.items()
    ]
    return Episode(
        torch.from_numpy(trace.times),
        actions={name: torch.from_numpy(table) for name, table in trace.actions.items()},  # exact, to be replayed
        joints={name: torch.from_numpy(table).float() for name, table in trace.joints.items()},
        link_poses=torch.from_numpy(trace.link_poses).float(),
        link_names=simulation.link_names,
        videos=videos,
        cameras=simulation.cameras if videos else None,
        behaviour=kinds.pop() if len(kinds) == 1 else "mixed",
        behaviours=dict(behaviours),
        success=trace.success,
        source=f"mujoco {simulation.name}",
        licence="Apache-2.0",
        task="; ".join(goals),
        signals=signals,
        names={key: value for key, value in names.items() if value},
    )


def film_trace(
    simulation: Simulation,
    trace: Trace,
    folder: Path,
    truth: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[Video, ...]:
    """Film a trace with every camera into `folder`: RGB as MP4 and, with `truth`, depth and links beside it (MKV,
    lossless). The simulation is left in another state."""
    if simulation.cameras is None:
        return ()
    videos = []
    for index, name in enumerate(simulation.cameras.names):
        path = folder / f"{index}-{name}.mp4"
        sides = {kind: folder / f"{index}-{name}-{kind}.mkv" for kind in ("depth", "masks")} if truth else {}
        with write_truth(trace.times, sides) as add:
            write_clip(_pictures(simulation, trace, index, add if truth else None, progress), trace.times, path)
        times = torch.from_numpy(trace.times)
        videos.append(Video(name, path, times, masks=sides.get("masks"), depth=sides.get("depth")))
    return tuple(videos)


def _pictures(
    simulation: Simulation,
    trace: Trace,
    camera: int,
    add: Callable[..., None] | None,
    progress: Callable[[int], None] | None,
) -> Iterator[np.ndarray]:
    for row in range(len(trace.times)):
        simulation.show(trace.qpos[row])
        picture = simulation.draw(camera, truth=add is not None)
        if add is not None:
            add(depth=picture.depth, masks=picture.links)
        if progress is not None:
            progress(1)
        yield picture.rgb
