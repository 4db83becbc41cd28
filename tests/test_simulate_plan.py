"""Tasks, planning and policies: progress is what it should be, plans beat doing nothing, names act as they say."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gworld.dynamics.state import Motion
from gworld.errors import InputError, UsageError
from gworld.scene.world import World
from gworld.simulate.actions import read_actions
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.plan import PlanOptions, follow_plan, plan_actions
from gworld.simulate.policies import Policy, PolicyInput, parse_policy
from gworld.simulate.tasks import Judged, Task, link_middles, parse_task
from tests.acting import acting_world

GOAL = Task("reach", ("cart",), target=(0.15, -0.2, 0.03), radius=0.02)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"))


def far_off(engine: Engine, judged: Judged) -> float:
    return float(judged.measure(engine.motion)["cart"][0])


@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_plans_beat_doing_nothing_and_arrive(world: World, method: str) -> None:
    engine, judged = Engine(world, options=EngineOptions(step=0.1)), Judged(GOAL, world)
    judged.draw(engine.generators)
    options = PlanOptions(method, horizon=6, hold=2, samples=32, rounds=3)  # type: ignore[arg-type]  # one of two
    before = engine.motion
    plan = plan_actions(engine, lambda a, b: judged.judge(a, b)[0]["cart"], ["cart"], options, seed=1)
    again = plan_actions(engine, lambda a, b: judged.judge(a, b)[0]["cart"], ["cart"], options, seed=1)
    assert engine.motion is before and torch.equal(plan.actions["cart"], again.actions["cart"])
    assert plan.idle == pytest.approx(0.0, abs=1e-6) and plan.score > 0.1
    assert plan.actions["cart"].shape == (6, 3)
    start = far_off(engine, judged)
    for step in range(6):
        engine.step({"cart": plan.actions["cart"][step]})
    assert far_off(engine, judged) < 0.3 * start
    knots = follow_plan(plan, options, 4)
    assert torch.equal(knots[0], plan.knots[2]) and torch.equal(knots[1], plan.knots[2])


def test_several_agents_are_planned_together(world: World) -> None:
    engine = Engine(world, options=EngineOptions(step=0.1))
    judged = Judged(Task("keep_apart", ("left", "cart"), radius=0.3), world)

    def near(before: Motion, after: Motion) -> Tensor:
        return -judged.measure(after)["cart"]

    options = PlanOptions(horizon=6, hold=3, samples=24, rounds=2)
    both = plan_actions(engine, near, ["left", "cart"], options)
    assert set(both.actions) == {"left", "cart"} and both.score > both.idle
    with pytest.raises(UsageError, match="no agent `nobody`"):
        plan_actions(engine, near, ["nobody"])
    with pytest.raises(UsageError, match="cannot be searched"):
        PlanOptions(samples=3, elites=5)


def test_rewards_are_progress(world: World) -> None:
    engine = Engine(world, options=EngineOptions(step=0.1, worlds=2))
    judged = Judged(GOAL, world)
    judged.draw(engine.generators)
    before = engine.motion
    after = engine.step({"cart": torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]])})
    reward, done = judged.judge(before, after)
    middle = link_middles(world)[1]
    start = torch.tensor([0.0, -0.3, 0.03]) + middle
    target = torch.tensor(GOAL.target)
    for row, shift in enumerate((0.05, -0.05)):
        there = start + torch.tensor([shift, 0.0, 0.0])
        expected = float((start - target).norm() - (there - target).norm())
        assert float(reward["cart"][row]) == pytest.approx(expected, abs=1e-5)
    assert done.tolist() == [False, False]
    for _ in range(2):
        before, after = after, engine.step({"cart": [0.5, 0.5, 0.0]})
    reward, done = judged.judge(before, after)
    assert done.tolist() == [True, False] and float(reward["cart"][0]) > 0.9


def test_pushing_looks_at_the_object_and_apart_at_all(world: World) -> None:
    engine = Engine(world)
    push = Judged(Task("push_to_goal", target=(0.2, 0.25, 0.0)), world)
    push.draw(engine.generators)
    assert float(push.measure(engine.motion)["left"][0]) == pytest.approx(0.2, abs=1e-3)
    apart = Judged(Task("keep_apart", radius=5.0), world)
    reward, lost = apart.judge(engine.motion, engine.step())
    assert set(reward) == {"cart", "left", "right"} and bool(lost[0])
    with pytest.raises(InputError, match="no object `cube`"):
        Judged(Task("push_to_goal", object="cube"), world)
    with pytest.raises(InputError, match="for agent `nobody`"):
        Judged(Task("reach", ("nobody",)), world)


def test_task_files_hold_values_and_targets_follow_the_seed(world: World, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(
        "kind: reach\nagents: [cart]\ntarget: [0.1, 0.2, 0.0]\nroom: [0.1, 0.0, 0.0]\nradius: 0.03\n"
    )
    task = parse_task(tmp_path / "task.yaml", world)
    assert isinstance(task, Task) and task.agents == ("cart",)
    judged, engine = Judged(task, world), Engine(world, options=EngineOptions(worlds=3))
    engine.reset(4)
    judged.draw(engine.generators)
    first = judged.targets
    engine.reset(4)
    judged.draw(engine.generators)
    assert torch.equal(first, judged.targets) and len(first[:, 0].unique()) == 3
    assert bool(((first[:, 0] - 0.1).abs() <= 0.1).all()) and first[:, 1].tolist() == pytest.approx([0.2] * 3)
    (tmp_path / "bad.yaml").write_text("kind: fly\n")
    with pytest.raises(UsageError, match="fly"):
        parse_task(tmp_path / "bad.yaml", world)
    with pytest.raises(UsageError, match="cannot be imported"):
        parse_task("nowhere:function", world)
    own = parse_task("tests.test_simulate_plan:own_task", world)
    reward, done = Judged(own, world).judge(engine.motion, engine.step())
    assert reward["left"].tolist() == [7.0] * 3 and done.tolist() == [True] * 3


def own_task(world: World, before: Motion, after: Motion) -> tuple[dict[str, Tensor], Tensor]:
    """A task of one's own."""
    return {"left": torch.full((len(after),), 7.0)}, torch.ones(len(after), dtype=torch.bool)


