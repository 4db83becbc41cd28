"""Gaps between bodies against closed forms, starts without overlaps, and rollouts that could not have happened."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gworld.data.shapes import box, plain, sphere
from gworld.errors import InputError, UsageError
from gworld.scene.gaussians import join_gaussians
from gworld.scene.links import Link
from gworld.scene.world import ActionSpec, Entity, World
from gworld.simulate.options import Limits, StartOptions
from gworld.simulate.plausible import Clearance, judge
from gworld.simulate.starts import draw_start
from gworld.simulate.stepper import agent_bodies
from tests.acting import on_link

LIMITS = Limits()


def table_world() -> World:
    """A table top, a cart that slides, a ball and a box on it."""
    top = box((1.2, 1.2, 0.3), 0.03, plain(0.7, 0.7, 0.6), (0, 0, -0.15))
    cart = on_link(box((0.1, 0.1, 0.1), 0.01, plain(0.2, 0.6, 0.3)), 1)
    ball = on_link(sphere(0.05, 0.008, plain(0.9, 0.8, 0.2)), 2)
    brick = on_link(box((0.12, 0.08, 0.06), 0.01, plain(0.5, 0.2, 0.2)), 3)
    links = (
        Link("world"),
        Link("cart", (-0.3, 0.0, 0.05, 1, 0, 0, 0), 0),
        Link("ball", (0.0, 0.0, 0.05, 1, 0, 0, 0), 0),
        Link("brick", (0.3, 0.1, 0.03, 1, 0, 0, 0), 0),
    )
    spec = ActionSpec(("x/velocity", "y/velocity"), ("m/s", "m/s"), (-0.5,) * 2, (0.5,) * 2)
    entities = (
        Entity("scene", "static", (0,)),
        Entity("cart", "agent", (1,), spec),
        Entity("ball", "object", (2,)),
        Entity("brick", "object", (3,)),
    )
    return World(join_gaussians([top, cart, ball, brick]), links, entities, metric=True)


WORLD = table_world()
CLEARANCE = Clearance(WORLD)


def test_gaps_are_those_of_the_solids() -> None:
    assert CLEARANCE.names == ("cart|ball", "cart|brick", "ball|brick")
    poses = WORLD.rest_poses().expand(4, -1, 4, 4).clone()
    poses[:, 2, 0, 3] = torch.tensor([0.0, -0.15, -0.2, -0.22])  # the ball nears the cart's face at x = -0.25
    gaps = CLEARANCE.gaps(poses)
    torch.testing.assert_close(gaps[:, 0], torch.tensor([0.2, 0.05, 0.0, -0.02]), atol=3e-3, rtol=0)
    assert float(gaps[0, 2]) == pytest.approx(np.hypot(0.24, 0.06) - 0.05, abs=4e-3)
    torch.testing.assert_close(CLEARANCE.gaps(poses, CLEARANCE.pairs[:1]), gaps[:, :1])
    poses[:, 2, 2, 3] = torch.tensor([0.05, 0.08, 0.04, 0.0])
    torch.testing.assert_close(
        CLEARANCE.heights(poses)[:, 0], torch.tensor([0.0, 0.03, -0.01, -0.05]), atol=2e-3, rtol=0
    )


def still(steps: int = 21) -> torch.Tensor:
    return WORLD.rest_poses().expand(steps, -1, 4, 4).clone()


def test_what_could_not_have_happened_is_told() -> None:
    assert judge(CLEARANCE, still(), 0.05, LIMITS).broken == ()
    through = still()
    through[:, 1, 0, 3] = torch.linspace(-0.3, 0.02, 21)
    verdict = judge(CLEARANCE, through, 0.05, LIMITS)
    assert verdict.broken == ("penetration",) and verdict.figures["penetration"] > 0.05
    jump = still()
    jump[10:, 3, 1, 3] += 0.4
    assert set(judge(CLEARANCE, jump, 0.05, LIMITS).broken) == {"speed", "untouched"}
    creep = still()
    creep[:, 3, 1, 3] += torch.linspace(0, 0.1, 21)
    assert judge(CLEARANCE, creep, 0.05, LIMITS).broken == ("untouched",)
    away = still()
    away[:, 1, 0, 3] -= torch.linspace(0, 1.5, 21)
    assert "outside" in judge(CLEARANCE, away, 0.05, LIMITS).broken
    sunk = still()
    sunk[:, 3, 2, 3] -= torch.linspace(0, 0.03, 21)
    assert "penetration" in judge(CLEARANCE, sunk, 0.05, LIMITS).broken
    assert judge(CLEARANCE, still(), 0.05, LIMITS, doubt=0.3).broken == ("doubt",)
    broken = still()
    broken[3, 2, 0, 3] = torch.nan
    assert judge(CLEARANCE, broken, 0.05, LIMITS).broken == ("not_finite",)
    assert judge(CLEARANCE, still(), 0.05, LIMITS, stuck=2).broken == ("not_finite",)
    with pytest.raises(UsageError, match="above 0"):
        Limits(penetration=0.0)


def test_a_start_that_overlaps_at_rest_is_judged_by_what_is_added() -> None:
    poses = WORLD.rest_poses().clone()
    poses[2, 0, 3] = -0.22
    held = poses.expand(5, -1, 4, 4).clone()
    assert judge(CLEARANCE, held, 0.05, LIMITS).broken == ()


def test_starts_do_not_overlap_and_fill_the_room() -> None:
    bodies = agent_bodies(WORLD)
    places, turned = [], []
    for seed in range(30):
        poses = draw_start(WORLD, CLEARANCE, bodies, np.random.default_rng(seed), StartOptions(joints=0.5))
        assert float(CLEARANCE.gaps(poses[None]).min()) >= 0.01
        places.append(poses[[2, 3], :2, 3])
        turned.append(poses[3, :2, 0])
        torch.testing.assert_close(poses[:, 2, 3], WORLD.rest_poses()[:, 2, 3])
    spread = torch.stack(places).std(0)
    assert float(spread.min()) > 0.05 and float(torch.stack(turned).std(0).min()) > 0.4
    again = draw_start(WORLD, CLEARANCE, bodies, np.random.default_rng(3))
    assert torch.equal(again, draw_start(WORLD, CLEARANCE, bodies, np.random.default_rng(3)))
    near = draw_start(WORLD, CLEARANCE, bodies, np.random.default_rng(5), near=(0.2, 0.3))
    assert float((near[[2, 3], :2, 3] - torch.tensor([0.2, 0.3])).norm(dim=1).min()) < 0.1
    kept = draw_start(WORLD, CLEARANCE, bodies, np.random.default_rng(5), StartOptions(objects=0.0, joints=0.0))
    torch.testing.assert_close(kept, WORLD.rest_poses(), atol=1e-6, rtol=0)


def test_a_room_that_is_too_full_is_said() -> None:
    links = [replace(link, pose=(0, 0, 0.05, 1, 0, 0, 0)) for link in WORLD.links[1:]]
    crowd = replace(WORLD, links=(WORLD.links[0], *links))
    with pytest.raises(InputError, match="no start was found"):
        draw_start(crowd, Clearance(crowd), {}, np.random.default_rng(0), StartOptions(objects=0.0))
    with pytest.raises(UsageError, match="cannot be drawn"):
        StartOptions(objects=2.0)
