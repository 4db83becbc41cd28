"""`gworld convert`: any splat file or posed image set into another, edited on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from gworld.cli.options import print_json, say
from gworld.errors import UsageError
from gworld.files import refuse_existing
from gworld.formats import edit
from gworld.formats.axes import rotate_table, to_axes
from gworld.formats.registry import detect_format, format_for, read_table, read_views, write_table, write_views
from gworld.formats.table import Axes, SplatTable, bad_rows, check_table

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Options:
    """What to convert. Edits run in the order of the options below."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """What to read: any splat file, a world, a COLMAP folder or a transforms.json."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """What to write; its ending chooses the format (.json or a folder name for posed image sets)."""
    source_axes: Axes | None = None
    """How the source's numbers are meant, where the file does not say (y down by habit): RDF, RUB or RFU."""
    axes: Literal["keep", "RDF", "RUB", "RFU"] = "keep"
    """Re-express the scene in other axes: RDF (y down, 3DGS habit), RUB (y up, glTF), RFU (z up, gworld)."""
    rotate: Vector = (0.0, 0.0, 0.0)
    """Turn by this rotation vector (axis times angle), in degrees."""
    scale: float = 1.0
    """Multiply every length, for example 0.001 from millimetres to metres."""
    translate: Vector = (0.0, 0.0, 0.0)
    """Move by this much after turning and scaling, in the new unit."""
    metric: bool | None = None
    """State whether lengths are metres after scaling; left alone when not given."""
    crop_box: tuple[float, float, float, float, float, float] | None = None
    """Keep the static world within x y z X Y Z (after the transform); Gaussians of other links stay."""
    crop_sphere: tuple[float, float, float, float] | None = None
    """Keep the static world within the ball x y z radius (after the transform); other links stay."""
    drop_bad: bool = False
    """Remove Gaussians with NaN, infinite or unrenderable values instead of refusing the file (PLY and .splat)."""
    drop_floaters: bool = False
    """Remove Gaussians that are isolated, invisible or larger than the scene."""
    decimate: int | None = None
    """Merge similar neighbours until at most this many Gaussians are left."""
    sh_degree: int | None = None
    """Cut spherical harmonics to this degree (0 to 3), or pad with zeros."""
    overwrite: bool = False
    """Replace the target if it exists."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def run(options: Options) -> None:
    """Convert; raises `InputError` for a bad source and `UsageError` for a target that exists or cannot be named."""
    refuse_existing(options.target, overwrite=options.overwrite)
    if detect_format(options.source) in ("colmap", "transforms"):
        facts = _convert_views(options)
    else:
        facts = _convert_splats(options)
    if options.json:
        print_json(facts)
    else:
        say(f"{facts['source']} -> {facts['target']}: {facts['summary']}")


def _convert_splats(options: Options) -> dict[str, object]:
    target = format_for(options.target)
    table = read_table(options.source, axes=options.source_axes, check=not options.drop_bad)
    before, links = len(table), len(table.link_table)
    if options.drop_bad:
        table = check_table(table.select(~bad_rows(table)), str(options.source))
    table = edit_table(table, options)
    write_table(table, options.target, overwrite=options.overwrite)
    notes = [f"{len(table):,} Gaussians" + (f" of {before:,}" if len(table) != before else "")]
    if links > 1 and not target.links:
        notes.append(f"{links} links baked into one at their rest poses ({target.name} keeps none)")
    if len(table) == 0:
        notes.append("nothing is left")
    if table.axes not in (None, "RDF") and target.name in ("ply", "compressed-ply"):
        notes.append(f"axes {table.axes} stand in a comment that other viewers ignore (--axes RDF suits them)")
    if target.lossy:
        notes.append(f"{target.name} quantises values")
    return {
        "source": str(options.source),
        "target": str(options.target),
        "format": target.name,
        "count_before": before,
        "count": len(table),
        "summary": "; ".join(notes),
    }


def _convert_views(options: Options) -> dict[str, object]:
    edits = Options(options.source, options.target)
    if replace(options, overwrite=False, json=False) != edits:
        raise UsageError("posed image sets are converted as they are; edits such as --scale are for splat files.")
    views = read_views(options.source)
    write_views(views, options.target, overwrite=options.overwrite)
    found = sum(view.image is not None and view.image.is_file() for view in read_views(options.target).views)
    lost = "" if found == len(views) else f"; {len(views) - found} pictures are not beside it: move or copy them there"
    return {
        "source": str(options.source),
        "target": str(options.target),
        "count": len(views),
        "summary": f"{len(views)} views, {len(views.points):,} points{lost}",
    }


def edit_table(table: SplatTable, options: Options) -> SplatTable:
    """Apply the options' edits in their stated order; lengths keep their unit unless `scale` says otherwise."""
    numbers = (
        *options.rotate,
        options.scale,
        *options.translate,
        *(options.crop_box or ()),
        *(options.crop_sphere or ()),
    )
    if not all(map(math.isfinite, numbers)):
        raise UsageError("an edit was given a number that is not finite.")
    if options.axes != "keep":
        table = to_axes(table, options.axes)
    if options.rotate != (0.0, 0.0, 0.0) or options.scale != 1.0 or options.translate != (0.0, 0.0, 0.0):
        if not (math.isfinite(options.scale) and options.scale > 0):
            raise UsageError(f"`--scale {options.scale}` cannot be applied; a finite factor above 0 is needed.")
        table = rotate_table(table, rotation_matrix(options.rotate), options.translate, options.scale)
    if options.metric is not None:
        table = replace(table, metric=options.metric)
    if options.crop_box is not None:
        table = edit.crop_box(table, options.crop_box[:3], options.crop_box[3:])
    if options.crop_sphere is not None:
        table = edit.crop_sphere(table, options.crop_sphere[:3], options.crop_sphere[3])
    if options.drop_floaters:
        say(f"dropping floaters from {len(table):,} Gaussians")
        table = edit.drop_floaters(table)
    if options.decimate is not None:
        say(f"merging {len(table):,} Gaussians into at most {options.decimate:,}")
        table = edit.decimate(table, options.decimate)
    if options.sh_degree is not None:
        table = edit.with_sh_degree(table, options.sh_degree)
    return table


def rotation_matrix(degrees: Vector) -> np.ndarray:
    """Rotation [3,3] of a rotation vector in degrees (Rodrigues)."""
    vector = np.radians(np.asarray(degrees, np.float64))
    angle = float(np.linalg.norm(vector))
    if angle == 0.0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * (cross @ cross)
