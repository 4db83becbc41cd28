"""The whole chain of scripts/examples/05_real_push.py on a small generated recording, laid out like the real one."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.agents.binding import bind_robot, save_bound
from gworld.agents.inverse import solve_inverse
from gworld.agents.kinematics import forward_kinematics, rest_values
from gworld.agents.skeleton import read_robot
from gworld.agents.skinning import SkinOptions
from gworld.bench.droid import ARM
from gworld.bench.realpush_data import HELD, Track, on_plane
from gworld.bench.realpush_planar import push_blocks, settings_at_first
from gworld.bench.realpush_robots import HAND, READY, upright
from gworld.bench.track_real import HOME
from gworld.data.shapes import box, plain
from gworld.data.store import EpisodeWriter
from gworld.geometry import pose_from_transform
from gworld.render.select import render
from gworld.render.video import write_video
from gworld.scene.cameras import Cameras
from gworld.scene.episode import Episode, Video
from gworld.scene.gaussians import join_gaussians
from gworld.scene.harmonics import rgb_from_sh
from gworld.scene.links import Link
from gworld.scene.world import Entity, World

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "scripts/examples/05_real_push.py"
DT, SPEED = 0.0365, 0.15
SIZE, FOCAL = (160, 96), 90.0
NAMES = (HELD, "left", "right")
EYES = ((0.95, 0.0, 0.4), (0.65, 0.55, 0.5), (0.2, 0.75, 0.6))
PATH = ((0.30, 0.27), (0.42, 0.27), (0.30, 0.27), (0.28, 0.37), (0.43, 0.37), (0.30, 0.37))
"""Where the stick goes on the table: two pushes against the block's bar, at either side."""


def urdf() -> str:
    """A Franka of published lengths made of cylinders, a finger, and a stick in its hand."""
    links, joints = ['<link name="panda_link0"/>'], []

    def rod(name: str, length: float, radius: float, z: float) -> str:
        shape = f'<geometry><cylinder radius="{radius}" length="{length}"/></geometry>'
        return f'<link name="{name}"><visual><origin xyz="0 0 {z}"/>{shape}</visual></link>'

    for number, (a, d, alpha) in enumerate(ARM, 1):
        links.append(rod(f"panda_link{number}", 0.12, 0.05, 0.0))
        y, z = -math.sin(alpha) * d, math.cos(alpha) * d
        low, high = {4: (-3.07, -0.07), 6: (-0.02, 3.75)}.get(number, (-2.9, 2.9))
        joints.append(
            f'<joint name="panda_joint{number}" type="revolute"><parent link="panda_link{number - 1}"/>'
            f'<child link="panda_link{number}"/><origin xyz="{a} {y} {z}" rpy="{alpha} 0 0"/><axis xyz="0 0 1"/>'
            f'<limit lower="{low}" upper="{high}" velocity="2.5" effort="80"/></joint>'
        )
    links += [rod("panda_leftfinger", 0.03, 0.01, 0.0), rod(HAND, 0.1368, 0.01, -0.0684)]
    joints.append(
        '<joint name="panda_finger_joint1" type="prismatic">'
        '<parent link="panda_link7"/><child link="panda_leftfinger"/>'
        '<origin xyz="0 0 0.15"/><axis xyz="0 1 0"/><limit lower="0" upper="0.04" velocity="0.2" effort="20"/></joint>'
    )
    joints.append(
        f'<joint name="stick" type="fixed"><parent link="panda_link7"/><child link="{HAND}"/>'
        '<origin xyz="0 0 0.22" rpy="3.14159265 0 0"/></joint>'
    )
    return f'<robot name="panda">{"".join(links)}{"".join(joints)}</robot>'


def tee() -> World:
    """A grey table and an orange T with its axis along x."""
    bar = box((0.05, 0.2, 0.04), 0.01, plain(0.95, 0.35, 0.15), (-0.06, 0, 0))
    stem = box((0.12, 0.05, 0.04), 0.01, plain(0.95, 0.35, 0.15), (0.025, 0, 0))
    shape = join_gaussians([bar, stem])
    shape = replace(shape, links=torch.ones_like(shape.links))
    table = box((1.6, 1.6, 0.02), 0.03, plain(0.3, 0.3, 0.32), (0.4, 0.3, -0.012))
    links = (Link("world"), Link("tblock", (0.46, 0.32, 0.02, 1, 0, 0, 0), 0))
    entities = (Entity("scene", "static", (0,)), Entity("tblock", "object", (1,)))
    return World(join_gaussians([table, shape]), links, entities, _cameras(), metric=True)


def _cameras() -> Cameras:
    poses = torch.eye(4).repeat(3, 1, 1)
    for row, eye in enumerate(EYES):
        ahead = torch.nn.functional.normalize(torch.tensor([0.45, 0.32, 0.0]) - torch.tensor(eye), dim=0)
        right = torch.nn.functional.normalize(torch.linalg.cross(ahead, torch.tensor([0.0, 0.0, 1.0])), dim=0)
        poses[row, :3, :3] = torch.stack([right, torch.linalg.cross(ahead, right), ahead], dim=1)
        poses[row, :3, 3] = torch.tensor(eye)
    K = torch.tensor([[FOCAL, 0.0, SIZE[0] / 2], [0.0, FOCAL, SIZE[1] / 2], [0.0, 0.0, 1.0]])
    return Cameras(K.repeat(3, 1, 1), poses, *SIZE, names=NAMES)


