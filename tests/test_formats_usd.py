"""USD: opened by usd-core, checked by its own validators, values and time samples compared."""

from __future__ import annotations

import builtins
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.special import expit

from gworld.errors import InputError, MissingBackendError, UsageError
from gworld.formats.table import Link, SplatTable
from gworld.formats.usd import write_usd

Usd = pytest.importorskip("pxr.Usd", reason="usd-core is not installed; `pip install gworld[usd]`")
UsdVol = pytest.importorskip("pxr.UsdVol", reason="usd-core is not installed; `pip install gworld[usd]`")
if not hasattr(UsdVol, "ParticleField3DGaussianSplat"):
    pytest.skip("usd-core is older than 26.3 and knows no Gaussian splats", allow_module_level=True)
from pxr import UsdGeom  # noqa: E402

RFU_FROM = {  # Right/Forward/Up coordinates of a point, written out by hand
    None: np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "RUB": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "RFU": np.eye(3),
}


def make_table(degree: int = 1, links: int = 3, axes: Any = "RFU") -> SplatTable:
    rng = np.random.default_rng(degree)
    count = 40
    quats = rng.normal(size=(count, 4))
    rest = [Link("world")]
    for index in range(1, links):
        turn = Rotation.from_rotvec(rng.normal(size=3)).as_quat()
        rest.append(Link(f"left/hand {index}", (*rng.normal(size=3).tolist(), *turn[[3, 0, 1, 2]].tolist())))
    return SplatTable(
        means=rng.normal(size=(count, 3)).astype(np.float32),
        quats_wxyz=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        log_scales=rng.normal(-4, 1, (count, 3)).astype(np.float32),
        opacity_logits=rng.normal(0, 3, count).astype(np.float32),
        sh=rng.normal(0, 0.3, (count, (degree + 1) ** 2, 3)).astype(np.float32),
        links=rng.integers(0, links, count).astype(np.int32),
        axes=axes,
        metric=axes == "RFU",
        link_table=tuple(rest),
    )


