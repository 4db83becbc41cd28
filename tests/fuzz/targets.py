"""The formats that are fuzzed: one line each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gworld.formats.table import Link, SplatTable, check_table, empty_table
from tests.fuzz.data_targets import DATA_TARGETS, check_episode


@dataclass(frozen=True)
class Target:
    """A reader and writer in `gworld.formats`; `options` go to the writer, `edit` changes what it wrote."""

    module: str
    name: str
    make: Callable[[], Any]
    shell: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    edit: Callable[[Path], None] | None = None
    verbs: tuple[str, str] = ("read", "write")

    def read(self, path: Path) -> Any:
        """What `gworld.formats.<module>.read_<module>` makes of a path."""
        return self._function(0)(path)

    def write(self, path: Path) -> None:
        """Write a small valid file or folder."""
        self._function(1)(self.make(), path, **dict(self.options))
        if self.edit:
            self.edit(path)

    def _function(self, index: int) -> Callable[..., Any]:
        return getattr(importlib.import_module(f"gworld.formats.{self.module}"), f"{self.verbs[index]}_{self.module}")


def small_table(degree: int = 1, links: int = 1, count: int = 200) -> SplatTable:
    """Random Gaussians in every column's usual range."""
    rng = np.random.default_rng(7)
    table = empty_table(count, degree)
    table.means[:] = rng.normal(size=(count, 3))
    table.quats_wxyz[:] = rng.normal(size=(count, 4))
    table.log_scales[:] = rng.normal(-4, 1, (count, 3))
    table.opacity_logits[:] = rng.normal(0, 2, count)
    table.sh[:] = rng.normal(0, 0.3, table.sh.shape)
    table.links[:] = rng.integers(0, links, count)
    names = [Link("world"), *(Link(f"link{i}", (0.1 * i, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)) for i in range(1, links))]
    return replace(table, link_table=tuple(names), axes="RFU", metric=True)


def small_views() -> Any:
    """Five posed images with a few points."""
    import torch

    from gworld.scene.cameras import intrinsics, look_at
    from gworld.scene.views import View, Views

    rng = torch.Generator().manual_seed(7)
    views = []
    for index in range(5):
        pose = look_at(torch.randn(3, generator=rng, dtype=torch.float64) * 3, torch.zeros(3, dtype=torch.float64))
        K = intrinsics(64, 48, 0.9).double()
        distortion = (0.01, -0.02, 0.001, 0.002, 0.0, 0.0, 0.0, 0.0)
        views.append(View(f"frame_{index}.png", 64, 48, K, pose, "opencv", distortion))
    points = torch.randn(40, 3, generator=rng)
    return Views(tuple(views), points, torch.full((40, 3), 128, dtype=torch.uint8))


def small_world() -> Any:
    """A world with an agent that acts, an object and two cameras."""
    import torch

    from gworld.formats.convert import gaussians_from_table
    from gworld.scene.cameras import Cameras, intrinsics, look_at
    from gworld.scene.world import ActionSpec, Entity, World

    table = small_table(1, links=3)
    spec = ActionSpec(("joint", "grip"), ("rad", "m"), (-3.0, 0.0), (3.0, 0.1))
    entities = (Entity("scene", "static", (0,)), Entity("arm", "agent", (1,), spec), Entity("cup", "object", (2,)))
    eyes = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    cameras = Cameras(intrinsics(64, 48, 0.9).expand(2, 3, 3), look_at(eyes, torch.zeros(2, 3)), 64, 48)
    return World(gaussians_from_table(table), table.link_table, entities, cameras, metric=True)


def _as_ascii(path: Path) -> None:
    """Rewrite a PLY of ours as text."""
    from gworld.formats.ply import read_ply_header

    header = read_ply_header(path)
    data = path.read_bytes()
    rows = np.frombuffer(data, header.dtype, header.count, header.offset)
    text = "\n".join(" ".join(repr(value.item()) for value in row) for row in rows)
    head = data[: header.offset].replace(b"binary_little_endian", b"ascii")
    path.write_bytes(head + text.encode() + b"\n")


