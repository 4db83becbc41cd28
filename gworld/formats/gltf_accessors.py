"""What lies under a glTF scene: the GLB container, buffers, typed accessors and the node tree. Nothing is trusted."""

from __future__ import annotations

import base64
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from gworld.errors import InputError
from gworld.files import MAX_JSON_BYTES, check_count, existing_file, parse_json, safe_join
from gworld.formats.axes import matrix_from_quat

EXTENSION = "KHR_gaussian_splatting"
UNDERSTOOD = (EXTENSION, "KHR_mesh_quantization")
COMPONENTS: dict[int, np.dtype[Any]] = {
    5120: np.dtype("i1"),
    5121: np.dtype("u1"),
    5122: np.dtype("<i2"),
    5123: np.dtype("<u2"),
    5126: np.dtype("<f4"),
}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
MAX_NODES = 1 << 14
SLACK = 48 << 20  # bytes that a file of any size may unfold to; beyond it, three times its own size
_JSON_CHUNK, _BIN_CHUNK = b"JSON", b"BIN\0"


@dataclass(frozen=True)
class Document:
    """A parsed glTF file: `root` is its JSON, `buffers` their bytes, `size` the bytes of all files it is made of."""

    source: str
    size: int
    root: dict[str, Any]
    buffers: tuple[bytes, ...]


def load_document(path: str | Path) -> Document:
    """Read a `.glb`, or a `.gltf` with embedded or neighbouring buffers.

    Raises `InputError` when it is no glTF 2.0, when it is cut off, needs extensions that are not read here, or names
    buffers outside its folder.
    """
    file = existing_file(path)
    source, size = str(file), file.stat().st_size
    with open(file, "rb") as stream:
        head = stream.read(4)
        if head == b"glTF":
            text, binary = _glb_chunks(stream, size, source)
        else:
            text, binary = head + stream.read(min(size, MAX_JSON_BYTES)), None
    _check_weight(text, size, source)
    root = parse_json(text, source)
    del text
    version = member(member({"": root}, "", dict, {}, source), "asset", dict, {}, source).get("version")
    if not (isinstance(version, str) and version.startswith("2.")):
        raise InputError(f"`{source}` is not a glTF 2.0 file (version {brief(version)}). Export it as GLB 2.0.")
    unknown = [name for name in member(root, "extensionsRequired", list, [], source) if name not in UNDERSTOOD]
    if unknown:
        raise InputError(
            f"`{source}` needs the glTF extension {brief(unknown[0])}, which is not read. Export it uncompressed."
        )
    buffers, outside = _load_buffers(root, binary, file)
    return Document(source, size + outside, root, buffers)


def _glb_chunks(stream: Any, size: int, source: str) -> tuple[bytes, bytes | None]:
    """The JSON and the binary chunk of a GLB whose first four bytes are read; further chunks are ignored."""
    version, length = struct.unpack("<II", stream.read(8).ljust(8, b"\0"))
    if version != 2:
        raise InputError(f"`{source}` is a GLB of version {version}; version 2 is needed. Export it as glTF 2.0.")
    if not 20 <= length <= size:
        raise InputError(f"`{source}`: the GLB header promises {length} bytes but {size} are there; copy it again.")
    chunks: list[bytes] = []
    offset = 12
    for name in (_JSON_CHUNK, _BIN_CHUNK):
        if offset + 8 > length:
            break
        count, kind = struct.unpack("<I4s", stream.read(8))
        check_count(count, 1, length - offset - 8, source, "bytes in a GLB chunk")
        if kind != name:
            break
        chunks.append(stream.read(count))
        offset += 8 + count
    if not chunks:
        raise InputError(f"`{source}` is a GLB without its JSON chunk; export it again.")
    return chunks[0].rstrip(b"\0 "), chunks[1] if len(chunks) > 1 else None


def _check_weight(text: bytes, size: int, source: str) -> None:
    """Refuse JSON that would take far more memory as Python objects than it has bytes."""
    weight = 200 * text.count(b"{") + 90 * text.count(b"[") + 60 * text.count(b",")
    if not text.isascii() or b"\\u" in text:  # one wide character makes a whole string four bytes a letter
        weight += 8 * len(text)
    if len(text) > MAX_JSON_BYTES or weight > SLACK + 3 * size:
        raise InputError(f"`{source}`: its JSON part would take {weight >> 20} MB to read. Export it with fewer nodes.")


