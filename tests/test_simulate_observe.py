"""What is drawn of a state: labels against closed forms, cameras that ride along, pixels that others' actions leave."""

from __future__ import annotations

import math

import pytest
import torch

from gworld.errors import InputError, UsageError
from gworld.render.paths import orbit, path_cameras
from gworld.render.select import render
from gworld.scene.cameras import Cameras, project_points
from gworld.scene.gaussians import select_gaussians
from gworld.scene.world import World
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.observe import Observer, count_pixels, pick_cameras, placed, travel
from gworld.simulate.touch import Surfaces, occupancy
from tests.acting import acting_world, at

ALL = ("rgb", "alpha", "depth", "link_id", "flow", "scene_flow", "visibility")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"), 96, 64)


def test_labels_of_a_sliding_cart(world: World) -> None:
    engine, look = Engine(world, options=EngineOptions(step=0.1, worlds=2)), Observer(world, outputs=ALL)
    first = look(engine.motion)
    assert first.flow is not None and float(first.flow.abs().max()) == 0
    assert first.scene_flow is not None and float(first.scene_flow.abs().max()) == 0
    engine.step({"cart": torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]])})
    frame = look(engine.motion)
    assert frame.link_id is not None and frame.scene_flow is not None and frame.visibility is not None
    assert frame.flow is not None and frame.depth is not None
    for row, step in enumerate((torch.tensor([0.05, 0, 0]), torch.tensor([0, 0.05, 0]))):
        cart = frame.link_id[row] == 1
        assert int(cart.sum()) > 40
        torch.testing.assert_close(frame.scene_flow[row][cart], step.expand(int(cart.sum()), 3), atol=1e-5, rtol=0)
        assert float(frame.scene_flow[row][frame.link_id[row] == 0].abs().max()) == 0
    assert torch.equal(frame.visibility, count_pixels(frame.link_id, len(world.links)))
    assert int(frame.visibility.sum()) == int((frame.link_id >= 0).sum())
    # The flow in a pixel of the cart is what its centre does on the image plane.
    centre = torch.tensor([[0.05, -0.3, 0.03], [0.0, -0.3, 0.03]])
    shift = project_points(pick_cameras(placed(frame.cameras, engine.motion.world_from_link[0]), [0]), centre)[0][0]
    flow = frame.flow[0, 0][frame.link_id[0, 0] == 1].median(dim=0).values
    torch.testing.assert_close(flow, shift[0] - shift[1], atol=0.15, rtol=0.1)


def test_cameras_on_links_ride_along(world: World) -> None:
    engine, look = Engine(world), Observer(world, outputs=("rgb", "depth"))
    for _ in range(20):
        engine.step({"left": [0.8, 0.6]})
    frame = look(engine.motion)
    fixed = placed(frame.cameras, engine.motion.world_from_link[0])
    assert not any(fixed.links) and not torch.equal(fixed.world_from_camera[3], frame.cameras.world_from_camera[3])
    drawn = render(world.gaussians, engine.motion.world_from_link, fixed, outputs=("rgb", "depth"))
    assert frame.rgb is not None and drawn.rgb is not None
    assert torch.equal(frame.rgb[:, :3], drawn.rgb[:, :3])  # through the cached background: the same bits
    # Seen from the mount or from the world, rounding differs.
    assert float((frame.rgb[:, 3] - drawn.rgb[:, 3]).abs().mean()) < 1e-4


def test_paths_travel_and_stay_at_their_end(world: World) -> None:
    path = path_cameras(orbit(torch.zeros(3), 1.0, 0.5, 11), 32, 24)
    at_time = travel(path, 2.0)
    assert torch.equal(at_time(1.0).world_from_camera, path[5].world_from_camera)
    assert torch.equal(at_time(9.0).world_from_camera, path[10].world_from_camera)
    engine, look = Engine(world, options=EngineOptions(step=0.5)), Observer(world, at_time)
    one = look(engine.motion).rgb
    engine.step()
    two = look(engine.motion).rgb
    assert one is not None and two is not None and one.shape == (1, 1, 24, 32, 3) and not torch.equal(one, two)


