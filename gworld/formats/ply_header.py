"""Headers of PLY files: elements, properties, comments; bounded, and checked against the file's size.

Source: Turk, "The PLY Polygon File Format", 1994. Only the header is read here; `ply` and `compressed_ply` read rows.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

import numpy as np

from gworld.errors import InputError
from gworld.files import check_count, existing_file
from gworld.formats.table import Axes, Link, SplatTable

MAX_HEADER_BYTES = 1 << 20
MAX_PROPERTIES = 4096
MAX_ELEMENTS = 64

Encoding = Literal["<", ">", "ascii"]

_ENCODINGS: dict[str, Encoding] = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "ascii"}
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float": "f4", "double": "f8", "float32": "f4", "float64": "f8",
}  # fmt: skip
_LINK = re.compile(r"link\s+(\d{1,7})\s(\S*)\s+(\S.*)")


@dataclass(frozen=True)
class PlyElement:
    """One table of a PLY file: `properties` maps names to numpy type codes; `fixed` is False where it holds lists."""

    name: str
    count: int
    properties: dict[str, str]
    fixed: bool = True

    def row(self, encoding: Encoding) -> np.dtype:
        """The structured type of one row, packed (little endian for ascii files, which are parsed into it)."""
        order = "<" if encoding == "ascii" else encoding
        return np.dtype([(name, order + code) for name, code in self.properties.items()])


@dataclass(frozen=True)
class PlyLayout:
    """What a header says: `elements` in file order, comment texts, and the byte at which the data starts."""

    path: Path
    encoding: Encoding
    elements: tuple[PlyElement, ...]
    comments: tuple[str, ...]
    offset: int
    size: int

    def element(self, name: str) -> PlyElement | None:
        """The element of that name, or None."""
        return next((element for element in self.elements if element.name == name), None)


@dataclass(frozen=True)
class Remarks:
    """What gworld writes into comments: axes, metric flag, links."""

    axes: Axes | None = None
    metric: bool = False
    link_table: tuple[Link, ...] = (Link("world"),)


def read_ply_layout(path: str | Path) -> PlyLayout:
    """Read and check the header of a PLY file.

    Raises `InputError` when it is not a PLY file, when the header is damaged or longer than 1 MB, or when a fixed-size
    element does not fit into the file.
    """
    file = existing_file(path)
    with open(file, "rb") as stream:
        head = stream.read(MAX_HEADER_BYTES)
        size = stream.seek(0, 2)
    if not re.match(rb"ply[ \t]*\r?\n", head):
        raise InputError(
            f"`{file}` does not begin with `ply`; it is not a PLY file. Check the path, or export it again."
        )
    end = re.search(rb"\nend_header[ \t]*\r?\n", head)
    if end is None:
        raise InputError(
            f"`{file}`: the PLY header has no `end_header` in its first {len(head)} bytes; it is cut off or damaged. "
            "Copy or export the file again."
        )
    lines = head[: end.start()].decode("utf-8", "replace").split("\n")[1:]
    encoding, elements, comments = _parse_lines([line.strip() for line in lines], file)
    layout = PlyLayout(file, encoding, elements, comments, end.end(), size)
    _check_sizes(layout)
    return layout


def element_offset(layout: PlyLayout, name: str) -> int:
    """Byte at which the rows of a binary element start; raises `InputError` when lists of unknown length precede it."""
    position = layout.offset
    for element in layout.elements:
        if element.name == name:
            return position
        if not element.fixed:
            raise InputError(
                f"`{layout.path}`: element `{element.name}` has list properties and precedes `{name}`; `{name}` must "
                "come first. Export the file again without it."
            )
        position += element.count * element.row(layout.encoding).itemsize
    raise InputError(f"`{layout.path}` has no element `{name}`; this is not a splat file. Choose another file.")


def parse_remarks(comments: tuple[str, ...]) -> Remarks:
    """Axes, metric flag and links from `comment gworld ...` lines; what is not understood is left out."""
    axes: Axes | None = None
    metric = False
    links: dict[int, Link] = {}
    for comment in comments:
        if not comment.startswith("gworld "):
            continue
        text = comment[len("gworld ") :].strip()
        words = text.split()
        if len(words) == 2 and words[0] == "axes" and words[1] in ("RDF", "RUB", "RFU"):
            axes = words[1]  # type: ignore[assignment]  # the condition above narrows it to the three literals
        elif len(words) == 2 and words[0] == "metric":
            metric = words[1] in ("1", "true")
        elif match := _LINK.fullmatch(text):
            link = _parse_link(unquote(match[2]), match[3].split())
            if link is not None:
                links.setdefault(int(match[1]), link)
    # A gap ends the table: `check_table` then refuses rows that need what follows it.
    count = next(index for index in range(len(links) + 1) if index not in links)
    table = tuple(links[index] for index in range(count))
    return Remarks(axes, metric, table or (Link("world"),))


def format_remarks(table: SplatTable) -> list[str]:
    """Header lines that `parse_remarks` reads back; floats are written so that they round-trip."""
    lines = []
    if table.axes is not None:
        lines.append(f"comment gworld axes {table.axes}")
    if table.metric:
        lines.append("comment gworld metric 1")
    if table.link_table != (Link("world"),):
        for index, link in enumerate(table.link_table):
            pose = " ".join(repr(float(value)) for value in link.pose)
            parent = f" {link.parent}" if link.parent >= 0 else ""
            lines.append(f"comment gworld link {index} {quote(link.name, safe='/:+,()[]@')} {pose}{parent}")
    return lines


def _parse_link(name: str, words: list[str]) -> Link | None:
    """A link of `x y z qw qx qy qz [parent]`, or None where that is no pose."""
    try:
        pose = tuple(float(word) for word in words[:7])
        parent = int(words[7]) if len(words) == 8 and len(words[7]) <= 7 else -1
    except ValueError:
        return None
    usable = len(words) in (7, 8) and all(math.isfinite(value) and abs(value) <= 1e9 for value in pose)
    return Link(name, pose, max(parent, -1)) if usable and any(abs(value) > 1e-18 for value in pose[3:]) else None


def _parse_lines(lines: list[str], file: Path) -> tuple[Encoding, tuple[PlyElement, ...], tuple[str, ...]]:
    encoding: Encoding | None = None
    elements: list[PlyElement] = []
    comments = []
    for line in lines:
        words = line.split()
        if not words or words[0] == "obj_info":
            continue
        if words[0] == "comment":
            comments.append(line[len("comment") :].strip())
        elif words[0] == "format" and len(words) == 3 and words[1] in _ENCODINGS:
            encoding = _ENCODINGS[words[1]]
        elif words[0] == "element" and len(words) == 3 and _is_count(words[2]):
            if any(element.name == words[1] for element in elements) or len(elements) >= MAX_ELEMENTS:
                raise InputError(
                    f"`{file}`: element `{words[1]}` repeats, or over {MAX_ELEMENTS} are there. Export the file again."
                )
            elements.append(PlyElement(words[1], int(words[2]), {}))
        elif words[0] == "property" and elements:
            elements[-1] = _with_property(elements[-1], words[1:], line, file)
        else:
            raise InputError(f"`{file}`: the PLY header line {line[:80]!r} is not understood. Export the file again.")
    if encoding is None:
        raise InputError(f"`{file}`: the PLY header names no known format; binary or ascii is needed. Export it again.")
    return encoding, tuple(elements), tuple(comments)


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 19


def _with_property(element: PlyElement, words: list[str], line: str, file: Path) -> PlyElement:
    if len(words) == 4 and words[0] == "list" and words[1] in _TYPES and words[2] in _TYPES:
        return PlyElement(element.name, element.count, element.properties, fixed=False)
    if len(words) != 2 or words[0] not in _TYPES:
        raise InputError(f"`{file}`: the PLY header line {line[:80]!r} is not understood. Export the file again.")
    if words[1] in element.properties or len(element.properties) >= MAX_PROPERTIES:
        raise InputError(
            f"`{file}`: property `{words[1][:80]}` of element `{element.name[:80]}` repeats, or over {MAX_PROPERTIES} "
            "are there. Export the file again."
        )
    element.properties[words[1]] = _TYPES[words[0]]
    return element


def _check_sizes(layout: PlyLayout) -> None:
    available = layout.size - layout.offset
    for element in layout.elements:
        if not element.fixed or not element.properties:
            continue
        if layout.encoding == "ascii":  # a digit and a separator are the least a value takes; the last may lack one
            check_count(element.count, 2.0 * len(element.properties), available + 1, str(layout.path), element.name)
        else:
            row = element.row(layout.encoding).itemsize
            check_count(element.count, float(row), available, str(layout.path), f"rows of `{element.name}`")
            available -= element.count * row
