"""A triangle mesh of a world for collision and simulators: rendered depth fused into a truncated distance field.

Each camera's depth and colour are fused where one surface is seen clearly: opaque, and most of what is blended close
together. Depth is where half of a pixel's light is gathered, because the mean is pulled off the surface by the little
that shines through from far behind, and lies in the air at every outline. The zero level is extracted as triangles,
and small clusters are left out.
Source: Curless and Levoy, "A volumetric method for building complex models from range images", 1996; Dong et al.,
"ASH: a modern framework for parallel spatial hashing in 3D perception", 2022 (Open3D's sparse voxel blocks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gworld.errors import InputError, UsageError
from gworld.files import atomic_write, check_memory
from gworld.formats.interchange_cameras import peer_module
from gworld.geometry import invert_transform, transform_points
from gworld.reconstruct.contribution import Glimpse, glimpses, light_shares, poses_by_view
from gworld.reconstruct.coverage import ARRIVES
from gworld.render.api import DILATION, RenderOptions
from gworld.render.paths import bulk
from gworld.render.projection import pose_of_gaussians, scaled_axes
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.harmonics import sh_from_rgb

SUFFIXES = (".ply", ".glb", ".obj")
BLOCK = 16
"""Voxels along the side of a block of the sparse field."""
SLABS = 24
"""Layers of depth in which a picture is drawn to find where half of its light is gathered."""
CLEAR_AIR = 0.05
"""Opacity of a pixel below which its ray meets nothing, and what lies on it is known to be empty."""
BYTES_PER_VOXEL = 20  # distance, weight and three colours as float32


@dataclass(frozen=True)
class MeshOptions:
    """How finely a mesh is drawn, and what is left out of it."""

    voxel: float = 0.0
    """Edge of a voxel in metres (or the world's unit); 0 takes 1/192 of the width of the scene's bulk, or the length of
    a typical Gaussian where that is more."""
    truncation: float = 4.0
    """Voxels before and behind a surface within which distance is kept."""
    opacity: float = 0.5
    """Least opacity of a pixel whose depth is used."""
    spread: float = 0.1
    """Largest distance, as part of the depth, within which the middle half of a pixel's light is gathered."""
    views: int = 3
    """Least number of views that saw a surface for it to be kept (or all, where there are fewer)."""
    smallest: float = 0.01
    """Clusters of triangles with less than this part of the largest one's area are left out."""
    longest: int = 960
    """Pixels of the longer side of the pictures that are fused."""


@dataclass(frozen=True)
class Mesh:
    """Triangles in the world's frame: vertices [V,3] metres, faces [F,3] counter-clockwise from outside, colours."""

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    colors: UInt8[np.ndarray, "V 3"]


def extract_mesh(
    gaussians: Gaussians,
    cameras: Sequence[Cameras],
    options: MeshOptions = MeshOptions(),
    *,
    world_from_link: Float[Tensor, "L 4 4"] | None = None,
    backend: str = "auto",
) -> Mesh:
    """Fuse what the cameras (one by one, see `contribution.single_cameras`) would see into one coloured mesh.

    Raises `MissingBackendError` without Open3D, `ResourceError` when so fine a mesh would not fit in memory,
    `InputError` when no camera sees a surface clearly, and `UsageError` for a voxel below 0.
    """
    if not 0 <= options.voxel < float("inf") or options.truncation < 1:
        raise UsageError(f"a voxel of {options.voxel} and a truncation of {options.truncation} were asked for; numbers "
                         "above 0, and 1 or more, are needed.")  # fmt: skip
    open3d = peer_module("open3d")
    poses = poses_by_view(gaussians, world_from_link, 1)[0]
    means = transform_points(pose_of_gaussians(gaussians, poses), gaussians.means[:, None])[:, 0]
    center, radius = bulk(means)
    typical = float(gaussians.log_scales.amax(1).median().exp()) if len(gaussians) else 0.0
    voxel = options.voxel or max(2 * radius / 192, typical)
    grid = open3d.t.geometry.VoxelBlockGrid(
        attr_names=("tsdf", "weight", "color"),
        attr_dtypes=(open3d.core.float32,) * 3,
        attr_channels=((1), (1), (3)),
        voxel_size=voxel,
        block_resolution=BLOCK,
        block_count=10_000,
    )
    used = 0
    for look in glimpses(gaussians, cameras, world_from_link=poses, longest=options.longest, backend=backend):
        far = float((look.camera.world_from_camera[0, :3, 3].cpu() - center.cpu()).norm()) + 3 * radius
        colour, depth = _surface(gaussians, look, options, backend)
        used += _fuse(open3d, grid, look.camera, colour, np.minimum(depth, far), options.truncation)
    if not used:
        raise InputError(
            f"none of the {len(cameras)} cameras sees an opaque surface at one depth, so there is nothing to mesh. "
            "Choose a larger voxel, or cameras that look at the scene."
        )
    mesh = grid.extract_triangle_mesh(weight_threshold=min(options.views, used) - 0.5)
    return _largest_clusters(_as_mesh(mesh), options.smallest)


def write_mesh(mesh: Mesh, path: str | Path) -> None:
    """Write a coloured mesh as PLY or OBJ (the world's axes, +Z up) or GLB (turned to glTF's +Y up).

    Raises `UsageError` for another suffix.
    """
    import trimesh

    kind = Path(path).suffix.lower()
    if kind not in SUFFIXES:
        raise UsageError(f"`{path}` names no mesh format gworld writes. End it in one of {', '.join(SUFFIXES)}.")
    vertices = mesh.vertices
    if kind == ".glb":
        vertices = np.stack([vertices[:, 0], vertices[:, 2], -vertices[:, 1]], axis=1)
    body = trimesh.Trimesh(vertices, mesh.faces, vertex_colors=mesh.colors, process=False)
    data = body.export(file_type=kind[1:])
    with atomic_write(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def _surface(gaussians: Gaussians, look: Glimpse, options: MeshOptions, backend: str) -> tuple[np.ndarray, np.ndarray]:
    """Colour [H,W,3] and depth [H,W] of one view: 0 where no single opaque surface is seen, infinite past them all."""
    gaussians = select_gaussians(gaussians, light_shares(gaussians, look, RenderOptions()) >= ARRIVES)
    with torch.no_grad():
        out = render(gaussians, look.poses, look.camera, outputs=("rgb", "alpha"), backend=backend)
        assert out.rgb is not None and out.alpha is not None
        weights, depths = _slabs(gaussians, look, backend)
    alpha = out.alpha[0, 0]
    gathered = weights.cumsum(0)
    total = gathered[-1]

    def quantile(part: float) -> Tensor:
        return (gathered < part * total).sum(0).clamp_max(len(weights) - 1)

    # A surface may lie across the border of two slabs: the mean of the middle one and its neighbours.
    near = (quantile(0.5) + torch.tensor([-1, 0, 1], device=alpha.device)[:, None, None]).clamp(0, len(weights) - 1)
    depth = (weights.gather(0, near) * depths.gather(0, near)).sum(0) / weights.gather(0, near).sum(0).clamp_min(1e-9)
    first, last = (depths.gather(0, quantile(part)[None])[0] for part in (0.25, 0.75))
    clear = (alpha >= options.opacity) & (last - first <= options.spread * depth) & (depth > 0)
    depth = torch.where(clear, depth, torch.where(alpha < CLEAR_AIR, torch.inf, 0.0))
    # Drawn over black: what is translucent is dark, so the surface's own colour is that over its opacity.
    colour = (out.rgb[0, 0] / alpha.clamp_min(1e-6)[..., None]).clamp(0, 1)
    return colour.cpu().numpy(), depth.cpu().numpy()


def _slabs(gaussians: Gaussians, look: Glimpse, backend: str) -> tuple[Float[Tensor, "S H V"], Float[Tensor, "S H V"]]:
    """How much light each pixel gathers in slabs of depth, nearest first, and at which depth in each.

    Gaussians are blended in order of their centres' depth, so that slabs drawn apart and put over each other are the
    same picture. Each slab holds equally many; it is drawn with its depth planes (a, b, c) for colours.
    """
    camera_from_link = invert_transform(look.camera.world_from_camera[0]).to(look.poses) @ look.poses
    pose = pose_of_gaussians(gaussians, camera_from_link)
    centre = transform_points(pose, gaussians.means[:, None])[:, 0]
    planes = _depth_planes(gaussians, pose, centre, look.camera)
    v, u = (torch.arange(size, device=planes.device) + 0.5 for size in look.alpha.shape)
    left = torch.ones_like(look.alpha)
    weights, depths = [], []
    for rows in torch.sort(centre[:, 2], stable=True).indices.tensor_split(SLABS):
        # Colours below 0 would be cut off: numbers are shifted and scaled to 0..1, and back.
        low = planes[rows].amin(0) if len(rows) else planes.new_zeros(3)
        size = (planes[rows].amax(0) - low).clamp_min(1e-9) if len(rows) else planes.new_ones(3)
        sh = torch.as_tensor(sh_from_rgb((planes[rows] - low) / size))[:, None].to(planes)
        slab = replace(select_gaussians(gaussians, rows), sh=sh)
        out = render(slab, look.poses, look.camera, outputs=("rgb", "alpha"), backend=backend)
        assert out.rgb is not None and out.alpha is not None
        alpha = out.alpha[0, 0]
        mean = out.rgb[0, 0] / alpha.clamp_min(1e-6)[..., None] * size + low
        weights.append(left * alpha)
        depths.append(mean[..., 0] + mean[..., 1] * u + mean[..., 2] * v[:, None])
        left = left * (1 - alpha)
    return torch.stack(weights), torch.stack(depths)


def _depth_planes(
    gaussians: Gaussians, pose: Float[Tensor, "N 4 4"], centre: Float[Tensor, "N 3"], camera: Cameras
) -> Float[Tensor, "N 3"]:
    """(a, b, c) of each Gaussian's own depth a + b u + c v at pixel (u, v): the mean of z along that pixel's ray.

    Depths of centres lean to the camera where a surface is slanted, for the nearer of two neighbours is blended first;
    these do not. Under the affine projection it is E[z | u, v] = z + cov(z, uv) cov(uv)^-1 (uv - centre), with the
    renderer's dilation in cov(uv). Source: Zhang et al., "RaDe-GS: rasterizing depth in Gaussian splatting", 2024.
    """
    K = camera.K[0].to(centre)
    x, y, z = centre.unbind(1)
    axes = pose[:, :3, :3] @ scaled_axes(gaussians)
    slope = torch.stack([x / z, y / z], 1)
    uv = (axes[:, :2] - slope[..., None] * axes[:, 2:]) * (K[[0, 1], [0, 1]] / z[:, None])[..., None]
    covariance = uv @ uv.transpose(1, 2) + DILATION * torch.eye(2).to(centre)
    lean = torch.linalg.solve(covariance, (uv @ axes[:, 2:].transpose(1, 2)))[..., 0]
    pixel = slope * K[[0, 1], [0, 1]] + K[:2, 2]
    return torch.cat([(z - (lean * pixel).sum(1))[:, None], lean], 1)


def _fuse(open3d: Any, grid: Any, camera: Cameras, colour: np.ndarray, depth: np.ndarray, truncation: float) -> int:
    """Add one picture to the field, and its free space to all blocks so far; 0 when there is nothing in it."""
    far = float(depth.max())
    surface = np.where(depth < far, depth, 0.0)
    if not (surface > 0).any():
        return 0
    K = camera.K[0].double().cpu().numpy().copy()
    K[:2, 2] -= 0.5  # Open3D counts pixel centres from 0
    intrinsic = open3d.core.Tensor(K)
    extrinsic = open3d.core.Tensor(invert_transform(camera.world_from_camera[0].double()).cpu().numpy())

    def picture(pixels: np.ndarray) -> Any:
        return open3d.t.geometry.Image(open3d.core.Tensor(np.ascontiguousarray(pixels, np.float32)))

    optics = (intrinsic, extrinsic, 1.0, far, truncation)
    try:
        blocks = grid.compute_unique_block_coordinates(picture(surface), *optics).cpu().numpy()
    except RuntimeError:  # it looks at every fourth pixel only, and raises when there is no depth in any of them
        return 0
    field = grid.hashmap()
    held = field.key_tensor().cpu().numpy()[field.active_buf_indices().cpu().numpy().astype(np.int64)]
    blocks = np.unique(np.concatenate([held, blocks]), axis=0)
    # The table doubles when it is full, and copies while it does.
    check_memory(3 * len(blocks) * BLOCK**3 * BYTES_PER_VOXEL, "a mesh of so small voxels")
    grid.integrate(open3d.core.Tensor(blocks), picture(depth), picture(colour), intrinsic, *optics)
    return 1


def _as_mesh(mesh: Any) -> Mesh:
    if "positions" not in mesh.vertex or "indices" not in mesh.triangle:
        return Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64), np.zeros((0, 3), np.uint8))
    colors = np.asarray(mesh.vertex.colors.cpu().numpy(), np.float32)
    return Mesh(
        mesh.vertex.positions.cpu().numpy().astype(np.float32),
        mesh.triangle.indices.cpu().numpy().astype(np.int64),
        np.round(np.clip(colors, 0, 1) * 255).astype(np.uint8),
    )


def _largest_clusters(mesh: Mesh, smallest: float) -> Mesh:
    """Without the connected parts whose area is below `smallest` of the largest one's, and loose vertices."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(mesh.faces):
        return mesh
    a, b, c = (mesh.vertices[mesh.faces[:, corner]] for corner in range(3))
    area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]]])
    count = len(mesh.vertices)
    links = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (count, count))
    _, label = connected_components(links, directed=False)
    areas = np.bincount(label[mesh.faces[:, 0]], area)
    faces = mesh.faces[areas[label[mesh.faces[:, 0]]] >= smallest * areas.max()]
    used, renumbered = np.unique(faces, return_inverse=True)
    return Mesh(mesh.vertices[used], renumbered.reshape(-1, 3), mesh.colors[used])
