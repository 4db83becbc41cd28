"""XML from strangers: parsed with caps, without document types, entities or anything from the network."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from gworld.errors import InputError
from gworld.files import existing_file

MAX_BYTES, MAX_ELEMENTS, MAX_DEPTH = 32 << 20, 200_000, 200


def read_xml(path: str | Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises `InputError` for a file that is too big, too deep, not UTF-8, not well-formed, or that declares a document
    type (the way to entity bombs and to other files).
    """
    file = existing_file(path)
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"`{file}` has {size} bytes; at most {MAX_BYTES} are read as XML.")
    return parse_xml(file.read_bytes(), str(file))


def parse_xml(data: bytes, source: str) -> ElementTree.Element:
    """The root element of XML bytes; see `read_xml`."""
    guard = _Guard(source)
    try:
        parser = ElementTree.XMLParser(target=guard)
        parser.feed(data.decode("utf-8-sig"))  # as text: no declared encoding can turn the bytes into others
        root: ElementTree.Element = parser.close()
    except UnicodeDecodeError as error:
        raise InputError(f"`{source}` is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"`{source}` is not well-formed XML: {error}. Export it again.") from error
    return root


class _Guard:
    """A tree builder that counts."""

    def __init__(self, source: str) -> None:
        self.source, self.count, self.depth = source, 0, 0
        self.builder = ElementTree.TreeBuilder()

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.count += 1
        self.depth += 1
        if self.count > MAX_ELEMENTS or self.depth > MAX_DEPTH:
            raise InputError(
                f"`{self.source}` has more than {MAX_ELEMENTS} elements or {MAX_DEPTH} levels; a robot has fewer."
            )
        self.builder.start(tag, attributes)

    def end(self, tag: str) -> None:
        self.depth -= 1
        self.builder.end(tag)

    def data(self, text: str) -> None:
        self.builder.data(text)

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise InputError(f"`{self.source}` declares a document type; robots need none, and it could hide a bomb.")

    def close(self) -> ElementTree.Element:
        return self.builder.close()


def numbers(text: str | None, count: int, source: str, what: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """`count` finite numbers of an attribute, or `default` where it is missing; raises `InputError` otherwise."""
    if text is None:
        return default
    try:
        values = tuple(float(word) for word in text.split())
    except ValueError:
        values = ()
    if len(values) != count or not all(abs(value) < 1e9 for value in values):
        raise InputError(f"`{source}`: {what} is {text[:60]!r}; {count} finite numbers are needed.")
    return values
