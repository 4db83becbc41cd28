"""What happens out of sight: one agent moves things while nobody looks; on return they are where it put them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.recorded import (
    FPS,
    Recorded,
    TrueStepper,
    open_recorded,
    paired_states,
    shipped_stepper,
    state_at,
    told,
    true_poses,
)
from gworld.bench.rows import Row, at_most
from gworld.data.simulated import Trace, simulate_episode
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.observe import Observer
from gworld.simulate.score import interval
from gworld.simulate.stepper import Stepper

SECONDS, STARTS, FIRST, ROW = 3.0, 20, 11_000, 2
MOVED = 0.01
NUDGE = 1e-3
"""Metres by which things start off in the true simulator's second run, the ceiling."""


@dataclass(frozen=True)
class Errand:
    """An agent's errand out of sight: by name of each thing it moved, how far it is off on return in the model and in
    the true simulator begun a millimetre off, and how far it went (m)."""

    names: tuple[str, ...]
    off: Tensor
    ceiling: Tensor
    way: Tensor
    same: bool


def rows(given: BenchInput) -> Iterator[Row]:
    """Where things are on return, against the true simulator; whether looking changes anything."""
    with tempfile.TemporaryDirectory() as folder:
        recorded = open_recorded("push", Path(folder), width=64)
        stepper = shipped_stepper("push", recorded.world)
        names = list(recorded.simulation.agents)
        policy = {name: "expert" if name == names[1] else "null" for name in names}
        errands = []
        for seed in range(FIRST + given.seed, FIRST + given.seed + (2 if given.quick else STARTS)):
            trace, _ = simulate_episode(recorded.simulation, policy, seed, SECONDS)
            errands.append(run_errand(recorded, stepper, trace))
        recorded.simulation.close()
    off = torch.cat([errand.off for errand in errands])
    ceiling = interval(1e3 * torch.cat([errand.ceiling for errand in errands]))
    names = [name for errand in errands for name in errand.names]
    way = torch.cat([errand.way for errand in errands])
    middle, low, high = interval(1e3 * off)
    note = f"{len(off)} things in {SECONDS:g} s; baseline: how far they went; {stepper.note}"
    yield at_most("thing moved by B while A looks away, off on return (median)", middle, "mm", 10.0,
                  1e3 * float(way.median()) if len(way) else None, note)  # fmt: skip
    yield Row("the same, 10th percentile", low, "mm")
    yield Row("the same, 90th percentile", high, "mm")
    about = f"10th to 90th percentile {ceiling[1]:.1f} to {ceiling[2]:.1f}: no model can be nearer for sure"
    yield Row("the true simulator, things a millimetre off at first (median)", ceiling[0], "mm", note=about)
    for kind in sorted({name.rstrip("0123456789") for name in names}):
        own = off[[name.startswith(kind) for name in names]]
        yield Row(f"of kind `{kind}` (median)", 1e3 * float(own.median()), "mm", note=f"{len(own)} things")
    share = float((off <= 0.01).float().mean()) if len(off) else float("nan")
    yield Row("things within 1 cm of where B put them", 100 * share, "%")
    changed = sum(not errand.same for errand in errands)
    yield at_most("runs that looking changed by a bit", changed, f"of {len(errands)}", 0)


def run_errand(recorded: Recorded, stepper: Stepper, trace: Trace) -> Errand:
    """The errand simulated unseen, and once more while looking on."""
    world = recorded.world
    last = len(trace.times) - 1
    engine = Engine(world, stepper, EngineOptions(1 / FPS))
    assert world.cameras is not None
    look = Observer(world, world.cameras[:1])
    ends = []
    for seen in (False, True):
        engine.reset(0, state_at(trace, ROW))
        for row in range(ROW, last):
            motion = engine.step(told(trace, row))
            if seen and row % 10 == 0:
                look(motion)
        ends.append(engine.motion.world_from_link[0])
    truth = true_poses(trace, ROW, last)
    free = [link for entity in world.entities if entity.kind == "object" for link in entity.links]
    way = (truth[-1, free, :3, 3] - truth[0, free, :3, 3]).norm(dim=-1)
    went = way > MOVED
    off, ceiling = ((end - truth[-1])[free, :3, 3].norm(dim=-1)[went] for end in (ends[0], _nudged(recorded, trace)))
    names = tuple(world.links[link].name for link, far in zip(free, went.tolist(), strict=True) if far)
    return Errand(names, off, ceiling, way[went], bool((ends[0] == ends[1]).all()))


def _nudged(recorded: Recorded, trace: Trace) -> Tensor:
    """Where everything ends [L,4,4] in the true simulator under the same actions when things start a bit elsewhere."""
    _, starts = paired_states(recorded, range(trace.seed, trace.seed + 1), NUDGE)
    engine = Engine(recorded.world, TrueStepper(recorded), EngineOptions(1 / FPS))
    engine.reset(0, starts)
    for row in range(len(trace.times) - 1):
        engine.step(told(trace, row))
    return engine.motion.world_from_link[0]
