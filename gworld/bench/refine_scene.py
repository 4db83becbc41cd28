"""Scenes for the refine bench, with exact truth: photos and films of generated rooms, and fits of them that fall short.

A film runs along a smooth arc between the photos' two rings; its frames are in no fit, no pair and no reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from gworld.bench.fit_scene import ring_cameras
from gworld.data.pairset import Pair
from gworld.data.rooms import Room as FilmedRoom
from gworld.data.rooms import RoomOptions, film_room
from gworld.data.toy_rooms import random_room
from gworld.data.toys import tabletop_world
from gworld.geometry import transform_from_pose
from gworld.reconstruct.pairs import PairOptions, Scene, fit_scene, look, scene_pairs
from gworld.refine.several import drawn_by, settle
from gworld.render.select import render
from gworld.render.video import as_uint8
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.clip import Clip, join_clips, pixel_grid
from gworld.scene.gaussians import Gaussians
from gworld.scene.views import View, Views

TARGET = (0.0, 0.05, 0.8)
FOV = 0.8


@dataclass(frozen=True)
class Stage:
    """A generated scene: true Gaussians with their links, the size of its pictures."""

    gaussians: Gaussians
    links: Float[Tensor, "L 4 4"]
    width: int
    height: int


def tabletop_stage(width: int, height: int, spacing: float = 0.012) -> Stage:
    """The demo's tabletop with its two arms: the scene that is judged by."""
    world = tabletop_world(spacing)
    return Stage(world.gaussians, transform_from_pose(torch.tensor([link.pose for link in world.links])), width, height)


def random_stage(seed: int, width: int, height: int, spacing: float = 0.012) -> Stage:
    """A room drawn at random: the scenes that a refiner for all scenes learns from."""
    return Stage(random_room(seed, spacing), torch.eye(4)[None], width, height)


def true_film(stage: Stage, cameras: Cameras) -> Float[Tensor, "T H V 3"]:
    """What the cameras see, in 8 bits as a camera gives them."""
    with torch.no_grad():
        drawn = [render(stage.gaussians, stage.links, cameras[t], outputs=("rgb",)).rgb for t in range(len(cameras))]
    pictures = torch.stack([picture[0, 0] for picture in drawn if picture is not None])
    return (pictures.clamp(0, 1) * 255).round() / 255


def take_photos(stage: Stage, cameras: Cameras, folder: Path) -> Views:
    """Photos as files with their poses, and a few true points, as a sparse model would hold."""
    folder.mkdir(parents=True, exist_ok=True)
    views = []
    for row, picture in enumerate(true_film(stage, cameras)):
        path = folder / f"{row:04d}.png"
        Image.fromarray(as_uint8(picture)).save(path)
        pose = cameras.world_from_camera[row]
        views.append(View(path.name, cameras.width, cameras.height, cameras.K[row], pose, image=path))
    rows = torch.randperm(len(stage.gaussians), generator=torch.Generator().manual_seed(0))[:3000]
    pose = stage.links[stage.gaussians.links[rows].long()]
    points = (pose[:, :3, :3] @ stage.gaussians.means[rows][..., None])[..., 0] + pose[:, :3, 3]
    colours = (stage.gaussians.sh[rows, 0] * 0.28209479 + 0.5).clamp(0, 1)
    return Views(tuple(views), points, (colours * 255).round().to(torch.uint8), metric=True)


def film_cameras(frames: int, width: int, height: int, *, aside: float = 0.0, span: float = 1.6) -> Cameras:
    """A film along an arc (radians) between the rings of photos; `aside` metres further out and up, off the path."""
    share = torch.linspace(0, 1, frames)
    angle = (share - 0.45) * span
    radius, level = 1.75 + aside, 1.5 + aside
    eyes = torch.stack([radius * angle.sin(), -radius * angle.cos(), torch.full_like(angle, level)], dim=1)
    K = intrinsics(width, height, FOV)
    return Cameras(K.expand(frames, 3, 3).clone(), look_at(eyes, torch.tensor(TARGET).expand_as(eyes)), width, height)


def photo_cameras(stage: Stage, count: int) -> Cameras:
    """Two rings of cameras around the table."""
    return ring_cameras(count, stage.width, stage.height)


def held_out_cameras(stage: Stage, count: int) -> Cameras:
    """Views between those of `photo_cameras`, at heights between the rings."""
    cameras = ring_cameras(2 * count + 1, stage.width, stage.height)
    rows = list(range(1, 2 * count, 2))
    poses = cameras.world_from_camera[rows].clone()
    eyes = poses[:, :3, 3] + torch.tensor([0.0, 0.0, 0.15])
    poses = look_at(eyes, torch.tensor(TARGET).expand_as(eyes))
    return replace(cameras, K=cameras.K[rows], world_from_camera=poses)


def judged(scene: Scene, stage: Stage, cameras: Cameras) -> Clip:
    """What a fit shows to cameras, with the truth."""
    return look(scene, cameras, true_film(stage, cameras))


