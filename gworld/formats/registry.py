"""Which reader and writer a path needs: by content where a file has a signature, by name where it has not."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gworld.errors import InputError, UsageError
from gworld.files import existing_file, refuse_existing
from gworld.formats.table import Axes, SplatTable

if TYPE_CHECKING:
    from gworld.scene.gaussians import Gaussians
    from gworld.scene.views import Views
    from gworld.scene.world import World


@dataclass(frozen=True)
class Format:
    """One file format: how it is called, told by its name, read and written ("" where it cannot be).

    `links` is True where the format keeps several links apart, `lossy` where values are quantised.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    reader: str
    writer: str
    links: bool
    lossy: bool
    about: str


# Longer suffixes first, so that `.compressed.ply` is not taken for `.ply`.
SPLAT_FORMATS = (
    Format(
        "compressed-ply",
        (".compressed.ply",),
        "compressed_ply",
        "read_compressed_ply",
        "write_compressed_ply",
        False,
        True,
        "SuperSplat compressed PLY",
    ),
    Format("ply", (".ply",), "ply", "read_ply", "write_ply", True, False, "3DGS PLY (INRIA, gsplat, nerfstudio)"),
    Format("spz", (".spz",), "spz", "read_spz", "write_spz", False, True, "SPZ, gzip and NGSP container"),
    Format("sog", (".sog", "meta.json"), "sog", "read_sog", "write_sog", False, True, "PlayCanvas SOG"),
    Format("splat", (".splat",), "splat", "read_splat", "write_splat", False, True, "antimatter15 .splat"),
    Format("gltf", (".glb", ".gltf"), "gltf", "read_gltf", "write_gltf", True, False, "glTF KHR_gaussian_splatting"),
    Format("usd", (".usda", ".usdc", ".usd", ".usdz"), "usd", "", "write_usd", True, False, "OpenUSD particle field"),
)
POSED_FORMATS = (
    Format("colmap", (), "colmap", "read_colmap", "write_colmap", False, False, "COLMAP model folder, bin or txt"),
    Format(
        "transforms",
        (".json",),
        "transforms",
        "read_transforms",
        "write_transforms",
        False,
        False,
        "nerfstudio transforms.json",
    ),
)

_UNCHECKED = ("ply", "compressed-ply", "splat")


def detect_format(path: str | Path) -> str:
    """The name of a path's format: one of the tables above, or `world`.

    Raises `InputError` for what is none of them, with the list of what can be read.
    """
    target = Path(path)
    try:
        if target.is_dir():
            return _detect_folder(target)
    except OSError as error:
        raise InputError(f"`{target}` cannot be looked at: {error.strerror}. Check the path.") from error
    file = existing_file(target)
    with open(file, "rb") as stream:
        head = stream.read(4096)
    name = file.name.lower()
    if name.endswith(".splat"):  # raw numbers without a signature, which may look like any other
        return "splat"
    if head.startswith(b"ply"):
        return "compressed-ply" if b"packed_position" in head else "ply"
    if head.startswith((b"NGSP", b"\x1f\x8b")):
        return "spz"
    if head.startswith(b"glTF"):
        return "gltf"
    if name == "world.json":
        return "world"
    if name == "meta.json":
        return "sog"
    if _call("legacy", "looks_like_checkpoint")(file):
        return "checkpoint"
    for known in (*SPLAT_FORMATS, *POSED_FORMATS):
        if known.reader and name.endswith(known.suffixes or "\0"):
            return known.name
    raise InputError(f"`{file}` is of no known format. {_readable()}")


def read_table(path: str | Path, *, axes: Axes | None = None, check: bool = True) -> SplatTable:
    """Read any splat file into numpy columns; a world folder gives its Gaussians with its links.

    `axes` says how the file's numbers are meant where the file does not, or says it wrongly. With `check=False` rows of
    plain files (PLY, compressed PLY, .splat) that cannot be rendered are kept, for `table.bad_rows` to find.
    Raises `InputError` for a file that is damaged, of no known format, or holds no splats.
    """
    name = detect_format(path)
    if name == "world":
        from gworld.formats.convert import table_from_gaussians
        from gworld.formats.world import load_world

        world = load_world(world_folder(path))
        return replace(table_from_gaussians(world.gaussians), link_table=world.links, metric=world.metric)
    if name == "checkpoint":
        _call("legacy", "refuse_checkpoint")(existing_file(path))
    for known in SPLAT_FORMATS:
        if known.name == name:
            given: dict[str, Any] = {} if check or name not in _UNCHECKED else {"check": False}
            if axes is not None and name == "spz":  # its reader turns RUB, so it must know before
                given["axes"] = axes
            table = _call(known.module, known.reader)(Path(path), **given)
            return table if axes is None or name == "spz" else replace(table, axes=axes)
    raise InputError(f"`{path}` holds posed images, not Gaussians; reconstruct it first, or choose a splat file.")


def write_table(table: SplatTable, path: str | Path, *, overwrite: bool = False) -> Format:
    """Write a table in the format its name asks for and return that format.

    Links are baked into the world where the format cannot keep them, and stated axes are turned to the y-down habit
    where it cannot state them. Raises `UsageError` for a name of no known format
    or an output that exists.
    """
    target = format_for(path)
    refuse_existing(path, overwrite=overwrite)
    if len(table.link_table) > 1 and not target.links:
        from gworld.formats.axes import bake_links

        table = bake_links(table)
    if target.name == "splat" and table.axes is not None:
        table = _call("axes", "to_axes")(table, "RDF")
    _call(target.module, target.writer)(table, Path(path))
    return target


