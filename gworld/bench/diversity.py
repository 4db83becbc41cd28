"""Generated beside recorded episodes: what both visit, how many are different, and what a model learns from them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import Row, at_least, at_most
from gworld.data.simulated import simulate_episode, trace_episode
from gworld.data.simulators import Simulation, open_scene
from gworld.data.simulators_options import SceneOptions
from gworld.data.simulators_world import scene_world
from gworld.data.store import open_episodes, read_episode
from gworld.dynamics.baselines import ConstantVelocity
from gworld.dynamics.drives import world_drives
from gworld.dynamics.judge import validate
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.recordings import Recordings, gather_recordings, split_recordings
from gworld.dynamics.saved import save_model
from gworld.dynamics.stages_contact import ContactConfig
from gworld.dynamics.train import TrainConfig, train
from gworld.formats.world import load_world, save_world
from gworld.scene.episode import Episode
from gworld.scene.world import World
from gworld.simulate.diversity import Gauge, Tally, make_gauge, measure_episodes
from gworld.simulate.generate import Recipe
from gworld.simulate.plausible import Clearance
from gworld.simulate.pool import Here
from gworld.simulate.produce import PARTS, Plan, Produced, produce

FPS, SECONDS = 20.0, 4.0
WORSE = 1.05
"""By how much, as a factor, two trainings of the same data from different weights differ: no worse is within that."""


@dataclass(frozen=True)
class Effort:
    """How much is recorded, generated and learned."""

    recorded: int = 24
    generated: int = 48
    tests: int = 12
    steps: int = 120
    alone: int = 300
    contact: int = 60
    policy: str = "random:2,extreme:2,adversarial:1,expert:1"


QUICK = Effort(5, 4, 2, 6, 10, 4, "random:1,extreme:1")


def rows(given: BenchInput) -> Iterator[Row]:
    """Rows of the scene `push` with two agents and three objects; simulators need the extra `sim`."""
    effort = QUICK if given.quick else Effort()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        simulation = open_scene("push", SceneOptions(agents=2, objects=3, fps=FPS, cameras=1))
        simulation.reset(0)
        save_world(scene_world(simulation, folder=folder / "models"), folder / "world")
        world = load_world(folder / "world")
        recorded = record(simulation, range(100, 100 + effort.recorded))
        truth = gather_recordings([world], record(simulation, range(9000, 9000 + effort.tests)), world_drives(world))
        before = learn(world, recorded, effort, given.seed)
        save_model(before, folder / "model")
        begin = time.process_time()
        found, made = generate(folder, effort, given.seed)
        seconds = time.process_time() - begin
        gauge = make_gauge(world, Clearance(world))
        yield from coverage_rows(gauge, recorded, made)
        yield Row("attempts accepted", 100 * found.acceptance, "%", note=_reasons(found))
        yield Row(
            "processor time per generated episode", seconds / len(made), "s", note=f"{SECONDS:g} s of motion each"
        )
        yield from learning_rows(world, recorded, made, truth, before, effort, given.seed)


def record(simulation: Simulation, seeds: Sequence[int]) -> list[Episode]:
    """Episodes of the true simulator, mixed behaviours."""
    policy = dict.fromkeys(simulation.agents, "mixed")
    traces = [simulate_episode(simulation, policy, seed, SECONDS)[0] for seed in seeds]
    return [trace_episode(simulation, trace, {}) for trace in traces]


def generate(folder: Path, effort: Effort, seed: int) -> tuple[Produced, list[Episode]]:
    """Episodes out of the world, moved by the model that learned from the recorded ones."""
    recipe = Recipe(
        folder / "world", (folder / "model",), seconds=SECONDS, rate=FPS, policy=effort.policy, seed=seed, tries=40
    )
    out = folder / "made"
    found = produce(recipe, Plan(effort.generated, round=16), out, Here(recipe, out / PARTS))
    store = open_episodes(out)
    return found, [read_episode(store, index) for index in range(len(store))]


def coverage_rows(gauge: Gauge, recorded: Sequence[Episode], made: Sequence[Episode]) -> Iterator[Row]:
    """What equally many recorded and generated episodes visit, and how many of them are different."""
    count = min(len(recorded), len(made))
    ours, theirs = measure_episodes(gauge, made[:count]), measure_episodes(gauge, recorded[:count])
    both: Tally = measure_episodes(gauge, [*recorded, *made])
    cover, base, whole = ours.coverage(), theirs.coverage(), both.coverage()
    for name in sorted(cover):
        note = f"{count} episodes each; {100 * whole[name]:.0f} % with all {len(both.rows)}"
        yield Row(f"cells of {name} visited, generated", 100 * cover[name], "%", "", 100 * base[name], None, note)
    yield at_least("different episodes, generated", ours.distinct(), "", 0.8 * theirs.distinct(), theirs.distinct())


def learning_rows(
    world: World, recorded: Sequence[Episode], made: Sequence[Episode], truth: Recordings,
    before: Dynamics, effort: Effort, seed: int,
) -> Iterator[Row]:  # fmt: skip
    """Errors on recorded episodes that nobody learned from."""
    alone = validate(before, truth)
    after = validate(learn(world, [*recorded, *made], effort, seed), truth)
    copy = validate(ConstantVelocity(), truth)
    yield Row("error held out, learned from recorded", alone, "radii", "", copy, None, f"{len(recorded)} episodes")
    yield at_most("error held out, learned from both", after, "radii", WORSE * alone, alone, f"and {len(made)} more")


def learn(world: World, episodes: Sequence[Episode], effort: Effort, seed: int) -> Dynamics:
    """A network trained on episodes, from the same weights and for as many steps whatever they are."""
    data = gather_recordings([world], list(episodes), world_drives(world))
    part, judge = split_recordings(data, 0.15, torch.Generator().manual_seed(seed))
    model = Dynamics(NetworkConfig(substeps=4, support=True, residual=False, seed=seed))
    config = TrainConfig(effort.steps, 24, (2, 4, 8), noise=0.0, alone=effort.alone, every=40, patience=100, seed=seed)
    train(model, part, judge, replace(config, contact=ContactConfig(steps=effort.contact)))
    return model


def _reasons(found: Produced) -> str:
    return ", ".join(f"{name} {count}x" for name, count in found.rejected.most_common()) or "none rejected"
