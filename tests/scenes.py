"""Small scenes for render tests: random Gaussians on moving links, cameras around them, and the agreement set.

`agreement_scenes()` lists the 50 scenes on which every backend must agree with the reference; `doubtful_pixels` counts,
per pixel, the decisions that rounding may turn either way there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gworld.geometry import se3_exp
from gworld.render.api import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, RenderOptions
from gworld.render.projection import Splats, camera_from_links, project_visible
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import Gaussians, gaussians_to, join_gaussians, select_gaussians

NAMES = ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh")
ONE_OVER_255 = math.log(1 / 254)
"""The logit whose sigmoid is 1/255."""


@dataclass(frozen=True)
class Scene:
    """One call of a renderer: everything in float32."""

    name: str
    gaussians: Gaussians
    world_from_link: Tensor
    cameras: Cameras
    previous: tuple[Tensor, Cameras]
    options: RenderOptions = field(default_factory=RenderOptions)


def random_gaussians(
    seed: int, count: int, *, degree: int = 0, links: int = 1, size: float = 0.12, thin: float = 1.0
) -> Gaussians:
    """Gaussians in a unit ball; `size` is the median standard deviation in metres, `thin` stretches one axis."""
    rng = torch.Generator().manual_seed(seed)
    log_scales = math.log(size) + 0.5 * torch.randn(count, 3, generator=rng)
    log_scales[:, 0] += math.log(thin)
    log_scales[:, 1:] -= 0.5 * math.log(thin)
    sh = torch.randn(count, (degree + 1) ** 2, 3, generator=rng) * 0.3
    sh[:, 0] *= 3
    return Gaussians(
        means=torch.randn(count, 3, generator=rng) * 0.5,
        quats_wxyz=torch.randn(count, 4, generator=rng),
        log_scales=log_scales,
        opacity_logits=torch.randn(count, generator=rng) * 2,
        sh=sh,
        links=torch.randint(0, links, (count,), generator=rng, dtype=torch.int32),
    )


def random_poses(seed: int, worlds: int, links: int, step: float = 0.3) -> Tensor:
    """`world_from_link [W,L,4,4]`: link 0 stays, the others are shaken by about `step` metres and radians."""
    rng = torch.Generator().manual_seed(seed)
    poses = se3_exp(torch.randn(worlds, links, 6, generator=rng) * step)
    poses[:, 0] = torch.eye(4)
    return poses


def random_cameras(seed: int, count: int, width: int = 64, height: int = 48, distance: float = 2.5) -> Cameras:
    """Cameras around the origin that look near it; focal lengths differ, the principal point is off the middle."""
    rng = torch.Generator().manual_seed(seed)
    eye = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=-1) * distance
    K = torch.stack([intrinsics(width, height, 0.9) for _ in range(count)])
    K[:, 0, 0] *= 1 + 0.2 * torch.rand(count, generator=rng)
    K[:, :2, 2] += torch.randn(count, 2, generator=rng) * 2
    return Cameras(K, look_at(eye, torch.randn(count, 3, generator=rng) * 0.1), width, height)


def front_camera(width: int = 32, height: int = 32, focal: float = 32.0, dtype: torch.dtype = torch.float32) -> Cameras:
    """One camera at the origin along +z: camera axes are world axes."""
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=dtype)
    return Cameras(K[None], torch.eye(4, dtype=dtype)[None], width, height)


def one_gaussian(
    mean: tuple[float, float, float] = (0.0, 0.0, 2.0), sigma: float = 0.1, logit: float = 2.0
) -> Gaussians:
    """A single round grey-red Gaussian on link 0."""
    return Gaussians(
        means=torch.tensor([mean]),
        quats_wxyz=torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        log_scales=torch.full((1, 3), math.log(sigma)),
        opacity_logits=torch.tensor([logit]),
        sh=torch.tensor([[[1.0, 0.2, -0.3]]]),
        links=torch.zeros(1, dtype=torch.int32),
    )


def scene_to(scene: Scene, dtype: torch.dtype) -> Scene:
    """The same scene in another floating type."""
    poses, cameras = scene.previous
    return replace(
        scene,
        gaussians=gaussians_to(scene.gaussians, dtype=dtype),
        world_from_link=scene.world_from_link.to(dtype),
        cameras=_cameras_to(scene.cameras, dtype),
        previous=(poses.to(dtype), _cameras_to(cameras, dtype)),
    )


def agreement_scenes() -> list[Scene]:
    """The 50 scenes of the agreement test: 25 kinds, each plain and antialiased."""
    scenes = []
    for index, (name, make) in enumerate(_kinds().items()):
        plain = _scene(name, 100 + index, *make(index))
        scenes.append(plain)
        options = replace(plain.options, antialiased=True, background=(0.1, 0.5, 0.9))
        scenes.append(replace(plain, name=f"{name} antialiased", options=options))
    return scenes


def doubtful_pixels(scene: Scene, tolerance: float = 1e-5) -> Tensor:
    """How many decisions per pixel `[W,C,H,W]` lie within `tolerance` of turning the other way.

    Counted are alphas near MIN_ALPHA, transmittances near MIN_TRANSMITTANCE (relative), and overlapping neighbours in
    depth whose order hangs on the last bits. Each may change a pixel by up to 1/255 (the stop by its remaining light).
    """
    exact = scene_to(scene, torch.float64)
    poses = camera_from_links(exact.world_from_link, exact.cameras.world_from_camera)
    W, C, H, V = *poses.shape[:2], exact.cameras.height, exact.cameras.width
    counts = torch.zeros(W, C, H, V, dtype=torch.int64)
    for world in range(W):
        for camera in range(C):
            pose = poses[world, camera]
            _, splats = project_visible(exact.gaussians, pose, exact.cameras, camera, exact.options)
            alpha = _dense_alpha(splats, H, V)
            near_skip = (alpha - MIN_ALPHA).abs() < tolerance
            drawn = torch.where(alpha >= MIN_ALPHA, alpha, torch.zeros_like(alpha))
            after = torch.cumprod(1 - drawn, dim=-1)
            near_stop = ((after / MIN_TRANSMITTANCE - 1).abs() < 1e-3) & (drawn > 0)
            gap = torch.diff(splats.depths) / splats.depths[1:]
            swapped = (gap > 0) & (gap < 1e-6) & (drawn[..., 1:] > 0) & (drawn[..., :-1] > 0)
            counts[world, camera] = near_skip.sum(-1) + near_stop.sum(-1) + swapped.sum(-1)
    return counts


def _dense_alpha(splats: Splats, height: int, width: int) -> Tensor:
    """Alpha of every splat in every pixel by the textbook formula, independent of the reference's blending."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    dx = x.double()[..., None] - splats.centres[:, 0]
    dy = y.double()[..., None] - splats.centres[:, 1]
    xx, xy, yy = splats.covariances.unbind(-1)
    power = (yy * dx**2 - 2 * xy * dx * dy + xx * dy**2) / (xx * yy - xy**2)
    return (splats.opacities * torch.exp(-0.5 * power)).clamp_max(MAX_ALPHA)


