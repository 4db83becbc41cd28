"""nerfstudio and gworld share folders: what `ns-process-data` makes is read, what a reconstruction writes is too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.formats.colmap import write_colmap
from gworld.formats.registry import read_views
from gworld.formats.transforms import write_transforms
from gworld.reconstruct.contribution import single_cameras, view_masks
from gworld.scene.cameras import intrinsics, look_at
from gworld.scene.views import View, Views
from tests.peers.nerfstudio import parse_folder

EYES = torch.tensor([[0.0, -2.0, 1.0], [1.0, -2.0, 1.2], [-1.0, -2.0, 0.8], [0.3, -1.5, 1.0]])
SWAP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # what ns-process-data applies
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def reconstruction(folder: Path) -> Views:
    """Two physical cameras of different size and focal length, with masks, depth and sparse points."""
    poses = look_at(EYES, torch.zeros_like(EYES)).double()
    views = []
    for index, pose in enumerate(poses):
        camera = index // 2
        width, height = ((64, 48), (40, 60))[camera]
        files = {}
        for kind, mode in (("images", "RGB"), ("masks", "L"), ("depth", "I;16")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            files[kind] = folder / kind / f"cam{camera}_{index:03}.png"
            shape = (height, width, 3) if mode == "RGB" else (height, width)
            Image.fromarray(np.full(shape, 200, np.uint16 if mode == "I;16" else np.uint8)).save(files[kind])
        K = intrinsics(width, height, 0.7 + 0.2 * camera).double()
        views.append(
            View(files["images"].name, width, height, K, pose, image=files["images"], mask=files["masks"],
                 depth=files["depth"], time=0.1 * index, camera_id=camera)
        )  # fmt: skip
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Views(tuple(views), points, torch.full((30, 3), 90, dtype=torch.uint8), metric=True, depth_scale=0.0005)


def processed(folder: Path) -> Views:
    """A folder as `ns-process-data images` leaves it, and the views in COLMAP's own frame."""
    poses = look_at(EYES, torch.zeros_like(EYES)).double()
    K = intrinsics(64, 48, 0.9).double()
    for name, factor in (("images", 1), ("images_2", 2), ("images_4", 4), ("masks", 1)):
        (folder / name).mkdir(parents=True)
        for index in range(len(EYES)):
            pixels = np.full((48 // factor, 64 // factor, 3), 40 * index, np.uint8)
            Image.fromarray(pixels if name != "masks" else pixels[..., 0] + 135).save(
                folder / name / f"frame_{index + 1:05}.png"
            )
    views = tuple(View(f"frame_{index + 1:05}.png", 64, 48, K, pose) for index, pose in enumerate(poses))
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = Views(views, points, torch.full((20, 3), 7, dtype=torch.uint8))
    write_colmap(truth, folder / "colmap" / "sparse" / "0")
    frames = [
        {"file_path": f"images/{view.name}", "mask_path": f"masks/{view.name}", "colmap_im_id": index + 1,
         "transform_matrix": (SWAP @ view.world_from_camera.numpy() @ FLIP).tolist()}
        for index, view in enumerate(views)
    ]  # fmt: skip
    saved = points.numpy() @ SWAP[:3, :3].T
    head = "ply\nformat ascii 1.0\nelement vertex 20\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    head += "".join(f"property uint8 {name}\n" for name in ("red", "green", "blue")) + "end_header\n"
    rows = "".join("{:.8f} {:.8f} {:.8f} 7 7 7\n".format(*row) for row in saved)
    (folder / "sparse_pc.ply").write_text(head + rows)
    meta = {"w": 64, "h": 48, "fl_x": float(K[0, 0]), "fl_y": float(K[1, 1]), "cx": 32.0, "cy": 24.0, "k1": 0.0,
            "k2": 0.0, "p1": 0.0, "p2": 0.0, "camera_model": "OPENCV", "frames": frames,
            "applied_transform": SWAP[:3].tolist(), "ply_file_path": "sparse_pc.ply"}  # fmt: skip
    (folder / "transforms.json").write_text(json.dumps(meta))
    return truth


def assert_same_views(found: Views, truth: Views, folder: Path) -> None:
    assert [view.name for view in found.views] == [view.name for view in truth.views]
    for view, wanted in zip(found.views, truth.views, strict=True):
        assert view.image == folder / "images" / view.name  # not one of the smaller copies
        torch.testing.assert_close(view.world_from_camera, wanted.world_from_camera, atol=1e-6, rtol=0)
        torch.testing.assert_close(view.K, wanted.K, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.points, truth.points, atol=1e-5, rtol=0)


def test_a_processed_folder_is_read_with_its_pictures(tmp_path):
    truth = processed(tmp_path)
    found = read_views(tmp_path)
    assert_same_views(found, truth, tmp_path)
    assert all(view.mask == tmp_path / "masks" / view.name for view in found.views)
    assert len(single_cameras(found)) == 4 and bool(view_masks(found)(0).all())


def test_without_its_transforms_the_model_in_it_is_read(tmp_path):
    truth = processed(tmp_path)
    (tmp_path / "transforms.json").unlink()
    assert_same_views(read_views(tmp_path), truth, tmp_path)


def test_a_reconstruction_comes_back_whole(tmp_path):
    views = reconstruction(tmp_path)
    write_transforms(views, tmp_path / "transforms.json")
    back = read_views(tmp_path)
    assert back.metric and back.depth_scale == 0.0005
    for view, wanted in zip(back.views, views.views, strict=True):
        same = replace(view, K=wanted.K, world_from_camera=wanted.world_from_camera)
        assert same == wanted
        torch.testing.assert_close(view.world_from_camera, wanted.world_from_camera, atol=1e-7, rtol=0)
    assert {(camera.width, camera.height) for camera in single_cameras(back)} == {(64, 48), (40, 60)}


@pytest.mark.slow
def test_nerfstudio_reads_a_reconstruction(tmp_path):
    """Several cameras of different size, masks, depth with its unit, sparse points: by nerfstudio's own parser."""
    # Its unit of depth is an option of the parser, by default a millimetre, and never read from the file.
    views = replace(reconstruction(tmp_path), depth_scale=0.001)
    write_transforms(views, tmp_path / "transforms.json")
    theirs = parse_folder(tmp_path)
    for key, field in (("images", "image"), ("masks", "mask"), ("depths", "depth")):
        assert theirs[key] == [str(getattr(view, field)) for view in views.views]
    assert theirs["unit"] == views.depth_scale
    assert theirs["width"] == [64, 64, 40, 40] and theirs["height"] == [48, 48, 60, 60]
    for index, view in enumerate(views.views):
        found = [theirs[name][index] for name in ("fx", "fy", "cx", "cy")]
        np.testing.assert_allclose(found, view.K[[0, 1, 0, 1], [0, 1, 2, 2]].numpy(), atol=1e-4)
        np.testing.assert_allclose(theirs["c2w"][index], (view.world_from_camera.numpy() @ FLIP)[:3], atol=1e-6)
    if theirs["points"] is not None:
        np.testing.assert_allclose(theirs["points"], views.points.numpy(), atol=1e-6)


@pytest.mark.slow
def test_nerfstudio_and_gworld_agree_on_a_processed_folder(tmp_path):
    """Rays of the saved frame and ours differ only by what the file says was applied to the world."""
    processed(tmp_path)
    theirs, ours = parse_folder(tmp_path), read_views(tmp_path)
    assert theirs["images"] == [str(view.image) for view in ours.views]
    for index, view in enumerate(ours.views):
        saved = SWAP @ view.world_from_camera.numpy() @ FLIP
        np.testing.assert_allclose(theirs["c2w"][index], saved[:3], atol=1e-6)
