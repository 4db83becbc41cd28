"""Gaussians and point clouds in the types of other toolkits and back: gsplat, PyTorch3D, Open3D, trimesh.

Each peer is imported inside its functions, so that none is needed to use gworld; cameras are converted in
`interchange_cameras`. World frames and lengths pass through unchanged.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.files import check_memory
from gworld.formats.interchange_cameras import peer_module
from gworld.geometry import normalize_quat, quat_from_matrix, quat_multiply
from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import rgb_from_sh, rotate_sh, sh_from_rgb

SURFACE_OPACITY = 0.95
FLATNESS = 0.1
"""Thickness of a surface Gaussian, as a share of its width."""
LEAK = 0.01
"""Share of light that may pass a surface of Gaussians, on average."""
_BYTES_PER_GAUSSIAN = 512  # while it is being made


def gaussians_in_world(gaussians: Gaussians, world_from_link: Float[Tensor, "L 4 4"] | None = None) -> Gaussians:
    """Gaussians moved from their links' frames into the world, harmonics turned with them; all on link 0.

    Without poses every Gaussian must belong to the static link 0. Raises `InputError` for links without a pose.
    """
    if len(gaussians) == 0 or (world_from_link is None and not bool(gaussians.links.any())):
        return gaussians
    count = 0 if world_from_link is None else len(world_from_link)
    if world_from_link is None or int(gaussians.links.max()) >= count or gaussians.soft_links is not None:
        raise InputError(
            f"the Gaussians belong to links up to {int(gaussians.links.max())} (or to several at once), but {count} "
            "poses were given. Give `world_from_link` for every link; pose soft bodies beforehand."
        )
    pose = world_from_link.to(gaussians.means)[gaussians.links.long()]
    sh = gaussians.sh.clone()
    if gaussians.sh_degree > 0:
        for link in gaussians.links.unique().tolist():
            rows = gaussians.links == link
            sh[rows] = rotate_sh(gaussians.sh[rows], world_from_link[link, :3, :3])
    turn = quat_from_matrix(pose[:, :3, :3])
    return Gaussians(
        means=(pose[:, :3, :3] @ gaussians.means[..., None])[..., 0] + pose[:, :3, 3],
        quats_wxyz=quat_multiply(turn, normalize_quat(gaussians.quats_wxyz)),
        log_scales=gaussians.log_scales,
        opacity_logits=gaussians.opacity_logits,
        sh=sh,
        links=torch.zeros_like(gaussians.links),
    )


def points_of(
    gaussians: Gaussians, world_from_link: Float[Tensor, "L 4 4"] | None = None
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Centres in the world (metres) and base colours in 0..1 of Gaussians."""
    world = gaussians_in_world(gaussians, world_from_link)
    return world.means, rgb_from_sh(world.sh[:, 0]).clamp(0.0, 1.0)


def gaussians_from_points(
    points: Float[Tensor, "N 3"], colors: Float[Tensor, "N 3"], normals: Float[Tensor, "N 3"] | None = None
) -> Gaussians:
    """Gaussians at coloured points (0..1), as wide as the mean distance to their three nearest neighbours.

    Round and faint (opacity 0.1) without normals; flat across them and opaque with normals. Source of the width and the
    opacity: Kerbl et al., 3D Gaussian Splatting, 2023, section 5.1.
    """
    from scipy.spatial import cKDTree

    positions = points.detach().cpu().double().numpy()
    width = np.ones(len(positions))
    if len(positions) > 1:
        near = min(4, len(positions))
        distance = cKDTree(positions).query(positions, k=near)[0]
        width = np.sqrt(np.square(distance[:, 1:]).mean(axis=1))
    # Points that coincide have no distance; a zero width would be an infinite logarithm.
    width = np.maximum(width, max(float(np.median(width)) * 1e-3, 1e-9)) if len(width) else width
    scale = torch.from_numpy(width).to(points)
    opacity = 0.1 if normals is None else SURFACE_OPACITY
    return _surfels(points, colors, scale, normals, opacity)


