"""Given masks, alpha and silhouettes: polarity, names, sizes, and what is combined with what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.capture.footage import Footage, FootageCamera, Shot, load_footage, save_footage
from gworld.capture.masks import MaskOptions, mask_footage, mask_silhouettes, read_findings
from gworld.data.rooms import RoomOptions, film_room
from gworld.data.toys import tabletop_world
from gworld.errors import InputError, UsageError
from gworld.scene.cameras import resize_cameras


def footage_of(folder: Path, pictures: np.ndarray, *, photos: bool = False) -> Footage:
    shots = []
    for index, picture in enumerate(pictures):
        path = folder / "images" / f"cam_{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        shots.append(Shot(path.stem, 0, path, index, index / 10))
    height, width = pictures.shape[1:3]
    camera = FootageCamera("cam", width, height, fps=10.0, photos=photos)
    footage = Footage(folder, (camera,), tuple(shots))
    save_footage(footage)
    return footage


def mask_of(shot: Shot) -> np.ndarray:
    assert shot.mask is not None
    with Image.open(shot.mask) as opened:
        assert opened.mode == "L"
        return np.asarray(opened)


@pytest.fixture
def footage(tmp_path: Path) -> Footage:
    return footage_of(tmp_path / "footage", np.full((3, 48, 64, 3), 90, np.uint8))


def write_masks(folder: Path, values: np.ndarray, names: list[str], mode: str = "L") -> Path:
    folder.mkdir()
    for name in names:
        Image.fromarray(values).convert(mode).save(folder / name, "PNG")
    return folder


LEFT = np.zeros((48, 64), np.uint8)
LEFT[:, :32] = 255


@pytest.mark.parametrize("keep", ["white", "black"])
@pytest.mark.parametrize("ending", [".png", ".png.png", ".jpg.png", "_mask.png"])
def test_masks_are_found_by_name_and_read_in_their_polarity(
    footage: Footage, tmp_path: Path, keep: str, ending: str
) -> None:
    given = write_masks(tmp_path / "given", LEFT, [shot.name + ending for shot in footage.shots])
    masked = mask_footage(footage, MaskOptions(source=str(given), keep=keep))  # type: ignore[arg-type] # parametrised
    for shot in masked.shots:
        assert (mask_of(shot) == (LEFT if keep == "white" else 255 - LEFT)).all()
        assert shot.mask is not None and shot.mask.parent == footage.folder / "masks"
    assert load_footage(footage.folder).shots == masked.shots


def test_masks_given_later_add_to_those_there(footage: Footage, tmp_path: Path) -> None:
    names = [shot.name + ".png" for shot in footage.shots]
    first = mask_footage(footage, MaskOptions(source=str(write_masks(tmp_path / "left", LEFT, names))))
    top = np.zeros((48, 64), np.uint8)
    top[:24] = 255
    both = mask_footage(first, MaskOptions(source=str(write_masks(tmp_path / "top", top, names))))
    assert all((mask_of(shot) == np.minimum(LEFT, top)).all() for shot in both.shots)


def test_palette_alpha_and_sixteen_bit_masks_are_read(footage: Footage, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    names = [shot.name for shot in footage.shots]
    Image.fromarray(LEFT).convert("P").save(folder / f"{names[0]}.png")
    Image.fromarray(np.dstack([np.full((48, 64, 3), 255, np.uint8), LEFT])).save(folder / f"{names[1]}.png")
    Image.fromarray((LEFT > 0).astype(np.uint16)).save(folder / f"{names[2]}.png")
    masked = mask_footage(footage, MaskOptions(source=str(folder)))
    assert all((mask_of(shot) == LEFT).all() for shot in masked.shots)


def test_a_picture_without_a_given_mask_stays_whole(footage: Footage, tmp_path: Path) -> None:
    given = write_masks(tmp_path / "given", LEFT, [footage.shots[1].name + ".png"])
    masked = mask_footage(footage, MaskOptions(source=str(given)))
    assert [shot.mask is None for shot in masked.shots] == [True, False, True]


def test_wrong_masks_are_refused_in_one_sentence(footage: Footage, tmp_path: Path) -> None:
    small = write_masks(tmp_path / "small", LEFT[:20], [footage.shots[0].name + ".png"])
    with pytest.raises(InputError, match=r"is 64 x 20, but its picture `cam_0000.png` is 64 x 48"):
        mask_footage(footage, MaskOptions(source=str(small)))
    other = write_masks(tmp_path / "other", LEFT, ["nobody.png"])
    with pytest.raises(InputError, match="holds no mask for any of the 3 pictures"):
        mask_footage(footage, MaskOptions(source=str(other)))
    with pytest.raises(InputError, match="is no folder"):
        mask_footage(footage, MaskOptions(source=str(tmp_path / "nowhere")))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / f"{footage.shots[0].name}.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(InputError, match="cannot be read as a mask"):
        mask_footage(footage, MaskOptions(source=str(broken)))
    with pytest.raises(UsageError, match="margin"):
        mask_footage(footage, MaskOptions(margin=0.9))


def test_none_changes_nothing_and_auto_leaves_given_masks_and_photos_alone(footage: Footage, tmp_path: Path) -> None:
    assert mask_footage(footage, MaskOptions(source="none")) is footage
    given = write_masks(tmp_path / "given", LEFT, [shot.name + ".png" for shot in footage.shots])
    masked = mask_footage(footage, MaskOptions(source=str(given)))
    again = mask_footage(masked, MaskOptions())
    assert again.shots == masked.shots
    found = read_findings(again)[0]
    assert found.kind == "given" and found.masked == pytest.approx(0.5)
    photos = replace(footage, cameras=(replace(footage.cameras[0], photos=True),))
    assert all(shot.mask is None for shot in mask_footage(photos, MaskOptions()).shots)


def test_masks_that_were_found_are_found_anew_and_edited_ones_stay(tmp_path: Path) -> None:
    film = film_room(RoomOptions(frames=8, width=96, height=72, path="still", moving=0.1))
    first = mask_footage(footage_of(tmp_path / "footage", film.pictures), MaskOptions(margin=0.0))
    assert read_findings(first)[0].kind == "still"
    areas = [sum(int((mask_of(shot) == 0).sum()) for shot in first.shots)]
    for margin in (0.05, 0.0):
        again = mask_footage(load_footage(first.folder), MaskOptions(margin=margin))
        areas.append(sum(int((mask_of(shot) == 0).sum()) for shot in again.shots))
    assert areas[1] > 1.2 * areas[0] > 0 and areas[2] == areas[0]
    edited = first.shots[0].mask
    assert edited is not None
    Image.fromarray(np.zeros((72, 96), np.uint8)).save(edited)
    kept = mask_footage(load_footage(first.folder), MaskOptions(margin=0.05))
    assert read_findings(kept)[0].kind == "given" and not mask_of(kept.shots[0]).any()
    assert sum(int((mask_of(shot) == 0).sum()) for shot in kept.shots[1:]) < areas[1]


def test_damaged_findings_are_refused(footage: Footage) -> None:
    assert read_findings(footage) == ()
    (footage.folder / "masks.json").write_text('{"format": "gworld masks 1", "cameras": [{"camera": "a"}]}')
    with pytest.raises(InputError, match="is damaged"):
        read_findings(footage)


def test_silhouettes_cover_the_links_asked_for(tmp_path: Path) -> None:
    world = tabletop_world(0.03)
    cameras = resize_cameras(world.cameras, 96, 72)
    footage = footage_of(tmp_path / "footage", np.zeros((len(cameras), 72, 96, 3), np.uint8))
    poses = world.rest_poses().expand(len(cameras), -1, -1, -1).clone()
    away = poses.clone()
    arm = next(entity for entity in world.entities if entity.name == "left").links
    away[:, list(arm), 2, 3] += 100.0

    def ignored(link_poses: torch.Tensor, margin: float) -> np.ndarray:
        masked = mask_silhouettes(footage, world, link_poses, cameras, arm, margin=margin)
        return np.stack([mask_of(shot) == 0 for shot in masked.shots])

    tight, loose = ignored(poses, 0.0), ignored(poses, 0.03)
    share = tight.mean((1, 2))
    assert (share > 0.01).all() and (share < 0.3).all()
    assert (loose >= tight).all() and loose.mean() > 1.3 * tight.mean()
    assert not ignored(away, 0.03).any()


def test_silhouettes_need_a_pose_and_a_camera_per_picture(footage: Footage) -> None:
    world = tabletop_world(0.05)
    with pytest.raises(InputError, match="3 pictures, 1 sets of link poses and 3 cameras"):
        mask_silhouettes(footage, world, torch.eye(4).expand(1, len(world.links), 4, 4), world.cameras, [1])
