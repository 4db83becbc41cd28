"""The generated room: the same bytes from the same seed, exact geometry, the share of motion that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gworld.capture.footage import load_footage
from gworld.data.room_files import DEPTH_UNIT, write_room, write_room_video
from gworld.data.rooms import RoomOptions, film_room
from gworld.errors import InputError

SMALL = {"frames": 6, "width": 160, "height": 120}


def points_of(room, index: int) -> np.ndarray:
    """World points [H,W,3] of a picture's pixel centres, by its depth."""
    height, width = room.depth.shape[1:]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(x - room.K[0, 2]) / room.K[0, 0], (y - room.K[1, 2]) / room.K[1, 1], np.ones_like(x)], -1)
    pose = room.world_from_camera[index]
    return (rays * room.depth[index][..., None]) @ pose[:3, :3].T + pose[:3, 3]


def test_same_seed_same_bytes_and_another_seed_another_room() -> None:
    first, second = (film_room(RoomOptions(seed=3, moving=0.13, noise=2.0, **SMALL)) for _ in range(2))
    for name in ("pictures", "depth", "moving", "world_from_camera", "K"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.pictures, film_room(RoomOptions(seed=4, moving=0.13, **SMALL)).pictures)


def test_depth_and_poses_agree_between_pictures() -> None:
    """A static point seen in one picture lies on the surface that the next picture sees there."""
    room = film_room(RoomOptions(seed=1, **{**SMALL, "frames": 30}))
    points = points_of(room, 10)[::7, ::7].reshape(-1, 3)
    pose = room.world_from_camera[11]
    seen = (points - pose[:3, 3]) @ pose[:3, :3]
    pixel = seen[:, :2] / seen[:, 2:] * room.K[0, 0] + room.K[:2, 2]
    inside = ((pixel > 1) & (pixel < (159, 119))).all(1) & (seen[:, 2] > 0.1)
    column, row = pixel[inside].astype(int).T
    off = np.abs(room.depth[11][row, column] - seen[inside, 2])
    assert inside.sum() > 200 and np.median(off) < 0.02 and (off < 0.1).mean() > 0.8
    colours = np.abs(
        room.pictures[11][row, column].astype(float) - room.pictures[10][::7, ::7].reshape(-1, 3)[inside]
    ).mean(1)
    assert np.median(colours[off < 0.02]) < 15


@pytest.mark.parametrize("share", [0.13, 0.63])
def test_moving_boxes_cover_what_was_asked_for(share: float) -> None:
    room = film_room(RoomOptions(seed=2, moving=share, **{**SMALL, "frames": 20}))
    assert abs(room.moving.mean() - share) < 0.03
    still = film_room(RoomOptions(seed=2, **{**SMALL, "frames": 20}))
    assert np.array_equal(still.depth[~room.moving], room.depth[~room.moving])  # the scene behind is the same
    assert (room.depth <= still.depth).all() and not still.moving.any()


def test_paths_contrast_noise_and_size() -> None:
    arc = film_room(RoomOptions(**{**SMALL, "frames": 24}))
    steps = np.linalg.norm(np.diff(arc.world_from_camera[:, :3, 3], axis=0), axis=1)
    assert 5.9 < steps.sum() < 6.6
    turn = film_room(RoomOptions(path="turn", **SMALL))
    assert np.ptp(turn.world_from_camera[:, :3, 3], axis=0).max() == 0
    assert np.abs(turn.world_from_camera[0, :3, :3] - turn.world_from_camera[-1, :3, :3]).max() > 0.5
    still = film_room(RoomOptions(path="still", moving=0.13, **SMALL))
    assert np.ptp(still.world_from_camera, axis=0).max() == 0 and np.ptp(still.pictures.astype(int), axis=0).max() > 50
    bland = film_room(RoomOptions(contrast=0.06, **SMALL))
    assert bland.pictures.std() < 0.1 * arc.pictures.std()
    noisy = film_room(RoomOptions(contrast=0.06, noise=2.0, **SMALL))
    assert 1.8 < (noisy.pictures.astype(float) - bland.pictures).std() < 2.3


def test_room_comes_back_from_disk(tmp_path: Path) -> None:
    import av
    from PIL import Image

    room = film_room(RoomOptions(moving=0.2, **SMALL))
    write_room(room, tmp_path / "footage", masks=True, depth=True, focal=True)
    footage = load_footage(tmp_path / "footage")
    assert len(footage) == 6 and footage.cameras[0].K[0] == room.K[0, 0]
    for index, shot in enumerate(footage.shots):
        assert np.array_equal(np.asarray(Image.open(shot.image)), room.pictures[index])
        assert np.array_equal(np.asarray(Image.open(shot.mask)) == 0, room.moving[index])
        assert np.abs(np.asarray(Image.open(shot.depth)) * DEPTH_UNIT - room.depth[index]).max() <= DEPTH_UNIT
    write_room_video(room, tmp_path / "room.mp4")
    with av.open(str(tmp_path / "room.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(video=0)]
    assert len(frames) == 6 and np.abs(frames[0] - room.pictures[0]).mean() < 12


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"width": 9000}, {"moving": 0.9}, {"radial": 1.0}])
def test_what_cannot_be_had_is_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=r"can be had|needed"):
        film_room(RoomOptions(**wrong))
