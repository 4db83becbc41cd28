"""What the world tells a refiner of each pixel, in one call: picture, depth, links, flow, and how far to trust it.

Confidence is 1 where the surface was photographed from this side *and* the nearest photos agree with their own
renders there; 0 where it was never seen, or where even the photos' renders are wrong. Coverage alone would trust a
world that was seen from everywhere and fitted badly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.errors import InputError
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.clip import Clip, correspond, join_clips, sample
from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import sh_from_rgb

Counts = Callable[[Tensor, Tensor], Tensor]
"""(eye [3], world_from_link [L,4,4]) -> [N] int: how many photos saw each Gaussian from about there (coverage)."""
RIGHT, WRONG = 1.5 / 255, 8 / 255
"""Mean error of a photo's own render up to which its surroundings are trusted wholly, from which not at all."""
SOFT = 5
"""Pixels over which that error is averaged."""
NEAREST = 3
"""Photos that are asked."""


def render_clip(
    gaussians: Gaussians,
    cameras: Cameras,
    world_from_link: Tensor | None = None,
    *,
    truth: Float[Tensor, "T H V 3"] | None = None,
    counts: Counts | None = None,
    references: Clip | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
    backend: str = "auto",
) -> Clip:
    """All conditions of a film: one camera of `cameras` and one set of link poses ([T,L,4,4], or one for all) a frame.

    `counts` are the coverage of the Gaussians (all are trusted without), `references` photos with their renders.
    """
    frames = list(
        stream_clip(
            gaussians, cameras, world_from_link, counts=counts, references=references, options=options, backend=backend
        )
    )
    clip = join_clips(frames)
    return clip if truth is None else replace(clip, truth=truth)


def stream_clip(
    gaussians: Gaussians,
    cameras: Cameras,
    world_from_link: Tensor | None = None,
    *,
    counts: Counts | None = None,
    references: Clip | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
    backend: str = "auto",
) -> Iterator[Clip]:
    """The same frame by frame, with the memory of one. Raises `InputError` for cameras mounted on links."""
    if any(cameras.links):
        raise InputError("cameras fixed in the world are needed here; place mounted ones first.")
    poses = _poses(gaussians, world_from_link, len(cameras))
    for t in range(len(cameras)):
        before = (poses[max(t - 1, 0)], cameras[max(t - 1, 0)])
        yield render_frame(
            gaussians, cameras[t], poses[t], before, counts=counts, references=references, options=options,
            backend=backend,
        )  # fmt: skip


@torch.no_grad()
def render_frame(
    gaussians: Gaussians,
    camera: Cameras,
    poses: Float[Tensor, "L 4 4"],
    before: tuple[Tensor, Cameras],
    *,
    counts: Counts | None = None,
    references: Clip | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
    backend: str = "auto",
) -> Clip:
    """The conditions of one frame, a clip of length 1; `before` are link poses and camera of the frame before."""
    names = ("rgb", "alpha", "depth", "link_id", "flow")
    out = render(gaussians, poses, camera, outputs=names, previous=before, options=options, backend=backend)
    assert out.rgb is not None and out.alpha is not None and out.depth is not None
    assert out.link_id is not None and out.flow is not None
    alpha = out.alpha[0].clamp(0, 1)
    confidence = alpha.clone()
    if counts is not None:
        found = counts(camera.world_from_camera[0, :3, 3], poses)
        confidence = _painted(gaussians, found, poses, camera, options, backend)
    clip = Clip(
        out.rgb[0].clamp(0, 1), alpha, out.depth[0], out.link_id[0], out.flow[0], confidence, camera.K,
        camera.world_from_camera, poses[None],
    )  # fmt: skip
    return clip if references is None else trust_references(clip, references)


