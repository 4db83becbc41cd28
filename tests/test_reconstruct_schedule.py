"""Budgets become plans; plans are functions of progress, and are repeated as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from gworld.errors import InputError, UsageError
from gworld.reconstruct.schedule import (
    FILE,
    Plan,
    count_at,
    degree_at,
    level_at,
    planned_gaussians,
    seconds_of,
)


def test_budgets_are_times() -> None:
    assert [seconds_of(text) for text in ("", "90s", "5m", "1.5h", "30", " 2 m")] == [0, 90, 300, 5400, 30, 120]
    for wrong in ("5 minutes", "-3m", "0", "0.1s", "nan", "1e9h", "m"):
        with pytest.raises(UsageError, match="90s, 5m or 1h"):
            seconds_of(wrong)


def test_more_time_never_plans_fewer_gaussians() -> None:
    counts = [planned_gaussians(budget, 1, "cpu", 500) for budget in (10, 60, 180, 300, 600, 3600, 1e6)]
    assert counts == sorted(counts) and counts[0] >= 10_000 and counts[-1] <= 200_000
    assert planned_gaussians(0, 30_000, "cuda", 500) > 0
    few, more = (planned_gaussians(3600, 1, "cpu", views) for views in (3, 56))
    assert few < more < planned_gaussians(3600, 1, "cpu", 500), "few views bear out few"


def test_steps_without_a_budget_are_plain_shares(tmp_path: Path) -> None:
    plan = Plan(tmp_path, 0.0, 200)
    for step in range(300):
        plan.decide(step, 1e6, 10.0)
    assert len(plan.segments) == 1 and not (tmp_path / FILE).exists()
    assert plan.progress(0) == 0 and plan.progress(50) == 0.25 and plan.progress(200) == 1


@pytest.mark.parametrize(("coarse", "fine"), [(0.005, 0.04), (0.1, 1.6)])
def test_a_budget_is_kept_whatever_a_step_costs(tmp_path: Path, coarse: float, fine: float) -> None:
    plan, clock, step, before = Plan(tmp_path, 60.0, 7000), 0.0, 0, -1.0
    while plan.progress(step) < 1:
        assert plan.progress(step) > before
        before = plan.progress(step)
        cost = coarse if before < 0.3 else fine  # finer pictures cost more
        plan.decide(step, clock, cost)
        if plan.progress(step) >= 1:
            break
        clock += cost
        step += 1
    assert 57 < clock < 66
    again = Plan(tmp_path, 60.0, 7000)
    again.replay()
    assert again.segments == plan.segments
    again.decide(100, 0.0, 1.0)
    assert again.segments == plan.segments, "what was decided stays decided"


def test_a_long_budget_is_not_spent_on_learning_by_heart(tmp_path: Path) -> None:
    plan, step = Plan(tmp_path, 600.0, 7000, most=900), 0
    while plan.progress(step) < 1:
        plan.decide(step, 0.01 * step, 0.01)
        step += 1
    assert 895 < step < 905
    short, step = Plan(tmp_path / "short", 5.0, 7000, most=900), 0
    (tmp_path / "short").mkdir()
    while short.progress(step) < 1:
        short.decide(step, 0.01 * step, 0.01)
        step += 1
    assert 480 < step < 520, "a short budget is the bound"


@pytest.mark.parametrize(
    "text", ["[]", "{}", "[[0, 0, 0]]", "[[5, 0, 3]]", "[[0, 0, 9], [0, 0.1, 3]]", "[[0, 2, 9]]", "3"]
)
def test_a_damaged_plan_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        Plan(tmp_path, 60.0, 10).replay()


def test_coarse_to_fine() -> None:
    shares = [index / 200 for index in range(201)]
    for epochs in (0.1, 50, 1000):  # of the whole run
        levels = [level_at(share, share * epochs) for share in shares]
        assert levels == sorted(levels, reverse=True) and levels[0] == 2 and levels[-1] == 0
    assert level_at(0.05, 25) == 1 and level_at(0.05, 61) == 0, "small pictures are not learned by heart"
    degrees = [degree_at(share, 3) for share in shares]
    assert degrees == sorted(degrees) and degrees[0] == 0 and degrees[-1] == 3
    assert {degree_at(share, 1) for share in shares} == {0, 1}
    counts = [count_at(share, 1000, 9000) for share in shares]
    assert counts == sorted(counts) and counts[0] == 1000 and counts[-1] == 9000
