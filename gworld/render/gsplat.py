"""The backend over gsplat's CUDA kernels: our projection inputs and colours, their tiles and blending.

gsplat knows neither links nor view directions in a link's frame, so both are prepared here in differentiable torch
(`prepare`), and depth and flow travel as extra colour channels. It copies the Gaussians once per world.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import MissingBackendError
from gworld.geometry import invert_transform
from gworld.render.api import DILATION, OutputName, Previous, RenderOptions, RenderOutput
from gworld.render.projection import camera_from_links, project_centres, scaled_axes, sound_rows
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.harmonics import evaluate_sh


@dataclass(frozen=True)
class Arguments:
    """What `gsplat.rasterization` is given for W worlds x C cameras.

    means [W,N,3] and covariances [W,N,3,3] in the world; opacities [W,N]; features [W,C,N,F] colour, then depth and
    flow where asked for; camera_from_world [W,C,4,4]; K [W,C,3,3]; backgrounds [W,C,F].
    """

    means: Float[Tensor, "W N 3"]
    covariances: Float[Tensor, "W N 3 3"]
    opacities: Float[Tensor, "W N"]
    features: Float[Tensor, "W C N F"]
    camera_from_world: Float[Tensor, "W C 4 4"]
    K: Float[Tensor, "W C 3 3"]
    backgrounds: Float[Tensor, "W C F"]


def gsplat_status() -> str | None:
    """None when gsplat's kernels can run here, else one sentence; decided without trying (a try would compile)."""
    if importlib.util.find_spec("gsplat") is None:
        return "the package gsplat is not installed. Run `pip install gsplat`."
    if not torch.cuda.is_available():
        return "this machine shows PyTorch no CUDA device. Use backend native-cpu or reference."
    return None


def render_gsplat(
    gaussians: Gaussians,
    world_from_link: Float[Tensor, "W L 4 4"],
    cameras: Cameras,
    outputs: Sequence[OutputName] = ("rgb", "alpha"),
    previous: Previous | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
) -> RenderOutput:
    """Render W worlds x C cameras with gsplat 1.5 on CUDA; a `Backend`.

    Its frustum clamp is measured from the principal point instead of the middle of the image, so off-centre cameras
    differ slightly on Gaussians beyond the border. Raises `MissingBackendError` without CUDA and for link_id.
    """
    reason = gsplat_status()
    if reason is None and "link_id" in outputs:
        reason = "gsplat's kernels do not tell which Gaussian leads a pixel (link_id). Use another backend."
    if reason is not None:
        raise MissingBackendError(f"the render backend gsplat cannot be used: {reason}")
    import gsplat

    given = prepare(gaussians, world_from_link, cameras, outputs, previous, options)
    shape = (*given.features.shape[:2], cameras.height, cameras.width)
    if given.means.shape[1] == 0:
        # Sums over no rows are zero and still part of the graph: an empty view has (zero) gradients.
        nothing = given.features.sum(2) + (given.means.sum() + given.covariances.sum() + given.opacities.sum())
        blank = (given.backgrounds + nothing)[:, :, None, None].expand(*shape, -1)
        return _pictures(blank, torch.zeros_like(blank[..., 0]), outputs)
    features, alpha, _ = gsplat.rasterization(
        given.means,
        torch.empty(0),
        torch.empty(0),
        given.opacities,
        given.features,
        given.camera_from_world,
        given.K,
        cameras.width,
        cameras.height,
        near_plane=options.near,
        far_plane=options.far,
        eps2d=DILATION,
        packed=False,
        backgrounds=given.backgrounds,
        rasterize_mode="antialiased" if options.antialiased else "classic",
        covars=given.covariances,
    )
    return _pictures(features, alpha[..., 0], outputs)


def prepare(
    gaussians: Gaussians,
    world_from_link: Float[Tensor, "W L 4 4"],
    cameras: Cameras,
    outputs: Sequence[OutputName],
    previous: Previous | None,
    options: RenderOptions,
) -> Arguments:
    """Everything before the CUDA call, on any device: bad rows dropped, links applied, colours evaluated."""
    with torch.no_grad():
        rows = sound_rows(gaussians).nonzero()[:, 0]
    sound = select_gaussians(gaussians, rows)
    pose = world_from_link[:, sound.links.long()]
    rotation = pose[..., :3, :3]
    axes = rotation @ scaled_axes(sound)
    means = (rotation @ sound.means[..., None])[..., 0] + pose[..., :3, 3]
    worlds, count, views = len(world_from_link), len(rows), len(cameras)
    eye = cameras.world_from_camera[:, None]
    offset = means[:, None] - eye[..., :3, 3]
    direction = (rotation.transpose(-1, -2)[:, None] @ offset[..., None])[..., 0]
    features = [evaluate_sh(sound.sh, torch.nn.functional.normalize(direction, dim=-1))]
    if "depth" in outputs:
        features.append((offset * eye[..., :3, 2]).sum(-1, keepdim=True))
    if "flow" in outputs and previous is not None:
        features.append(_flow(sound, world_from_link, cameras, previous, options.near))
    stacked = torch.cat(features, dim=-1)
    background = stacked.new_zeros(stacked.shape[-1])
    background[:3] = background.new_tensor(options.background)
    return Arguments(
        means=means,
        covariances=axes @ axes.transpose(-1, -2),
        opacities=torch.sigmoid(sound.opacity_logits).expand(worlds, count).contiguous(),
        features=stacked,
        camera_from_world=invert_transform(cameras.world_from_camera).expand(worlds, views, 4, 4).contiguous(),
        K=cameras.K.to(means).expand(worlds, views, 3, 3).contiguous(),
        backgrounds=background.expand(worlds, views, -1).contiguous(),
    )


def _flow(
    gaussians: Gaussians, world_from_link: Tensor, cameras: Cameras, previous: Previous, near: float
) -> Float[Tensor, "W C N 2"]:
    """How far each centre moved in each image since the previous state, in pixels."""
    now = camera_from_links(world_from_link, cameras.world_from_camera)
    then = camera_from_links(previous[0], previous[1].world_from_camera)
    worlds = []
    for world in range(len(now)):
        views = []
        for index in range(len(cameras)):
            new, _ = project_centres(gaussians, now[world, index], cameras, index, near)
            old, front = project_centres(gaussians, then[world, index], previous[1], index, near)
            views.append(torch.where(front[:, None], new - old, torch.zeros_like(new)))
        worlds.append(torch.stack(views))
    return torch.stack(worlds)


def _pictures(
    features: Float[Tensor, "W C H V F"], alpha: Float[Tensor, "W C H V"], outputs: Sequence[OutputName]
) -> RenderOutput:
    touched = alpha > 0
    means = features[..., 3:] / torch.where(touched, alpha, torch.ones_like(alpha))[..., None]
    depth = "depth" in outputs
    return RenderOutput(
        rgb=features[..., :3] if "rgb" in outputs else None,
        alpha=alpha if "alpha" in outputs else None,
        depth=means[..., 0] if depth else None,
        flow=means[..., int(depth) :] if "flow" in outputs else None,
    )
