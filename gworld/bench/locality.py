"""Counterfactuals stay local: other actions of agent A leave every pixel that shows nothing A reached as it was."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.recorded import FPS, Recorded, open_recorded, shipped_stepper
from gworld.bench.rows import Row, at_least, at_most
from gworld.scene.world import World
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.observe import Observer, pick_cameras
from gworld.simulate.policies import Policy
from gworld.simulate.stepper import Kinematics, Stepper

STEPS, EVERY = 80, 4
SCENES = ("push", "arms")


def rows(given: BenchInput) -> Iterator[Row]:
    """Pixels that changed without showing A or what it reached, in recorded scenes' worlds; goal: none."""
    for name in SCENES[:1] if given.quick else SCENES:
        with tempfile.TemporaryDirectory() as folder:
            recorded = open_recorded(name, Path(folder), width=160)
            for stepper in (Kinematics(recorded.world), shipped_stepper(name, recorded.world)):
                kind = "kinematics" if isinstance(stepper, Kinematics) else "learned dynamics"
                yield from _rows(f"{name}, {kind}", recorded, stepper, 8 if given.quick else STEPS, given.seed)
            recorded.simulation.close()


def _rows(label: str, recorded: Recorded, stepper: Stepper, steps: int, seed: int) -> Iterator[Row]:
    """Two runs that differ in the first agent's actions alone, frame by frame."""
    world, agent = recorded.world, next(iter(recorded.simulation.agents))
    runs = [_run(world, stepper, agent, other, steps, seed) for other in (False, True)]
    shown = strayed = changed = 0
    for (one, links_one, poses_one), (two, links_two, poses_two) in zip(*runs, strict=True):
        moved = (poses_one != poses_two).flatten(1).any(1)
        touched = moved[links_one.clamp_min(0).long()] | moved[links_two.clamp_min(0).long()]
        near = _near(touched)
        differ = (one != two).any(-1)
        strayed += int((differ & ~near).sum())
        changed += int(differ.sum())
        shown += differ.numel()
    own = next(list(entity.links) for entity in world.entities if entity.name == agent)
    apart = (runs[0][-1][2] - runs[1][-1][2])[:, :3, 3].norm(dim=-1)
    reached = [world.links[link].name for link in torch.nonzero(apart > 0)[:, 0].tolist() if link not in own]
    note = f"{100 * changed / shown:.1f} % of {shown:,} pixels changed; A reached {', '.join(reached) or 'nothing'}"
    yield at_most(f"{label}, pixels changed away from what A reached", strayed, "", 0, None, note)
    yield at_least(f"{label}, pixels changed in all", changed, "", 1)


def _run(
    world: World, stepper: Stepper, agent: str, other: bool, steps: int, seed: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Pictures [H,V,3], links [H,V] and poses [L,4,4] of every fourth step; `other` draws A's actions anew."""
    engine = Engine(world, stepper, EngineOptions(1 / FPS))
    engine.reset(seed)
    policy, second = Policy("random", engine), Policy("extreme", engine)
    assert world.cameras is not None
    look = Observer(world, pick_cameras(world.cameras, [0]), ("rgb", "link_id"))
    found = []
    for step in range(steps):
        told, drawn = policy(), second()
        motion = engine.step({**told, agent: drawn[agent]} if other else told)
        if step % EVERY == EVERY - 1:
            frame = look(motion)
            assert frame.rgb is not None and frame.link_id is not None
            found.append((frame.rgb[0, 0], frame.link_id[0, 0], motion.world_from_link[0]))
    return found


def _near(mask: Tensor) -> Tensor:
    """The mask and three pixels around it: a body's blurred rim colours pixels whose foremost Gaussian is another's."""
    grown = torch.nn.functional.max_pool2d(mask[None, None].float(), 7, 1, 3)
    return grown[0, 0] > 0
