"""GLB and glTF with `KHR_gaussian_splatting`: one primitive per link, rigid motion as ordinary node tracks.

The extension stores linear scales, opacities after the sigmoid, `xyzw` rotations and spherical harmonics as they are
(KhronosGroup/glTF, extensions/2.0/Khronos/KHR_gaussian_splatting). glTF assets stand with +Y up, +Z forward and -X to
the right (glTF 2.0, section 3.4), so a root node turns the table's axes upright and the numbers below it stay the
table's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gworld.errors import InputError
from gworld.formats.axes import FROM_RDF, rotate_table
from gworld.formats.gltf_accessors import (
    EXTENSION,
    SLACK,
    Document,
    brief,
    entry,
    load_document,
    local_matrix,
    member,
    node_pose,
    read_accessor,
    scene_roots,
    similarity,
    view_accessor,
    walk_nodes,
)
from gworld.formats.gltf_write import FROM_GLTF, MARK, MAX_LINKS, upright, write_gltf
from gworld.formats.ply import FLAT_LOG_SCALE
from gworld.formats.table import Axes, Link, SplatTable, check_table, empty_table
from gworld.scene.harmonics import sh_basis_numpy

__all__ = ["read_gltf", "read_gltf_animation", "write_gltf"]

_COLOR_SPACES = ("srgb_rec709_display", "lin_rec709_display")
_MIN_SCALE = np.nextafter(np.float32(np.exp(-40.0)), np.float32(1))
_CHUNK = 1 << 16
_MAX_PARTS = 512  # in foreign files, where each part has a transform of its own


@dataclass(frozen=True)
class _Part:
    """One splat primitive: which link owns its `count` rows, and the global matrix still to be applied."""

    primitive: dict[str, Any]
    count: int
    degree: int
    link: int
    matrix: np.ndarray | None


def read_gltf(path: str | Path) -> SplatTable:
    """Read every Gaussian of a GLB or glTF file.

    A file that gworld wrote comes back with its links, axes and metric flag. In any other file each node's transform is
    applied and the result is one link in axes RFU, its lengths not known to be metres. Colours in the linear colour
    space are refitted to sRGB. Raises `InputError` when the file is damaged, holds no Gaussians, stores them
    compressed, asks for another kernel, or has a node that scales them unevenly.
    """
    document = load_document(path)
    source, own = document.source, _own_links(document)
    if own is None:
        scene, limit = _Own({}, [Link("world")], "RFU", False), _MAX_PARTS
        found = (part for node, matrix in walk_nodes(document) for part in _parts(document, node, 0, matrix))
    else:
        scene, limit = own, MAX_LINKS
        found = (part for link, node in enumerate(own.nodes.values()) for part in _parts(document, node, link, None))
    parts = list(islice(found, limit + 1))
    if len(parts) > limit:
        raise InputError(f"`{source}` has more than {limit} splat primitives. Join them in the program that wrote it.")
    if own is None and not parts:
        raise InputError(f"`{source}` holds no {EXTENSION} primitives; export the scene as Gaussian splats.")
    total, degree = sum(part.count for part in parts), max((part.degree for part in parts), default=0)
    _check_unfolded(total * (48 + 12 * (degree + 1) ** 2), document)
    table = replace(empty_table(total, degree), axes=scene.axes, metric=scene.metric, link_table=tuple(scene.links))
    starts = np.cumsum([0, *(part.count for part in parts)]).tolist()
    with np.errstate(all="ignore"):
        for part, rows in zip(parts, (slice(*ends) for ends in pairwise(starts)), strict=True):
            _fill(document, part, table, rows)
        check_table(table, source)
        for part, rows in zip(parts, (slice(*ends) for ends in pairwise(starts)), strict=True):
            _place(part, table, rows, source)
    return check_table(table, source)


def read_gltf_animation(path: str | Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Times [T] float64 seconds and link poses [T,L,7] float32 of a file that gworld wrote; None where nothing moves.

    Poses are `x y z qw qx qy qz` in the axes of `read_gltf`'s table, in the order of its links; T is the union of all
    key times. Raises `InputError` when the tracks are damaged or cubic.
    """
    document = load_document(path)
    own = _own_links(document)
    animations = member(document.root, "animations", list, [], document.source)
    if own is None or not animations:
        return None
    animation = entry(document, "animations", 0)
    tracks = _tracks(document, animation, own)
    if not tracks:
        return None
    times = np.unique(np.concatenate([track.keys for track in tracks]))
    _check_unfolded(len(times) * len(own.links) * 28, document)
    poses = np.tile(np.array([link.pose for link in own.links], np.float32), (len(times), 1, 1))
    for track in tracks:
        columns = slice(0, 3) if track.path == "translation" else slice(3, 7)
        poses[:, track.link, columns] = _sample(times, track)
    mark = member(member(animation, "extras", dict, {}, document.source), MARK, dict, {}, document.source)
    start = mark.get("start", 0.0)
    if type(start) not in (int, float) or not abs(start) < 1e15:
        raise InputError(f"`{document.source}`: the animation's start is not a time in seconds. Export it again.")
    return times + start, poses


