"""What the viewer shows: clouds of splats, colours, the clock, motion fitted to a world, names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import viser

from gworld.data.shapes import plain as paint
from gworld.data.shapes import sphere
from gworld.errors import InputError
from gworld.scene.episode import Episode
from gworld.scene.links import Link
from gworld.scene.rollout import Rollout
from gworld.scene.world import Entity, World
from gworld.viewer.app import Subject, Viewer, ViewOptions
from gworld.viewer.panels import plain
from gworld.viewer.player import Player, fit_rollout, rollout_of
from gworld.viewer.splats import LEVELS, Cloud, colours_of, coverage_colours, make_clouds, scale_colours, thin_out
from gworld.viewer.stage import node_names
from tests.acting import acting_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"))


def turning(count: int = 31) -> Rollout:
    """A link that goes from x = 0 to 1 in a second."""
    times = torch.linspace(0, 1, count, dtype=torch.float64)
    poses = torch.tensor([0.0, 0, 0, 1, 0, 0, 0]).expand(count, 2, 7).clone()
    poses[:, 1, 0] = times.float()
    return Rollout(times, poses, ("world", "ball"))


def ball_world() -> World:
    ball = sphere(0.1, 0.03, paint(1, 0, 0))
    links = (Link("world"), Link("ball", (0.0, 0, 0, 1, 0, 0, 0), 0), Link("other", (0.0, 3, 0, 1, 0, 0, 0), 0))
    part = replace(ball, links=torch.ones_like(ball.links))
    return World(part, links, (Entity("scene", "static", (0,)), Entity("ball", "object", (1, 2))))


def test_clouds_hold_every_gaussian_once_with_its_shape(world: World) -> None:
    clouds = make_clouds(world, 10**6)
    assert sorted(np.concatenate([cloud.rows for cloud in clouds]).tolist()) == list(range(len(world.gaussians)))
    for cloud in clouds:
        assert set(world.gaussians.links[cloud.rows].tolist()) == {cloud.link}
        found = np.linalg.eigvalsh(cloud.covariances.astype(np.float64))
        wanted = np.sort(np.exp(2 * world.gaussians.log_scales[cloud.rows].double().numpy()), axis=1)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-9)


def test_of_too_many_splats_some_stand_for_all(world: World) -> None:
    big = world.gaussians.log_scales.clone()
    big[7] += 3
    large = replace(world, gaussians=replace(world.gaussians, log_scales=big))
    rows, growth = thin_out(large, 600)
    assert 560 < len(rows) <= 600 and 7 in rows.tolist() and bool((rows.diff() > 0).all())
    assert {cloud.link for cloud in make_clouds(large, 600)} == {cloud.link for cloud in make_clouds(large, 10**6)}
    area = torch.exp(big.sort(dim=1).values[:, 1:].sum(1))  # all are equally opaque
    for group in (large.gaussians.links == 0, large.gaussians.links > 0):
        stands = float((area[rows] * growth**2)[group[rows]].sum()) / float(area[group].sum())
        assert stands == pytest.approx(1.0, abs=0.05)
    assert len(thin_out(world, 10**6)[0]) == len(world.gaussians)


def test_colours_say_whose_a_splat_is(world: World) -> None:
    links = world.gaussians.links.numpy()
    whose, which = colours_of(world, "agent"), colours_of(world, "link")
    means = {entity.name: whose[np.isin(links, entity.links)].mean(0) for entity in world.entities}
    names = list(means)
    assert all(np.abs(means[a] - means[b]).max() > 0.1 for i, a in enumerate(names) for b in names[:i])
    arm = next(entity for entity in world.agents if entity.name == "left").links
    assert np.abs(which[links == arm[1]].mean(0) - which[links == arm[2]].mean(0)).max() > 0.1
    never, often = coverage_colours(np.array([0, 20]))
    assert never[0] > 2 * never[1] and often[1] > 2 * often[0]


def test_the_clock_plays_loops_and_steps() -> None:
    player = Player(turning())
    player.advance(5.0)
    assert player.time == 0 and player.frame == 0
    player.playing, player.speed = True, 0.5
    player.advance(0.5)
    assert player.time == pytest.approx(0.25) and player.frame == 7
    assert player.poses()[1, 0] == pytest.approx(0.25, abs=1e-6)
    player.advance(1.6)
    assert player.time == pytest.approx(0.05) and player.playing
    player.loop = False
    player.advance(9.0)
    assert player.time == 1.0 and not player.playing and player.frame == 30
    player.seek(-5)
    assert player.frame == 0
    player.seek(10**9)
    assert player.frame == 30
    for frame in range(31):  # no instant is skipped by rounding
        player.seek(frame)
        assert player.frame == frame


def test_motion_is_fitted_to_the_world_by_names() -> None:
    world = ball_world()
    fitted = fit_rollout(turning(), world)
    assert fitted.link_names == ("world", "ball", "other") and float(fitted.link_poses[-1, 1, 0]) == 1.0
    assert fitted.link_poses[:, 2, 1].tolist() == [3.0] * 31
    with pytest.raises(InputError, match="--world"):
        fit_rollout(replace(turning(), link_names=("world", "arm")), world)


def test_splats_are_coloured_by_how_sure_their_place_is() -> None:
    """Blue where the rollout begins, red where it is least sure; splats travel only from step to step of the scale."""
    std = torch.stack([torch.zeros(31), torch.linspace(0, 0.047, 31)], dim=1)
    rollout = replace(turning(), link_std=std)
    world = replace(ball_world(), metric=True)
    viewer = Viewer(Subject(world, "sure", {"told": lambda: rollout, "silent": turning}), ViewOptions(port=0))
    try:
        viewer.tick(0.0)
        viewer.scene.colour.value = "uncertainty"
        viewer.scene._paint()
        assert viewer.player is not None and viewer.player.top == pytest.approx(0.05)
        assert viewer.scene.scale.visible and "0 to 50 mm" in viewer.scene.legend.content
        sent: list[int] = []
        send = viewer.stage._send

        def counted(cloud: Cloud, colours: np.ndarray, visible: bool) -> viser.GaussianSplatHandle:
            sent.append(cloud.link)
            return send(cloud, colours, visible)

        viewer.stage._send = counted  # type: ignore[method-assign]  # to count what travels
        for frame in range(31):
            viewer.seek(frame)
        assert len(sent) == LEVELS and set(sent) == {1}
        viewer.scene.refresh()
        assert "47 mm (ball)" in viewer.scene.legend.content
        first, last = scale_colours(np.array([0.0, 1.0]))
        assert first[2] > 2 * first[0] and last[0] > 2 * last[2]
        seen = colours_of(world, "uncertainty", levels=np.array([0, LEVELS, 0]))
        assert bool((seen[:, 0] > 2 * seen[:, 2]).all())
        viewer.open_recording("silent")
        viewer.scene.refresh()
        assert viewer.stage.levels is None and "tells no uncertainty" in viewer.scene.legend.content
        assert not viewer.scene.scale.visible
    finally:
        viewer.close()


def test_links_lost_from_sight_stay_where_they_were() -> None:
    rollout = turning(5)
    poses = rollout.link_poses.clone()
    poses[0, 1], poses[3:, 1] = float("nan"), float("nan")
    found = rollout_of(Episode(rollout.times, link_poses=poses, link_names=rollout.link_names), "here")
    assert found.link_poses[:, 1, 0].tolist() == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.5])
    with pytest.raises(InputError, match="no link poses"):
        rollout_of(Episode(rollout.times), "here")


def test_names_make_no_branches_and_stay_apart() -> None:
    links = (Link("world"), Link("a/b"), Link("a b"), Link("/"), Link("b"))
    world = World(
        sphere(0.1, 0.05, paint(1, 0, 0)), links, (Entity("s/t", "static", (0,)), Entity("a", "object", (1, 4)))
    )
    names = node_names(world)
    assert names["s/t"] == "/s t" and names[1] == "/a/b" and len(set(names.values())) == len(names)
    assert all(str(name).count("/") <= 2 for name in names.values())


def test_names_from_files_are_shown_and_not_run() -> None:
    shown = plain("<script>alert(1)</script> [x](javascript:1) **b** `c`")
    assert "<" not in shown and "\\[x\\]\\(" in shown and "\\*\\*b" in shown and "\\`c" in shown