def _surfels(points: Tensor, colors: Tensor, width: Tensor, normals: Tensor | None, opacity: float) -> Gaussians:
    """One Gaussian per point: round, or with its z axis along the normal and thin there."""
    count = len(points)
    scales = width[:, None].expand(count, 3).clone()
    quats = points.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4).clone()
    if normals is not None:
        scales[:, 2] *= FLATNESS
        quats = quat_from_normal(normals)
    return Gaussians(
        means=points,
        quats_wxyz=quats,
        log_scales=scales.log(),
        opacity_logits=points.new_full((count,), math.log(opacity / (1 - opacity))),
        sh=sh_from_rgb(colors)[:, None].to(points),
        links=torch.zeros(count, dtype=torch.int32, device=points.device),
    )


def quat_from_normal(normals: Float[Tensor, "N 3"]) -> Float[Tensor, "N 4"]:
    """Unit quaternions of the shortest rotation of +z onto each normal (of any length > 0)."""
    normal = torch.nn.functional.normalize(normals, dim=-1)
    x, y, z = normal.unbind(-1)
    half = torch.stack([1 + z, -y, x, torch.zeros_like(z)], dim=-1)
    opposite = half.new_tensor([0.0, 1.0, 0.0, 0.0]).expand_as(half)  # straight down: any half turn about x or y
    return normalize_quat(torch.where((1 + z)[..., None] < 1e-6, opposite, half))


def to_gsplat(gaussians: Gaussians, world_from_link: Float[Tensor, "L 4 4"] | None = None) -> dict[str, Any]:
    """Arguments of `gsplat.rasterization` for the Gaussians: means, quats, scales, opacities, colors, sh_degree."""
    world = gaussians_in_world(gaussians, world_from_link)
    return {
        "means": world.means,
        "quats": world.quats_wxyz,
        "scales": world.log_scales.exp(),
        "opacities": torch.sigmoid(world.opacity_logits),
        "colors": world.sh,
        "sh_degree": world.sh_degree,
    }


def gaussians_to_pytorch3d(gaussians: Gaussians, world_from_link: Float[Tensor, "L 4 4"] | None = None) -> Any:
    """A `pytorch3d.structures.Pointclouds` of one cloud: centres, with base colours as features."""
    structures = peer_module("pytorch3d.structures")
    points, colors = points_of(gaussians, world_from_link)
    return structures.Pointclouds(points=[points], features=[colors])


def gaussians_from_pytorch3d(clouds: Any) -> Gaussians:
    """Gaussians of all points of a PyTorch3D `Pointclouds`, through `gaussians_from_points`; grey without features."""
    points, features = clouds.points_packed(), clouds.features_packed()
    colors = torch.full_like(points, 0.5) if features is None else features[:, :3]
    return gaussians_from_points(points, colors, clouds.normals_packed())


def points_to_open3d(
    points: Float[Tensor, "N 3"], colors: Float[Tensor, "N 3"], normals: Float[Tensor, "N 3"] | None = None
) -> Any:
    """An `open3d.geometry.PointCloud` of points (metres), colours in 0..1 and normals where given."""
    open3d = peer_module("open3d")
    cloud = open3d.geometry.PointCloud(_open3d_vectors(open3d, points))
    cloud.colors = _open3d_vectors(open3d, colors)
    if normals is not None:
        cloud.normals = _open3d_vectors(open3d, normals)
    return cloud


def points_from_open3d(
    cloud: Any,
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"], Float[Tensor, "N 3"] | None]:
    """Points, colours in 0..1 (grey where it has none) and normals or None of an Open3D point cloud, float64."""
    points = torch.from_numpy(np.array(cloud.points))
    colors = torch.from_numpy(np.array(cloud.colors)) if cloud.has_colors() else torch.full_like(points, 0.5)
    return points, colors, torch.from_numpy(np.array(cloud.normals)) if cloud.has_normals() else None


def estimate_normals(
    points: Float[Tensor, "N 3"], neighbours: int = 16, viewpoint: Float[Tensor, "3"] | None = None
) -> Float[Tensor, "N 3"]:
    """Unit normals of a point cloud from its `neighbours` nearest points, by Open3D.

    They point toward `viewpoint` where one is given, else consistently over the surface (Hoppe et al., SIGGRAPH 1992).
    """
    open3d = peer_module("open3d")
    cloud = open3d.geometry.PointCloud(_open3d_vectors(open3d, points))
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamKNN(neighbours))
    if viewpoint is None:
        cloud.orient_normals_consistent_tangent_plane(neighbours)
    else:
        cloud.orient_normals_towards_camera_location(viewpoint.detach().cpu().double().numpy())
    return torch.from_numpy(np.array(cloud.normals)).to(points)