@dataclass(frozen=True)
class _Track:
    """Keys [T] in seconds and values [T,3] or unit wxyz [T,4] of one link's translation or rotation."""

    link: int
    path: str
    keys: np.ndarray
    values: np.ndarray
    stepped: bool


@dataclass(frozen=True)
class _Own:
    """What a file of our own says: its link nodes by number, the links, the table's axes and whether it is metric."""

    nodes: dict[int, dict[str, Any]]
    links: list[Link]
    axes: Axes | None
    metric: bool


def _own_links(document: Document) -> _Own | None:
    """The links of a file that gworld wrote and nobody rearranged since; None for any other file."""
    source, roots = document.source, scene_roots(document)
    if len(roots) != 1:
        return None
    root = entry(document, "nodes", roots[0])
    extras = root.get("extras")
    mark = extras.get(MARK) if isinstance(extras, dict) else None
    if not isinstance(mark, dict) or mark.get("axes", "") not in (None, *FROM_RDF):
        return None
    axes = mark["axes"]
    expected = np.eye(4)
    expected[:3, :3] = upright(axes)
    children = member(root, "children", list, [], source)
    nodes = {index: entry(document, "nodes", index) for index in children}
    plain = all(node.keys().isdisjoint(("children", "matrix", "scale")) for node in nodes.values())
    tidy = plain and nodes and len(nodes) == len(children) and roots[0] not in nodes and "mesh" not in root
    if not (tidy and np.allclose(local_matrix(root, source), expected, atol=1e-6)):
        return None
    links = []
    for index, node in enumerate(nodes.values()):
        place, turn = node_pose(node, source)
        name = member(node, "name", str, f"link {index}", source).encode("utf-8", "replace").decode()
        notes = member(member(node, "extras", dict, {}, source), MARK, dict, {}, source)
        parent = member(notes, "parent", int, -1, source)
        if not -1 <= parent < max(index, 1):
            raise InputError(
                f"`{source}`: link {index} has parent {brief(parent)}; one before it is needed. Export it again."
            )
        links.append(Link(name, (*place.tolist(), *turn.tolist()), parent))
    return _Own(nodes, links, axes, mark.get("metric") is True)


def _parts(document: Document, node: dict[str, Any], link: int, matrix: np.ndarray | None) -> Iterator[_Part]:
    """The splat primitives of one node; raises `InputError` for kernels, colours or compression that are not read."""
    if "mesh" not in node:
        return
    source = document.source
    for primitive in member(entry(document, "meshes", node["mesh"]), "primitives", list, [], source):
        checked = member({"": primitive}, "", dict, {}, source)
        shading = member(checked, "extensions", dict, {}, source).get(EXTENSION)
        if shading is None:
            continue
        shading = member({EXTENSION: shading}, EXTENSION, dict, {}, source)
        for name, allowed in (
            ("kernel", ("ellipse",)),
            ("colorSpace", _COLOR_SPACES),
            ("projection", ("perspective",)),
        ):
            if shading.get(name, allowed[0]) not in allowed:
                raise InputError(f"`{source}` asks for the {name} {brief(shading[name])}; {allowed[0]} is needed.")
        attributes = member(checked, "attributes", dict, {}, source)
        missing = [name for name in ("ROTATION", "SCALE", "OPACITY", "SH_DEGREE_0_COEF_0")
                   if f"{EXTENSION}:{name}" not in attributes]  # fmt: skip
        if missing or "POSITION" not in attributes:
            packed = member(shading, "extensions", dict, {}, source)
            how = f" (it is packed by {brief(next(iter(packed)))})" if packed else ""
            raise InputError(
                f"`{source}`: a splat primitive has no {(missing or ['POSITION'])[0]}{how}; plain attributes of "
                f"{EXTENSION} are needed. Export it uncompressed with a current exporter."
            )
        degree = 0
        while degree < 3 and f"{EXTENSION}:SH_DEGREE_{degree + 1}_COEF_0" in attributes:
            degree += 1
        count = len(view_accessor(document, attributes["POSITION"], "VEC3", "POSITION"))
        yield _Part(checked, count, degree, link, matrix)


