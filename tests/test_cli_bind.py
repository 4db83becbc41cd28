"""`gworld bind` beyond plain binding: the base found, models and motions cut out, coverage and dynamics kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.agents.kinematics import forward_kinematics
from gworld.agents.skeleton import read_robot
from gworld.agents.tree import link_index
from gworld.capture.boards import parse_board
from gworld.cli import bind, record
from gworld.cli.bind_base import FindBase
from gworld.data.shapes import box, plain
from gworld.data.simulators_options import SceneOptions
from gworld.data.store import EpisodeWriter
from gworld.dynamics.saved import load_model
from gworld.errors import InputError, MissingBackendError, UsageError
from gworld.formats.transforms import write_transforms
from gworld.formats.world import load_world, save_world
from gworld.geometry import invert_transform, pose_from_transform, se3_exp
from gworld.reconstruct.base import LookOptions
from gworld.reconstruct.coverage import Coverage, load_coverage, save_coverage
from gworld.scene.cameras import Cameras, look_at
from gworld.scene.episode import Episode
from gworld.scene.gaussians import join_gaussians, select_gaussians
from gworld.scene.views import View, Views
from gworld.scene.world import World
from gworld.simulate.learned import open_stepper
from tests.test_agents_segment import ARM, eyes
from tests.test_capture_boards import film

MODEL = Path(__file__).resolve().parent.parent / "assets" / "dynamics"
SKIN = bind.SkinOptions(per_square_metre=4000.0)


def world_at(folder: Path) -> World:
    table = box((1.2, 1.2, 0.02), 0.03, plain(0.7, 0.7, 0.6), (0.2, 0, -0.012))
    cube = box((0.1, 0.1, 0.1), 0.012, plain(0.9, 0.2, 0.2), (0.3, 0.2, 0.05))
    world = World(join_gaussians([table, cube]), cameras=eyes(), metric=True, background=(0.1, 0.2, 0.3))
    save_world(world, folder)
    return world


def arm_file(folder: Path) -> Path:
    (folder / "arm.urdf").write_text(ARM)
    return folder / "arm.urdf"


def test_coverage_goes_along_and_knows_what_is_new(tmp_path: Path) -> None:
    world = world_at(tmp_path / "w")
    count = len(world.gaussians)
    views = torch.randint(0, 8, (count, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    save_coverage(Coverage(views, torch.tensor([[[1.0, 0, 1]], [[0, 1.0, 1]], [[1.0, 1, 1]]])), tmp_path / "w")
    base = (0.1, 0.0, 0.05, 1.0, 0.0, 0.0, 0.0)
    bind.run(bind.Options(tmp_path / "w", "arm", tmp_path / "out", robot=arm_file(tmp_path), base=base, skin=SKIN))
    coverage, bound = load_coverage(tmp_path / "out"), load_world(tmp_path / "out")
    assert coverage is not None and len(coverage) == len(bound.gaussians) > count
    assert torch.equal(coverage.views[:count], views) and int(coverage.views[count:].max()) == 0
    torch.testing.assert_close(coverage.origins[0, 1], torch.tensor([0.9, 0.0, 0.95]))  # seen from the robot's foot
    assert bound.background == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("metric", [True, False])
def test_a_world_without_metres_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: bool
) -> None:
    world = replace(world_at(tmp_path / "w"), metric=metric)
    save_world(world, tmp_path / "w", overwrite=True)
    arm = arm_file(tmp_path)
    bind.run(bind.Options(tmp_path / "w", robot=arm, name="arm", out=tmp_path / "bound", skin=SKIN))
    assert ("unit of" in capsys.readouterr().err) is not metric


def test_dynamics_are_bound_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = next(path.parent for path in sorted(MODEL.rglob("manifest.json")))
    world_at(tmp_path / "w")
    bind.run(bind.Options(tmp_path / "w", "cube", cut=(0.2, 0.1, 0.002, 0.4, 0.3, 0.2), overwrite=True))
    assert open_stepper(load_world(tmp_path / "w"), 0.05).note.startswith("kinematics only")
    bind.run(bind.Options(tmp_path / "w", dynamics=model, json=True))
    assert json.loads(capsys.readouterr().out)["bound"] == "dynamics"
    world = load_world(tmp_path / "w")
    assert world.dynamics is not None and load_model(world.dynamics).config == load_model(model).config
    assert "bound to the world" in open_stepper(world, 0.05).note
    with pytest.raises(UsageError, match="already"):
        bind.run(bind.Options(tmp_path / "w", dynamics=model))
    bind.run(bind.Options(tmp_path / "w", "tile", cut=(-0.5, -0.7, -0.1, -0.2, -0.2, 0.0), overwrite=True))
    assert load_world(tmp_path / "w").dynamics is not None  # binding more keeps it
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no"):
        bind.run(bind.Options(tmp_path / "w", dynamics=tmp_path / "empty", overwrite=True))


def test_what_moves_in_tracks_becomes_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = world_at(tmp_path / "w")
    rows = world.gaussians.means[:, 2] > 0.005
    tracks = world.gaussians.means.double().expand(12, -1, 3).clone()
    tracks[:, rows, 0] += torch.linspace(0, 0.2, 12).double()[:, None]
    tracks += 0.0005 * torch.randn(tracks.shape, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "tracks.npz", points=tracks.numpy())
    options = bind.Options(tmp_path / "w", "cube", tmp_path / "out", cut_motion=tmp_path / "tracks.npz", json=True)
    bind.run(options)
    facts = json.loads(capsys.readouterr().out)
    assert facts["entities"] == ["cube"] and facts["taken"] == int(rows.sum()) and len(facts["holes"]) == 2
    assert int((load_world(tmp_path / "out").gaussians.links == 1).sum()) == int(rows.sum())
    with pytest.raises(UsageError, match="none of the 12 frames"):
        bind.run(replace(options, out=tmp_path / "o", cut_frame=12))
    with pytest.raises(UsageError, match="needs `--name`"):
        bind.run(replace(options, out=tmp_path / "o", name=""))


def test_a_models_place_in_the_scene_is_taken_or_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import trimesh

    world = world_at(tmp_path / "w")
    trimesh.creation.box(extents=(0.1, 0.1, 0.1)).export(tmp_path / "cube.stl")
    options = bind.Options(
        tmp_path / "w", "cube", tmp_path / "take", object=tmp_path / "cube.stl", base=(0.3, 0.2, 0.05, 1, 0, 0, 0),
        skin=SKIN, cut_model="take", json=True,
    )  # fmt: skip
    bind.run(options)
    taken, facts = load_world(tmp_path / "take"), json.loads(capsys.readouterr().out)
    assert len(taken.gaussians) == len(world.gaussians) and facts["taken"] == int((taken.gaussians.links == 1).sum())
    bind.run(replace(options, out=tmp_path / "drop", cut_model="drop"))
    dropped, facts = load_world(tmp_path / "drop"), json.loads(capsys.readouterr().out)
    assert facts["added"] == len(dropped.gaussians) - len(world.gaussians) != 0
    assert int((dropped.gaussians.links == 0).sum()) == len(world.gaussians) - facts["taken"]


def test_a_base_is_found_by_a_tag_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = world_at(tmp_path / "w")
    K = torch.tensor([[520.0, 0, 322], [0, 515, 238], [0, 0, 1]], dtype=torch.float64)
    places = torch.tensor([[0.5, -0.3, 0.5], [0.35, 0.4, 0.45]], dtype=torch.float64)
    poses = look_at(places, torch.tensor([0.2, 0.05, 0.0], dtype=torch.float64))
    cameras = Cameras(K.expand(2, 3, 3).float().clone(), poses.float(), 640, 480, names=("left", "right"))
    save_world(replace(world, cameras=cameras), tmp_path / "w", overwrite=True)
    truth = se3_exp(torch.tensor([0.05, 0.0, 0.0, 0, 0, 0.6], dtype=torch.float64))
    beside = se3_exp(torch.tensor([0.15, 0.05, 0.0, 0, 0, 0.3], dtype=torch.float64))
    for row, name in enumerate(cameras.names):
        seen = film(parse_board("tag:36h11:7:0.12m"), (0.12, 0.12), invert_transform(truth @ beside) @ poses[row])
        Image.fromarray(seen.numpy()).save(tmp_path / f"{name}.png")
    offset = tuple(pose_from_transform(beside).tolist())
    find = FindBase(
        pictures=(tmp_path / "left.png", tmp_path / "right.png"), marker="tag:36h11:7:0.12m", marker_offset=offset
    )
    options = bind.Options(
        tmp_path / "w", "arm", tmp_path / "out", robot=arm_file(tmp_path), base="auto", find=find, skin=SKIN, json=True
    )
    bind.run(options)
    facts = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(facts["base"], pose_from_transform(truth).tolist(), atol=2e-3)
    assert "2 pictures of the marker" in facts["found_by"] and facts["base_sigma_m"] < 0.003
    other = replace(options, out=tmp_path / "other", json=False)
    with pytest.raises(UsageError, match="needs evidence"):
        bind.run(replace(other, find=FindBase()))
    with pytest.raises(UsageError, match=r"needs the joints"):
        bind.run(replace(other, find=replace(find, marker_offset=None)))
    Image.fromarray(seen.numpy()).save(tmp_path / "middle.png")
    with pytest.raises(InputError, match="no camera is called `middle`"):
        bind.run(replace(other, find=replace(find, pictures=(tmp_path / "middle.png",))))


def test_a_base_is_found_in_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")
    scene = SceneOptions(agents=1, objects=0, cameras=2, width=160, height=120)
    try:
        record.run(record.Options(tmp_path / "e", "arms", 1, 3.0, "extreme", seed=1, options=scene, truth=False))
    except MissingBackendError as error:
        pytest.skip(str(error))
    whole = load_world(tmp_path / "e" / "world")
    static = select_gaussians(whole.gaussians, whole.gaussians.links == 0)
    table = replace(whole, gaussians=static, links=whole.links[:1], entities=(whole.entities[0],), folder=None)
    save_world(table, tmp_path / "w")
    arm = tmp_path / "e" / "world" / "agents" / "left" / "left.xml"
    true = torch.tensor(whole.links[1].pose)
    near = (float(true[0]) + 0.02, 0.02, 0.01, 1.0, 0.0, 0.0, 0.0)
    look = LookOptions(reach=0.04, turn=0.05, instants=3, population=16, rounds=5, finest=1)
    find = FindBase(episodes=tmp_path / "e", near=near, plates="world", look=look)
    capsys.readouterr()
    options = bind.Options(tmp_path / "w", "left", tmp_path / "out", robot=arm, root="base", base="auto", json=True)
    bind.run(replace(options, find=find, skin=SKIN))
    facts = json.loads(capsys.readouterr().out)
    assert "drawing it for 2 cameras" in facts["found_by"]
    np.testing.assert_allclose(facts["base"][:3], true[:3], atol=6e-3)
    bound = load_world(tmp_path / "out")
    assert [agent.name for agent in bound.agents] == ["left"] and bound.links[1].name == "left/base"


def test_a_base_is_found_by_a_wrist_cameras_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world_at(tmp_path / "w")
    file = arm_file(tmp_path)
    file.write_text(ARM.replace('"0 1 0"/><limit', '"1 0 0"/><limit', 1))  # the elbow bends sideways
    robot = read_robot(file, "arm")
    times = torch.arange(60, dtype=torch.float64) / 20
    joints = torch.stack([torch.sin(2 * times), 0.8 * torch.cos(3 * times)], dim=1)
    with EpisodeWriter(tmp_path / "e") as writer:
        writer.add(Episode(times, joints={"arm": joints.float()}))
    truth = se3_exp(torch.tensor([0.3, -0.1, 0.2, 0, 0, 0.5], dtype=torch.float64))
    mount = se3_exp(torch.tensor([0.05, 0, 0.1, 0, 0.3, 0], dtype=torch.float64))
    poses = truth @ forward_kinematics(robot, joints)[:, link_index(robot, "fore")] @ mount
    K = torch.tensor([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]], dtype=torch.float64)
    views = [View(f"{row:03d}.png", 320, 240, K, poses[row], time=float(times[row])) for row in range(60)]
    write_transforms(Views(tuple(views), metric=True), tmp_path / "transforms.json")
    find = FindBase(episodes=tmp_path / "e", views=tmp_path / "transforms.json")
    options = bind.Options(
        tmp_path / "w", "arm", tmp_path / "out", robot=file, base="auto", find=find, skin=SKIN, json=True
    )
    bind.run(options)
    facts = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(facts["base"], pose_from_transform(truth).tolist(), atol=1e-3)
    assert "wrist camera" in facts["found_by"]
    arm_file(tmp_path)  # both joints turn about one axis, which leaves the mount open
    with pytest.raises(InputError, match="about any second one"):
        bind.run(replace(options, out=tmp_path / "other"))