def stick_way() -> torch.Tensor:
    """The stick's places at every instant."""
    corners = np.array(PATH)
    parts = [np.repeat(corners[:1], 4, axis=0)]
    for a, b in itertools.pairwise(corners):
        count = max(2, round(float(np.linalg.norm(b - a)) / SPEED / DT))
        parts.append(a + (b - a) * np.arange(1, count + 1)[:, None] / count)
    return torch.from_numpy(np.concatenate(parts))


def write_recording(home: Path, world: World, times: torch.Tensor, poses: torch.Tensor) -> None:
    """Films, calibration, plane and block as files."""
    flip, calibration = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])), {}
    for row, name in enumerate(NAMES):
        shown = (render(world.gaussians, pose[None].float(), _cameras()[row], outputs=("rgb",)).rgb for pose in poses)
        write_video((one[0, 0].clamp(0, 1) for one in shown), home / f"sample_demos/0/videos/{name}.mp4", 1 / DT)
        facts = {"K": _cameras().K[row].tolist(), "resolution": list(SIZE), "timestamps": times.tolist()}
        (home / f"sample_demos/0/videos/{name}.json").write_text(json.dumps(facts))
        pose = (_cameras().world_from_camera[row] @ flip).tolist()
        calibration[name] = {"X_WC": pose, "metadata_path": f"videos/{name}.json", "video_path": f"videos/{name}.mp4"}
    (home / "sample_demos/0/cameras.json").write_text(json.dumps(calibration))
    (home / "environment/ground_plane.json").write_text(json.dumps({"plane": [0.0, 0.0, 1.0, 0.0]}))
    own = world.gaussians.links == 1
    block = {
        "means": world.gaussians.means[own].tolist(),
        "quats": world.gaussians.quats_wxyz[own].tolist(),
        "scales": world.gaussians.log_scales[own].exp().tolist(),
        "opacities": torch.sigmoid(world.gaussians.opacity_logits[own]).tolist(),
        "colors": rgb_from_sh(world.gaussians.sh[own, 0]).flip(-1).tolist(),
    }
    text = json.dumps({"gaussians": block, "X_WB": world.rest_poses()[1].tolist()})
    (home / "objects/tblock.json").write_text(text)


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> tuple[Path, Path]:
    """DATA and OUT as tracking leaves it: the block goes as the quasi-static law has it, the arm as its stick needs."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    home = data / HOME
    for folder in ("sample_demos/0/videos", "environment", "objects"):
        (home / folder).mkdir(parents=True)
    model = data / "embodied_gaussians/robot/panda.urdf"
    model.parent.mkdir(parents=True)
    model.write_text(urdf())
    robot = read_robot(model, "panda")
    ready = rest_values(robot, torch.float64)
    ready[:7] = torch.tensor(READY, dtype=torch.float64)
    world = bind_robot(tee(), robot, "panda", torch.eye(4), ready.float(), skin=SkinOptions(per_square_metre=3000))
    path = stick_way()
    times = 0.04 + DT * torch.arange(len(path), dtype=torch.float64)
    poses = world.rest_poses().double().repeat(len(path), 1, 1, 1)
    names = tuple(link.name for link in world.links)
    track = Track(times, poses, names, (0, 0, 1, 0), NAMES, _cameras().world_from_camera.double())
    pushing = on_plane(track, world, "tblock", f"panda/{HAND}")
    told = settings_at_first(pushing.outline)[None]
    block = push_blocks(told, pushing, pushing.block[:1][None], path[None, None])[0, 0]
    hand, values, held = upright(pushing, path, 0.145, 0.0), [], ("panda_finger_joint1",)
    for pose in hand:
        ready = solve_inverse(robot, [HAND], pose[None], ready, hold=held).values
        values.append(ready)
    poses[:, 2:] = forward_kinematics(robot, torch.stack(values))
    poses[:, 1] = pushing.links(block)
    write_recording(home, world, times, poses)
    save_bound(world, {"panda": robot}, out / "world")
    videos = tuple(Video(name, home / f"sample_demos/0/videos/{name}.mp4", times) for name in NAMES)
    with EpisodeWriter(out / "episodes") as writer:
        link_poses = pose_from_transform(poses).float()
        writer.add(Episode(times, link_poses=link_poses, link_names=names, videos=videos, cameras=_cameras()))
    return data, out


def test_the_chain_runs_from_a_track_to_a_report(recording):
    data, out = recording
    words = [sys.executable, str(EXAMPLE), str(data), str(out), "--tracked", "--no-droid", "--quick"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "report: " in done.stdout
    rows = {row["name"]: row for row in json.loads((out / "realpush.json").read_text())["rows"]}
    assert rows["pushes found"]["value"] == 2
    assert rows["block after 0.5 s, ours"]["value"] < rows["block after 0.5 s, copy"]["value"]
    assert rows["block IoU after 0.5 s, ours"]["value"] > 0.7
    assert rows["robot by end-effector commands: stick's end off at most"]["value"] < 0.1
    assert rows["two at once: sticks carried by arms, off their paths at most"]["ok"]
    assert rows["two at once: room between arms and things, sticks left out"]["value"] > 0
    assert rows["refined: PSNR of the rest"]["value"] > 20
    text = (out / "report.html").read_text(encoding="utf-8")
    assert text.count("data:video/mp4") == 3
    for name in ("push-2", "refined-2", "acted-two-at-once"):
        assert (out / "runs/realpush" / f"{name}.mp4").stat().st_size > 1000
