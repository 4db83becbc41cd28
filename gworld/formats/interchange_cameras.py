"""Cameras in the types of other toolkits and back: gsplat, kornia, PyTorch3D, nerfstudio, Open3D.

Each peer is imported inside its functions, so that none is needed to use gworld. Our pixel centres lie at +0.5 (as
gsplat's, nerfstudio's and PyTorch3D's do); Open3D and kornia put them at whole numbers, so their principal points are
half a pixel less. World frames and lengths pass through unchanged.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError, MissingBackendError
from gworld.geometry import invert_transform, transform_from
from gworld.scene.cameras import Cameras

HALF_PIXEL = 0.5
COMMANDS = {
    "kornia": "Run `pip install kornia`.",
    "open3d": "Run `pip install 'gworld[mesh]'`, and `apt install libusb-1.0-0` where that library is missing.",
    "pytorch3d": "Run `pip install 'git+https://github.com/facebookresearch/pytorch3d.git'`; no registry has it.",
    "nerfstudio": "Run `pip install --no-deps nerfstudio==1.1.5`, and what it then asks for.",
    "trimesh": "Run `pip install trimesh`.",
}


def peer_module(module: str) -> Any:
    """Import a peer's module; raises `MissingBackendError` with the command that helps when it cannot be imported."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        name = module.split(".")[0]
        raise MissingBackendError(f"{name} cannot be imported here ({error}). {COMMANDS[name]}") from error


def _pinhole(cameras: Cameras, peer: str) -> Cameras:
    if cameras.model != "pinhole":
        raise InputError(f"the cameras are of the model {cameras.model}; {peer} takes pinholes. Undistort them first.")
    return cameras


def _matrix(fx: Tensor, fy: Tensor, cx: Tensor, cy: Tensor) -> Float[Tensor, "C 3 3"]:
    K = torch.zeros(len(fx), 3, 3, dtype=fx.dtype, device=fx.device)
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = fx, fy, cx, cy, 1.0
    return K


def _one_size(sizes: Tensor) -> tuple[int, int]:
    """(width, height) of rows that must be equal."""
    rows = {(int(width), int(height)) for width, height in sizes.reshape(-1, 2).tolist()}
    if len(rows) != 1:
        raise InputError(
            f"the cameras have {len(rows)} image sizes; one is needed for a batch. Convert them in groups."
        )
    return rows.pop()


def cameras_to_gsplat(cameras: Cameras) -> dict[str, Any]:
    """Arguments of `gsplat.rasterization` that describe the cameras: viewmats [C,4,4], Ks [C,3,3], width, height."""
    _pinhole(cameras, "gsplat's rasterization")
    viewmats = invert_transform(cameras.world_from_camera)
    return {"viewmats": viewmats, "Ks": cameras.K, "width": cameras.width, "height": cameras.height}


def cameras_to_kornia(cameras: Cameras) -> Any:
    """A `kornia.geometry.camera.PinholeCamera` batch; its `project` gives whole-number pixel centres."""
    kornia = peer_module("kornia.geometry.camera")
    _pinhole(cameras, "kornia")
    count, device = len(cameras), cameras.K.device
    K = torch.eye(4, dtype=cameras.K.dtype, device=device).repeat(count, 1, 1)
    K[:, :3, :3] = cameras.K
    K[:, :2, 2] -= HALF_PIXEL
    height = torch.full((count,), float(cameras.height), device=device)
    width = torch.full((count,), float(cameras.width), device=device)
    return kornia.PinholeCamera(K, invert_transform(cameras.world_from_camera), height, width)


def cameras_from_kornia(pinhole: Any) -> Cameras:
    """Cameras of a kornia `PinholeCamera` batch; raises `InputError` when image sizes differ."""
    width, height = _one_size(torch.stack([pinhole.width, pinhole.height], dim=-1))
    K = pinhole.intrinsics[:, :3, :3].clone()
    K[:, :2, 2] += HALF_PIXEL
    return Cameras(K, invert_transform(pinhole.extrinsics), width, height)


