"""Robot files from strangers: what is read from them, and what is refused."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from gworld.agents.skeleton import read_robot
from gworld.agents.surfaces import mesh_files, read_surfaces, shape_surfaces
from gworld.agents.tree import Mimic
from gworld.agents.xml import MAX_DEPTH
from gworld.errors import GWorldError, InputError

CHAIN = """<robot name="r"><link name="a"/><link name="b"/>
<joint name="j" type="{kind}"><parent link="{parent}"/><child link="b"/>{more}</joint></robot>"""


def write(folder: Path, text: str, name: str = "robot.urdf") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_every_joint_type_is_read(tmp_path: Path) -> None:
    for kind, names in {
        "revolute": ["j"], "continuous": ["j"], "prismatic": ["j"], "floating": ["j"], "fixed": [],
        "planar": ["j/x", "j/y", "j/turn"],
    }.items():  # fmt: skip
        more = '<axis xyz="0 0 2"/><limit lower="-1" upper="2"/>'
        robot = read_robot(write(tmp_path, CHAIN.format(kind=kind, parent="a", more=more)), "r")
        assert [joint.name for joint in robot.joints] == names
        for joint in robot.joints:
            assert math.isclose(float(np.linalg.norm(joint.axis)), 1.0)
        if kind in ("revolute", "prismatic"):
            assert (robot.joints[0].low, robot.joints[0].high) == (-1.0, 2.0)


def test_inertia_is_turned_into_the_links_axes(tmp_path: Path) -> None:
    text = """<robot name="r"><link name="a"><inertial><origin xyz="1 2 3" rpy="0 0 1.5707963267948966"/>
    <mass value="2"/><inertia ixx="1" iyy="2" izz="3" ixy="0" ixz="0" iyz="0"/></inertial></link></robot>"""
    inertial = read_robot(write(tmp_path, text), "r").links[0].inertial
    assert inertial is not None and inertial.mass == 2.0
    np.testing.assert_allclose(inertial.com, [1, 2, 3])
    np.testing.assert_allclose(inertial.inertia, np.diag([2.0, 1.0, 3.0]), atol=1e-12)


def test_a_follower_of_a_follower_follows_the_leader(tmp_path: Path) -> None:
    joints = "".join(
        f'<joint name="j{i}" type="continuous"><parent link="l{i}"/><child link="l{i + 1}"/>{mimic}</joint>'
        for i, mimic in enumerate(
            ["", '<mimic joint="j0" multiplier="2" offset="1"/>', '<mimic joint="j1" multiplier="-3" offset="4"/>']
        )
    )
    links = "".join(f'<link name="l{i}"/>' for i in range(4))
    robot = read_robot(write(tmp_path, f'<robot name="r">{links}{joints}</robot>'), "r")
    assert robot.joints[2].mimic == Mimic("j0", -6.0, 1.0)
    assert [joint.name for joint in robot.free_joints] == ["j0"]


BOMB = '<!DOCTYPE r [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><robot name="&b;"><link name="a"/></robot>'
BAD = {
    "bomb": (BOMB, "document type"),
    "external entity": ('<!DOCTYPE r SYSTEM "file:///etc/passwd"><robot name="r"/>', "document type"),
    "deep": ("<robot>" + "<a>" * (MAX_DEPTH + 5), "levels"),
    "cut off": ('<robot name="r"><link', "not well-formed"),
    "other root": ("<html/>", "a robot starts with"),
    "no link": ('<robot name="r"/>', "0 links"),
    "twice": ('<robot name="r"><link name="a"/><link name="a"/></robot>', "1 different names"),
    "two roots": ('<robot name="r"><link name="a"/><link name="b"/></robot>', "2 links without a parent"),
    "unknown parent": (CHAIN.format(kind="fixed", parent="x", more=""), "no link of it"),
    "circle": (CHAIN.format(kind="fixed", parent="b", more=""), "circle"),
    "no axis": (CHAIN.format(kind="revolute", parent="a", more='<axis xyz="0 0 0"/>'), "a direction is needed"),
    "NaN": (CHAIN.format(kind="revolute", parent="a", more='<origin xyz="nan 0 0"/>'), "finite numbers"),
    "limits": (CHAIN.format(kind="revolute", parent="a", more='<limit lower="1" upper="-1"/>'), "lower one"),
    "kind": (CHAIN.format(kind="magic", parent="a", more=""), "'magic'"),
    "follows nothing": (CHAIN.format(kind="revolute", parent="a", more='<mimic joint="x"/>'), "follows `x`"),
    "follows itself": (CHAIN.format(kind="revolute", parent="a", more='<mimic joint="j"/>'), "follows `j`"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_model_is_one_sentence(tmp_path: Path, case: str) -> None:
    text, fact = BAD[case]
    with pytest.raises(InputError, match=fact) as caught:
        read_robot(write(tmp_path, text), "r")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../secret.stl", "/etc/passwd", "file:///etc/passwd", "package://../secret.stl", "http://host/a.stl", "..\\a.stl"],
)
def test_meshes_outside_the_robots_folder_are_not_opened(tmp_path: Path, name: str) -> None:
    trimesh.creation.box().export(tmp_path / "secret.stl")
    (tmp_path / "robot").mkdir()
    mesh = f'<visual><geometry><mesh filename="{name}"/></geometry></visual>'
    path = write(tmp_path / "robot", f'<robot name="r"><link name="a">{mesh}</link></robot>')
    with pytest.raises(InputError):
        read_robot(path, "r")


def test_mutants_of_a_urdf_never_crash(tmp_path: Path, real_data: Path) -> None:
    folder = real_data / "embodied_gaussians" / "robot"
    original = (folder / "panda.urdf").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 6))):
            place = int(rng.integers(len(data)))
            if rng.random() < 0.5:
                data[place] = int(rng.integers(256))
            else:
                del data[place : place + int(rng.integers(1, 200))]
        (tmp_path / "mutant.urdf").write_bytes(data)
        try:
            read_robot(tmp_path / "mutant.urdf", "r", [folder])
        except GWorldError:
            refused += 1
    assert refused > 20


def mjcf(tmp_path: Path, body: str, head: str = "") -> Path:
    return write(tmp_path, f"<mujoco>{head}<worldbody>{body}</worldbody></mujoco>", "robot.xml")


def test_mjcf_that_reaches_outside_or_has_no_measure_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")
    inner = tmp_path / "robot"
    inner.mkdir()
    trimesh.creation.box().export(tmp_path / "secret.stl")
    (tmp_path / "part.xml").write_text("<mujocoinclude/>")
    geom = '<geom type="mesh" mesh="secret"/>'
    for head in (
        '<asset><mesh name="secret" file="../secret.stl"/></asset>',
        f'<asset><mesh name="secret" file="{tmp_path}/secret.stl"/></asset>',
        '<compiler meshdir=".."/><asset><mesh name="secret" file="secret.stl"/></asset>',
        '<include file="../part.xml"/>',
    ):
        with pytest.raises(InputError, match="outside the robot's folder"):
            read_robot(mjcf(inner, geom, head), "r")
    assert read_robot(mjcf(inner, geom, '<asset><mesh name="secret" file="../secret.stl"/></asset>'), "r", [tmp_path])
    for body in (
        '<replicate count="200"><replicate count="200"><geom size="1"/></replicate></replicate>',
        '<replicate count="1e12"><geom size="1"/></replicate>',
    ):
        with pytest.raises(InputError, match="copies"):
            read_robot(mjcf(inner, body), "r")
    with pytest.raises(InputError, match="refused by MuJoCo"):
        read_robot(mjcf(inner, '<geom type="nonsense"/>'), "r")


def textured_box(folder: Path) -> None:
    """A box whose texture has a red, green, blue and white quarter."""
    Image.fromarray(
        np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8).repeat(32, 0).repeat(32, 1)
    ).save(folder / "quarters.png")
    (folder / "card.mtl").write_text("newmtl m\nKd 1 1 1\nmap_Kd quarters.png\n")
    (folder / "card.obj").write_text(
        "mtllib card.mtl\nv -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nv 0 0 -1\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nvt 0 0\n"
        "usemtl m\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\nf 1/5 5/5 2/5\nf 2/5 5/5 3/5\nf 3/5 5/5 4/5\nf 4/5 5/5 1/5\n"
    )


def test_textures_lie_alike_in_urdf_and_mjcf(tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")
    textured_box(tmp_path)
    head = """<asset><texture name="t" type="2d" file="quarters.png"/><material name="m" texture="t"/>
    <mesh name="card" file="card.obj"/></asset>"""
    mesh = '<visual><geometry><mesh filename="card.obj"/></geometry></visual>'
    by_mjcf = read_robot(mjcf(tmp_path, '<geom type="mesh" mesh="card" material="m"/>', head), "r")
    by_urdf = read_robot(write(tmp_path, f'<robot name="r"><link name="a">{mesh}</link></robot>'), "r")
    for robot in (by_urdf, by_mjcf):
        (surface,) = shape_surfaces(robot.shapes[0])
        assert surface.texture is not None and surface.uv is not None
        seen = {}
        for face, uv in zip(surface.faces, surface.uv, strict=True):
            for corner, (u, v) in zip(surface.vertices[face], uv, strict=True):
                if abs(corner[2]) < 1e-6 and (u, v) != (0.0, 0.0):
                    row = min(int((1 - v) * 64), 63)
                    seen[tuple(np.sign(np.round(corner[:2], 3)))] = tuple(surface.texture[row, min(int(u * 64), 63)])
        assert seen[(1.0, 1.0)] == (0, 255, 0)  # top right of the picture, where it is green
        assert seen[(-1.0, 1.0)] == (255, 0, 0)
        assert seen[(1.0, -1.0)] == (255, 255, 255)
    assert {file.name for file in mesh_files(tmp_path / "card.obj")} == {"card.obj", "card.mtl", "quarters.png"}


def test_collada_is_scaled_to_metres(tmp_path: Path) -> None:
    pytest.importorskip("collada", reason="pycollada is not installed")
    data = trimesh.creation.box(extents=(2, 2, 2)).export(file_type="dae").decode()
    path = write(tmp_path, data, "box.dae")
    before = read_surfaces(path)[0].vertices
    unit = '<unit name="millimeter" meter="0.001"/>'
    text = data.replace('<unit name="meter" meter="1"/>', unit) if '<unit name="meter" meter="1"/>' in data else (
        data.replace("<asset>", f"<asset>{unit}", 1)
    )  # fmt: skip
    path.write_text(text)
    np.testing.assert_allclose(np.ptp(read_surfaces(path)[0].vertices, axis=0), np.ptp(before, axis=0) * 1e-3)


@pytest.mark.parametrize("suffix", ["stl", "obj", "glb", "ply", "off", "dae"])
def test_mutants_of_meshes_never_crash(tmp_path: Path, suffix: str) -> None:
    if suffix == "dae":
        pytest.importorskip("collada", reason="pycollada is not installed")
    original = trimesh.creation.icosphere(subdivisions=1).export(file_type=suffix)
    original = original.encode() if isinstance(original, str) else original
    rng = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 5))):
            place = int(rng.integers(len(data)))
            if rng.random() < 0.6:
                data[place] = int(rng.integers(256))
            else:
                del data[place : place + int(rng.integers(1, 100))]
        path = tmp_path / f"mutant.{suffix}"
        path.write_bytes(data)
        try:
            for surface in read_surfaces(path):
                assert np.isfinite(surface.vertices[np.unique(surface.faces)]).all()
        except GWorldError as error:
            assert "\n" not in str(error)


def test_a_mesh_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big.stl").write_bytes(b"\0" * 80 + struct.pack("<I", 2**32 - 1) + b"\0" * 100)
    with pytest.raises(InputError, match="4294967295 triangles"):
        read_surfaces(tmp_path / "big.stl")


def test_a_mesh_reads_nothing_outside_its_folder(tmp_path: Path) -> None:
    inner = tmp_path / "robot"
    inner.mkdir()
    textured_box(inner)
    (inner / "quarters.png").rename(tmp_path / "quarters.png")
    (inner / "card.mtl").write_text("newmtl m\nKd 1 1 1\nmap_Kd ../quarters.png\n")
    assert read_surfaces(inner / "card.obj")[0].texture is None
