"""The oracle: a plain torch renderer without kernels, exact by `api.py` in float32 and float64.

The image is halved until a box is small, dropping at each step the splats whose ellipse cannot reach the box; then
every pixel of a box blends all that is left in one dense table of pixels x splats. Gradients are autograd's. It is made
to be read and trusted; the other backends are made to be fast and are tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gworld.render.api import (
    MAX_ALPHA,
    MIN_ALPHA,
    MIN_TRANSMITTANCE,
    OutputName,
    Previous,
    RenderOptions,
    RenderOutput,
)
from gworld.render.projection import Splats, camera_from_links, half_extents, project_centres, project_visible
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians, select_gaussians

BOX = 16
MAX_PAIRS = 1 << 21
"""Entries of one dense table; a box that would need more is halved further."""


@dataclass(frozen=True)
class Box:
    """The pixels left <= column < right, top <= row < bottom."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top


@dataclass(frozen=True)
class Layers:
    """Splats ready for blending, nearest first.

    shapes [V,7] centre, dilated covariance (xx, xy, yy), its determinant, opacity; features [V,F] what is averaged;
    bounds [V,4] pixels left, top, right, bottom beyond which alpha < MIN_ALPHA; links [V].
    """

    shapes: Float[Tensor, "V 7"]
    features: Float[Tensor, "V F"]
    bounds: Float[Tensor, "V 4"]
    links: Int[Tensor, " V"]


def render_reference(
    gaussians: Gaussians,
    world_from_link: Float[Tensor, "W L 4 4"],
    cameras: Cameras,
    outputs: Sequence[OutputName] = ("rgb", "alpha"),
    previous: Previous | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
) -> RenderOutput:
    """Render W worlds x C cameras; the `Backend` that the others are measured against.

    Works in the floating type of `gaussians.means`, also for soft bodies. Memory grows with the image plus the
    Gaussians, not with their product: the dense tables are computed again in the backward pass.
    """
    dtype = gaussians.means.dtype
    poses = camera_from_links(world_from_link.to(dtype), cameras.world_from_camera.to(dtype))
    before = None
    if "flow" in outputs and previous is not None:
        before = camera_from_links(previous[0].to(dtype), previous[1].world_from_camera.to(dtype))
    views = []
    for world in range(len(world_from_link)):
        for index in range(len(cameras)):
            rows, splats = project_visible(gaussians, poses[world, index], cameras, index, options)
            seen = select_gaussians(gaussians, rows)
            flow = torch.zeros_like(splats.centres)
            if before is not None and previous is not None:
                old, front = project_centres(seen, before[world, index], previous[1], index, options.near)
                flow = torch.where(front[:, None], splats.centres - old, flow)
            views.append(_view(_layers(splats, flow, seen.links), cameras.width, cameras.height, options))
    shape = (len(world_from_link), len(cameras))
    pictures = {name: torch.stack([view[name] for view in views]).unflatten(0, shape) for name in outputs}
    return RenderOutput(**pictures)


def _layers(splats: Splats, flow: Float[Tensor, "V 2"], links: Int[Tensor, " V"]) -> Layers:
    with torch.no_grad():
        half = half_extents(splats)
        bounds = torch.cat([splats.centres - half, splats.centres + half], dim=-1)
    columns = [splats.centres, splats.covariances, splats.determinants[:, None], splats.opacities[:, None]]
    depth = splats.depths[:, None]
    features = torch.cat([splats.colours, depth, flow, torch.ones_like(depth)], dim=-1)
    return Layers(torch.cat(columns, dim=-1), features, bounds, links)


def _view(layers: Layers, width: int, height: int, options: RenderOptions) -> dict[str, Tensor]:
    """The named pictures of one camera."""
    sums, link_id = _blend(layers, Box(0, 0, width, height))
    rgb, depth, flow, alpha, transmittance = sums.split([3, 1, 2, 1, 1], dim=-1)
    touched = alpha > 0
    weight = torch.where(touched, alpha, torch.ones_like(alpha))
    return {
        "rgb": rgb + transmittance * rgb.new_tensor(options.background),
        "alpha": alpha[..., 0],
        "depth": (depth / weight)[..., 0],
        "flow": flow / weight,
        "link_id": link_id,
    }


