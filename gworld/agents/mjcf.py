"""What an MJCF file would make MuJoCo open or build, looked through before MuJoCo sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from gworld.agents.xml import read_xml
from gworld.errors import InputError

MAX_COPIES, MAX_PIXELS, MAX_INCLUDES = 10_000, 1 << 26, 200
DIRECTORIES = ("meshdir", "texturedir", "assetdir")


def check_mjcf(path: Path, folders: Sequence[Path]) -> tuple[Path, ...]:
    """All files an MJCF consists of, itself first.

    Raises `InputError` when one lies outside its own folder and `folders`, when an included file is not well-formed,
    or when it asks for copies, fields or textures without measure.
    """
    roots = [folder.resolve() for folder in (path.parent, *folders)]
    documents, queue = {path: read_xml(path)}, [path]
    named: list[tuple[Path, str]] = []
    for document in queue:  # grows while it is read
        for element in documents[document].iter():
            _check_size(element, document)
            for name in _names(element):
                named.append((document, name))
                if not name.lower().endswith((".xml", ".mjcf")):
                    continue
                for found in _candidates(name, document, path, documents.values()):
                    _check_inside(found, roots, document)
                    if found not in documents:
                        documents[found] = read_xml(found)
                        queue.append(found)
        if len(queue) > MAX_INCLUDES:
            raise InputError(f"`{path}` includes more than {MAX_INCLUDES} files; a robot has fewer.")
    for root in documents.values():
        _check_copies(root, path)
    files = dict.fromkeys(documents)
    for document, name in named:
        for found in _candidates(name, document, path, documents.values()):
            _check_inside(found, roots, document)
            files[found] = None
    return tuple(files)


def _names(element: Element) -> Iterator[str]:
    """The file names an element holds: `file`, and a cube texture's six."""
    for key, value in element.attrib.items():
        if key.startswith("file") and value:
            yield value


def _candidates(name: str, document: Path, main: Path, documents: Iterable[Element]) -> list[Path]:
    """Every file that is there and that MuJoCo could mean by `name`."""
    folders = {""}
    for root in documents:
        for compiler in root.iter("compiler"):
            folders.update(compiler.get(key, "") for key in DIRECTORIES)
    found: dict[Path, None] = {}
    for base in (main.parent, document.parent):
        for folder in folders:
            for spelt in (name, Path(name).name):
                try:
                    candidate = Path(os.path.normpath(base / folder / spelt))
                    if candidate.is_file():
                        found[candidate] = None
                except (OSError, ValueError) as error:
                    raise InputError(f"`{document}` names the file {name[:60]!r}: {error}.") from error
    return list(found)


def _check_inside(file: Path, roots: Sequence[Path], document: Path) -> None:
    real = file.resolve()
    if not any(root == real or root in real.parents for root in roots):
        raise InputError(
            f"`{document}` names `{file}`, which lies outside the robot's folder; give the folder it may be read from."
        )


def _whole(element: Element, key: str) -> float:
    """The product of an attribute's numbers (1 where it is missing), infinite when they are not numbers."""
    product = 1.0
    for word in element.get(key, "").split():
        try:
            product *= max(float(word), 1.0)
        except ValueError:
            return float("inf")
    return product


def _check_size(element: Element, document: Path) -> None:
    pixels = _whole(element, "width") * _whole(element, "height") if element.tag == "texture" else 1.0
    cells = _whole(element, "nrow") * _whole(element, "ncol") if element.tag == "hfield" else 1.0
    if not max(pixels, cells) <= MAX_PIXELS:
        raise InputError(f"`{document}`: a <{element.tag}> has more than {MAX_PIXELS} pixels; make it smaller.")
    if element.tag == "size" and any(key != "memory" and not _whole(element, key) <= 1e7 for key in element.attrib):
        raise InputError(f"`{document}`: <size> asks for more than 10 million of something; leave it out.")


def _check_copies(root: Element, path: Path) -> None:
    queue = [(root, 1.0)]
    total = 0.0
    while queue:
        element, copies = queue.pop()
        if element.tag in ("replicate", "composite", "flexcomp"):
            copies *= _whole(element, "count")
            total += copies
        if not total <= MAX_COPIES:
            raise InputError(f"`{path}` asks for more than {MAX_COPIES} copies of a part; a robot has fewer.")
        queue.extend((child, copies) for child in element)
