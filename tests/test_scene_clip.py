"""Clips: points in their links' frames, the same surface found from elsewhere, pixels fetched between pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gworld.errors import InputError
from gworld.geometry import transform_from
from gworld.scene.cameras import intrinsics, look_at
from gworld.scene.clip import Clip, correspond, join_clips, link_points, pixel_grid, sample

H, W = 24, 32


def plane_clip(eyes: torch.Tensor, link: int = 0, links: torch.Tensor | None = None) -> Clip:
    """Frames of the plane z = 0 (of the link's frame at identity), with its exact depth."""
    count = len(eyes)
    poses = look_at(eyes, torch.tensor([0.0, 0.0, 0.0]).expand(count, 3), torch.tensor([0.0, 1.0, 0.0]))
    K = intrinsics(W, H, 0.8).expand(count, 3, 3)
    grid = pixel_grid(H, W)
    rays = torch.cat([(grid - K[0, :2, 2]) / K[0, [0, 1], [0, 1]], torch.ones(H, W, 1)], dim=-1)
    world = rays[None] @ poses[:, None, :3, :3].transpose(-1, -2)
    depth = -poses[:, None, None, 2, 3] / world[..., 2]
    zeros = torch.zeros(count, H, W)
    return Clip(
        rgb=torch.zeros(count, H, W, 3),
        alpha=zeros + 1,
        depth=depth,
        link_id=torch.full((count, H, W), link, dtype=torch.int32),
        flow=torch.zeros(count, H, W, 2),
        confidence=zeros,
        K=K,
        world_from_camera=poses,
        world_from_link=torch.eye(4).expand(count, 2, 4, 4) if links is None else links,
    )


def test_points_are_where_the_surface_is() -> None:
    clip = plane_clip(torch.tensor([[0.3, -0.2, 2.0], [0.0, 0.4, 1.5]]))
    points = link_points(clip)
    assert points[..., 2].abs().max() < 1e-5
    assert points[0, H // 2, W // 2, :2].norm() < 0.1  # it looks at the origin


def test_a_surface_is_found_from_elsewhere_and_followed_with_its_link() -> None:
    clip = plane_clip(torch.tensor([[0.0, 0.0, 2.0]]))
    other = plane_clip(torch.tensor([[0.5, 0.1, 1.8]]))
    place, sure = correspond(clip, other)
    there = sample(link_points(other)[0], place[0])
    inside = sure[0] > 0.9
    assert inside.float().mean() > 0.4
    # Sampling the other's points at the places found gives this clip's own points.
    middle = inside & (place[0] > 1).all(-1) & (place[0, ..., 0] < W - 1) & (place[0, ..., 1] < H - 1)
    torch.testing.assert_close(there[middle], link_points(clip)[0][middle], atol=2e-3, rtol=0)

    # A body and the camera moved together: the picture of it is the same, and so are the places.
    moved = torch.eye(4).expand(1, 2, 4, 4).clone()
    shift = transform_from(torch.eye(3), torch.tensor([0.3, -0.7, 0.2]))
    moved[0, 1] = shift
    body = plane_clip(torch.tensor([[0.0, 0.0, 2.0]]), link=1)
    carried = replace(body, world_from_link=moved, world_from_camera=shift @ body.world_from_camera)
    place, sure = correspond(body, carried)
    assert sure.min() > 0.99
    torch.testing.assert_close(place[0], pixel_grid(H, W), atol=1e-3, rtol=0)
    torch.testing.assert_close(link_points(body), link_points(carried), atol=1e-5, rtol=0)


def test_what_is_hidden_is_not_found() -> None:
    clip = plane_clip(torch.tensor([[0.0, 0.0, 2.0]]))
    wall = replace(clip, depth=clip.depth * 0.5)
    assert correspond(clip, wall)[1].max() < 1e-3


def test_sampling_is_exact_at_centres_and_linear_between() -> None:
    image = torch.rand(H, W, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample(image, pixel_grid(H, W)), image, atol=1e-5, rtol=1e-5)
    between = sample(image, pixel_grid(H, W)[:1, 1:2] + torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(between[0, 0], 0.5 * (image[0, 1] + image[0, 2]), atol=1e-5, rtol=1e-5)


def test_clips_are_cut_and_joined_and_wrong_shapes_refused() -> None:
    clip = plane_clip(torch.tensor([[0.0, 0.0, 2.0], [0.1, 0.0, 2.0], [0.2, 0.0, 2.0]]))
    again = join_clips([clip[0], clip[1:]])
    assert len(again) == 3 and torch.equal(again.depth, clip.depth)
    assert torch.equal(clip[[2, 0]].depth[1], clip.depth[0])
    told = replace(clip, truth=clip.rgb)
    assert join_clips([told, told]).truth is not None and join_clips([told, clip]).truth is None
    with pytest.raises((InputError, TypeError), match="depth"):  # the types are checked before us here
        replace(clip, depth=clip.depth[:2])
    with pytest.raises(InputError, match="cannot be joined"):
        join_clips([])