def _load_buffers(root: dict[str, Any], binary: bytes | None, file: Path) -> tuple[tuple[bytes, ...], int]:
    """Bytes of every buffer, each file read once, and how many bytes lay in other files."""
    source, outside = str(file), 0
    loaded: dict[Path, bytes] = {}
    buffers = []
    for index, entry in enumerate(member(root, "buffers", list, [], source)):
        buffer = member({"": entry}, "", dict, {}, source)
        uri = member(buffer, "uri", str, "", source)
        if not uri and index == 0 and binary is not None:
            data = binary
        elif uri.startswith("data:"):
            data = _decode_data_uri(uri, source)
        elif not uri.isprintable() or not uri or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", uri):
            raise InputError(f"`{source}`: buffer {index} lies at {brief(uri)}; only files beside it are read.")
        else:
            neighbour = existing_file(safe_join(file.parent, unquote(uri)))
            if neighbour not in loaded:
                loaded[neighbour] = neighbour.read_bytes()
                outside += len(loaded[neighbour])
            data = loaded[neighbour]
        check_count(integer(buffer, "byteLength", None, source), 1, len(data), source, f"bytes in buffer {index}")
        buffers.append(data)
    return tuple(buffers), outside


def _decode_data_uri(uri: str, source: str) -> bytes:
    head, _, payload = uri.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("base64 is needed")
        return base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise InputError(f"`{source}`: an embedded buffer cannot be decoded: {error}. Export it again.") from error


