"""A recorded scene from its own calibrated videos, where it is known how the bodies in it moved.

Bodies (robots, objects) are bound: their shapes are known, their looks are not. Each camera's pictures without the
bodies make one plate of the static scene, to which Gaussians are fitted as to any posed pictures; then everything is
fitted together to the pictures as they are, each with the poses of its own instant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from gworld.data.clips import read_frames
from gworld.errors import InputError
from gworld.geometry import transform_from_pose
from gworld.reconstruct.coverage import MAX_VIEWS, Coverage, measure_coverage
from gworld.reconstruct.fit import Fit, fit_views
from gworld.reconstruct.optimise import choose_tools, decayed, gaussians_step
from gworld.reconstruct.options import FitOptions
from gworld.reconstruct.state import NAMES, gaussians_of
from gworld.render.api import RenderOptions
from gworld.render.native_train import new_adam_state
from gworld.render.select import render
from gworld.scene.cameras import Cameras, project_points
from gworld.scene.episode import Episode
from gworld.scene.gaussians import Gaussians, join_gaussians, select_gaussians
from gworld.scene.harmonics import sh_from_rgb
from gworld.scene.views import View, Views, cameras_of
from gworld.scene.world import World

GROW = 7
"""Pixels by which a body's silhouette is widened before what lies outside counts as the static scene."""
COVERED = 0.03
FEWEST = 3
"""Pictures that must show a pixel of the static scene for its plate to be believed, and plates that must agree."""
AGREE = 0.06
"""Deviation of colours, of 1, up to which cameras agree on a spot."""
HELD = {"means": 0.05, "quats_wxyz": 0.05, "log_scales": 0.5, "opacity_logits": 0.05}
"""How fast shapes that are known (bodies, the laid plane) change, as a share of the usual rates."""
FAINT = 0.03
"""Pixels that a Gaussian must colour in a picture to be moved by it."""
LEVEL = 0.08
"""Share of its depth by which a fitted scene, which is rough in depth, may miss a plane that it shows."""
NEAR = 0.01
"""Metres by which a Gaussian may lie behind what is drawn and still be what the pixel shows."""


@dataclass(frozen=True)
class MovingOptions:
    """How much is fitted."""

    static: FitOptions = field(
        default_factory=lambda: FitOptions(steps=800, gaussians=16_000, sh_degree=0, hold_out=0, score_every=0)
    )
    """The fit of the static scene to the plates."""
    steps: int = 600
    """Steps in which bodies and scene are fitted together, a picture each."""
    instants: int = 24
    """Instants of each episode that are looked at."""
    spacing: float = 0.01
    """Metres between the discs that are laid on what objects lie on."""


@dataclass(frozen=True)
class Footage:
    """P pictures [P,H,W,3], the camera of each [P], and where every link stood then [P,L,4,4]."""

    pictures: UInt8[np.ndarray, "P H V 3"]
    camera: Int[np.ndarray, " P"]
    poses: Float[Tensor, "P L 4 4"]
    cameras: Cameras

    def __len__(self) -> int:
        return len(self.pictures)


def read_footage(world: World, episodes: Sequence[Episode], instants: int) -> Footage:
    """Evenly chosen instants of episodes from all their cameras, which must be the same standing ones in all.

    Raises `InputError` for episodes without calibrated video or tracked poses.
    """
    pictures, camera, poses = [], [], []
    for episode in episodes:
        if episode.cameras is None or episode.link_poses is None or any(episode.cameras.links):
            raise InputError(
                "an episode lacks calibrated videos of standing cameras, or tracked poses; both are needed."
            )
        rows = np.unique(np.linspace(0, len(episode) - 1, min(instants, len(episode))).round().astype(int))
        chain = world.rest_poses().expand(len(rows), -1, 4, 4).clone()
        for place, link in enumerate(world.links):
            if link.name in episode.link_names:
                own = episode.link_poses[rows, episode.link_names.index(link.name)]
                chain[:, place] = transform_from_pose(own.float())
        for index, video in enumerate(episode.videos):
            nearest = np.abs(video.times.numpy()[None] - episode.times.numpy()[rows, None]).argmin(1)
            pictures.append(np.stack(list(read_frames(video.path, (video.first + nearest).tolist()))))
            camera.append(np.full(len(rows), index))
            poses.append(chain)
    assert episodes[0].cameras is not None
    return Footage(np.concatenate(pictures), np.concatenate(camera), torch.cat(poses), episodes[0].cameras)


