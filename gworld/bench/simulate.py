"""Simulating: steps and frames per second for one, 16 and 64 worlds, planning, and whether long runs stay as fast."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gworld.agents.tree import Body, Joint, Skeleton
from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import Row, at_most, median_seconds
from gworld.data.toys import HEIGHT, JOINTS, LIMITS, REST, UPPER, tabletop_world
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.state import Motion
from gworld.scene.cameras import resize_cameras
from gworld.scene.world import ActionSpec, World
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.learned import Learned
from gworld.simulate.observe import Observer
from gworld.simulate.plan import PlanOptions, plan_actions
from gworld.simulate.policies import Policy
from gworld.simulate.stepper import AgentBody, Kinematics, Stepper
from gworld.simulate.tasks import Judged, Task

STEP = 1 / 30
SIZES = ((128, 128), (480, 270))
WORLDS = (1, 16, 64)


def rows(given: BenchInput) -> Iterator[Row]:
    """Yield throughput of steps and of frames, what a plan costs, and how time and memory grow over a long run."""
    world, bodies = moving_tabletop(0.05 if given.quick else 0.012)
    kinematics = Kinematics(world, bodies)
    learned = Learned(world, Dynamics(NetworkConfig(seed=given.seed)), STEP, bodies)
    counts = WORLDS[:2] if given.quick else WORLDS
    for name, stepper in (("kinematics", kinematics), ("dynamics, untrained", learned)):
        for count in counts:
            seconds = _step_seconds(world, stepper, count, given)
            yield Row(f"{count} worlds, {name}", count / seconds, "steps/s", note="two arms, three objects")
    for width, height in SIZES:
        for count in counts:
            yield _frames(world, kinematics, count, (width, height), given)
    yield _plan(world, learned, given)
    yield from _long_run(world, kinematics, given)


def moving_tabletop(spacing: float) -> tuple[World, dict[str, AgentBody]]:
    """The generated table with both arms told by joint targets, and the chains that move them."""
    world = tabletop_world(spacing)
    low, high = zip(*LIMITS, strict=True)
    spec = ActionSpec(tuple(f"{joint}/position" for joint in JOINTS), ("rad",) * 3, low, high)
    entities = tuple(replace(entity, action=spec) if entity.kind == "agent" else entity for entity in world.entities)
    world = replace(world, entities=entities)
    heights = (0.0, HEIGHT, 0.03, UPPER)
    frames = [np.eye(4) for _ in heights]
    for frame, up in zip(frames, heights, strict=True):
        frame[2, 3] = up
    links = tuple(Body(name, index - 1, frame) for index, (name, frame) in enumerate(zip("abcd", frames, strict=True)))
    axes = ((0.0, 0, 1), (-1.0, 0, 0), (-1.0, 0, 0))
    joints = tuple(
        Joint(name, "revolute", index + 1, np.array(axis), np.zeros(3), (rest,), *limits, velocity=3.0)
        for index, (name, axis, rest, limits) in enumerate(zip(JOINTS, axes, REST, LIMITS, strict=True))
    )
    skeleton = Skeleton("arm", links, joints)
    return world, {agent.name: AgentBody(agent, skeleton, spec, (0, 1, 2, 3)) for agent in world.agents}


def _acting(world: World, stepper: Stepper, count: int, seed: int) -> tuple[Engine, Callable[[], Motion]]:
    engine = Engine(world, stepper, EngineOptions(STEP, count))
    engine.reset(seed)
    policy = Policy("random", engine)
    script = [policy() for _ in range(32)]
    turn = 0

    def step() -> Motion:
        nonlocal turn
        turn += 1
        return engine.step(script[turn % len(script)])

    return engine, step


def _step_seconds(world: World, stepper: Stepper, count: int, given: BenchInput) -> float:
    _, step = _acting(world, stepper, count, given.seed)
    return median_seconds(step, 5 if given.quick else 60, 3)


def _frames(world: World, stepper: Stepper, count: int, size: tuple[int, int], given: BenchInput) -> Row:
    """Pictures per second of a world that moves from picture to picture, stepping included; beside full renders."""
    assert world.cameras is not None
    camera = resize_cameras(world.cameras[0], *size)
    _, step = _acting(world, stepper, count, given.seed)
    cached = Observer(world, camera)
    seconds = median_seconds(lambda: cached(step()), 3 if given.quick else 20, 3)

    def fresh() -> object:
        return Observer(world, camera)(step())

    full = median_seconds(fresh, 2 if given.quick else 5, 1)
    name = f"{count} worlds at {size[0]}x{size[1]}, one camera, {len(world.gaussians) / 1000:.0f}k Gaussians"
    return Row(name, count / seconds, "frames/s", baseline=count / full, note="baseline: no cached background")


def _plan(world: World, stepper: Stepper, given: BenchInput) -> Row:
    """What one plan costs per step that is looked ahead, all samples in one batch."""
    engine = Engine(world, stepper, EngineOptions(STEP))
    judged = Judged(Task("reach", ("left",), target=(-0.2, 0.2, 1.0)), world)
    judged.draw(engine.generators)
    options = PlanOptions(horizon=6, rounds=2)
    agents = [agent.name for agent in world.agents]

    def plan() -> object:
        return plan_actions(engine, judged.score(), agents, options)

    seconds = median_seconds(plan, 1 if given.quick else 5, 1) / options.horizon / options.rounds
    name = f"plan of two agents, {options.samples} samples, per step looked ahead"
    return Row(name, 1e3 * seconds, "ms") if given.quick else at_most(name, 1e3 * seconds, "ms", 100.0)


def _long_run(world: World, stepper: Stepper, given: BenchInput) -> Iterator[Row]:
    """A step late in a run beside one early on: its time, and the memory taken in between."""
    engine, step = _acting(world, stepper, 1, given.seed)
    total, span = (60, 20) if given.quick else (10_000, 500)
    spent: list[float] = []
    start = 0
    for index in range(total):
        begin = time.process_time()
        step()
        spent.append(time.process_time() - begin)
        if index == span:
            start = _resident()
    early, late = float(np.median(spent[10:span])), float(np.median(spent[-span:]))
    name = f"time of a step after {total:,} steps beside its first {span}"
    yield Row(name, late / early, "x") if given.quick else at_most(name, late / early, "x", 1.1)
    grown = (_resident() - start) / 2**20
    yield Row(f"memory grown from step {span} to {total:,}", grown, "MB", note=f"{math.ceil(engine.motion.time)} s")
    assert bool(torch.isfinite(engine.motion.world_from_link).all())


def _resident() -> int:
    """Bytes of memory that the process holds now; 0 where the kernel does not tell."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0