def pytorch3d_arguments(cameras: Cameras) -> dict[str, Any]:
    """Arguments of `pytorch3d.renderer.PerspectiveCameras` in screen space.

    Its view axes are x left, y up, z forward, and it multiplies rows, X_view = X_world R + T; the principal point is
    given from the top left corner (x right, y down). Source: PyTorch3D, docs/notes/cameras.md.
    """
    camera_from_world = invert_transform(_pinhole(cameras, "PyTorch3D").world_from_camera)
    flip = cameras.K.new_tensor([-1.0, -1.0, 1.0])
    size = [[cameras.height, cameras.width]] * len(cameras)
    return {
        "R": camera_from_world[:, :3, :3].transpose(1, 2) * flip,
        "T": camera_from_world[:, :3, 3] * flip,
        "focal_length": cameras.K[:, (0, 1), (0, 1)],
        "principal_point": cameras.K[:, :2, 2],
        "in_ndc": False,
        "image_size": torch.tensor(size, device=cameras.K.device),
    }


def cameras_to_pytorch3d(cameras: Cameras) -> Any:
    """A `pytorch3d.renderer.PerspectiveCameras` batch in screen space, on the cameras' device."""
    renderer = peer_module("pytorch3d.renderer")
    return renderer.PerspectiveCameras(**pytorch3d_arguments(cameras), device=cameras.K.device)


def cameras_from_pytorch3d(cameras: Any) -> Cameras:
    """Cameras of a PyTorch3D `PerspectiveCameras` batch, in screen or NDC space, that knows its `image_size`.

    NDC runs over [-1, 1] along the shorter side, x left, y up. Source: PyTorch3D, docs/notes/cameras.md.
    """
    width, height = _one_size(cameras.image_size.flip(-1))
    focal, center = cameras.focal_length, cameras.principal_point
    focal = focal[..., None].expand(-1, 2) if focal.ndim == 1 else focal.expand(-1, 2)
    if cameras.in_ndc():
        half = min(width, height) / 2
        focal, center = focal * half, focal.new_tensor([width / 2, height / 2]) - center * half
    flip = cameras.R.new_tensor([-1.0, -1.0, 1.0])
    camera_from_world = transform_from((cameras.R * flip).transpose(1, 2), cameras.T * flip)
    K = _matrix(focal[:, 0], focal[:, 1], center[:, 0], center[:, 1])
    return Cameras(K.expand(len(cameras.R), 3, 3), invert_transform(camera_from_world), width, height)


def cameras_to_nerfstudio(cameras: Cameras) -> Any:
    """A `nerfstudio.cameras.cameras.Cameras` batch: OpenGL camera axes, c2w [C,3,4], distortion k1 k2 k3 k4 p1 p2."""
    peer = peer_module("nerfstudio.cameras.cameras")
    kinds = {"pinhole": "PERSPECTIVE", "opencv": "PERSPECTIVE", "fisheye": "FISHEYE"}
    if cameras.model not in kinds:
        raise InputError(f"cameras of the model {cameras.model} have no conversion to nerfstudio. Use transforms.json.")
    distortion = None
    if cameras.distortion is not None and cameras.model != "pinhole":
        columns = (0, 1, 4, 5, 2, 3) if cameras.model == "opencv" else (0, 1, 2, 3, 4, 5)
        if cameras.model == "opencv" and bool(cameras.distortion[:, 5:].any()):
            raise InputError("nerfstudio has no distortion terms k4 k5 k6 of OpenCV. Undistort the images first.")
        distortion = cameras.distortion[:, columns]
    return peer.Cameras(
        camera_to_worlds=(cameras.world_from_camera @ _flip_yz(cameras.K))[:, :3],
        fx=cameras.K[:, :1, 0],
        fy=cameras.K[:, 1:2, 1],
        cx=cameras.K[:, :1, 2],
        cy=cameras.K[:, 1:2, 2],
        width=cameras.width,
        height=cameras.height,
        distortion_params=distortion,
        camera_type=getattr(peer.CameraType, kinds[cameras.model]),
    )