def reconstruct_moving(
    bound: World,
    footage: Footage,
    folder: Path,
    options: MovingOptions = MovingOptions(),
    progress: Callable[[str, float], None] = lambda stage, share: None,
) -> tuple[World, Fit]:
    """The world with Gaussians learned from `footage`, and the fit of its static scene.

    Of `bound`, the shapes of the bodies are used and nothing else: neither their colours nor any static Gaussian.
    Plates and the run of the static fit are kept in `folder`. Lighting is taken as even: colours do not depend on
    direction. What objects lie on is laid with discs where the cameras agree that it is flat, so that dynamics find a
    plane to slide on. Raises what `fit_views` raises.
    """
    bodies = select_gaussians(bound.gaussians, bound.gaussians.links > 0)
    bodies = coloured(bodies, footage)
    progress("plates", 0.0)
    views = write_plates(footage, bodies, folder / "plates")
    fit = fit_views(views, options.static, folder / "static", progress=lambda _, share: progress("static", share))
    height = support_height(bound, bodies, footage)
    laid = None if height is None else lay_plane(views, fit.gaussians, height, options.spacing)
    static = fit.gaussians if laid is None or height is None else without_slab(fit.gaussians, laid, height)
    parts = [part for part in (static, laid, bodies) if part is not None]
    kept = torch.arange(sum(map(len, parts))) >= len(static)
    whole = fit_together(join_gaussians(parts), kept, footage, options, progress, fit.background)
    return replace(bound, gaussians=whole, cameras=footage.cameras, background=fit.background, folder=None), fit


def footage_coverage(gaussians: Gaussians, footage: Footage) -> Coverage:
    """From where Gaussians were seen; for what stands still a standing camera counts once, however often it looked."""
    rows = torch.linspace(0, len(footage) - 1, min(len(footage), MAX_VIEWS)).round().long()
    camera = torch.from_numpy(footage.camera)[rows]
    taken = [footage.cameras[int(index)] for index in camera]
    found = measure_coverage(gaussians, taken, world_from_link=footage.poses[rows])
    still, shifts = gaussians.links == 0, torch.arange(8, dtype=torch.uint8)
    seen = ((found.views[still, :, None] >> shifts) & 1).flatten(1)
    once = torch.zeros_like(seen)
    for index in camera.unique():
        own = (camera == index).nonzero()[:, 0]
        once[:, own[0]] = seen[:, own].amax(1)
    views = found.views.clone()
    views[still] = (once.unflatten(1, (-1, 8)) << shifts).sum(-1).to(torch.uint8)
    return replace(found, views=views)


def coloured(bodies: Gaussians, footage: Footage) -> Gaussians:
    """Bodies in the mean colours of the pixels that show them.

    What none shows is like the nearest of its link that is seen; a link that is not seen at all is grey.
    """
    from scipy.spatial import cKDTree

    total, count = torch.zeros(len(bodies), 3), torch.zeros(len(bodies))
    for row in range(len(footage)):
        camera = footage.cameras[int(footage.camera[row])]
        poses = footage.poses[row]
        with torch.no_grad():
            drawn = render(bodies, poses[None], camera, outputs=("depth", "link_id"))
        assert drawn.depth is not None and drawn.link_id is not None
        frames = poses[bodies.links.long()]
        places = (frames[:, :3, :3] @ bodies.means[..., None])[..., 0] + frames[:, :3, 3]
        seen, column, line, z = pixels_of(places, camera)
        seen &= (drawn.link_id[0, 0][line, column] == bodies.links) & (
            (drawn.depth[0, 0][line, column] - z).abs() < NEAR
        )
        colours = torch.from_numpy(footage.pictures[row])[line, column].float() / 255
        total[seen] += colours[seen]
        count[seen] += 1
    colours = torch.where(count[:, None] > 0, total / count.clamp_min(1)[:, None], torch.tensor(0.5))
    for link in bodies.links.unique():
        own = bodies.links == link
        seen, hidden = ((own & shown).nonzero()[:, 0] for shown in (count > 0, count == 0))
        if len(seen) and len(hidden):
            _, nearest = cKDTree(bodies.means[seen].numpy()).query(bodies.means[hidden].numpy())
            colours[hidden] = colours[seen[torch.from_numpy(nearest)]]
    return replace(bodies, sh=sh_from_rgb(colours)[:, None].contiguous())


def support_height(bound: World, bodies: Gaussians, footage: Footage) -> float | None:
    """Height (m, along +Z) of what the objects lie on: the median of their lowest points; None without objects."""
    lowest = []
    for entity in bound.entities:
        for link in entity.links if entity.kind == "object" else ():
            own = bodies.means[bodies.links == link]
            if len(own):
                frames = footage.poses[:, link]
                heights = (own @ frames[:, 2:3, :3].mT)[..., 0] + frames[:, 2:3, 3]
                lowest.append(heights.amin(1))
    return float(torch.cat(lowest).median()) if lowest else None


