"""USD with `ParticleField3DGaussianSplat` prims (OpenUSD 26.03 and later), one Xform per link; written, not read.

The schema wants linear scales, opacities in 0..1, unit quaternions, and per particle (degree + 1)^2 RGB coefficients in
a row (openusd.org, UsdVol user guide). Stages are Z-up in metres; a root Xform turns a table of other axes upright.
"""

from __future__ import annotations

import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gworld.errors import MissingBackendError, UsageError
from gworld.files import atomic_write
from gworld.formats.axes import axes_rotation, quat_from_matrix
from gworld.formats.gltf_write import Motion, check_motion, linear_scales, opacities, unit_quats
from gworld.formats.table import Link, SplatTable, check_table

_SUFFIXES = (".usda", ".usdc", ".usd", ".usdz")


def write_usd(
    table: SplatTable, path: str | Path, times: ArrayLike | None = None, link_poses: ArrayLike | None = None
) -> None:
    """Write a USD stage: `/World`, an Xform for every link, and a splat prim below each link that owns Gaussians.

    times [T] seconds, strictly increasing; link_poses [T,L,7] `x y z qw qx qy qz` in the table's axes and unit. Links
    that move get time samples, counted from the first instant. The suffix chooses text (`.usda`), binary (`.usdc`,
    `.usd`) or a package (`.usdz`). Raises `MissingBackendError` where usd-core is absent or older than the schema,
    `UsageError` for another suffix, `InputError` for values that cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise UsageError(f"`{path}`: USD files end in {', '.join(_SUFFIXES)}; choose such a name.")
    _need_schema()
    table = check_table(table, str(path))
    motion = check_motion(table, times, link_poses, str(path))
    stage = _build_stage(table, motion)
    with (
        atomic_write(path) as stream,
        tempfile.TemporaryDirectory(dir=Path(path).parent, prefix=".", suffix=".tmp") as folder,
    ):
        finished = Path(folder) / f"scene{'.usdc' if suffix == '.usdz' else suffix}"
        stage.GetRootLayer().Export(str(finished))
        if suffix == ".usdz":
            from pxr import UsdUtils

            package = finished.with_suffix(".usdz")
            UsdUtils.CreateNewUsdzPackage(str(finished), str(package))
            finished = package
        with open(finished, "rb") as result:
            shutil.copyfileobj(result, stream)


def _need_schema() -> None:
    try:
        from pxr import Usd, UsdVol
    except ImportError as error:
        raise MissingBackendError(f"writing USD needs usd-core ({error}). Run `pip install gworld[usd]`.") from error
    if not hasattr(UsdVol, "ParticleField3DGaussianSplat"):
        version = ".".join(map(str, Usd.GetVersion()[1:]))
        raise MissingBackendError(
            f"usd-core {version} does not know Gaussian splats; 26.3 is needed. Run `pip install 'usd-core>=26.3'`."
        )


def _build_stage(table: SplatTable, motion: tuple[np.ndarray, list[Motion]] | None) -> Any:
    """The stage in memory."""
    from pxr import Gf, Usd, UsdGeom

    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.GetRootLayer().customLayerData = {"gworld": {"axes": table.axes or "unknown", "metric": table.metric}}
    world = UsdGeom.Xform.Define(stage, "/World")
    stage.SetDefaultPrim(world.GetPrim())
    turn = quat_from_matrix(axes_rotation(table.axes, "RFU"))
    if turn[0] < 1:
        world.AddOrientOp(UsdGeom.XformOp.PrecisionDouble).Set(Gf.Quatd(*turn.tolist()))
    codes = _time_codes(stage, motion[0]) if motion else np.zeros(0)
    moving = {link: (places, quats) for link, places, quats in motion[1]} if motion else {}
    order = np.argsort(table.links, kind="stable")
    ends = np.searchsorted(table.links[order], np.arange(len(table.link_table)), side="right").tolist()
    names: set[str] = set()
    for index, (start, end) in enumerate(pairwise([0, *ends])):
        link = table.link_table[index]
        frame = _add_frame(stage, link, names, codes, *moving.get(index, (None, None)))
        if end > start:
            _add_splats(stage, f"{frame}/Splats", table.select(order[start:end]))
    return stage


def _time_codes(stage: Any, times: np.ndarray) -> np.ndarray:
    """Set the stage's clock and return the time code of every instant; the first one is zero."""
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 24.0
    if abs(rate - round(rate)) < 0.01 * rate:  # time stamps jitter; players want 24, 30, 60
        rate = float(round(rate))
    codes = (times - times[0]) * rate
    stage.SetTimeCodesPerSecond(rate)
    stage.SetFramesPerSecond(rate)
    stage.SetStartTimeCode(0.0)
    stage.SetEndTimeCode(float(codes[-1]))
    return codes


def _add_frame(
    stage: Any, link: Link, names: set[str], codes: np.ndarray, places: np.ndarray | None, quats: np.ndarray | None
) -> str:
    """Define a link's Xform at its rest pose, or moving, and return its path."""
    from pxr import Gf, Tf, UsdGeom

    name = plain = Tf.MakeValidIdentifier(link.name) or "link"
    while name in names:
        name = f"{plain}_{len(names)}"
    names.add(name)
    xform = UsdGeom.Xform.Define(stage, f"/World/{name}")
    xform.GetPrim().SetDisplayName(link.name)
    translate, orient = xform.AddTranslateOp(), xform.AddOrientOp(UsdGeom.XformOp.PrecisionDouble)
    translate.Set(Gf.Vec3d(*link.pose[:3]))
    orient.Set(Gf.Quatd(*unit_quats(np.array(link.pose[3:], np.float64)).tolist()))
    for op, values, kind in ((translate, places, Gf.Vec3d), (orient, quats, Gf.Quatd)):
        if values is not None:
            for code, value in zip(codes.tolist(), values.tolist(), strict=True):
                op.Set(kind(*value), code)
    return f"/World/{name}"


def _add_splats(stage: Any, path: str, table: SplatTable) -> None:
    from pxr import UsdVol, Vt

    def array(kind: Any, values: np.ndarray) -> Any:
        return kind.FromNumpy(np.ascontiguousarray(values, np.float32))

    prim = UsdVol.ParticleField3DGaussianSplat.Define(stage, path)
    get = prim.GetPrim().GetAttribute
    scales = linear_scales(table)
    reach = 3 * scales.max(axis=1, keepdims=True)
    bounds = np.stack([(table.means - reach).min(axis=0), (table.means + reach).max(axis=0)])
    get("positions").Set(array(Vt.Vec3fArray, table.means))
    get("orientations").Set(array(Vt.QuatfArray, np.roll(unit_quats(table.quats_wxyz), -1, axis=1)))  # xyzw in memory
    get("scales").Set(array(Vt.Vec3fArray, scales))
    get("opacities").Set(array(Vt.FloatArray, opacities(table)))
    get("extent").Set(array(Vt.Vec3fArray, bounds))
    get("radiance:sphericalHarmonicsDegree").Set(table.sh_degree)
    get("radiance:sphericalHarmonicsCoefficients").Set(array(Vt.Vec3fArray, table.sh.reshape(-1, 3)))