def short_fits(
    views: Views, options: PairOptions, folder: Path, *, few: int = 8, early: float = 0.1, more: float = 2.0
) -> dict[str, Scene]:
    """Fits that fall short (few photos; stopped early), and one that does not: `more` times the steps and Gaussians."""
    step = max(1, len(views) // few)
    sparse = replace(views, views=views.views[::step])
    return {
        "sparse": fit_scene(sparse, options, folder / "sparse"),
        "underfit": fit_scene(views, options, folder / "underfit", part=early),
        "good": fit_scene(
            views, replace(options, gaussians=round(more * options.gaussians)), folder / "good", part=more
        ),
    }


ROOM_PAIRS = PairOptions(steps=800, gaussians=5000, keep=(4,), early=(0.1,), hold_out=0)
"""How pairs of random rooms are made: many rooms, few fits of each."""
FILM = 16
"""Frames of a film that pairs are made of."""


def room_pairs(
    seeds: Iterable[int], photos: int, width: int, height: int, folder: Path, options: PairOptions = ROOM_PAIRS
) -> Iterator[Pair]:
    """Pairs of rooms drawn at random: photos beside their fits, and fits of several kinds seen on a short film.

    Every third room is a ray-traced one with a camera's noise, the others are made of Gaussians. Of the ways that take
    two fits each, a room has one. The sparse fit is seen on film twice: as it is, and settled with two others.
    """
    dear = [way for way in options.ways if way != "underfit"]
    for seed in seeds:
        work = folder / f"room-{seed}"
        aside = (0.0, 0.1, 0.2, 0.35)[seed % 4]
        views, cameras, truth = (_traced if seed % 3 == 2 else _placed)(seed, photos, (width, height), aside, work)
        name = f"room-{seed}"
        ways = tuple(way for way in options.ways if way == "underfit" or way == dear[(seed // 3) % len(dear)])
        yield from scene_pairs(views, replace(options, ways=ways), scene=name)
        few, early = (6, 8, 12)[seed % 3], (0.06, 0.12)[seed % 2]
        fits = short_fits(views, options, work / "fits", few=few, early=early, more=1.2)
        for scene in fits.values():
            yield Pair(look(scene, cameras, truth), scene.references, "given", name)
        some = replace(views, views=views.views[:: max(1, len(views) // few)])
        others = [
            fit_scene(some, replace(options, seed=options.seed + k), work / f"more-{k}").gaussians for k in (1, 2)
        ]
        clip = look(fits["sparse"], cameras, truth)
        settled = join_clips([settle(clip[t], drawn_by(others, clip[t])) for t in range(len(clip))])
        yield Pair(settled, fits["sparse"].references, "given", name)


Room = tuple[Views, Cameras, Tensor]
"""Photos of a room, a film's cameras, and what they see."""


def _placed(seed: int, photos: int, size: tuple[int, int], aside: float, folder: Path) -> Room:
    """Things on a table, in Gaussians; the film runs between the rings of photos, or off them."""
    stage = random_stage(seed, *size)
    cameras = film_cameras(FILM, *size, span=0.5, aside=aside)
    return take_photos(stage, photo_cameras(stage, photos), folder), cameras, true_film(stage, cameras)


def _traced(seed: int, photos: int, size: tuple[int, int], aside: float, folder: Path) -> Room:
    """A room full of boxes, ray-traced; the film passes between its photos along the same arc."""
    del aside
    step = 4
    told = RoomOptions(frames=step * photos, width=size[0], height=size[1], length=4.0, noise=1.0, seed=seed)
    room = film_room(told)
    pictures, poses = torch.from_numpy(room.pictures), torch.from_numpy(room.world_from_camera).float()
    K = torch.from_numpy(room.K).float()
    rows = list(range(0, len(poses), step))
    folder.mkdir(parents=True, exist_ok=True)
    views = []
    for row in rows:
        path = folder / f"{row:04d}.png"
        Image.fromarray(room.pictures[row]).save(path)
        views.append(View(path.name, *size, K, poses[row], image=path))
    points, colours = _seen_points(room, rows)
    between = [row for row in range(len(poses)) if row % step][photos // 2 :][:FILM]
    cameras = Cameras(K.expand(len(between), 3, 3).clone(), poses[between], *size)
    return Views(tuple(views), points, colours, metric=True), cameras, pictures[between].float() / 255


def _seen_points(room: FilmedRoom, rows: list[int]) -> tuple[Tensor, Tensor]:
    """A few points of what photos see, as a sparse model would hold, with their colours."""
    grid = pixel_grid(*room.depth.shape[1:])
    inverse = torch.linalg.inv(torch.from_numpy(room.K).float())
    points, colours = [], []
    random = torch.Generator().manual_seed(0)
    for row in rows:
        depth = torch.from_numpy(room.depth[row]).float().reshape(-1)
        some = torch.randperm(len(depth), generator=random)[: 3000 // len(rows)]
        rays = torch.cat([grid.reshape(-1, 2)[some], torch.ones(len(some), 1)], dim=1) @ inverse.T
        pose = torch.from_numpy(room.world_from_camera[row]).float()
        points.append((rays * depth[some, None]) @ pose[:3, :3].T + pose[:3, 3])
        colours.append(torch.from_numpy(room.pictures[row]).reshape(-1, 3)[some])
    return torch.cat(points), torch.cat(colours)