def cameras_from_nerfstudio(cameras: Any) -> Cameras:
    """Cameras of a nerfstudio `Cameras` batch, perspective or fisheye, of one size and type.

    Raises `InputError` for other camera types, for mixed ones, and for a fourth radial term, which OpenCV lacks.
    """
    width, height = _one_size(torch.cat([cameras.width, cameras.height], dim=-1))
    peer = peer_module("nerfstudio.cameras.cameras")
    kinds = {peer.CameraType(int(kind)).name for kind in cameras.camera_type.flatten().tolist()}
    if kinds not in ({"PERSPECTIVE"}, {"FISHEYE"}):
        raise InputError(
            f"the cameras are of the types {', '.join(sorted(kinds))}; one of PERSPECTIVE or FISHEYE is needed."
        )
    K = _matrix(cameras.fx[:, 0], cameras.fy[:, 0], cameras.cx[:, 0], cameras.cy[:, 0])
    bottom = K.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(K), 1, 4)
    world_from_camera = torch.cat([cameras.camera_to_worlds, bottom], dim=1) @ _flip_yz(K)
    distortion = K.new_zeros(len(K), 8)
    if cameras.distortion_params is not None:
        k1, k2, k3, k4, p1, p2 = cameras.distortion_params.unbind(-1)
        if kinds == {"FISHEYE"}:
            distortion[:, :4] = torch.stack([k1, k2, k3, k4], dim=-1)
        elif bool(k4.any()):
            raise InputError("the cameras have a fourth radial term, which OpenCV lacks. Undistort the images first.")
        else:
            distortion[:, :5] = torch.stack([k1, k2, p1, p2, k3], dim=-1)
    if kinds == {"FISHEYE"}:
        return Cameras(K, world_from_camera, width, height, "fisheye", distortion)
    if bool(distortion.any()):
        return Cameras(K, world_from_camera, width, height, "opencv", distortion)
    return Cameras(K, world_from_camera, width, height)


def cameras_to_open3d(cameras: Cameras) -> list[Any]:
    """One `open3d.camera.PinholeCameraParameters` per camera: intrinsic, and extrinsic as camera_from_world."""
    camera = peer_module("open3d").camera
    extrinsics = invert_transform(_pinhole(cameras, "Open3D").world_from_camera).detach().cpu().double().numpy()
    found = []
    for K, extrinsic in zip(cameras.K.detach().cpu().double().tolist(), extrinsics, strict=True):
        parameters = camera.PinholeCameraParameters()
        center = (K[0][2] - HALF_PIXEL, K[1][2] - HALF_PIXEL)
        parameters.intrinsic = camera.PinholeCameraIntrinsic(cameras.width, cameras.height, K[0][0], K[1][1], *center)
        parameters.extrinsic = extrinsic
        found.append(parameters)
    return found


def cameras_from_open3d(parameters: list[Any]) -> Cameras:
    """Cameras (float64) of a list of `open3d.camera.PinholeCameraParameters`, all of one image size."""
    sizes = torch.tensor([[item.intrinsic.width, item.intrinsic.height] for item in parameters])
    K = torch.from_numpy(np.array([item.intrinsic.intrinsic_matrix for item in parameters], np.float64))
    K[:, :2, 2] += HALF_PIXEL
    extrinsic = torch.from_numpy(np.array([item.extrinsic for item in parameters], np.float64))
    return Cameras(K, invert_transform(extrinsic), *_one_size(sizes))


def _flip_yz(like: Tensor) -> Float[Tensor, "4 4"]:
    """OpenGL camera axes (x right, y up, z back) in ours, and back."""
    return torch.diag(like.new_tensor([1.0, -1.0, -1.0, 1.0]))
