"""The renderer's face: check a request once, choose a backend, render.

`render` is what the rest of gworld calls. Backends get checked arguments only (see `api.Backend`); cameras mounted on
links are resolved here, so that no backend knows of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from torch import Tensor

from gworld.errors import InputError, MissingBackendError, UsageError
from gworld.files import check_memory
from gworld.geometry import invert_transform
from gworld.render.api import OUTPUTS, Backend, BackendName, OutputName, Previous, RenderOptions, RenderOutput
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians

if TYPE_CHECKING:
    from gworld.render.native_cache import BackgroundCache

ConcreteBackend = Literal["native-cuda", "gsplat", "native-cpu", "reference"]
ORDER: tuple[ConcreteBackend, ...] = get_args(ConcreteBackend)
"""How `auto` prefers backends: fastest first."""
RIGID_TOLERANCE = 1e-3
BIG_IMAGES = 1 << 30
"""Bytes of output beyond which free memory is looked up first."""
_LOADED: set[str] = set()
"""Native libraries found usable: they stay loaded, and looking for them again would cost more than a small picture."""
CHANNELS = {"rgb": 3, "alpha": 1, "depth": 1, "link_id": 1, "flow": 2}


def render(
    gaussians: Gaussians,
    world_from_link: Tensor | None,
    cameras: Cameras,
    *,
    outputs: Sequence[str] = ("rgb", "alpha"),
    previous: tuple[Tensor | None, Cameras] | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
    backend: str = "auto",
    cache: BackgroundCache | None = None,
) -> RenderOutput:
    """Render Gaussians whose links stand at `world_from_link` in W worlds x C cameras.

    world_from_link [W,L,4,4], [L,4,4] for one world, or None for links at the identity; metres. `outputs` out of
    rgb alpha depth link_id flow (api.py says what they hold); flow needs `previous`, the poses and cameras before.
    A `cache` given to each call of a sequence from fixed cameras keeps what stands still (native_cache.py): the same
    pictures, sooner; only native-cpu uses it. Differentiable by Gaussians, link poses and camera poses. Poses and
    cameras are cast to the Gaussians' float type. Raises `UsageError` for unknown names, `InputError` for tensors that
    do not fit and degenerate cameras or poses, `MissingBackendError` when the backend cannot run here, `ResourceError`
    when the pictures would not fit in memory.
    """
    names = _check_outputs(outputs, previous is not None)
    _check_options(options)
    _check_gaussians(gaussians)
    poses = _check_links(gaussians, world_from_link, "world_from_link")
    cameras = _check_cameras(gaussians, cameras, poses.shape[1], "cameras")
    before: Previous | None = None
    if "flow" in names and previous is not None:
        poses_before = _check_links(gaussians, previous[0], "previous")
        before = (poses_before, _check_cameras(gaussians, previous[1], poses_before.shape[1], "previous cameras"))
        if before[0].shape != poses.shape or len(before[1]) != len(cameras):
            raise InputError(
                f"previous has poses {list(before[0].shape)} and {len(before[1])} cameras; {list(poses.shape)} and "
                f"{len(cameras)} are needed, as now."
            )
    _check_size(names, len(poses), cameras, gaussians)
    function = load_backend(choose_backend(gaussians, names, backend), cache)
    return _render_mounted(function, gaussians, poses, cameras, names, before, options)


def choose_backend(gaussians: Gaussians, outputs: Sequence[str], backend: str = "auto") -> ConcreteBackend:
    """The backend that `backend` stands for: itself, or the fastest that is here and can do this request.

    Raises `UsageError` for an unknown name and `MissingBackendError` when the one asked for by name cannot run here.
    """
    if backend not in get_args(BackendName):
        raise UsageError(f"there is no render backend {backend!r}; choose one of {', '.join(get_args(BackendName))}.")
    if backend != "auto":
        name = cast(ConcreteBackend, backend)
        reason = why_unavailable(name) or why_unfit(name, gaussians, outputs)
        if reason is not None:
            raise MissingBackendError(f"the render backend {name} cannot be used: {reason}")
        return name
    fit = (name for name in ORDER if why_unfit(name, gaussians, outputs) is None and why_unavailable(name) is None)
    return next(fit, "reference")


def backend_status() -> list[tuple[str, bool, str]]:
    """One (name, usable here, why not and what mends it) per backend, in the order `auto` prefers."""
    reasons = [(name, why_unavailable(name)) for name in ORDER]
    return [(name, reason is None, reason or "ok") for name, reason in reasons]


def why_unavailable(name: ConcreteBackend) -> str | None:
    """None when the backend can run on this machine, else one sentence with the way out."""
    if name == "reference":
        return None
    if name == "gsplat":
        from gworld.render.gsplat import gsplat_status

        return gsplat_status()
    if name == "native-cuda" and not torch.cuda.is_available():
        return "this machine shows PyTorch no CUDA device. Use backend native-cpu or reference."
    if name in _LOADED:
        return None
    if name == "native-cuda":
        from gworld.render.native_cuda import native_cuda_status

        reason = native_cuda_status()
    else:
        from gworld.render.native import native_cpu_status

        reason = native_cpu_status()
    if reason is None:
        _LOADED.add(name)
    return reason


def why_unfit(name: ConcreteBackend, gaussians: Gaussians, outputs: Sequence[str]) -> str | None:
    """None when the backend can do this request, else one sentence: device, float type, soft bodies, outputs."""
    if name == "reference":
        return None
    wanted = "cpu" if name == "native-cpu" else "cuda"
    if gaussians.device.type != wanted:
        return f"the Gaussians are on {gaussians.device.type} and it works on {wanted}. Move them, or use backend auto."
    if gaussians.means.dtype != torch.float32:
        return f"it works in float32 and the Gaussians are {gaussians.means.dtype}. Use backend reference."
    if gaussians.soft_links is not None:
        return "it does not blend the links of soft bodies. Use backend reference."
    if name == "gsplat" and "link_id" in outputs:
        return "gsplat's kernels do not tell which Gaussian leads a pixel (link_id). Use another backend."
    return None


def load_backend(name: ConcreteBackend, cache: BackgroundCache | None = None) -> Backend:
    """The function of a backend that `choose_backend` found usable, drawing through `cache` where it can."""
    if name == "reference":
        from gworld.render.reference import render_reference

        return render_reference
    if name == "gsplat":
        from gworld.render.gsplat import render_gsplat

        return render_gsplat
    if name == "native-cuda":
        from gworld.render.native_cuda import render_native_cuda

        return render_native_cuda
    from gworld.render.native import render_native_cpu

    return partial(render_native_cpu, cache=cache)


def _render_mounted(
    function: Backend,
    gaussians: Gaussians,
    poses: Tensor,
    cameras: Cameras,
    outputs: tuple[OutputName, ...],
    previous: Previous | None,
    options: RenderOptions,
) -> RenderOutput:
    """Call the backend once per link that carries cameras, with the worlds seen from that link.

    A picture depends on camera_from_link alone: instead of one camera pose per world, the links are expressed in the
    frame of the mount, where its cameras stand still in all worlds at once.
    """
    links = cameras.links or (0,) * len(cameras)
    links_before = (previous[1].links or (0,) * len(cameras)) if previous is not None else links
    if not any(links) and not any(links_before):
        return function(gaussians, poses, cameras, outputs, previous, options)
    groups: dict[tuple[int, int], list[int]] = {}
    for camera, mounts in enumerate(zip(links, links_before, strict=True)):
        groups.setdefault(mounts, []).append(camera)
    parts = []
    for (mount, mount_before), rows in groups.items():
        before = None
        if previous is not None:
            before = (_seen_from(previous[0], mount_before), _rows(previous[1], rows))
        parts.append(function(gaussians, _seen_from(poses, mount), _rows(cameras, rows), outputs, before, options))
    order = torch.tensor([row for rows in groups.values() for row in rows]).argsort()
    pictures = {}
    for field in fields(RenderOutput):
        if field.name in outputs:
            joined = torch.cat([getattr(part, field.name) for part in parts], dim=1)
            pictures[field.name] = joined[:, order.to(joined.device)]
    return RenderOutput(**pictures)


def _seen_from(poses: Tensor, mount: int) -> Tensor:
    return poses if mount == 0 else invert_transform(poses[:, mount])[:, None] @ poses


def _rows(cameras: Cameras, rows: list[int]) -> Cameras:
    """Some of the cameras, as fixed ones."""
    return replace(
        cameras,
        K=cameras.K[rows],
        world_from_camera=cameras.world_from_camera[rows],
        distortion=None,
        names=(),
        links=(),
    )


def _check_outputs(outputs: Sequence[str], has_previous: bool) -> tuple[OutputName, ...]:
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs or isinstance(outputs, str):
        raise UsageError(f"the outputs {outputs!r} are not known; name some of {', '.join(OUTPUTS)} in a tuple.")
    if "flow" in outputs and not has_previous:
        raise UsageError("flow was asked for without `previous`; give (world_from_link, cameras) of the state before.")
    return cast("tuple[OutputName, ...]", tuple(dict.fromkeys(outputs)))


def _check_options(options: RenderOptions) -> None:
    if not 0 < options.near < options.far:
        raise UsageError(f"near is {options.near} and far {options.far}; 0 < near < far is needed.")
    if len(options.background) != 3 or not all(abs(value) < float("inf") for value in options.background):
        raise UsageError(f"the background is {options.background}; three finite numbers are needed.")


def _check_gaussians(gaussians: Gaussians) -> None:
    if not isinstance(gaussians, Gaussians):
        raise UsageError(f"render was given a {type(gaussians).__name__}; Gaussians are needed (`world.gaussians`).")
    columns = [getattr(gaussians, field.name) for field in fields(gaussians)]
    floats = [column for column in columns if column is not None and column.is_floating_point()]
    if len({column.dtype for column in floats}) > 1 or floats[0].dtype not in (torch.float32, torch.float64):
        raise InputError("the Gaussians' columns are not all float32 or all float64. Convert them with `gaussians_to`.")
    if len({column.device for column in columns if column is not None}) > 1:
        raise InputError("the Gaussians' columns are on different devices. Move them with `gaussians_to`.")


def _range(values: Tensor) -> tuple[int, int]:
    """Least and greatest of some integers, (0, 0) without any."""
    if not len(values):
        return 0, 0
    if values.device.type == "cpu":  # numpy, for torch would wake threads that then spin beside the renderer's
        array = values.numpy()
        return int(array.min()), int(array.max())
    low, high = values.aminmax()
    return int(low), int(high)


def _check_links(gaussians: Gaussians, poses: Tensor | None, what: str) -> Tensor:
    """Poses as `[W,L,4,4]` in the Gaussians' float type: finite, rigid and enough for every link index."""
    used = (
        gaussians.links
        if gaussians.soft_links is None
        else torch.cat([gaussians.links, gaussians.soft_links.flatten()])
    )
    low, high = _range(used)
    if poses is None:
        return torch.eye(4, dtype=gaussians.means.dtype, device=gaussians.device).repeat(1, high + 1, 1, 1)
    poses = poses[None] if poses.ndim == 3 else poses
    if poses.ndim != 4 or tuple(poses.shape[2:]) != (4, 4) or 0 in poses.shape:
        raise InputError(f"the poses of {what} have shape {list(poses.shape)}; [W,L,4,4] or [L,4,4] is needed.")
    if low < 0 or high >= poses.shape[1]:
        raise InputError(f"the Gaussians name links {low} to {high} but {what} holds {poses.shape[1]} links.")
    return _check_rigid(gaussians, poses, f"a link pose of {what}")


