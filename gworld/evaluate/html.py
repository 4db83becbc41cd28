"""Pages in one file: fragments of HTML made of plain data, and the page around them.

Every function returns a piece of HTML as `Fragment`; text that comes from outside is escaped by `text` or by the
functions that take strings. A page needs no network and no script: pictures and films are in it, charts are SVG
(`charts.py`), light and dark follow the reader's system, and it prints.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NewType

import numpy as np

from gworld.errors import InputError
from gworld.files import atomic_write

Fragment = NewType("Fragment", str)
"""A piece of HTML whose text is escaped."""

Verdict = Literal["good", "poor", "none"]


@dataclass(frozen=True)
class Tile:
    """One headline figure: what it is, its value as text, and a note below (a baseline, a limit)."""

    label: str
    value: str
    note: str = ""
    verdict: Verdict = "none"


STYLE = """
:root{--paper:#fff;--ink:#1b1f24;--soft:#5c6670;--line:#d9dee3;--card:#f6f7f9;--good:#137a4b;--poor:#b3261e;
--warn:#fff4d6;--warn-ink:#6b4a00;--s1:#2563b0;--s2:#c2570c;--s3:#137a4b;--s4:#8b3fa8;--s5:#6b7280}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e6e9ec;--soft:#9aa4ae;--line:#333a42;--card:#1d2127;
--good:#4cc38a;--poor:#ff8a80;--warn:#3a2f12;--warn-ink:#ffd98a;--s1:#6ea8f0;--s2:#f0954f;--s3:#4cc38a;--s4:#c98be0;
--s5:#9aa4ae}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-print-color-adjust:exact;print-color-adjust:exact}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px;padding-top:14px;
border-top:1px solid var(--line)}h3{font-size:15px;margin:18px 0 6px}p{margin:6px 0 10px;max-width:75ch}
.soft,figcaption,.tile small{color:var(--soft)}.lead{font-size:17px;margin:12px 0 16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:14px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.tile span{display:block;font-size:12.5px;color:var(--soft)}.tile b{display:block;font-size:22px;line-height:1.25;
font-variant-numeric:tabular-nums;font-weight:600}.tile small{font-size:12.5px;line-height:1.35;display:block}
.good{color:var(--good)}.poor{color:var(--poor)}
table{border-collapse:collapse;margin:8px 0;font-variant-numeric:tabular-nums;font-size:14px;max-width:100%}
th,td{text-align:left;padding:4px 16px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft)}td.n,th.n{text-align:right}.scroll{overflow-x:auto}
figure{margin:10px 0}figcaption{font-size:13px;margin-top:4px}img,svg,video{max-width:100%;height:auto;display:block}
img,video{border-radius:3px;background:#000}.row{display:grid;gap:8px;margin:6px 0 16px}
.row figure{margin:0}.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:18px}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px;font-size:13px;
overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;margin:6px 0}
ul.warn{list-style:none;margin:12px 0;padding:10px 14px;background:var(--warn);color:var(--warn-ink);border-radius:8px}
details summary{cursor:pointer;color:var(--soft)}footer{margin-top:40px;font-size:13px;color:var(--soft)}
svg text{fill:var(--soft);font-size:12px;font-family:inherit}svg .name{fill:var(--ink)}svg .axis{stroke:var(--line)}
@media print{main{max-width:none;padding:0}h2{break-after:avoid}figure,.tile,table,.row,svg{break-inside:avoid}
details[open] summary{display:none}pre{white-space:pre-wrap}body{font-size:11pt}.pair{grid-template-columns:1fr 1fr}}
"""


def text(value: object) -> Fragment:
    """A value as escaped text."""
    return Fragment(html.escape(str(value), quote=True))


def join(parts: Iterable[Fragment]) -> Fragment:
    """Pieces one after the other."""
    return Fragment("\n".join(parts))


def paragraph(content: str, kind: str = "") -> Fragment:
    """A paragraph of plain text; `kind` is a class of the style sheet (lead, soft)."""
    return Fragment(f'<p class="{text(kind)}">{text(content)}</p>' if kind else f"<p>{text(content)}</p>")


def section(title: str, *parts: Fragment) -> Fragment:
    """A part of the page under a heading; nothing when there is nothing in it."""
    inner = [part for part in parts if part]
    return Fragment(f"<section><h2>{text(title)}</h2>\n{join(inner)}\n</section>") if inner else Fragment("")


def tiles(figures: Sequence[Tile]) -> Fragment:
    """Headline figures side by side."""
    cells = [
        f'<div class="tile"><span>{text(tile.label)}</span><b class="{tile.verdict}">{text(tile.value)}</b>'
        f"<small>{text(tile.note)}</small></div>"
        for tile in figures
    ]
    return Fragment('<div class="tiles">' + "".join(cells) + "</div>") if cells else Fragment("")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[int] = ()) -> Fragment:
    """Rows of text under their columns; the columns `numeric` stand right. Cells that are Fragments stay as they are.

    Raises `InputError` when a row has another length than the columns.
    """
    if any(len(row) != len(columns) for row in rows):
        raise InputError(f"a table with {len(columns)} columns was given rows of other lengths.")

    def cell(tag: str, column: int, value: object) -> str:
        kind = ' class="n"' if column in numeric else ""
        return f"<{tag}{kind}>{value if isinstance(value, _Marked) else text(value)}</{tag}>"

    head = "".join(cell("th", index, name) for index, name in enumerate(columns))
    body = "".join("<tr>" + "".join(cell("td", i, value) for i, value in enumerate(row)) + "</tr>" for row in rows)
    if not rows:
        return Fragment("")
    return Fragment(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


class _Marked(str):
    """HTML that is already safe, told from plain text when it stands in a table."""

    __slots__ = ()


def verdict(ok: bool | None) -> str:
    """A table cell that says in word and colour whether a limit is kept."""
    if ok is None:
        return _Marked('<span class="soft">not judged</span>')
    return _Marked('<span class="good">✓ kept</span>' if ok else '<span class="poor">✗ broken</span>')


def warnings_list(messages: Sequence[str]) -> Fragment:
    """Warnings in a box; nothing when there are none."""
    items = "".join(f"<li>⚠ {text(message)}</li>" for message in messages)
    return Fragment(f'<ul class="warn">{items}</ul>' if messages else "")


def code(content: str) -> Fragment:
    """Text as it was typed."""
    return Fragment(f"<pre>{text(content)}</pre>")


def folded(summary: str, content: Fragment) -> Fragment:
    """Content behind a line that opens it."""
    return Fragment(f"<details><summary>{text(summary)}</summary>{content}</details>" if content else "")


def figure(content: Fragment, caption: str = "") -> Fragment:
    """A picture or chart with its caption."""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return Fragment(f"<figure>{content}{below}</figure>")


def row(parts: Sequence[Fragment]) -> Fragment:
    """Figures of equal width side by side."""
    return Fragment(f'<div class="row" style="grid-template-columns:repeat({max(len(parts), 1)},1fr)">'
                    + "".join(parts) + "</div>") if parts else Fragment("")  # fmt: skip


def pair(*parts: Fragment) -> Fragment:
    """Wide figures side by side where there is room, else below each other."""
    return Fragment('<div class="pair">' + "".join(f"<div>{part}</div>" for part in parts if part) + "</div>")


def image(pixels: np.ndarray, alt: str, *, longest: int = 640, lossless: bool = False) -> Fragment:
    """A picture `[H,W,3]` (uint8, or float in 0..1) in the page itself, shrunk to `longest` pixels; JPEG or PNG."""
    from PIL import Image

    picture = Image.fromarray(to_uint8(pixels))
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    if lossless:
        picture.save(data, "PNG", optimize=True)
    else:
        picture.save(data, "JPEG", quality=88, subsampling=0)
    kind = "png" if lossless else "jpeg"
    size = f'width="{picture.width}" height="{picture.height}"'
    return Fragment(f'<img {size} alt="{text(alt)}" src="data:image/{kind};base64,{encoded(data.getvalue())}">')


def film(data: bytes, alt: str) -> Fragment:
    """An MP4 in the page itself, playing over and over without sound."""
    source = f"data:video/mp4;base64,{encoded(data)}"
    return Fragment(f'<video controls autoplay loop muted playsinline title="{text(alt)}" src="{source}"></video>')


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Pixels `[H,W,C]` as uint8; floats are meant as 0..1, NaN becomes black."""
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or 0 in pixels.shape:
        raise InputError(f"a picture of a page has shape {list(pixels.shape)}; [H, W, 3] is needed.")
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    return np.round(np.clip(np.nan_to_num(pixels.astype(np.float32)), 0, 1) * 255).astype(np.uint8)


def encoded(data: bytes) -> str:
    """Bytes for a data URL."""
    return base64.b64encode(data).decode("ascii")


def page(title: str, *parts: Fragment, footer: str = "") -> str:
    """A whole page of the given parts."""
    inner = join([part for part in parts if part])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # Nothing may be loaded and nothing may run, whatever stands in the text.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><main>\n{inner}\n"
        f"<footer>{text(footer)}</footer></main></body></html>\n"
    )


def write_page(path: str | Path, content: str) -> None:
    """Write a page; it appears when it is complete."""
    with atomic_write(path, "w") as stream:
        stream.write(content)
