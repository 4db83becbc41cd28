"""Mesh files and simple shapes as triangles with colours, opened so that no file leads anywhere else."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gworld.agents.tree import Shape, Surface
from gworld.agents.xml import parse_xml
from gworld.errors import InputError, MissingBackendError
from gworld.files import check_count, existing_file, safe_join

MESH_SUFFIXES = (".obj", ".stl", ".dae", ".glb", ".gltf", ".ply", ".off")
MAX_BYTES = 512 << 20
_LEAKS = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, OSError, NotImplementedError,
    RuntimeError, ArithmeticError, StopIteration, RecursionError, MemoryError, SyntaxError,
    BufferError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What mesh readers let out on malformed files; XML's parse error is a SyntaxError."""


class FolderResolver:
    """Hands a mesh reader the files it asks for, out of one folder only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: list[Path] = []

    def get(self, name: str) -> bytes:
        """The bytes of a file below the folder; raises `InputError` for a name that leads out of it."""
        file = existing_file(safe_join(self.folder, name.strip().removeprefix("./")))
        if file.stat().st_size > MAX_BYTES:
            raise InputError(f"`{file}` has {file.stat().st_size} bytes; at most {MAX_BYTES} are read.")
        self.used.append(file)
        return file.read_bytes()

    __getitem__ = get

    def keys(self) -> list[str]:
        """Names of the files at hand: none are listed, all are asked for by name."""
        return []

    def namespaced(self, namespace: str) -> FolderResolver:
        """The same for a folder below; raises `InputError` when it lies outside."""
        return FolderResolver(safe_join(self.folder, namespace))

    def write(self, name: str, data: bytes) -> None:
        """Refuse: reading a mesh writes nothing."""
        raise InputError(f"reading a mesh in `{self.folder}` tried to write {name!r}.")


def read_surfaces(path: str | Path) -> tuple[Surface, ...]:
    """The triangles of a mesh file (obj, stl, dae, glb, gltf, ply, off) with their colours, one surface per material.

    Textures and buffers must lie below the file's folder (others are left out). COLLADA is scaled to metres. Raises
    `InputError` for a file that is damaged, empty, or holds numbers that are not finite.
    """
    return _read(existing_file(path), FolderResolver(Path(path).parent))


def mesh_files(path: str | Path) -> tuple[Path, ...]:
    """A mesh file and the materials, textures and buffers that it reads; raises what `read_surfaces` raises."""
    resolver = FolderResolver(Path(path).parent)
    _read(existing_file(path), resolver)
    return tuple(dict.fromkeys((Path(path), *resolver.used)))


def _read(file: Path, resolver: Any) -> tuple[Surface, ...]:
    import trimesh

    suffix = file.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise InputError(f"`{file}` is no mesh file known here; {', '.join(MESH_SUFFIXES)} are. Convert it.")
    data = file.read_bytes() if file.stat().st_size <= MAX_BYTES else b""
    if not data:
        raise InputError(f"`{file}` has {file.stat().st_size} bytes; 1 to {MAX_BYTES} are read.")
    if suffix == ".dae":
        parse_xml(data, str(file))
        _require_collada()
    if suffix == ".stl" and data.lstrip()[:5].lower() != b"solid" and len(data) >= 84:
        check_count(int.from_bytes(data[80:84], "little"), 50, len(data) - 84, str(file), "triangles")
    try:
        loaded = trimesh.load(BytesIO(data), file_type=suffix[1:], resolver=resolver, process=False)
        parts = loaded.dump() if isinstance(loaded, trimesh.Scene) else [loaded]
        meshes = [part for part in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]
        surfaces = tuple(_surface(mesh) for mesh in meshes)
    except (*_LEAKS, *_collada_errors()) as error:
        fact = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(f"`{file}` cannot be read as a {suffix[1:]} mesh: {fact}. Export it again.") from error
    if not surfaces:
        raise InputError(f"`{file}` holds no triangles; a mesh is needed.")
    for surface in surfaces:
        _check(surface, str(file))
    if suffix == ".dae":
        scale = _metres(data, str(file))
        surfaces = tuple(replace(surface, vertices=surface.vertices * scale) for surface in surfaces)
    return surfaces


def shape_surfaces(shape: Shape) -> tuple[Surface, ...]:
    """A shape's triangles in the frame of its link, with its own colour where the mesh has none (else mid grey)."""
    scale = np.ones(3)
    if shape.surface is not None:
        parts: tuple[Surface, ...] = (shape.surface,)
    elif shape.mesh is not None:
        parts, scale = read_surfaces(shape.mesh), np.asarray(shape.size, float)
    else:
        parts = (_primitive(shape),)
    rgba = shape.rgba or (0.6, 0.6, 0.6, 1.0)
    return tuple(_paint(transform_surface(part, shape.link_from_shape, scale), rgba[:3]) for part in parts)