TARGETS: dict[str, Any] = {
    "ply": Target("ply", "case.ply", lambda: small_table(3, links=3)),
    "ply_ascii": Target("ply", "case.ply", lambda: small_table(1, count=40), edit=_as_ascii),
    "compressed_ply": Target("compressed_ply", "case.compressed.ply", lambda: small_table(1, count=300)),
    "splat": Target("splat", "case.splat", small_table),
    "spz": Target("spz", "case.spz", small_table, shell="gzip"),
    "spz4": Target("spz", "case.spz", small_table, shell="ngsp", options=(("version", 4),)),
    "sog": Target("sog", "case.sog", small_table, shell="zip"),
    "gltf": Target("gltf", "case.glb", lambda: small_table(1, links=3), shell="glb"),
    "colmap_bin": Target("colmap", "case", small_views),
    "colmap_txt": Target("colmap", "case", small_views, options=(("text", True),)),
    "transforms": Target("transforms", "transforms.json", small_views),
    "world": Target("world", "case", small_world, verbs=("load", "save")),
}


TARGETS |= DATA_TARGETS


def check_result(result: Any, source: str) -> None:
    """Raise unless a reader's result is sound: shapes, ranges, finite values."""
    if isinstance(result, tuple):
        for episode in result:
            check_episode(episode)
    elif isinstance(result, SplatTable):
        _check_splats(result, source)
    elif hasattr(result, "views"):
        _check_views(result)
    else:
        _check_world(result, source)


def _check_splats(table: SplatTable, source: str) -> None:
    count, terms = len(table.means), table.sh.shape[1]
    shapes = [(count, 3), (count, 4), (count, 3), (count,), (count, terms, 3), (count,)]
    columns = (table.means, table.quats_wxyz, table.log_scales, table.opacity_logits, table.sh, table.links)
    assert [column.shape for column in columns] == shapes and terms in (1, 4, 9, 16), "columns do not fit together"
    assert all(column.dtype == np.float32 for column in columns[:5]), "columns are not float32"
    assert table.axes in (None, "RDF", "RUB", "RFU"), f"axes {table.axes!r}"
    check_table(table, source)
    for link in table.link_table:
        assert len(link.pose) == 7 and np.isfinite(link.pose).all(), f"the pose of link {link.name!r} is {link.pose}"


def _check_views(result: Any) -> None:
    import torch

    assert torch.isfinite(result.points).all(), "points are not finite"
    assert result.points.shape == result.colors.shape, "points and colours do not fit together"
    for view in result.views:
        assert torch.isfinite(view.K).all(), f"K of {view.name!r} is not finite"
        assert np.isfinite(view.distortion).all(), f"the distortion of {view.name!r} is not finite"
        assert view.width > 0 and view.height > 0, f"{view.name!r} has no size"
        _check_pose(view.world_from_camera, view.name)


def _check_world(world: Any, source: str) -> None:
    import torch

    from gworld.formats.convert import table_from_gaussians

    _check_splats(replace(table_from_gaussians(world.gaussians), link_table=world.links), source)
    assert torch.isfinite(world.rest_poses()).all(), "rest poses are not finite"
    assert np.isfinite(world.gravity).all(), "gravity is not finite"
    for agent in world.agents:
        limits = (*agent.action.low, *agent.action.high) if agent.action else ()
        assert np.isfinite(limits).all(), f"the limits of {agent.name!r} are not finite"
    if world.cameras is not None:
        assert torch.isfinite(world.cameras.K).all(), "K is not finite"
        for index, pose in enumerate(world.cameras.world_from_camera):
            _check_pose(pose, f"camera {index}")


def _check_pose(pose: Any, name: str) -> None:
    assert pose.isfinite().all(), f"the pose of {name!r} is not finite"
    rotation = pose[:3, :3].double()
    error = float((rotation @ rotation.T - rotation.new_tensor(np.eye(3))).abs().max())
    assert error < 1e-3, f"the pose of {name!r} is no rotation (off by {error:.3g})"
