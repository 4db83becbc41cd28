"""Planning in the model: two agents push by looking ahead, acted out in the true simulator, beside planning in it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.recorded import FPS, Recorded, TrueStepper, open_recorded, paired_states, shipped_stepper
from gworld.bench.rows import Row, at_least, at_most
from gworld.scene.world import WorldState
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.plan import Plan, PlanOptions, follow_plan, plan_actions
from gworld.simulate.stepper import Kinematics, Stepper
from gworld.simulate.tasks import Judged, Task

LOOK = PlanOptions(horizon=12, hold=3, samples=32, rounds=2, elites=5)
AGAIN = 6
STARTS, SECONDS = 12, 4.0
FIRST = 9000
PUBLISHED = 59.0
"""Percent of the gap between no model (0.38) and the true simulator (0.75) that a published model (0.60) closes."""


def rows(given: BenchInput) -> Iterator[Row]:
    """Share of the way to the goal that is closed with no model, ours and the truth to plan in; ms per plan step."""
    starts, seconds = (1, 1.0) if given.quick else (STARTS, SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        recorded = open_recorded("push", Path(folder), objects=1, width=64)
        simulation, world = recorded.simulation, recorded.world
        ours = shipped_stepper("push", world)
        ways: dict[str, Stepper] = {
            "no model": Kinematics(world),
            "ours": ours,
            "true simulator": TrueStepper(recorded),
        }
        closed: dict[str, list[float]] = {name: [] for name in ways}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for seed in range(FIRST + given.seed, FIRST + given.seed + starts):
            for name, stepper in ways.items():
                share, cost = act_out(recorded, stepper, seed, seconds)
                closed[name].append(share)
                spent[name].append(cost)
        simulation.close()
    mean = {name: 100 * sum(values) / len(values) for name, values in closed.items()}
    about = f"{starts} starts, {seconds:g} s, two agents, one object; the object's way to its goal"
    for name, value in mean.items():
        yield Row(f"way closed, planning with {name}", value, "%", note=about)
        yield Row(f"plan with {name}, per step looked ahead", 1e3 * sum(spent[name]) / len(spent[name]), "ms")
    gap = mean["true simulator"] - mean["no model"]
    share = 100 * (mean["ours"] - mean["no model"]) / gap if gap > 0 else float("nan")
    note = "published video models: 59 %"
    yield at_least("gap between no model and the true simulator closed", share, "%", PUBLISHED, None, note)
    cost = 1e3 * sum(spent["ours"]) / len(spent["ours"])
    yield at_most(f"plan with ours, {LOOK.samples} samples at once, per step looked ahead", cost, "ms", 100.0)


def act_out(recorded: Recorded, stepper: Stepper, seed: int, seconds: float) -> tuple[float, float]:
    """Plan in `stepper`, act in the true simulator: share of the way closed, seconds per step looked ahead."""
    simulation, world = recorded.simulation, recorded.world
    engine = Engine(world, stepper, EngineOptions(1 / FPS))
    (ours,), (true,) = paired_states(recorded, range(seed, seed + 1))
    simulation.reset(seed)
    goal = next(iter(simulation.goals.values()))
    names = list(simulation.agents)
    judged = Judged(Task("push_to_goal", tuple(names), object=goal.body, target=goal.position, radius=0.03), world)
    judged.draw(engine.generators)
    engine.reset(seed, true if isinstance(stepper, TrueStepper) else ours)
    first = float(judged.measure(engine.motion)[names[0]])
    truth = Engine(world, TrueStepper(recorded), EngineOptions(1 / FPS))
    truth.reset(seed, true)
    plan: Plan | None = None
    spent, plans = 0.0, 0
    for step in range(round(seconds * FPS)):
        if step % AGAIN == 0:
            start = None if plan is None else follow_plan(plan, LOOK, AGAIN)
            before = time.process_time()
            plan = plan_actions(engine, judged.score(), names, LOOK, seed=seed * 1000 + step, start=start)
            spent, plans = spent + time.process_time() - before, plans + 1
        assert plan is not None
        now = truth.step({name: table[step % AGAIN] for name, table in plan.actions.items()})
        engine.restore([_seen(recorded, truth, isinstance(stepper, TrueStepper))])
    last = float(judged.measure(now)[names[0]])
    return 1.0 - last / max(first, 1e-9), spent / max(plans, 1) / LOOK.horizon / LOOK.rounds


def _seen(recorded: Recorded, truth: Engine, whole: bool) -> WorldState:
    """What is known of the truth now: poses and velocities, and the simulator's own state where it plans itself."""
    motion = truth.motion
    memory = {name: value[0] for name, value in motion.memory.items()} if whole else {}
    blank = torch.zeros(0, motion.world_from_link.shape[1], 7)
    return WorldState(motion.world_from_link[0], motion.twists[0], blank, memory, None, motion.time)
