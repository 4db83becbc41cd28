"""How a world looks, changed without moving anything: colours, light, background, cameras."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import (
    matrix_from_quat,
    normalize_quat,
    quat_from_matrix,
    quat_from_rotvec,
    quat_multiply,
    transform_from,
)
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians, join_gaussians, select_gaussians
from gworld.scene.harmonics import C0, rotate_sh
from gworld.scene.world import World

DARKEST = 0.05
"""What light from one side leaves at least of a colour on the other side."""
WARMTH = (1.0, 0.0, -1.0)
"""How a warmer light changes red, green and blue."""


def recolour(gaussians: Gaussians, matrix: Float[Tensor, "*#N 3 3"]) -> Gaussians:
    """Every colour c, from wherever it is seen, becomes `matrix` c (exact, for spherical harmonics are linear)."""
    sh = gaussians.sh @ matrix.mT.to(gaussians.sh)
    grey = torch.full((3,), 0.5, dtype=gaussians.sh.dtype)
    moved = (matrix.to(grey) @ grey - grey) / C0
    return replace(gaussians, sh=torch.cat([sh[:, :1] + moved.expand(len(sh), 3)[:, None], sh[:, 1:]], dim=1))


def colour_matrix(hue: float = 0.0, saturation: float = 1.0, brightness: float = 1.0) -> Float[Tensor, "3 3"]:
    """Turn colours about the grey axis by `hue` degrees, stretch them from grey, then make them brighter."""
    axis = torch.full((3,), math.radians(hue) / math.sqrt(3.0))
    turn = matrix_from_quat(quat_from_rotvec(axis))
    grey = torch.full((3, 3), 1 / 3)
    return brightness * (grey + saturation * (torch.eye(3) - grey)) @ turn


def recolour_rows(world: World, rows: Bool[Tensor, " N"], matrix: Float[Tensor, "3 3"]) -> World:
    """The world with some Gaussians in other colours."""
    painted = recolour(world.gaussians, matrix)
    sh = torch.where(rows[:, None, None], painted.sh, world.gaussians.sh)
    return replace(world, gaussians=replace(world.gaussians, sh=sh))


def relight(
    world: World,
    exposure: float = 0.0,
    warmth: float = 0.0,
    strength: float = 0.0,
    toward: tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> World:
    """The world under more light (`exposure` in stops), warmer light, and light of `strength` from one side.

    What faces `toward` the light is brighter by the part `strength`, what faces away darker: first-order spherical
    harmonics of the normal (Ramamoorthi, Hanrahan, 2001), as bodies stand at rest; it is painted on, and turns with
    a body that turns later.
    """
    gain = 2.0**exposure * torch.tensor([1.0 + warmth * part for part in WARMTH]).clamp_min(DARKEST)
    matrix = torch.diag(gain)[None]
    if strength:
        light = torch.nn.functional.normalize(torch.tensor(toward), dim=0)
        shade = (1.0 + strength * (surface_normals(world) @ light)).clamp_min(DARKEST)
        matrix = matrix * shade[:, None, None]
    return replace(world, gaussians=recolour(world.gaussians, matrix))


def surface_normals(world: World) -> Float[Tensor, "N 3"]:
    """World-axes normals of Gaussians taken as flat: away from a body's middle; of the scene, toward the cameras."""
    gaussians, poses = world.gaussians, world.rest_poses()
    owners = gaussians.links.long()
    axes = matrix_from_quat(normalize_quat(gaussians.quats_wxyz.detach().float()))
    thin = gaussians.log_scales.argmin(dim=1)
    normals = axes[torch.arange(len(axes)), :, thin]
    normals = (poses[owners, :3, :3] @ normals[..., None])[..., 0]
    points = (poses[owners, :3, :3] @ gaussians.means.detach().float()[..., None])[..., 0] + poses[owners, :3, 3]
    sums = torch.zeros(len(world.links), 3).index_add_(0, owners, points)
    middles = sums / torch.bincount(owners, minlength=len(world.links)).clamp_min(1)[:, None]
    out = points - middles[owners]
    seen = torch.tensor([0.0, 0.0, 1.0]).expand_as(points)
    if world.cameras is not None and not any(world.cameras.links):
        seen = world.cameras.world_from_camera[:, :3, 3].mean(0) - points
    side = torch.where((owners == 0)[:, None], seen, out)
    return normals * torch.where((normals * side).sum(-1, keepdim=True) < 0, -1.0, 1.0)


def swap_background(
    world: World, other: World, keep: float | None = None, shift: Float[Tensor, "4 4"] | None = None
) -> World:
    """The world before another world's static scene, moved there by `shift`.

    Of its own scene, what stands within `keep` metres of the box of its bodies stays (a table under them, and the
    physics it gives them), and there nothing of the other is put; with None nothing stays.
    """
    own, foreign = world.gaussians, other.gaussians
    scene = select_gaussians(foreign, foreign.links == 0)
    if not len(scene):
        raise InputError("the world of the background has no static scene; nothing can be put behind.")
    if shift is not None:
        scene = move_gaussians(scene, shift)
    stays = own.links != 0
    if keep is not None:
        low, high = body_box(world)
        near = ((own.means > low - keep) & (own.means < high + keep)).all(1)
        stays = stays | near
        scene = select_gaussians(scene, ~((scene.means > low - keep) & (scene.means < high + keep)).all(1))
    return replace(world, gaussians=join_gaussians([select_gaussians(own, stays), scene]))


def body_box(world: World) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """The corners of the box that holds every agent and object as they rest; raises `InputError` without any."""
    rows = world.gaussians.links != 0
    if not bool(rows.any()):
        raise InputError("the world has no agent and no object; there is nothing to keep a scene for.")
    poses = world.rest_poses()[world.gaussians.links[rows].long()]
    points = (poses[:, :3, :3] @ world.gaussians.means[rows].detach()[..., None])[..., 0] + poses[:, :3, 3]
    return points.amin(0), points.amax(0)


def move_gaussians(gaussians: Gaussians, shift: Float[Tensor, "4 4"]) -> Gaussians:
    """Gaussians moved and turned rigidly, highlights turning along."""
    rotation = shift[:3, :3].to(gaussians.means)
    turn = quat_from_matrix(rotation)
    return replace(
        gaussians,
        means=gaussians.means @ rotation.T + shift[:3, 3].to(gaussians.means),
        quats_wxyz=quat_multiply(turn.expand(len(gaussians), 4), normalize_quat(gaussians.quats_wxyz)),
        sh=rotate_sh(gaussians.sh, rotation),
    )


def jitter_cameras(
    cameras: Cameras, shift: Float[Tensor, "C 3"], turn: Float[Tensor, "C 3"], zoom: Float[Tensor, " C"]
) -> Cameras:
    """Cameras shifted (m) and turned (rotation vectors) in their own axes, focal lengths multiplied by `zoom`."""
    small = transform_from(matrix_from_quat(quat_from_rotvec(turn)), shift)
    K = cameras.K.clone()
    K[:, 0, 0] *= zoom
    K[:, 1, 1] *= zoom
    return replace(cameras, K=K, world_from_camera=cameras.world_from_camera @ small)
