"""Conditions: one call gives all, agrees with the renderer, and trusts what was photographed and fitted well."""

from __future__ import annotations

from dataclasses import replace

import torch

from gworld.data.shapes import box, checker
from gworld.render.conditions import nearest_references, render_clip, stream_clip, trust_references
from gworld.render.select import render
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import Gaussians


def cube() -> Gaussians:
    return box((1.0, 1.0, 1.0), 0.08, checker((0.9, 0.8, 0.2), (0.2, 0.3, 0.7), 0.25))


def around(count: int, width: int = 40, height: int = 32) -> Cameras:
    angle = torch.linspace(0, 1.5, count)
    eyes = torch.stack([3 * angle.sin(), -3 * angle.cos(), torch.ones_like(angle)], dim=1)
    poses = look_at(eyes, torch.zeros(3).expand(count, 3))
    return Cameras(intrinsics(width, height, 0.7).expand(count, 3, 3).clone(), poses, width, height)


def test_a_film_is_the_renderers_own_pictures_and_flow() -> None:
    scene, cameras = cube(), around(3)
    clip = render_clip(scene, cameras)
    out = render(scene, None, cameras[2], outputs=("rgb", "flow", "depth"), previous=(None, cameras[1]))
    assert out.rgb is not None and out.flow is not None and out.depth is not None
    torch.testing.assert_close(clip.rgb[2], out.rgb[0, 0].clamp(0, 1))
    torch.testing.assert_close(clip.flow[2], out.flow[0, 0])
    assert clip.flow[0].abs().max() == 0 and clip.flow[1].abs().max() > 0.5
    assert torch.equal(clip.confidence, clip.alpha)
    frames = list(stream_clip(scene, cameras))
    assert len(frames) == 3 and torch.equal(frames[1].depth[0], clip.depth[1])


def test_confidence_follows_coverage() -> None:
    scene, cameras = cube(), around(1)
    for seen, low, high in ((2, 0.99, 1.0), (1, 0.45, 0.55), (0, 0.0, 1e-6)):
        counts = torch.full((len(scene),), seen)
        clip = render_clip(scene, cameras, counts=lambda eye, poses, counts=counts: counts)
        inside = clip.alpha > 0.99
        assert low <= clip.confidence[inside].min() and clip.confidence[inside].max() <= high
        assert clip.confidence[clip.alpha == 0].max() == 0  # nothing is there: nothing was seen


def test_photos_that_disagree_with_their_renders_take_confidence_away() -> None:
    scene, cameras = cube(), around(4)
    clip = render_clip(scene, cameras)
    right = replace(clip, truth=clip.rgb)
    wrong = replace(clip, truth=(clip.rgb + 0.2).clamp(0, 1))
    frame = render_clip(scene, around(7)[2])
    inside = frame.alpha > 0.99
    kept, lost = (trust_references(frame, photos).confidence[inside] for photos in (right, wrong))
    assert (kept > 0.99).float().mean() > 0.85  # not where no photo shows the surface
    assert lost.max() < 0.05
    assert nearest_references(frame, clip, 2) == [1, 2] or nearest_references(frame, clip, 2) == [1, 0]