def own_policy(world: World, agent: str, seed: int) -> object:
    """A policy of one's own: always the same."""
    return lambda motion: [0.1, 0.2, 0.3]


def test_policies_do_what_they_are_called(world: World, tmp_path: Path) -> None:
    engine = Engine(world, options=EngineOptions(worlds=2))
    rest = engine.motion.world_from_link
    null = Policy("null", engine)
    for _ in range(3):
        engine.step(null())
    torch.testing.assert_close(engine.motion.world_from_link, rest, atol=1e-6, rtol=0)
    spec = engine.specs["left"]
    extreme = Policy("extreme", engine)()["left"]
    assert set(extreme.flatten().tolist()) <= {*spec.low, *spec.high}
    one, two = Policy("random", engine, PolicyInput(3)), Policy("random", engine, PolicyInput(3))
    first = [one()["cart"] for _ in range(20)]
    assert all(torch.equal(a, two()["cart"]) for a in first)
    assert not torch.equal(first[0][0], first[0][1])
    jumps = torch.stack(first).diff(dim=0).abs().amax()
    assert 0 < float(jumps) < 0.5  # smooth
    shifted = Policy("random", engine, PolicyInput(4))()["cart"]
    assert torch.equal(shifted[0], first[0][1])  # world i of seed s draws what world i - 1 of seed s + 1 does
    (tmp_path / "a.csv").write_text("t,cart/x/velocity\n0,0.1\n0.1,0.2\n")
    table = read_actions(tmp_path / "a.csv", world)
    engine.reset()
    replay = Policy("cart=replay", engine, PolicyInput(0, table))
    assert float(replay()["cart"][0, 0]) == pytest.approx(0.1) and torch.isnan(replay()["cart"][0, 1])
    assert replay()["left"][0].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    own = Policy("cart=tests.test_simulate_plan:own_policy", engine)
    assert own()["cart"].tolist() == [pytest.approx([0.1, 0.2, 0.3])] * 2
    with pytest.raises(UsageError, match="needs actions to repeat"):
        Policy("replay", engine)
    with pytest.raises(UsageError, match="needs a task for agent `cart`"):
        Policy("cart=expert", engine)
    with pytest.raises(UsageError, match="no policy `clever`"):
        parse_policy("clever", ["a"])
    with pytest.raises(UsageError, match="no agent `b`"):
        parse_policy("b=null", ["a"])


def test_experts_do_the_task_and_adversaries_run_into_things(world: World) -> None:
    engine, judged = Engine(world, options=EngineOptions(step=0.1)), Judged(GOAL, world)
    judged.draw(engine.generators)
    start = far_off(engine, judged)
    expert = Policy("cart=expert", engine, PolicyInput(0, None, judged))
    for _ in range(8):
        engine.step(expert())
    assert far_off(engine, judged) < 0.5 * start
    engine.reset()
    others = list(range(2, len(world.links)))

    def gap() -> float:
        places = engine.motion.world_from_link[0, :, :3, 3]
        return float((places[others] - places[1]).norm(dim=-1).min())

    start = gap()
    adversary = Policy("cart=adversarial", engine)
    for _ in range(8):
        engine.step(adversary())
    assert gap() < 0.7 * start


def load_server() -> object:
    path = Path(__file__).parent.parent / "scripts" / "examples" / "03_serve_policy.py"
    spec = importlib.util.spec_from_file_location("serve_policy", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_policy_is_asked_in_a_process_of_its_own(world: World) -> None:
    engine, asked = Engine(world, options=EngineOptions(worlds=2)), []
    answers: list[list[float | None]] = [[0.1, None, 0.3], [0.4, 0.5, 0.6], [1.0]]

    def act(observation: dict) -> list[float | None]:
        asked.append(observation)
        return answers[len(asked) - 1]

    server = load_server().open_server(act, 0)  # type: ignore[attr-defined]  # loaded by path
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        policy = Policy(f"cart=served:{server.server_address[1]}", engine)
        told = policy()["cart"]
        assert (
            told[0, 0] == pytest.approx(0.1)
            and torch.isnan(told[0, 1])
            and told[1].tolist() == pytest.approx([0.4, 0.5, 0.6])
        )
        assert [entry["world"] for entry in asked] == [0, 1] and asked[0]["joints"] == pytest.approx([0.0, -0.3, 0.0])
        assert asked[0]["images"]["front"].shape == (32, 48, 3) and asked[0]["images"]["front"].std() > 5
        with pytest.raises(InputError, match="no action of 3 numbers for `cart`"):
            policy()
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(UsageError, match="nothing answers"):
        Policy(f"cart=served:{server.server_address[1]}", engine)
    with pytest.raises(UsageError, match="names no port"):
        Policy("cart=served:x", engine)