def member(owner: dict[str, Any], key: str, kind: type, default: Any, source: str) -> Any:
    """`owner[key]`, or `default` where it is missing; raises `InputError` when it is of another kind."""
    value = owner.get(key, default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(
            f"`{source}`: {key or 'an entry'} is {brief(value)}; a {kind.__name__} is needed. Export it again."
        )
    return value


def integer(owner: dict[str, Any], key: str, default: int | None, source: str) -> int:
    """A non-negative integer below 2**53; raises `InputError` for anything else."""
    value = member(owner, key, int, default, source)
    if not 0 <= value < 1 << 53:
        raise InputError(f"`{source}`: {key} is {brief(value)}; a number from 0 up is needed. Export it again.")
    return int(value)


def numbers(owner: dict[str, Any], key: str, default: tuple[float, ...], source: str) -> np.ndarray:
    """A list of as many finite numbers as `default` has, as float64; raises `InputError` otherwise."""
    value = owner.get(key, default)
    plain = isinstance(value, (list, tuple)) and len(value) == len(default)
    if not (plain and all(type(entry) in (int, float) and abs(entry) < 1e30 for entry in value)):
        raise InputError(f"`{source}`: {key} is {brief(value)}; {len(default)} finite numbers are needed.")
    return np.array(value, np.float64)


def entry(document: Document, table: str, index: Any) -> dict[str, Any]:
    """Entry `index` of one of the file's tables (nodes, meshes, ...); raises `InputError` when it is not there."""
    rows = member(document.root, table, list, [], document.source)
    if type(index) is not int or not 0 <= index < len(rows) or not isinstance(rows[index], dict):
        raise InputError(
            f"`{document.source}`: {table} has no entry {brief(index)} ({len(rows)} are there). Export it again."
        )
    row: dict[str, Any] = rows[index]
    return row


def read_accessor(document: Document, index: Any, kind: str, what: str) -> np.ndarray:
    """Elements of an accessor as float32 [count, width]; floats are a view of the buffer, integers are decoded.

    Raises `InputError` where `view_accessor` does.
    """
    values = view_accessor(document, index, kind, what)
    if values.dtype.kind == "f":
        return values
    if not member(entry(document, "accessors", index), "normalized", bool, False, document.source):
        return values.astype(np.float32)
    return np.maximum(values / np.float32(np.iinfo(values.dtype).max), np.float32(-1))


def view_accessor(document: Document, index: Any, kind: str, what: str) -> np.ndarray:
    """Elements of an accessor [count, width] as they lie in the buffer; nothing is copied.

    Raises `InputError` when the type is not `kind`, when it is sparse or compressed, or when it leaves its buffer.
    """
    source = document.source
    accessor = entry(document, "accessors", index)
    if "sparse" in accessor or "bufferView" not in accessor:
        fact = "sparse" if "sparse" in accessor else "compressed or empty"
        raise InputError(f"`{source}`: {what} is stored {fact}; plain values are needed. Export it uncompressed.")
    component = COMPONENTS.get(integer(accessor, "componentType", None, source))
    if accessor.get("type") != kind or component is None:
        raise InputError(
            f"`{source}`: {what} is not of type {kind} with a component type that is read. Export it again."
        )
    view = entry(document, "bufferViews", accessor["bufferView"])
    if member(view, "extensions", dict, {}, source):
        raise InputError(
            f"`{source}`: {what} is compressed ({brief(list(view['extensions']))}). Export it uncompressed."
        )
    buffer = integer(view, "buffer", None, source)
    if buffer >= len(document.buffers):
        raise InputError(f"`{source}`: {what} lies in buffer {buffer} of {len(document.buffers)}. Export it again.")
    data = document.buffers[buffer]
    start, length = integer(view, "byteOffset", 0, source), integer(view, "byteLength", None, source)
    check_count(start + length, 1, len(data), source, "bytes in a buffer view")
    width = WIDTHS[kind]
    element = width * component.itemsize
    stride = integer(view, "byteStride", element, source)
    offset, count = integer(accessor, "byteOffset", 0, source), integer(accessor, "count", None, source)
    if not element <= stride <= 252 and stride != element:
        raise InputError(
            f"`{source}`: {what} has a stride of {stride} bytes; {element} to 252 are needed. Export it again."
        )
    check_count(max(count - 1, 0) * stride + element * (count > 0) + offset, 1, length, source, f"bytes of {what}")
    return np.ndarray((count, width), component, data, start + offset, (stride, component.itemsize))


def scene_roots(document: Document) -> list[int]:
    """Indices of the nodes at the top of the default scene; of all parentless nodes where the file has no scene."""
    root, source = document.root, document.source
    nodes = member(root, "nodes", list, [], source)
    if len(nodes) > MAX_NODES:
        raise InputError(f"`{source}` has {len(nodes)} nodes; at most {MAX_NODES} are read. Export fewer objects.")
    if "scenes" in root:
        return list(member(entry(document, "scenes", root.get("scene", 0)), "nodes", list, [], source))
    below = {child for node in nodes if isinstance(node, dict) for child in _children(node, source)}
    return [index for index in range(len(nodes)) if index not in below]


def walk_nodes(document: Document) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Every node of the scene with its global matrix [4,4]; raises `InputError` when a node is reached twice."""
    stack = [(index, np.eye(4)) for index in reversed(scene_roots(document))]
    seen: set[int] = set()
    found = []
    while stack:
        index, above = stack.pop()
        node = entry(document, "nodes", index)
        if index in seen:
            raise InputError(
                f"`{document.source}`: node {index} hangs in the tree twice or in a circle. Export it again."
            )
        seen.add(index)
        matrix = above
        if not node.keys().isdisjoint(("matrix", "translation", "rotation", "scale")):
            with np.errstate(all="ignore"):
                matrix = above @ local_matrix(node, document.source)
        found.append((node, matrix))
        children = _children(node, document.source)
        if len(stack) + len(children) > MAX_NODES:
            raise InputError(f"`{document.source}`: its node tree has more than {MAX_NODES} branches. Export it again.")
        stack += [(child, matrix) for child in reversed(children)]
    return found


def _children(node: dict[str, Any], source: str) -> list[int]:
    children = member(node, "children", list, [], source)
    if not all(type(child) is int for child in children):
        raise InputError(
            f"`{source}`: a node's children are {brief(children)}; node numbers are needed. Export it again."
        )
    return children


def local_matrix(node: dict[str, Any], source: str) -> np.ndarray:
    """The matrix [4,4] of one node, from `matrix` or from translation, rotation (xyzw) and scale."""
    if "matrix" in node:
        return numbers(node, "matrix", tuple(np.eye(4).ravel()), source).reshape(4, 4).T
    place, turn = node_pose(node, source)
    matrix = np.eye(4)
    matrix[:3, :3] = matrix_from_quat(turn) * numbers(node, "scale", (1.0, 1.0, 1.0), source)
    matrix[:3, 3] = place
    return matrix


def node_pose(node: dict[str, Any], source: str) -> tuple[np.ndarray, np.ndarray]:
    """Translation [3] and unit wxyz quaternion [4] of a node."""
    xyzw = numbers(node, "rotation", (0.0, 0.0, 0.0, 1.0), source)
    norm = float(np.linalg.norm(xyzw))
    if not norm > 1e-18:
        raise InputError(
            f"`{source}`: a node's rotation has zero length; a unit quaternion is needed. Export it again."
        )
    wxyz = xyzw[[3, 0, 1, 2]]
    return numbers(node, "translation", (0.0, 0.0, 0.0), source), wxyz if abs(norm - 1) < 1e-12 else wxyz / norm


def similarity(matrix: np.ndarray, source: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Rotation [3,3], translation [3] and scale of a node's global matrix; raises `InputError` when it bends shapes."""
    linear = matrix[:3, :3]
    with np.errstate(all="ignore"):
        scale = float(np.cbrt(np.linalg.det(linear)))
        rotation = linear / scale if scale > 0 else linear
        straight = np.isfinite(matrix).all() and scale > 1e-15 and scale < 1e15
        straight = (
            straight
            and np.allclose(matrix[3], (0, 0, 0, 1))
            and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4)
        )
    if not straight:
        raise InputError(
            f"`{source}`: a node scales its Gaussians unevenly or mirrors them; moves, turns and one positive scale "
            "are needed. Apply the scale in the modelling program and export it again."
        )
    left, _, right = np.linalg.svd(rotation)
    return left @ right, matrix[:3, 3], scale


def brief(value: Any) -> str:
    """A value of the file as it may stand in an error text: short, and printable whatever it holds."""
    return repr(value)[:60] if not isinstance(value, (dict, list)) or len(value) < 8 else f"a {type(value).__name__}"