def _check_cameras(gaussians: Gaussians, cameras: Cameras, links: int, what: str) -> Cameras:
    if cameras.model != "pinhole":
        raise InputError(f"{what} are of the model {cameras.model}; only pinhole is rendered. Undistort them first.")
    if len(cameras) == 0:
        raise InputError(f"{what} are empty; at least one camera is needed.")
    if cameras.links and not 0 <= min(cameras.links) <= max(cameras.links) < links:
        raise InputError(f"{what} are mounted on the links {cameras.links} but there are {links} links.")
    world_from_camera = _check_rigid(gaussians, cameras.world_from_camera, f"a camera pose of {what}")
    rows = cameras.K.detach().cpu().double().reshape(-1, 9).tolist()
    for index, (fx, skew, cx, low, fy, cy, *last) in enumerate(rows):
        finite = all(abs(value) < float("inf") for value in (fx, fy, cx, cy))
        if not finite or fx <= 0 or fy <= 0 or skew != 0 or low != 0 or last != [0, 0, 1]:
            raise InputError(
                f"camera {index} of {what} has K {[[fx, skew, cx], [low, fy, cy], last]}; finite focal lengths above "
                "0, no skew and a last row of 0 0 1 are needed."
            )
    return replace(cameras, K=cameras.K.to(gaussians.means), world_from_camera=world_from_camera)


def _check_rigid(gaussians: Gaussians, poses: Tensor, what: str) -> Tensor:
    if poses.device != gaussians.device:
        raise InputError(f"{what} is on {poses.device} but the Gaussians are on {gaussians.device}. Move one of them.")
    checked = poses.detach()
    rotation = checked[..., :3, :3]
    error = (rotation.transpose(-1, -2) @ rotation - torch.eye(3, dtype=poses.dtype, device=poses.device)).abs().amax()
    # `not <=` rather than `>`: it is true for NaN.
    if not bool(error <= RIGID_TOLERANCE) or not bool(checked.isfinite().all()):
        raise InputError(f"{what} is not finite or not rigid; rotation and translation in metres are needed.")
    return poses.to(gaussians.means.dtype)


def _check_size(outputs: Sequence[str], worlds: int, cameras: Cameras, gaussians: Gaussians) -> None:
    values = worlds * len(cameras) * cameras.width * cameras.height * sum(CHANNELS[name] for name in outputs)
    needed = values * gaussians.means.element_size()
    if needed > BIG_IMAGES and gaussians.device.type == "cpu":
        check_memory(needed, f"Rendering {worlds} worlds x {len(cameras)} cameras")