def _open3d_vectors(open3d: Any, rows: Tensor) -> Any:
    return open3d.utility.Vector3dVector(rows.detach().cpu().double().numpy())


def gaussians_to_trimesh(gaussians: Gaussians, world_from_link: Float[Tensor, "L 4 4"] | None = None) -> Any:
    """A `trimesh.PointCloud` of centres with base colours and opacities, to look at."""
    trimesh = peer_module("trimesh")
    points, colors = points_of(gaussians, world_from_link)
    rgba = torch.cat([colors, torch.sigmoid(gaussians.opacity_logits)[:, None]], dim=1)
    rows = (rgba * 255).round().to(torch.uint8).detach().cpu().numpy()
    return trimesh.PointCloud(points.detach().cpu().numpy(), colors=rows)


def gaussians_from_mesh(mesh: Any, per_square_metre: float, seed: int = 0) -> Gaussians:
    """Flat Gaussians sampled evenly at random over the surface of a `trimesh.Trimesh`, in its colours.

    They lie in the surface, thin along its normal, and so wide that a share `LEAK` of light passes on average: for
    Gaussians of width s and opacity o, scattered with density d, E[transmittance] = exp(-2 pi s^2 o d) (the generating
    functional of a Poisson process). Raises `InputError` for a mesh without area or a density that is not above 0, and
    `ResourceError` when they would not fit into memory.
    """
    trimesh = peer_module("trimesh")
    if not isinstance(mesh, trimesh.Trimesh):
        raise InputError(
            f"a {type(mesh).__name__} was given; a trimesh.Trimesh is needed. Convert scenes by `.to_mesh()`."
        )
    if not (math.isfinite(per_square_metre) and per_square_metre > 0 and math.isfinite(mesh.area) and mesh.area > 0):
        raise InputError(
            f"the mesh has {mesh.area:g} square metres and {per_square_metre:g} Gaussians were asked for on each; both "
            "must be above 0. Check the mesh and its unit."
        )
    count = max(1, round(mesh.area * per_square_metre))
    check_memory(count * _BYTES_PER_GAUSSIAN, f"a mesh of {count} Gaussians")
    points, faces, weights = trimesh.sample.sample_surface(mesh, count, return_barycentric=True, seed=seed)
    colors = _surface_colors(mesh, faces, weights)
    width = math.sqrt(-math.log(LEAK) / (2 * math.pi * SURFACE_OPACITY * count / mesh.area))
    return _surfels(
        _float_tensor(points),
        _float_tensor(colors) / 255.0,
        torch.full((count,), width),
        _float_tensor(mesh.face_normals[faces]),
        SURFACE_OPACITY,
    )


def _surface_colors(mesh: Any, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """RGB [N,3] in 0..255 at barycentric `weights` [N,3] of `faces` [N]: texture, vertex, face or material colour."""
    visual = mesh.visual
    corners = mesh.faces[faces]
    if visual.kind == "vertex":
        return np.einsum("nk,nkc->nc", weights, np.asarray(visual.vertex_colors, np.float64)[corners, :3])
    if visual.kind == "texture":
        material = visual.material
        image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
        if image is None or visual.uv is None:
            return np.tile(np.asarray(material.main_color, np.float64)[:3], (len(faces), 1))
        color = peer_module("trimesh").visual.color
        uv = np.einsum("nk,nkc->nc", weights, np.asarray(visual.uv)[corners])
        factor = getattr(material, "baseColorFactor", None)
        tint = np.ones(3) if factor is None else np.asarray(factor, np.float64)[:3] / 255.0
        return np.asarray(color.uv_to_interpolated_color(uv, image), np.float64)[:, :3] * tint
    return np.asarray(visual.face_colors, np.float64)[faces, :3]


def _float_tensor(values: np.ndarray) -> Float[Tensor, "..."]:
    return torch.from_numpy(np.array(values, np.float32))