def _blend(layers: Layers, box: Box) -> tuple[Float[Tensor, "H V F"], Int[Tensor, "H V"]]:
    """Weighted sums of the features with the transmittance left behind them as last channel, and the leading link."""
    layers = _reaching(layers, box)
    count, pixels = len(layers.links), box.width * box.height
    if count == 0:
        # The sum over no rows is zero and still part of the graph, so that an empty view has (zero) gradients.
        nothing = (layers.features.sum(0) + layers.shapes.sum()).expand(box.height, box.width, -1)
        sums = torch.cat([nothing, torch.ones_like(nothing[..., :1])], dim=-1)
        return sums, torch.full((box.height, box.width), -1, dtype=torch.int32, device=sums.device)
    if max(box.width, box.height) > BOX or (pixels > 1 and pixels * count > MAX_PAIRS):
        first, second, axis = _halve(box)
        parts = zip(_blend(layers, first), _blend(layers, second), strict=True)
        sums, link_id = (torch.cat(pair, dim=axis) for pair in parts)
        return sums, link_id
    arguments = (layers.shapes, layers.features, layers.links, box)
    if torch.is_grad_enabled() and (layers.shapes.requires_grad or layers.features.requires_grad):
        return checkpoint(_blend_dense, *arguments, use_reentrant=False, preserve_rng_state=False)
    return _blend_dense(*arguments)


def _reaching(layers: Layers, box: Box) -> Layers:
    """The layers whose ellipse may reach a pixel centre of the box."""
    left, top, right, bottom = layers.bounds.unbind(-1)
    inside = (left < box.right) & (right > box.left) & (top < box.bottom) & (bottom > box.top)
    rows = inside.nonzero()[:, 0]
    if len(rows) == len(inside):
        return layers
    return Layers(layers.shapes[rows], layers.features[rows], layers.bounds[rows], layers.links[rows])


def _halve(box: Box) -> tuple[Box, Box, int]:
    """Two halves across the longer side, and the image axis along which they join."""
    if box.width >= box.height:
        middle = box.left + (box.width + 1) // 2
        return Box(box.left, box.top, middle, box.bottom), Box(middle, box.top, box.right, box.bottom), 1
    middle = box.top + (box.height + 1) // 2
    return Box(box.left, box.top, box.right, middle), Box(box.left, middle, box.right, box.bottom), 0


def _blend_dense(
    shapes: Float[Tensor, "M 7"], features: Float[Tensor, "M F"], links: Int[Tensor, " M"], box: Box
) -> tuple[Float[Tensor, "H V F2"], Int[Tensor, "H V"]]:
    """Front-to-back blending of M layers in every pixel of a box, one table of pixels x layers."""
    columns = torch.arange(box.left, box.right, dtype=shapes.dtype, device=shapes.device) + 0.5
    rows = torch.arange(box.top, box.bottom, dtype=shapes.dtype, device=shapes.device) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    alpha = _alpha(shapes, x.reshape(-1, 1), y.reshape(-1, 1))
    with torch.no_grad():
        drawn = alpha >= MIN_ALPHA
        # Transmittance never grows, so all that comes after the stop is below the threshold too.
        drawn &= torch.cumprod(1 - alpha * drawn, dim=1) > MIN_TRANSMITTANCE
    alpha = torch.where(drawn, alpha, torch.zeros_like(alpha))
    behind = torch.cumprod(1 - alpha, dim=1)
    before = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], dim=1)
    weights = alpha * before
    sums = torch.cat([weights @ features, behind[:, -1:]], dim=1)
    with torch.no_grad():
        leading = links[weights.argmax(dim=1)].to(torch.int32)
        link_id = torch.where(drawn.any(dim=1), leading, torch.full_like(leading, -1))
    return sums.unflatten(0, (box.height, box.width)), link_id.unflatten(0, (box.height, box.width))


def _alpha(shapes: Float[Tensor, "M 7"], x: Float[Tensor, "P 1"], y: Float[Tensor, "P 1"]) -> Float[Tensor, "P M"]:
    """Opacity of every layer at every pixel, capped at MAX_ALPHA."""
    u, v, xx, xy, _, determinant, opacity = shapes.unbind(-1)
    dx, dy = x - u, y - v
    # d^T C^-1 d as a sum of two squares (the Cholesky factor of C): no cancellation for long thin ellipses.
    distance_sq = dx**2 / xx + (dy - xy / xx * dx) ** 2 * (xx / determinant)
    return (opacity * torch.exp(-0.5 * distance_sq)).clamp_max(MAX_ALPHA)