def transform_surface(surface: Surface, transform: np.ndarray, scale: np.ndarray | float = 1.0) -> Surface:
    """A surface scaled, then moved by a `[4,4]` transform; mirrored triangles are turned right side out."""
    factor = np.broadcast_to(np.asarray(scale, float), 3)
    vertices = (surface.vertices * factor) @ transform[:3, :3].T + transform[:3, 3]
    if float(np.prod(factor)) >= 0:
        return replace(surface, vertices=vertices)
    flipped = {name: value[:, ::-1] for name in ("rgb", "uv") if (value := getattr(surface, name)) is not None}
    return replace(surface, vertices=vertices, faces=surface.faces[:, ::-1], **flipped)


def _paint(surface: Surface, rgb: tuple[float, ...]) -> Surface:
    if surface.rgb is not None or surface.texture is not None:
        return surface
    return replace(surface, rgb=np.broadcast_to(np.asarray(rgb, float), (len(surface.faces), 3, 3)))


def _primitive(shape: Shape) -> Surface:
    """Fine enough that no facet departs from the round shape by more than half a percent of its radius."""
    from trimesh import creation

    size = shape.size
    if shape.kind == "plane":
        x, y = size[0] / 2, size[1] / 2
        corners = np.array([[-x, -y, 0.0], [x, -y, 0.0], [x, y, 0.0], [-x, y, 0.0]])
        return Surface(corners, np.array([[0, 1, 2], [0, 2, 3]]))
    if shape.kind == "box":
        mesh = creation.box(extents=size)
    elif shape.kind in ("sphere", "ellipsoid"):
        mesh = creation.icosphere(subdivisions=4)
        mesh.apply_scale(np.broadcast_to(size, 3))
    elif shape.kind == "cylinder":
        mesh = creation.cylinder(radius=size[0], height=size[1], sections=64)
    else:
        mesh = creation.capsule(radius=size[0], height=size[1], count=(48, 48))
        mesh.apply_translation(-mesh.bounds.mean(axis=0))
    return Surface(np.asarray(mesh.vertices, float), np.asarray(mesh.faces))


def _surface(mesh: Any) -> Surface:
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    visual = mesh.visual
    if visual.kind == "texture":
        material, uv = visual.material, visual.uv
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        factor = np.asarray(material.main_color[:3], float) / 255.0
        if image is not None and uv is not None and len(uv) == len(vertices):
            texture = np.asarray(image.convert("RGB"))
            if type(material).__name__ == "PBRMaterial" and material.baseColorFactor is not None:
                texture = (texture * factor).astype(np.uint8)
            return Surface(vertices, faces, None, np.asarray(uv, np.float64)[faces][..., :2], texture)
        return Surface(vertices, faces, np.broadcast_to(factor, (len(faces), 3, 3)))
    if visual.kind == "vertex":
        return Surface(vertices, faces, np.asarray(visual.vertex_colors)[faces][..., :3] / 255.0)
    if visual.kind == "face":
        colors = np.asarray(visual.face_colors)[:, None, :3] / 255.0
        return Surface(vertices, faces, np.broadcast_to(colors, (len(faces), 3, 3)))
    return Surface(vertices, faces)


def _check(surface: Surface, source: str) -> None:
    count = len(surface.vertices)
    if int(surface.faces.min()) < 0 or int(surface.faces.max()) >= count:
        raise InputError(f"`{source}`: a triangle names a corner that is not among the {count} vertices.")
    used = surface.vertices[np.unique(surface.faces)]
    if not np.isfinite(used).all() or float(np.abs(used).max()) > 1e9:
        raise InputError(f"`{source}`: a corner is not at a finite place; export the mesh again.")
    if surface.uv is not None and not np.isfinite(surface.uv).all():
        raise InputError(f"`{source}`: a texture coordinate is not finite; export the mesh again.")


def _metres(data: bytes, source: str) -> float:
    """The length of a COLLADA file's unit."""
    for element in parse_xml(data, source).iter():
        if element.tag.rpartition("}")[2] == "unit":
            try:
                meter = float(element.get("meter", "1"))
            except ValueError:
                meter = 0.0
            if not 1e-6 <= meter <= 1e6:
                raise InputError(f"`{source}` has a unit of {element.get('meter')!r} metres; export it again.")
            return meter
    return 1.0


def _collada_errors() -> tuple[type[Exception], ...]:
    try:
        from collada.common import DaeError
    except ImportError:
        return ()
    return (DaeError,)


def _require_collada() -> None:
    if not _collada_errors():
        raise MissingBackendError("COLLADA meshes need pycollada: pip install pycollada, or convert to .obj or .glb.")
