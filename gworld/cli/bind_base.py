"""`gworld bind --base auto`: find where a robot stands, from footage with joint values, markers or a wrist camera."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gworld.agents.kinematics import forward_kinematics, rest_values
from gworld.agents.tree import Skeleton, link_index, value_slots
from gworld.cli.bind import FindBase
from gworld.cli.options import say
from gworld.errors import InputError, UsageError
from gworld.geometry import transform_from_pose
from gworld.scene.cameras import Cameras
from gworld.scene.episode import Episode
from gworld.scene.views import cameras_of
from gworld.scene.world import World

if TYPE_CHECKING:
    from gworld.reconstruct.base import BaseFit, Sight
    from gworld.reconstruct.motion_film import Film, Plates

MARKED = 40
"""Instants of a recording in which a marker is looked for."""


@dataclass(frozen=True, eq=False)
class FoundBase:
    """The base as found, and the joint values [V] at the first instant of the recording, where there is one."""

    fit: BaseFit
    joints: Tensor | None


def find_base(world: World, skeleton: Skeleton, name: str, options: FindBase) -> FoundBase:
    """The base by the evidence that is given; raises `UsageError` when none is, `InputError` when it does not tell."""
    by = options.by
    if by == "auto":
        by = "marker" if options.marker else "hand" if options.views is not None else "look"
    if by == "marker":
        return _by_marker(world, skeleton, name, options)
    episode = _episode(options)
    joints = episode_values(skeleton, episode, name)
    if by == "hand":
        return FoundBase(_by_hand(skeleton, episode, joints, options), _first(joints))
    return FoundBase(_by_look(world, skeleton, episode, joints, options), _first(joints))


def episode_values(skeleton: Skeleton, episode: Episode, name: str) -> Tensor:
    """The robot's joint values [T,V] as an episode recorded them: by the columns' names, or by their order.

    Joints that were not recorded rest. Raises `InputError` when the table does not fit the robot.
    """
    tables = episode.joints
    key = name if name in tables else next(iter(tables), "") if len(tables) == 1 else ""
    if not key:
        raise InputError(f"the episode has joints of {', '.join(tables) or 'nobody'}, not of `{name}`. Bind it as one.")
    table, slots = tables[key].double(), value_slots(skeleton)
    values = rest_values(skeleton, torch.float64).repeat(len(table), 1)
    columns = [word.rpartition("/")[2] for word in episode.names.get(f"joints/{key}", ())]
    known = [word for word in slots if word.rpartition("/")[2] in columns]
    if columns and known:
        for word in known:
            values[:, slots[word]] = table[:, columns.index(word.rpartition("/")[2])][:, None]
        return values
    if table.shape[1] != values.shape[1]:
        raise InputError(
            f"the episode has {table.shape[1]} joint values of `{key}`; the robot has {values.shape[1]}: "
            f"{', '.join(slots)}."
        )
    return table


def _episode(options: FindBase) -> Episode:
    from gworld.data.store import open_episodes, read_episode

    if options.episodes is None:
        raise UsageError(
            "`--base auto` needs evidence: `--find.episodes STORE` with joints and videos, or `--find.marker` with "
            "`--find.pictures`."
        )
    return read_episode(open_episodes(options.episodes), options.number)


def _fixed(episode: Episode) -> tuple[list[int], Cameras]:
    """The rows and the calibration of an episode's cameras that stand still."""
    cameras = episode.cameras
    if cameras is None or not episode.videos:
        raise InputError("the episode has no calibrated video; add cameras to it.")
    rows = [row for row in range(len(cameras)) if not cameras.links or not cameras.links[row]]
    if not rows:
        raise InputError("all cameras of the episode move; a camera that stands still is needed.")
    return rows, replace(
        cameras,
        K=cameras.K[rows],
        world_from_camera=cameras.world_from_camera[rows],
        distortion=None if cameras.distortion is None else cameras.distortion[rows],
        names=tuple(episode.videos[row].name for row in rows),
        links=(),
    )


def _by_look(world: World, skeleton: Skeleton, episode: Episode, joints: Tensor, options: FindBase) -> BaseFit:
    from gworld.cli.track import open_film
    from gworld.reconstruct.base import BaseFit, base_from_pictures, world_plates
    from gworld.reconstruct.motion_film import first_plates

    rows, cameras = _fixed(episode)
    near = transform_from_pose(torch.tensor(options.near, dtype=torch.float64))
    with tempfile.TemporaryDirectory() as folder:
        films = [open_film(episode.videos[row], Path(folder) / f"{row}.raw") for row in rows]
        plates: Plates = (
            world_plates(world, cameras) if options.plates == "world" else first_plates(films, np.zeros((0, 3)))
        )
        found = base_from_pictures(
            skeleton, joints, episode.times, films, cameras, plates, near, options.look,
            whole=options.plates == "world", progress=_tell,
        )  # fmt: skip
    how = f"drawing it for {len(rows)} cameras (explains {found.explained:.0%} of what is seen)"
    return BaseFit(found.world_from_base, how, found.position_sigma, found.rotation_sigma)


