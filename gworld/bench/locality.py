"""Counterfactuals stay local: other actions of agent A leave every pixel that shows nothing A reached as it was."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.recorded import FPS, Recorded, open_recorded, shipped_stepper, state_at, told
from gworld.bench.rows import Row, at_least, at_most
from gworld.data.simulated import Trace, simulate_episode
from gworld.scene.world import World
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.observe import Observer, pick_cameras
from gworld.simulate.stepper import Kinematics, Stepper
from gworld.simulate.touch import Surfaces

STEPS, EVERY, RUNS = 80, 4, 4
SCENES = ("push", "arms")
FIRST, ROW = 12_000, 2
MARGIN = 0.005
"""Metres between surfaces within which one body can act on another."""


@dataclass(frozen=True)
class Frame:
    """What a run shows and holds at an instant: picture [H,V,3], links [H,V], poses [L,4,4], links that meet [Q,2]."""

    rgb: Tensor
    links: Tensor
    poses: Tensor
    met: Tensor


def rows(given: BenchInput) -> Iterator[Row]:
    """Pixels that changed without showing A or what it reached, in recorded scenes' worlds; goal: none."""
    for name in SCENES[:1] if given.quick else SCENES:
        with tempfile.TemporaryDirectory() as folder:
            recorded = open_recorded(name, Path(folder), width=160)
            for stepper in (Kinematics(recorded.world), shipped_stepper(name, recorded.world)):
                kind = "kinematics" if isinstance(stepper, Kinematics) else "learned dynamics"
                yield from _rows(f"{name}, {kind}", recorded, stepper, given)
            recorded.simulation.close()


def _rows(label: str, recorded: Recorded, stepper: Stepper, given: BenchInput) -> Iterator[Row]:
    """Pairs of runs under recorded actions, in the second of which the first agent holds still, frame by frame."""
    world, agent = recorded.world, next(iter(recorded.simulation.agents))
    steps, runs = (8, 1) if given.quick else (STEPS, RUNS)
    surfaces = Surfaces(world)
    shown = strayed = changed = astray = 0
    names: set[str] = set()
    for number in range(runs):
        policy = dict.fromkeys(recorded.simulation.agents, "expert")
        trace, _ = simulate_episode(recorded.simulation, policy, FIRST + given.seed + number, (steps + ROW + 1) / FPS)
        pair = [run_trace(world, stepper, surfaces, trace, agent if still else "", steps) for still in (False, True)]
        own = torch.zeros(len(world.links), dtype=torch.bool)
        own[[link for entity in world.entities if entity.name == agent for link in entity.links]] = True
        reached = own.clone()
        for one, two in zip(*pair, strict=True):
            reached = reach(reached, torch.cat([one.met, two.met]))
            if (one.poses != two.poses).flatten(1).any(1)[~reached].any():
                astray += 1
            if one.rgb.numel():
                near = _near(reached[one.links.clamp_min(0).long()] | reached[two.links.clamp_min(0).long()])
                differ = (one.rgb != two.rgb).any(-1)
                strayed += int((differ & ~near).sum())
                changed += int(differ.sum())
                shown += differ.numel()
        names |= {world.links[link].name for link in torch.nonzero(reached & ~own)[:, 0].tolist()}
    note = (
        f"{100 * changed / shown:.1f} % of {shown:,} pixels changed; A reached {', '.join(sorted(names)) or 'nothing'}"
    )
    yield at_most(f"{label}, pixels changed away from what A reached", strayed, "", 0, None, note)
    yield at_most(f"{label}, steps in which anything else lay elsewhere by a bit", astray, f"of {runs * steps}", 0)
    yield at_least(f"{label}, pixels changed in all", changed, "", 1)


def run_trace(world: World, stepper: Stepper, surfaces: Surfaces, trace: Trace, still: str, steps: int) -> list[Frame]:
    """Every step of a run under a recording's actions, the agent `still` holding still; pictures of every fourth."""
    engine = Engine(world, stepper, EngineOptions(1 / FPS))
    engine.reset(trace.seed, state_at(trace, ROW))
    assert world.cameras is not None
    look = Observer(world, pick_cameras(world.cameras, [0]), ("rgb", "link_id"))
    held, found = engine.hold(), []
    for step in range(steps):
        action = told(trace, ROW + step)
        motion = engine.step({**action, still: held[still]} if still else action)
        touching = surfaces.contacts(motion.world_from_link, MARGIN).links
        rgb = links = torch.zeros(0)
        if step % EVERY == EVERY - 1:
            frame = look(motion)
            assert frame.rgb is not None and frame.link_id is not None
            rgb, links = frame.rgb[0, 0], frame.link_id[0, 0]
        found.append(Frame(rgb, links, motion.world_from_link[0], touching[(touching > 0).all(1)]))
    return found


def reach(reached: Tensor, met: Tensor) -> Tensor:
    """What A can have acted on [L]: what it or such a body meets; what is static passes nothing on."""
    while True:
        grown = reached.clone()
        grown[met[reached[met].any(1)].flatten()] = True
        if bool((grown == reached).all()):
            return grown
        reached = grown


def _near(mask: Tensor) -> Tensor:
    """The mask and three pixels around it: a body's blurred rim colours pixels whose foremost Gaussian is another's."""
    grown = torch.nn.functional.max_pool2d(mask[None, None].float(), 7, 1, 3)
    return grown[0, 0] > 0