def _check_unfolded(needed: int, document: Document) -> None:
    """Refuse a file whose shared or repeated data would take far more memory than it has bytes."""
    if needed > SLACK + 3 * document.size:
        raise InputError(
            f"`{document.source}` repeats its data so often that {document.size} bytes would unfold to {needed}; "
            "at most three times the file is read. Export every object once."
        )


def _fill(document: Document, part: _Part, table: SplatTable, rows: slice) -> None:
    """Decode one primitive into its rows of the table, colours in sRGB."""
    attributes, source = part.primitive["attributes"], document.source

    def column(name: str, kind: str) -> np.ndarray:
        values = read_accessor(document, attributes.get(name), kind, name)
        if len(values) != part.count:
            raise InputError(
                f"`{source}`: {name} has {len(values)} entries for {part.count} Gaussians. Export it again."
            )
        return values

    table.means[rows] = column("POSITION", "VEC3")
    xyzw = column(f"{EXTENSION}:ROTATION", "VEC4")
    table.quats_wxyz[rows, 0], table.quats_wxyz[rows, 1:] = xyzw[:, 3], xyzw[:, :3]
    scales, alphas = column(f"{EXTENSION}:SCALE", "VEC3"), column(f"{EXTENSION}:OPACITY", "SCALAR")[:, 0]
    if (scales < 0).any() or (alphas < -1e-4).any() or (alphas > 1.0001).any():
        raise InputError(
            f"`{source}` has negative scales, or opacities outside 0..1. Export it with a current exporter."
        )
    # A flat Gaussian has scale 0 and a solid one opacity 1: both become the nearest finite value that looks the same.
    thick = np.where(scales == 0, np.float32(np.exp(FLAT_LOG_SCALE)), np.maximum(scales, _MIN_SCALE))
    np.log(thick, out=table.log_scales[rows], dtype=np.float64, casting="same_kind")
    inside = np.clip(alphas.astype(np.float64), 1e-38, 1 - 2.0**-25)
    table.opacity_logits[rows] = np.log(inside) - np.log1p(-inside)
    table.sh[rows] = 0.0
    for degree in range(part.degree + 1):
        for index in range(2 * degree + 1):
            table.sh[rows, degree**2 + index] = column(f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{index}", "VEC3")
    table.links[rows] = part.link
    if part.primitive["extensions"][EXTENSION].get("colorSpace") == "lin_rec709_display":
        for chunk in _chunks(rows):
            table.sh[chunk] = _srgb_from_linear(table.sh[chunk])


def _srgb_from_linear(sh: np.ndarray) -> np.ndarray:
    """Coefficients [N,K,3] whose sRGB colours agree best, over all directions, with those of linear coefficients."""
    index = np.arange(40) + 0.5
    height, angle = 1 - index / 20, index * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - height**2)
    directions = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=-1)
    basis = sh_basis_numpy(directions, round(sh.shape[1] ** 0.5) - 1).astype(np.float32)
    linear = np.maximum(np.matmul(basis, sh) + np.float32(0.5), 0)
    display = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)
    return np.matmul(np.linalg.pinv(basis), display - np.float32(0.5))