def format_for(path: str | Path) -> Format:
    """The splat format that a file name asks for; raises `UsageError` when there is none."""
    name = Path(path).name.lower()
    for known in SPLAT_FORMATS:
        if name.endswith(known.suffixes):
            return known
    suffixes = ", ".join(suffix for known in SPLAT_FORMATS for suffix in known.suffixes)
    raise UsageError(f"`{path}` names no format gworld writes. End it in one of {suffixes}.")


def read_views(path: str | Path) -> Views:
    """Read a posed image set: a COLMAP folder (or one with `sparse/0`), or a `transforms.json` (or its folder)."""
    name = detect_format(path)
    target = Path(path)
    if name == "transforms":
        return _call("transforms", "read_transforms")(target / "transforms.json" if target.is_dir() else target)
    if name == "colmap":
        return _call("colmap", "read_colmap")(colmap_folder(target) or target)
    raise InputError(f"`{path}` is a {name} file, not a posed image set; a COLMAP folder or transforms.json is needed.")


def write_views(views: Views, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a posed image set: a name ending in `.json` gives nerfstudio's transforms, any other a COLMAP folder."""
    refuse_existing(path, overwrite=overwrite)
    suffix = Path(path).suffix
    if suffix not in ("", ".json"):
        raise UsageError(f"`{path}`: posed images are not Gaussians; name a folder (COLMAP) or a .json (nerfstudio).")
    if suffix == ".json":
        _call("transforms", "write_transforms")(views, Path(path))
    else:
        _call("colmap", "write_colmap")(views, Path(path))


def read(path: str | Path, *, axes: Axes | None = None) -> Gaussians | World | Views:
    """Open anything gworld knows: a splat file, a world folder, a posed image set.

    `axes` says how a splat file's numbers are meant where the file does not.
    A file with several links, and a world folder, give a `World`. Splat files of the 3DGS habit (no stated axes, or y
    down) stay in their own frame, so that cameras calibrated with them still fit; others are turned to gworld's axes
    (+Z up).
    """
    name = detect_format(path)
    if name in ("colmap", "transforms"):
        return read_views(path)
    from gworld.formats.convert import gaussians_from_table
    from gworld.formats.world import World, load_world

    if name == "world":
        return load_world(world_folder(path))
    table = read_table(path, axes=axes)
    if table.axes == "RUB":
        table = _call("axes", "to_axes")(table, "RFU")
    gaussians = gaussians_from_table(table)
    if len(table.link_table) == 1:
        return gaussians
    from gworld.scene.world import Entity

    parts = tuple(Entity(link.name, "object", (i,)) for i, link in enumerate(table.link_table) if i > 0)
    return World(gaussians, table.link_table, (Entity("scene", "static", (0,)), *parts), metric=table.metric)


def write(thing: Gaussians | World | Views | SplatTable, path: str | Path, *, overwrite: bool = False) -> None:
    """Write what `read` opens: a `World` to a folder or, its links at rest, to a splat file.

    `Gaussians` to a splat file.
    """
    from gworld.formats.convert import table_from_gaussians
    from gworld.formats.world import World, save_world
    from gworld.scene.gaussians import Gaussians
    from gworld.scene.views import Views

    if isinstance(thing, Views):
        write_views(thing, path, overwrite=overwrite)
    elif isinstance(thing, World) and not Path(path).suffix:
        save_world(thing, path, overwrite=overwrite)
    elif isinstance(thing, World):
        table = replace(table_from_gaussians(thing.gaussians), link_table=thing.links, metric=thing.metric)
        write_table(table, path, overwrite=overwrite)
    elif isinstance(thing, Gaussians):
        if len(thing) and int(thing.links.max()) > 0:
            raise UsageError(
                f"these Gaussians belong to {int(thing.links.max()) + 1} links; write their World instead."
            )
        write_table(replace(table_from_gaussians(thing), axes=None), path, overwrite=overwrite)
    elif isinstance(thing, SplatTable):
        write_table(thing, path, overwrite=overwrite)
    else:
        raise UsageError(f"a {type(thing).__name__} cannot be written; Gaussians, World or Views can.")


def colmap_folder(path: Path) -> Path | None:
    """The folder below `path` that holds a COLMAP model, or None."""
    for folder in (path, path / "sparse" / "0", path / "sparse", path / "colmap" / "sparse" / "0"):
        if any((folder / f"cameras.{kind}").is_file() for kind in ("bin", "txt")):
            return folder
    return None


def _detect_folder(folder: Path) -> str:
    if (folder / "world.json").is_file() or (folder / "world" / "world.json").is_file():
        return "world"
    if (folder / "transforms.json").is_file():
        return "transforms"
    if colmap_folder(folder) is not None:
        return "colmap"
    if (folder / "meta.json").is_file():
        return "sog"
    raise InputError(f"`{folder}` holds no world.json, transforms.json, COLMAP model or SOG meta.json. {_readable()}")


def world_folder(path: str | Path) -> Path:
    """The folder of a world, given itself, its `world.json`, or a run that holds it as `world/`.

    Raises `InputError` where neither is there.
    """
    target = Path(path)
    if not target.exists():
        raise InputError(f"`{target}` does not exist. Name a world's folder, or that of the run which made it.")
    if target.is_file():
        return target.parent
    return target if (target / "world.json").is_file() else target / "world"


def _readable() -> str:
    names = ", ".join(known.name for known in (*SPLAT_FORMATS, *POSED_FORMATS) if known.reader)
    return f"Readable are {names} and gworld's worlds."


def _call(module: str, function: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"gworld.formats.{module}"), function)