def lay_plane(views: Views, fitted: Gaussians, height: float, spacing: float) -> Gaussians | None:
    """Flat discs on the level plane at `height`, where the fitted scene is near it and plates agree on the colour.

    What lay under a body all the time is filled in from around. None where no three plates agree on any spot.
    """
    from scipy import ndimage

    cameras = cameras_of(views)
    middle = cameras.world_from_camera[:, :3, 3].mean(0)
    half = int(float((cameras.world_from_camera[:, :2, 3] - middle[:2]).norm(dim=1).amax()) / spacing) + 1
    ticks = torch.arange(-half, half + 1) * spacing
    grid = torch.stack(torch.meshgrid(ticks + middle[0], ticks + middle[1], indexing="ij"), dim=-1)
    shape = grid.shape[:2]
    spots = torch.cat([grid.reshape(-1, 2), torch.full((len(grid) * len(grid[0]), 1), height)], dim=1)
    count, total, square, off = (torch.zeros(len(spots), width) for width in (1, 3, 3, 1))
    for index, view in enumerate(views.views):
        shown, known = _plate(view)
        with torch.no_grad():
            depth = render(fitted, None, cameras[index], outputs=("depth",)).depth
        assert depth is not None
        seen, column, line, z = pixels_of(spots, cameras[index])
        seen &= known[line, column]
        colours = shown[line[seen], column[seen]]
        count[seen] += 1
        total[seen] += colours
        square[seen] += colours.square()
        off[seen] += (depth[0, 0][line[seen], column[seen]] / z[seen] - 1).abs()[:, None]
    mean = total / count.clamp_min(1)
    spread = (square / count.clamp_min(1) - mean.square()).clamp_min(0).sqrt().amax(1)
    # Cameras may differ by as much as neighbours do: pixels are coarser than a pattern's edges.
    picture = mean.reshape(*shape, 3).numpy()
    sway = ndimage.uniform_filter(picture**2, (5, 5, 0)) - ndimage.uniform_filter(picture, (5, 5, 0)) ** 2
    sway = torch.from_numpy(np.sqrt(sway.clip(0)).max(-1)).flatten()
    flat = (
        (count[:, 0] >= max(FEWEST, len(views) // 3))
        & (spread < AGREE + sway)
        & (off[:, 0] / count[:, 0].clamp_min(1) < LEVEL)
    )
    whole = ndimage.binary_opening(ndimage.binary_closing(flat.reshape(shape).numpy(), iterations=2), iterations=3)
    labels, found = ndimage.label(whole)
    if not found:
        return None
    largest = 1 + int(np.argmax(ndimage.sum_labels(whole, labels, np.arange(1, found + 1))))
    rows = torch.from_numpy(ndimage.binary_fill_holes(labels == largest)).flatten()
    nearest = ndimage.distance_transform_edt(
        (~flat).reshape(shape).numpy(), return_distances=False, return_indices=True
    )
    mean = mean.reshape(*shape, 3)[tuple(torch.from_numpy(part).long() for part in nearest)].reshape(-1, 3)
    return discs(spots[rows], mean[rows], spacing)


def discs(places: Float[Tensor, "N 3"], colours: Float[Tensor, "N 3"], spacing: float) -> Gaussians:
    """Level, opaque discs that cover a plane when they lie `spacing` apart."""
    count = len(places)
    scales = torch.tensor([0.6 * spacing, 0.6 * spacing, 0.05 * spacing]).log()
    return Gaussians(
        means=places.clone(),
        quats_wxyz=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        log_scales=scales.repeat(count, 1),
        opacity_logits=torch.full((count,), 4.0),
        sh=sh_from_rgb(colours)[:, None].contiguous(),
        links=torch.zeros(count, dtype=torch.int32),
    )


def _plate(view: View) -> tuple[Float[Tensor, "H V 3"], Bool[Tensor, "H V"]]:
    """A plate's colours and where they are known."""
    from PIL import Image

    assert view.image is not None and view.mask is not None
    with Image.open(view.image) as picture, Image.open(view.mask) as mask:
        shown = torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255
        return shown, torch.from_numpy(np.array(mask.convert("L")) > 250)


def without_slab(static: Gaussians, laid: Gaussians, height: float) -> Gaussians:
    """The static Gaussians without those at or below the laid plane, within its outline: it hides or replaces them."""
    from scipy.spatial import cKDTree

    apart = torch.from_numpy(cKDTree(laid.means[:, :2].numpy()).query(static.means[:, :2].numpy())[0]).float()
    spacing = float(laid.log_scales[0, 0].exp()) / 0.6
    return select_gaussians(static, ~((static.means[:, 2] < height + spacing) & (apart < 2 * spacing)))


def pixels_of(places: Float[Tensor, "N 3"], camera: Cameras) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which places a camera has in its picture, their columns and lines (0 where not), and depths."""
    points, depth = project_points(camera, places)
    column, line = points[0].floor().long().unbind(-1)
    seen = (depth[0] > 0) & (column >= 0) & (column < camera.width) & (line >= 0) & (line < camera.height)
    return seen, torch.where(seen, column, 0), torch.where(seen, line, 0), depth[0]


def write_plates(footage: Footage, bodies: Gaussians, folder: Path) -> Views:
    """What each camera sees where no body stands: the median over its pictures, and a mask of where it is known."""
    import cv2
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (GROW, GROW))
    views = []
    for index in range(len(footage.cameras)):
        rows = np.flatnonzero(footage.camera == index)
        shown = footage.pictures[rows].astype(np.float32)
        for place, row in enumerate(rows):
            with torch.no_grad():
                drawn = render(bodies, footage.poses[row][None], footage.cameras[index], outputs=("alpha",)).alpha
            assert drawn is not None
            shown[place][cv2.dilate((drawn[0, 0].numpy() > COVERED).astype(np.uint8), kernel) > 0] = np.nan
        known = np.isfinite(shown[..., 0]).sum(0) >= min(FEWEST, len(rows))
        shown[:, ~known] = 0.0
        files = folder / f"{index:03d}.png", folder / f"{index:03d}-mask.png"
        Image.fromarray(np.nanmedian(shown, axis=0).round().astype(np.uint8)).save(files[0])
        Image.fromarray((known * 255).astype(np.uint8)).save(files[1])
        K, pose = footage.cameras.K[index].double(), footage.cameras.world_from_camera[index].double()
        size = footage.cameras.width, footage.cameras.height
        views.append(View(f"{index:03d}", *size, K, pose, image=files[0], mask=files[1], camera_id=index))
    return Views(tuple(views), metric=True)


def fit_width(footage: Footage) -> float:
    """Half the width of the pictures where the bodies move: the length in which positions learn."""
    cameras = footage.cameras
    moving = footage.poses[:, 1:, :3, 3].reshape(-1, 3)
    far = (cameras.world_from_camera[:, :3, 3][:, None] - moving[None]).norm(dim=-1).median()
    return float(far * 0.5 * cameras.width / cameras.K[:, 0, 0].median())


def fit_together(
    gaussians: Gaussians,
    known: Bool[Tensor, " N"],
    footage: Footage,
    options: MovingOptions,
    progress: Callable[[str, float], None] = lambda stage, share: None,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Gaussians:
    """Scene and bodies moved towards the pictures, each drawn with its own poses; what is `known` keeps its shape."""
    width, drawing = fit_width(footage), RenderOptions(background=background)
    params = {name: getattr(gaussians, name).clone().contiguous() for name in NAMES}
    links = gaussians.links
    kept = {name: params[name][known].clone() for name in HELD}
    adam, tools = new_adam_state(params), choose_tools(torch.device("cpu"))
    rates, source = options.static.rates, torch.Generator().manual_seed(options.static.seed)
    order = torch.cat(
        [torch.randperm(len(footage), generator=source) for _ in range(options.steps // len(footage) + 1)]
    )
    for step in range(options.steps):
        row = int(order[step])
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        camera = footage.cameras[int(footage.camera[row])]
        drawn = render(
            replace(gaussians_of(leaves), links=links),
            footage.poses[row][None],
            camera,
            outputs=("rgb",),
            options=drawing,
        ).rgb
        assert drawn is not None
        truth = torch.from_numpy(footage.pictures[row]).float() / 255
        loss = tools.loss(drawn[0, 0], truth, ssim_weight=options.static.ssim_weight, mask=None)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        done = step / options.steps
        named = {
            "means": decayed(0.3 * rates.means, 0.05, done) * width,
            "quats_wxyz": rates.quats,
            "log_scales": rates.scales,
            "opacity_logits": rates.opacities * 0.2,
            "sh": decayed(4 * rates.colours, 0.1, done),
        }
        with torch.no_grad():
            # Adam's steps are as long for what is all but hidden, whose colour would drift anywhere.
            touched = gradients["sh"].abs().amax(dim=(1, 2)) > FAINT / footage.pictures[row].size
            adam = gaussians_step(tools, params, gradients, adam, named, touched)
            for name, before in kept.items():  # Adam's steps have one size: what is known is given back most of each
                params[name][known] = before + HELD[name] * (params[name][known] - before)
                before.copy_(params[name][known])
        progress("together", done)
    return replace(gaussians_of(params), links=links)
