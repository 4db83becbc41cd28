"""The benches of simulation: the true simulator behind the engine's face, ranks, errands, plans; without pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco", reason="MuJoCo is not installed")

from gworld.bench import generate
from gworld.bench.locality import reach
from gworld.bench.offview import run_errand
from gworld.bench.plan import act_out
from gworld.bench.rank import POLICIES, pearson, success, violations
from gworld.bench.recorded import (
    FPS,
    Recorded,
    TrueStepper,
    open_recorded,
    pack_state,
    paired_states,
    shipped_stepper,
    state_at,
    told,
    true_poses,
)
from gworld.data.simulated import simulate_episode
from gworld.errors import InputError
from gworld.formats.world import save_world
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.plan import PlanOptions
from gworld.simulate.stepper import Kinematics
from tests.test_simulate_plausible import table_world


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    found = open_recorded("push", tmp_path_factory.mktemp("push"), objects=1, width=64)
    yield found
    found.simulation.close()


def test_the_true_simulator_steps_an_engine(recorded: Recorded) -> None:
    trace, _ = simulate_episode(recorded.simulation, dict.fromkeys(recorded.simulation.agents, "expert"), 31, 1.0)
    _, (start,) = paired_states(recorded, range(31, 32))
    engine = Engine(recorded.world, TrueStepper(recorded), EngineOptions(1 / FPS, 2))
    engine.reset(0, [start, start])
    for row in range(12):
        motion = engine.step({name: table[0] for name, table in told(trace, row).items()})
    truth = true_poses(trace, 12, 12)[0]
    assert torch.allclose(motion.world_from_link[0], truth, atol=1e-5)
    assert torch.equal(motion.world_from_link[0], motion.world_from_link[1])  # each world from its own state
    with pytest.raises(InputError, match="takes steps of"):
        TrueStepper(recorded).step(engine.motion, {}, 0.1)
    state = recorded.simulation.state()
    again = TrueStepper(recorded).unpack(pack_state(state))
    assert all(np.array_equal(one, two) for one, two in zip(state, again, strict=True))


def test_starts_are_paired_and_nudged(recorded: Recorded) -> None:
    ours, true = paired_states(recorded, range(3))
    _, off = paired_states(recorded, range(3), 1e-3)
    thing = recorded.simulation.link_names.index(recorded.simulation.objects[0])
    for one, two, three in zip(ours, true, off, strict=True):
        assert torch.equal(one.world_from_link, two.world_from_link)
        assert float((three.world_from_link - two.world_from_link)[thing, :2, 3].norm()) == pytest.approx(
            1e-3, rel=1e-2
        )
    assert not torch.equal(ours[0].world_from_link, ours[1].world_from_link)


def test_policies_are_scored_alike_in_model_and_truth(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gworld.bench.rank.SECONDS", 0.5)
    ours, true = paired_states(recorded, range(2))
    thing = recorded.simulation.link_names.index(recorded.simulation.objects[0])
    here = torch.stack([state.world_from_link[thing, :2, 3] for state in ours])
    for stepper, starts in ((Kinematics(recorded.world), ours), (TrueStepper(recorded), true)):
        assert success(recorded, stepper, POLICIES[0], starts, here) == 1.0  # it is there, and is left there
        assert success(recorded, stepper, POLICIES[0], starts, here + 0.3) == 0.0


def test_ranks_and_correlation_are_those_of_closed_form() -> None:
    true = np.array([0.1, 0.5, 0.9])
    assert pearson(2 * true + 1, true) == pytest.approx(1.0) and violations(true, true) == 0.0
    assert violations(np.array([0.5, 0.1, 0.9]), true) == pytest.approx((0.4 + 0.4 + 0.0) / 3)
    assert np.isnan(pearson(np.ones(3), true))


def test_errands_out_of_sight_are_the_same_when_looked_at(recorded: Recorded) -> None:
    names = list(recorded.simulation.agents)
    policy = {name: "expert" if name == names[1] else "null" for name in names}
    trace, _ = simulate_episode(recorded.simulation, policy, 31, 0.6)
    errand = run_errand(recorded, shipped_stepper("nothing of this name", recorded.world), trace)
    assert errand.same and len(errand.off) == len(errand.way) == len(errand.ceiling) == len(errand.names)
    assert state_at(trace, 2).world_from_link.shape == (len(recorded.world.links), 4, 4)


def test_what_rests_is_the_same_by_every_bit(recorded: Recorded) -> None:
    """Starts told by other arithmetic than the chain's, seven worlds turned otherwise each: holding changes no bit."""
    starts, _ = paired_states(recorded, range(40, 47))
    for stepper in (Kinematics(recorded.world), shipped_stepper("push", recorded.world)):
        engine = Engine(recorded.world, stepper, EngineOptions(1 / FPS, 7))
        first = engine.reset(0, starts).world_from_link
        told_start = torch.stack([start.world_from_link for start in starts])
        assert torch.allclose(first, told_start, atol=1e-6) and not torch.equal(first, told_start)
        held = engine.hold()
        assert all(torch.equal(engine.step(held).world_from_link, first) for _ in range(20))


def test_a_plan_is_acted_out_in_the_truth(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gworld.bench.plan.LOOK", PlanOptions(horizon=3, hold=3, samples=4, rounds=1, elites=2))
    monkeypatch.setattr("gworld.bench.plan.AGAIN", 3)
    share, cost = act_out(recorded, TrueStepper(recorded), 31, 0.2)
    assert -0.5 < share < 1.0 and cost > 0


def test_a_run_of_generating_is_told_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert generate._done(tmp_path) == 0 and generate._kill_one("no run has this token") == 0
    save_world(table_world(), tmp_path / "world")
    monkeypatch.setattr(generate, "POLICY", "random")
    monkeypatch.setattr(generate, "shipped_dynamics", lambda name: None)
    made = generate.run_way(generate.WAYS[0], tmp_path / "world", tmp_path / "made", 2, 0.3, 0)
    assert set(made.digests) == {0, 1} and made.digests[0] != made.digests[1]
    assert (made.doubled, made.killed) == (0, 0) and made.seconds > 0
    assert generate._digest(tmp_path / "made", 0) == made.digests[0]


def test_what_an_agent_can_act_on_is_what_meets_it_in_turn() -> None:
    own = torch.tensor([False, True, False, False, False, False])
    met = torch.tensor([[3, 2], [1, 3], [4, 5]])
    assert reach(own, met).tolist() == [False, True, True, True, False, False]
    assert reach(own, met[:0]).tolist() == own.tolist()