def _place(part: _Part, table: SplatTable, rows: slice, source: str) -> None:
    """Apply the node's transform of a foreign file to its rows and turn them to gworld's axes, in place."""
    if part.matrix is None:
        return
    rotation, translation, scale = similarity(part.matrix, source)
    for chunk in _chunks(rows):
        moved = rotate_table(table.select(chunk), FROM_GLTF @ rotation, FROM_GLTF @ translation, scale)
        for name in ("means", "quats_wxyz", "log_scales", "sh"):
            getattr(table, name)[chunk] = getattr(moved, name)


def _chunks(rows: slice) -> list[slice]:
    return [slice(start, min(start + _CHUNK, rows.stop)) for start in range(rows.start, rows.stop, _CHUNK)]


def _tracks(document: Document, animation: dict[str, Any], own: _Own) -> list[_Track]:
    """The translations and rotations of our links that an animation holds, each at most once."""
    source, needed = document.source, 0
    seen: set[tuple[int, str]] = set()
    links = {node: link for link, node in enumerate(own.nodes)}
    samplers = member(animation, "samplers", list, [], source)
    tracks = []
    for index, each in enumerate(member(animation, "channels", list, [], source)):
        channel = member({"": each}, "", dict, {}, source)
        target = member(channel, "target", dict, {}, source)
        path, node = target.get("path"), target.get("node")
        if path not in ("translation", "rotation") or type(node) is not int or node not in links:
            continue
        if (node, path) in seen:
            raise InputError(f"`{source}`: animation channel {index} moves a node that moves already. Export it again.")
        seen.add((node, path))
        sampler = entry(replace(document, root={"samplers": samplers}), "samplers", channel.get("sampler"))
        needed += 40 * len(view_accessor(document, sampler.get("input"), "SCALAR", "animation times"))
        _check_unfolded(needed, document)
        tracks.append(_track(document, sampler, links[node], path))
    return tracks


def _track(document: Document, sampler: dict[str, Any], link: int, path: str) -> _Track:
    """The keys and values of one sampler; raises `InputError` where they cannot be played."""
    source, interpolation = document.source, sampler.get("interpolation", "LINEAR")
    if interpolation not in ("LINEAR", "STEP"):
        raise InputError(f"`{source}` animates with {brief(interpolation)} tracks; bake them to LINEAR ones.")
    keys = read_accessor(document, sampler.get("input"), "SCALAR", "animation times")[:, 0].astype(np.float64)
    values = read_accessor(document, sampler.get("output"), "VEC3" if path == "translation" else "VEC4", "a track")
    increasing = len(keys) and np.isfinite(keys).all() and (np.diff(keys) > 0).all()
    if not increasing or len(values) != len(keys) or not (np.abs(values) < 1e9).all():
        raise InputError(f"`{source}`: an animation track is damaged (times, length or values). Export it again.")
    if path == "rotation":
        values = np.roll(values, 1, axis=1)
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        if norms.min() < 1e-9:
            raise InputError(f"`{source}`: an animation track holds a rotation of zero length. Export it again.")
        values = values / norms
    return _Track(link, path, keys, values, interpolation == "STEP")


def _sample(times: np.ndarray, track: _Track) -> np.ndarray:
    """Values of a track at `times`: linear, or along the shortest arc for rotations (glTF 2.0, appendix C)."""
    late = np.clip(np.searchsorted(track.keys, times, side="right"), 1, max(len(track.keys) - 1, 1))
    early, late = late - 1, np.minimum(late, len(track.keys) - 1)
    span = np.maximum(track.keys[late] - track.keys[early], 1e-300)
    weight = np.clip((times - track.keys[early]) / span, 0, 1)[:, None]
    if track.stepped:
        weight = np.floor(weight)
    start, end = track.values[early], track.values[late]
    if track.path == "translation":
        return (1 - weight) * start + weight * end
    cosine = (start * end).sum(1, keepdims=True)
    angle = np.arccos(np.clip(np.abs(cosine), 0, 1))
    sine = np.sin(angle)
    close = sine < 1e-6
    first = np.where(close, 1 - weight, np.sin((1 - weight) * angle) / np.where(close, 1, sine))
    second = np.where(close, weight, np.sin(weight * angle) / np.where(close, 1, sine))
    return first * start + np.where(cosine < 0, -second, second) * end