def _cameras_to(cameras: Cameras, dtype: torch.dtype) -> Cameras:
    return replace(cameras, K=cameras.K.to(dtype), world_from_camera=cameras.world_from_camera.to(dtype))


def _scene(name: str, seed: int, gaussians: Gaussians, worlds: int, cameras: Cameras) -> Scene:
    links = int(gaussians.links.max()) + 1 if len(gaussians) else 1
    poses = random_poses(seed, worlds, links)
    before = random_poses(seed, worlds, links, step=0.25)
    moved = replace(cameras, world_from_camera=cameras.world_from_camera @ se3_exp(torch.full((6,), 0.02)))
    return Scene(name, gaussians, poses, cameras, (before, moved))


def _kinds() -> dict[str, Callable[[int], tuple[Gaussians, int, Cameras]]]:
    """Each kind makes (Gaussians, number of worlds, cameras) from a seed."""
    some = random_gaussians
    kinds: dict[str, Callable[[int], tuple[Gaussians, int, Cameras]]] = {
        f"degree {degree}": lambda s, d=degree: (some(s, 300, degree=d), 1, random_cameras(s, 1)) for degree in range(4)
    }
    kinds |= {
        "many links": lambda s: (some(s, 300, degree=3, links=12), 1, random_cameras(s, 1)),
        "two links": lambda s: (some(s, 300, degree=1, links=2), 1, random_cameras(s, 1)),
        "several worlds": lambda s: (some(s, 200, degree=1, links=3), 3, random_cameras(s, 1)),
        "several cameras": lambda s: (some(s, 200, degree=2, links=2), 1, random_cameras(s, 3)),
        "worlds and cameras": lambda s: (some(s, 150, degree=3, links=4), 2, random_cameras(s, 2)),
        "large": lambda s: (some(s, 100, degree=1, size=0.8), 1, random_cameras(s, 1)),
        "small": lambda s: (some(s, 400, size=0.02), 1, random_cameras(s, 1)),
        "sub-pixel": lambda s: (some(s, 400, size=0.007), 1, random_cameras(s, 1)),
        "thin": lambda s: (some(s, 300, thin=30.0), 1, random_cameras(s, 1)),
        "needles": lambda s: (some(s, 200, thin=1000.0, size=0.05), 1, random_cameras(s, 1)),
        "camera inside": lambda s: (some(s, 300, degree=1), 1, random_cameras(s, 2, distance=0.3)),
        "behind the camera": lambda s: (_behind(s), 1, front_camera()),
        "overlapping": lambda s: (_overlapping(s), 1, random_cameras(s, 1)),
        "equal depths": lambda s: (_equal_depths(s), 1, front_camera()),
        "zero visible": lambda s: (_moved(some(s, 50, degree=1), (50.0, 0.0, 0.0)), 1, front_camera()),
        "one visible": lambda s: (
            join_gaussians([_moved(some(s, 50), (50.0, 0, 0)), one_gaussian()]),
            1,
            front_camera(),
        ),
        "no Gaussians": lambda s: (some(s, 0, degree=2), 2, random_cameras(s, 2)),
        "one Gaussian": lambda s: (one_gaussian(), 1, front_camera()),
        "opacity at the threshold": lambda s: (_threshold_opacity(), 1, front_camera()),
        "odd size": lambda s: (some(s, 300, degree=1), 1, random_cameras(s, 1, 37, 53)),
        "one pixel": lambda s: (one_gaussian(), 1, front_camera(1, 1, 2.0)),
    }
    return kinds