def turning(table: SplatTable, count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    poses = np.tile(np.array([link.pose for link in table.link_table]), (count, 1, 1))
    swing = Rotation.from_rotvec(np.linspace(0, 5, count)[:, None] * [0.6, 0, 0.8])
    poses[:, 1, :3] += np.linspace(0, 1, count)[:, None]
    rest = Rotation.from_quat(poses[0, 1, [4, 5, 6, 3]])
    poses[:, 1, 3:] = (swing * rest).as_quat(canonical=True)[:, [3, 0, 1, 2]]
    return 2 + np.arange(count) / 30, poses


def frames(stage: Any) -> list[Any]:
    return list(stage.GetPrimAtPath("/World").GetChildren())


def value(prim: Any, name: str) -> np.ndarray:
    return np.array(prim.GetAttribute(name).Get())


@pytest.mark.parametrize("suffix", ["usda", "usdc", "usd", "usdz"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_usd_core_reads_the_same_values(tmp_path: Path, degree: int, suffix: str) -> None:
    table = make_table(degree)
    write_usd(table, tmp_path / f"scene.{suffix}")
    stage = Usd.Stage.Open(str(tmp_path / f"scene.{suffix}"))
    assert UsdGeom.GetStageUpAxis(stage) == "Z"
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert stage.GetDefaultPrim().GetPath() == "/World"
    for index, (frame, link) in enumerate(zip(frames(stage), table.link_table, strict=True)):
        assert frame.GetDisplayName() == link.name
        (prim,) = frame.GetChildren()
        assert prim.IsA(UsdVol.ParticleField3DGaussianSplat)
        rows = table.select(table.links == index)
        np.testing.assert_array_equal(value(prim, "positions"), rows.means)
        np.testing.assert_allclose(value(prim, "scales"), np.exp(rows.log_scales), rtol=1e-6)
        np.testing.assert_allclose(value(prim, "opacities"), expit(rows.opacity_logits), rtol=1e-6)
        quats = [(q.GetReal(), *q.GetImaginary()) for q in prim.GetAttribute("orientations").Get()]
        np.testing.assert_array_equal(np.array(quats, np.float32), rows.quats_wxyz)
        assert prim.GetAttribute("radiance:sphericalHarmonicsDegree").Get() == degree
        coefficients = value(prim, "radiance:sphericalHarmonicsCoefficients")
        np.testing.assert_array_equal(coefficients.reshape(rows.sh.shape), rows.sh)
        low, high = value(prim, "extent")
        reach = 3 * np.exp(rows.log_scales.max(axis=1, keepdims=True))
        assert (rows.means - reach >= low - 1e-5).all()
        assert (rows.means + reach <= high + 1e-5).all()


@pytest.mark.parametrize("suffix", ["usda", "usdc", "usdz"])
def test_usd_core_validators_find_nothing(tmp_path: Path, suffix: str) -> None:
    validation = pytest.importorskip("pxr.UsdValidation", reason="this usd-core has no validators")
    table = make_table()
    write_usd(table, tmp_path / f"scene.{suffix}", *turning(table))
    context = validation.ValidationContext(validation.ValidationRegistry().GetOrLoadAllValidators())
    found = context.Validate(Usd.Stage.Open(str(tmp_path / f"scene.{suffix}")))
    assert [error.GetMessage() for error in found] == []


@pytest.mark.parametrize("axes", [None, "RUB", "RFU"])
def test_every_frame_stands_upright(tmp_path: Path, axes: Any) -> None:
    table = make_table(axes=axes)
    write_usd(table, tmp_path / "scene.usdc")
    stage = Usd.Stage.Open(str(tmp_path / "scene.usdc"))
    for index, (frame, link) in enumerate(zip(frames(stage), table.link_table, strict=True)):
        points = table.means[table.links == index]
        world = Rotation.from_quat([*link.pose[4:], link.pose[3]]).apply(points) + link.pose[:3]
        matrix = np.array(UsdGeom.Xformable(frame).ComputeLocalToWorldTransform(Usd.TimeCode.Default()))
        found = points @ matrix[:3, :3] + matrix[3, :3]  # USD multiplies rows from the left
        np.testing.assert_allclose(found, world @ RFU_FROM[axes].T, atol=1e-6)


def test_time_samples_are_the_poses(tmp_path: Path) -> None:
    table = make_table()
    times, poses = turning(table)
    write_usd(table, tmp_path / "scene.usdc", times, poses)
    stage = Usd.Stage.Open(str(tmp_path / "scene.usdc"))
    rate = stage.GetTimeCodesPerSecond()
    assert (rate, stage.GetStartTimeCode(), stage.GetEndTimeCode()) == pytest.approx((30, 0, 6))
    for index, frame in enumerate(frames(stage)):
        xform = UsdGeom.Xformable(frame)
        assert xform.TransformMightBeTimeVarying() == (index == 1)
        for time, pose in zip(times, poses[:, index], strict=True):
            matrix = np.array(xform.GetLocalTransformation(Usd.TimeCode((time - times[0]) * rate)))
            turn = Rotation.from_quat(pose[[4, 5, 6, 3]])
            np.testing.assert_allclose(matrix[:3, :3].T, turn.as_matrix(), atol=1e-9)
            np.testing.assert_allclose(matrix[3, :3], pose[:3], atol=1e-9)
    orient = next(op for op in UsdGeom.Xformable(frames(stage)[1]).GetOrderedXformOps() if "orient" in op.GetOpName())
    samples = [orient.Get(code) for code in orient.GetTimeSamples()]
    turns = np.array([(q.GetReal(), *q.GetImaginary()) for q in samples])
    assert ((turns[1:] * turns[:-1]).sum(axis=1) > 0).all()


def test_names_that_clash_or_are_no_identifiers_stay_apart(tmp_path: Path) -> None:
    table = replace(make_table(), link_table=(Link(""), Link("a b"), Link("a/b")))
    write_usd(table, tmp_path / "scene.usda")
    stage = Usd.Stage.Open(str(tmp_path / "scene.usda"))
    assert len({frame.GetName() for frame in frames(stage)}) == 3
    assert [frame.GetDisplayName() for frame in frames(stage)][1:] == ["a b", "a/b"]


def test_an_empty_table_is_a_valid_stage(tmp_path: Path) -> None:
    write_usd(make_table().select(slice(0, 0)), tmp_path / "scene.usda")
    stage = Usd.Stage.Open(str(tmp_path / "scene.usda"))
    assert [len(frame.GetChildren()) for frame in frames(stage)] == [0, 0, 0]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    table = make_table()
    write_usd(table, tmp_path / "scene.usdz")
    assert zipfile.is_zipfile(tmp_path / "scene.usdz")
    before = (tmp_path / "scene.usdz").read_bytes()
    with pytest.raises(InputError, match="means"):
        write_usd(replace(table, means=table.means * np.float32(np.nan)), tmp_path / "scene.usdz")
    with pytest.raises(UsageError, match="usda"):
        write_usd(table, tmp_path / "scene.obj")
    assert [file.name for file in tmp_path.iterdir()] == ["scene.usdz"]
    assert (tmp_path / "scene.usdz").read_bytes() == before


def test_without_usd_core_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "pxr":
            raise ImportError("No module named 'pxr'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingBackendError, match=r"pip install gworld\[usd\]"):
        write_usd(make_table(), tmp_path / "scene.usda")
    monkeypatch.undo()
    monkeypatch.delattr(UsdVol, "ParticleField3DGaussianSplat")
    with pytest.raises(MissingBackendError, match=r"26\.3 is needed"):
        write_usd(make_table(), tmp_path / "scene.usda")