def trust_references(clip: Clip, references: Clip) -> Clip:
    """Lower the confidence where the nearest photos disagree with their own renders, or show nothing of the surface."""
    errors = photo_errors(references)
    found = []
    for t in range(len(clip)):
        near = nearest_references(clip[t], references, NEAREST)
        total, weight = torch.zeros_like(clip.depth[t]), torch.zeros_like(clip.depth[t])
        for row in near:
            place, sure = correspond(clip[t], references[row])
            total += sure[0] * sample(errors[row, ..., None], place[0])[..., 0]
            weight += sure[0]
        error = torch.where(weight > 0.1, total / weight.clamp_min(0.1), torch.full_like(total, WRONG))
        agree = ((WRONG - error) / (WRONG - RIGHT)).clamp(0, 1)
        found.append(torch.minimum(clip.confidence[t], agree))
    return replace(clip, confidence=torch.stack(found))


def photo_errors(references: Clip) -> Float[Tensor, "R H V"]:
    """How wrong the render of each photo is, averaged over a few pixels. Raises `InputError` without photos."""
    if references.truth is None:
        raise InputError("the references hold no photos; give a clip with its truth.")
    error = (references.truth - references.rgb).abs().mean(-1)[:, None]
    return torch.nn.functional.avg_pool2d(error, SOFT, 1, SOFT // 2, count_include_pad=False)[:, 0]


def nearest_references(frame: Clip, references: Clip, count: int) -> list[int]:
    """The photos that look at what the frame looks at from the most alike directions and distances, the best first."""
    seen = frame.depth[0][frame.depth[0] > 0]
    depth = float(seen.median()) if len(seen) else 1.0
    eye, pose = frame.world_from_camera[0, :3, 3], frame.world_from_camera[0]
    target = eye + depth * pose[:3, 2]
    mine, theirs = eye - target, references.world_from_camera[:, :3, 3] - target
    cosine = torch.nn.functional.cosine_similarity(mine[None], theirs, dim=1)
    angle = cosine.clamp(-1, 1).acos()
    apart = (theirs.norm(dim=1) / mine.norm()).clamp_min(1e-6).log().abs()
    turned = (1 - (references.world_from_camera[:, :3, 2] * pose[:3, 2]).sum(-1)).clamp_min(0)
    score = angle + 0.5 * apart + turned
    return score.argsort(stable=True)[:count].tolist()


def _painted(
    gaussians: Gaussians,
    counts: Int[Tensor, " N"],
    poses: Tensor,
    camera: Cameras,
    options: RenderOptions,
    backend: str,
) -> Float[Tensor, "1 H V"]:
    """Coverage as light: 1 for what two photos saw, a half for one, none for the rest and where nothing is."""
    level = torch.tensor([0.0, 0.5, 1.0]).to(gaussians.means)[counts.long().clamp(0, 2).to(gaussians.device)]
    sh = torch.as_tensor(sh_from_rgb(level[:, None].expand(-1, 3)), dtype=gaussians.means.dtype)[:, None]
    plain = replace(options, background=(0.0, 0.0, 0.0))
    out = render(
        replace(gaussians, sh=sh.to(gaussians.device)), poses, camera, outputs=("rgb",), options=plain, backend=backend
    )
    assert out.rgb is not None
    # What the eye is allowed to see through must not keep a surface from full confidence: 0.999 is the most there is.
    return (out.rgb[0, ..., 0] / 0.98).clamp(0, 1)


def _poses(gaussians: Gaussians, world_from_link: Tensor | None, count: int) -> Float[Tensor, "T L 4 4"]:
    if world_from_link is None:
        links = int(gaussians.links.max()) + 1 if len(gaussians) else 1
        world_from_link = torch.eye(4).expand(links, 4, 4)
    poses = world_from_link.to(gaussians.means)
    poses = poses.expand(count, *poses.shape) if poses.ndim == 3 else poses
    if len(poses) != count:
        raise InputError(f"{len(poses)} sets of link poses for {count} cameras; one for each frame is needed.")
    return poses