def _moved(gaussians: Gaussians, offset: tuple[float, float, float]) -> Gaussians:
    return replace(gaussians, means=gaussians.means + torch.tensor(offset))


def _behind(seed: int) -> Gaussians:
    """Around the camera: behind, in its plane, on its centre, just before and just behind the near plane."""
    around = random_gaussians(seed, 200, degree=1, size=0.2)
    special = select_gaussians(around, torch.arange(6))
    depths = [(0.0, 0.0, 0.0), (0.1, 0, 0), (0, 0, -1.0), (0, 0, 0.0099), (0, 0, 0.0101), (0.3, 0.2, 0.02)]
    return join_gaussians([around, replace(special, means=torch.tensor(depths))])


def _overlapping(seed: int) -> Gaussians:
    """Hundreds of opaque Gaussians on one spot, so that most are behind the stop."""
    heap = random_gaussians(seed, 400, size=0.3)
    return replace(heap, means=heap.means * 0.1, opacity_logits=heap.opacity_logits + 3)


def _equal_depths(seed: int) -> Gaussians:
    """Three sheets of Gaussians whose depths are equal to the bit (the camera's axes are the world's)."""
    flat = random_gaussians(seed, 90, degree=1)
    means = flat.means.clone()
    means[:, 2] = torch.tensor([2.0, 2.5, 2.0]).repeat(30)
    return replace(flat, means=means)


def _threshold_opacity() -> Gaussians:
    """Opacities of 1/255 and one and two steps of the last bit beside it, each centred on a pixel."""
    logit = torch.tensor(ONE_OVER_255)
    steps = [logit]
    for direction in (-math.inf, math.inf):
        step = logit
        for _ in range(2):
            step = torch.nextafter(step, torch.tensor(direction))
            steps.append(step)
    rows = [one_gaussian(((5.0 * k - 11.5) / 16, 0.5 / 16, 2.0), 0.1, float(step)) for k, step in enumerate(steps)]
    return join_gaussians(rows)