def test_pixels_that_do_not_show_what_an_agent_reaches_keep_their_bits(world: World) -> None:
    def film(cart: list[float]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        engine, look = Engine(world), Observer(world, pick_cameras(cameras, [0, 1, 2, 3]))
        frames = []
        for step in range(8):
            engine.step({"left": [0.1 * step, 0.3], "right": [1.0, -0.5], "cart": cart})
            frame = look(engine.motion)
            assert frame.rgb is not None
            frames.append((frame.rgb[0], shown(engine.motion.world_from_link)))
        return frames

    def shown(poses: torch.Tensor) -> torch.Tensor:
        """Pixels to which the cart alone would contribute."""
        alone = select_gaussians(world.gaussians, world.gaussians.links == 1)
        alpha = render(alone, poses, cameras, outputs=("alpha",)).alpha
        assert alpha is not None
        return alpha[0] > 0

    cameras = world.cameras
    assert cameras is not None
    for (one, here), (two, there) in zip(film([0.5, 0.0, 1.0]), film([-0.5, 0.4, 0.0]), strict=True):
        untouched = ~(here | there)
        assert 0.3 < float(untouched.float().mean()) < 1.0
        assert torch.equal(one[untouched], two[untouched])
        assert not torch.equal(one, two)


def test_the_map_of_what_was_seen_is_asked_for_each_world(world: World) -> None:
    asked: list[tuple[int, ...]] = []

    def seen(poses: torch.Tensor, cameras: Cameras) -> torch.Tensor:
        assert poses.shape == (len(world.links), 4, 4) and not any(cameras.links)
        asked.append((len(cameras),))
        return torch.full((len(cameras), cameras.height, cameras.width), 2, dtype=torch.uint8)

    engine = Engine(world, options=EngineOptions(worlds=2))
    frame = Observer(world, outputs=("seen",), seen=seen)(engine.motion)
    assert frame.seen is not None and frame.seen.shape == (2, 4, 64, 96) and asked == [(4,), (4,)]
    with pytest.raises(InputError, match="coverage"):
        Observer(world, outputs=("seen",))
    with pytest.raises(UsageError, match="cannot be drawn"):
        Observer(world, outputs=("smell",))


def test_contacts_are_where_surfaces_meet(world: World) -> None:
    surfaces, poses = Surfaces(world), world.rest_poses()[None].repeat(3, 1, 1, 1)
    poses[1, 2, 2, 3] += 0.02  # the ball, lifted
    poses[2, 2, :3, 3] = torch.tensor([0.0, -0.18, 0.09])  # the ball beside and above the cart: 0.05 apart
    found = surfaces.contacts(poses, 0.06)
    gaps = {
        (w, *pair): gap
        for w, pair, gap in zip(found.world.tolist(), found.links.tolist(), found.gap.tolist(), strict=True)
    }
    assert gaps[0, 2, 0] == pytest.approx(0.0, abs=0.004) and gaps[0, 1, 0] == pytest.approx(0.0, abs=0.004)
    assert gaps[1, 2, 0] == pytest.approx(0.02, abs=0.006)
    expected = math.hypot(0.12 - 0.06, 0.09 - 0.06) - 0.05  # ball's centre to the cart's upper edge, less its radius
    assert gaps[2, 1, 2] == pytest.approx(expected, abs=0.008)
    assert (0, 1, 2) not in gaps
    row = found.links.tolist().index([2, 0])
    torch.testing.assert_close(found.normal[row], torch.tensor([0.0, 0.0, 1.0]), atol=0.3, rtol=0)
    assert len(surfaces.contacts(poses[:1], 1e-9)) <= len(found)


def test_occupancy_says_who_is_where(world: World) -> None:
    grid = occupancy(world, world.rest_poses(), 0.02, (-0.7, -0.5, -0.04), (0.7, 0.5, 0.7))
    assert grid.shape == (70, 50, 37)

    def owner(x: float, y: float, z: float) -> int:
        return int(grid[int((x + 0.7) / 0.02), int((y + 0.5) / 0.02), int((z + 0.04) / 0.02)])

    assert owner(0.05, -0.29, 0.055) == 1 and owner(0.0, 0.25, 0.095) == 2
    assert owner(0.0, 0.0, 0.5) == -1 and bool((grid[:, :, 1:3] == 0).any(-1)[5:-5, 5:-5].float().mean() > 0.3)
    moved = world.rest_poses()
    moved[2] = at(0.5, -0.4, 0.3)
    again = occupancy(world, moved, 0.02, (-0.7, -0.5, -0.04), (0.7, 0.5, 0.7))
    assert int((again == 2).sum()) > 0 and int(again[35, 37, 6]) != 2
    with pytest.raises(UsageError, match="a grid of"):
        occupancy(world, moved, 1e-6, (-1, -1, -1), (1, 1, 1))