def _by_hand(skeleton: Skeleton, episode: Episode, joints: Tensor, options: FindBase) -> BaseFit:
    from gworld.agents.actions import deepest_link
    from gworld.capture.handlog import HandLog, hand_at_times
    from gworld.formats.registry import read_views
    from gworld.reconstruct.base import base_from_hand_eye

    if options.views is None:
        raise UsageError("`--find.by hand` needs `--find.views`, the wrist camera's posed views.")
    timed = [view for view in read_views(options.views).views if view.time is not None]
    if not timed:
        raise InputError(f"`{options.views}` gives no times to its views; poses of a video are needed.")
    link = link_index(skeleton, options.hand or deepest_link(skeleton))
    hands = forward_kinematics(skeleton, joints)[:, link]
    usable = torch.isfinite(hands).all((1, 2))
    log = HandLog(episode.times.double()[usable], hands[usable])
    poses = torch.stack([view.world_from_camera.double() for view in timed])
    at = hand_at_times(log, torch.tensor([view.time for view in timed], dtype=torch.float64))
    fit, mount = base_from_hand_eye(poses, at)
    say(f"the camera sits at {[round(float(value), 4) for value in mount[:3, 3]]} m on `{skeleton.links[link].name}`")
    return fit


def _by_marker(world: World, skeleton: Skeleton, name: str, options: FindBase) -> FoundBase:
    from gworld.capture.boards import parse_board
    from gworld.reconstruct.base import base_from_marked_hand, base_from_markers

    if not options.marker:
        raise UsageError("`--find.by marker` needs `--find.marker`, as `tag:36h11:7:0.12m`.")
    board = parse_board(options.marker)
    link = link_index(skeleton, options.marker_link) if options.marker_link else 0
    offset = torch.eye(4, dtype=torch.float64)
    if options.marker_offset is not None:
        offset = transform_from_pose(torch.tensor(options.marker_offset, dtype=torch.float64))
    if options.pictures:
        if options.marker_offset is None:
            raise UsageError("`--find.marker-offset None` needs the joints of `--find.episodes`, not loose pictures.")
        posed = torch.eye(4, dtype=torch.float64)
        if options.marker_link:
            posed = forward_kinematics(skeleton, rest_values(skeleton, torch.float64))[link]
        cameras, sights = _pictures(world, options, posed @ offset)
        return FoundBase(base_from_markers(cameras, sights, board), None)
    episode = _episode(options)
    joints = None
    if options.marker_link or options.marker_offset is None or name in episode.joints:
        joints = episode_values(skeleton, episode, name)
    cameras, sights = _instants(skeleton, episode, joints, link if options.marker_link else None, offset)
    solve = base_from_marked_hand if options.marker_offset is None else base_from_markers
    return FoundBase(solve(cameras, sights, board), None if joints is None else _first(joints))


def _pictures(world: World, options: FindBase, base_from_board: Tensor) -> tuple[Cameras, list[Sight]]:
    """Loose pictures by the names of their cameras."""
    from gworld.capture.boards import read_picture
    from gworld.capture.calibration import read_calibration
    from gworld.reconstruct.base import Sight, camera_view

    cameras = world.cameras if options.cameras is None else cameras_of(read_calibration(options.cameras), torch.float64)
    if cameras is None:
        raise InputError("the world holds no cameras; give `--find.cameras`, the calibration of the pictures.")
    names = cameras.names or tuple(f"camera{index}" for index in range(len(cameras)))
    sights = []
    for path in options.pictures:
        if path.stem not in names:
            raise InputError(f"no camera is called `{path.stem}` like `{path}`; there are {', '.join(names)[:300]}.")
        number = names.index(path.stem)
        picture = read_picture(replace(camera_view(cameras, number), image=path))
        if picture.shape[:2] != (cameras.height, cameras.width):
            raise InputError(
                f"`{path}` is {picture.shape[1]} x {picture.shape[0]}; its camera makes {cameras.width} x "
                f"{cameras.height}. Give the calibration of this size."
            )
        sights.append(Sight(number, picture, base_from_board))
    return cameras, sights


def _instants(
    skeleton: Skeleton, episode: Episode, joints: Tensor | None, link: int | None, offset: Tensor
) -> tuple[Cameras, list[Sight]]:
    """Pictures of a recording with the marker's place in the root at each."""
    from gworld.cli.track import open_film
    from gworld.reconstruct.base import Sight

    rows, cameras = _fixed(episode)
    steps = np.unique(np.linspace(0, len(episode) - 1, MARKED if link is not None else 5).round().astype(int))
    sights = []
    with tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(rows):
            film: Film = open_film(episode.videos[row], Path(folder) / "film.raw")
            for step in steps.tolist():
                posed = torch.eye(4, dtype=torch.float64)
                if link is not None and joints is not None:
                    posed = forward_kinematics(skeleton, joints[step])[link]
                if bool(torch.isfinite(posed).all()):
                    picture = film.pictures[film.nearest(float(episode.times[step]))]
                    sights.append(Sight(number, torch.from_numpy(np.array(picture)), posed @ offset))
    return cameras, sights


def _first(joints: Tensor) -> Tensor:
    whole = torch.isfinite(joints).all(1)
    return joints[int(whole.double().argmax())]


def _tell(what: str, done: int, total: int) -> None:
    if done == total:
        say(f"base: {what} done")
