"""SOG, PlayCanvas' compressed splats: `meta.json` and lossless WebP images, in a folder or zipped as `.sog`.

Each pixel of an image is one Gaussian: positions on a log scale in 16 bits over two images, rotations as the smallest
three, scales and colours as codes of a 256-entry codebook, harmonics as an entry of a palette. Version 1 (no `version`
key) has linear ranges in place of codebooks. The numbers are those of the PLY the file was made from (Right/Down/
Forward by habit): PlayCanvas' splat-transform converts nothing.
Layout: developer.playcanvas.com, "The SOG Format".
"""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gworld.errors import InputError
from gworld.files import atomic_write, check_count, check_memory, existing_file, parse_json, safe_join
from gworld.formats import sog_pack
from gworld.formats.axes import bake_links, to_axes
from gworld.formats.sog_palette import MAX_PALETTE, fit_codebook, fit_palette
from gworld.formats.table import SplatTable, check_table, empty_table

REST_TERMS = {1: 3, 2: 8, 3: 15}
MAX_META_BYTES = 1 << 20
# Real scenes take 8 to 20 bytes per Gaussian. Fewer than a quarter is refused before anything is decoded, beyond a
# number that costs little, because constant images of any size compress to nothing.
FREE_COUNT = 1 << 16
BYTES_EACH = 0.25

Load = Callable[[str, int], bytes]


@dataclass(frozen=True)
class SogMeta:
    """What `meta.json` says, both versions alike: a value for each code instead of codebooks or ranges.

    scales and colors [256,3], opacities [256], rest [256] or None; sh_degree None where only the image's width tells.
    """

    count: int
    files: dict[str, str]
    mins: np.ndarray
    maxs: np.ndarray
    scales: np.ndarray
    colors: np.ndarray
    opacities: np.ndarray
    rest: np.ndarray | None = None
    sh_degree: int | None = 0
    palette: int = MAX_PALETTE


def read_sog(path: str | Path) -> SplatTable:
    """Read a `.sog` file, a folder with `meta.json`, or that file, of version 1 or 2, into a table with axes RDF.

    Opacity codes 0 and 255 of version 2 become logits of +-13.8. Raises `InputError` for damaged or inconsistent files,
    names that lead outside, lossy images, and files with less than a quarter of a byte per Gaussian.
    """
    target = Path(path)
    file = existing_file(target / "meta.json" if target.is_dir() else target)
    with _opened(file) as (load, sizes):
        source = str(file)
        meta = parse_meta(parse_json(load("meta.json", MAX_META_BYTES), source), source)
        total = sum(sizes(name) for name in set(meta.files.values()))
        check_count(meta.count, BYTES_EACH, int(total + FREE_COUNT * BYTES_EACH), source, "Gaussians")
        return check_table(_decode(meta, load, source), source)


def write_sog(table: SplatTable, path: str | Path) -> None:
    """Write a `.sog` file, or, when the name ends in `meta.json`, that file and its images beside it.

    Rows are stored in Morton order and links baked into the world by their rest poses. Lossy: positions to 1/65535 of
    their range on a log scale, rotations to a degree (a third on average), scales and colours to a 256-entry codebook,
    harmonics to a palette of up to 65,536 entries. Raises `InputError` for values that cannot be rendered.
    """
    check_table(table, "the scene to write")
    table = to_axes(bake_links(table), "RDF")
    target = Path(path)
    with ThreadPoolExecutor(2) as pool:
        meta, images = _encode(table, lambda image: pool.submit(sog_pack.encode_webp, image))
        content = {name: future.result() for name, future in images.items()}
    content["meta.json"] = json.dumps(meta, separators=(",", ":"), allow_nan=False).encode()
    if target.name == "meta.json":
        for name, data in content.items():  # meta.json last: it is what readers look for
            with atomic_write(target.with_name(name)) as stream:
                stream.write(data)
        return
    with atomic_write(target) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data)


def parse_meta(meta: Any, source: str) -> SogMeta:
    """Check the parsed `meta.json`; raises `InputError` for what is missing, of another type or out of range."""
    version = _get(meta, source, "version") if isinstance(meta, dict) and "version" in meta else 1
    if version not in (1, 2) or isinstance(version, bool):
        raise InputError(f"`{source}` is SOG version {version!r}; 1 and 2 can be read. Convert it with a newer tool.")
    files = dict(zip(("means_l", "means_u"), _names(meta, source, "means", 2), strict=True))
    for name in ("scales", "quats", "sh0"):
        files[name] = _names(meta, source, name, 1)[0]
    if "shN" in meta:
        files |= zip(("centroids", "labels"), _names(meta, source, "shN", 2), strict=True)
    mins, maxs = _numbers(meta, source, "means", "mins", size=3), _numbers(meta, source, "means", "maxs", size=3)
    if version == 2:
        count = _integer(_get(meta, source, "count"), source, "count")
        opacity = np.clip(np.arange(256) / 255, 1e-6, 1 - 1e-6)
        scales = np.repeat(_codebook(meta, source, "scales")[:, None], 3, axis=1)
        colors = np.repeat(_codebook(meta, source, "sh0")[:, None], 3, axis=1)
        result = SogMeta(count, files, mins, maxs, scales, colors, np.log(opacity / (1 - opacity)))
        if "shN" not in meta:
            return result
        degree = _integer(_get(meta, source, "shN", "bands"), source, "shN.bands", 3)
        palette = _integer(_get(meta, source, "shN", "count"), source, "shN.count", MAX_PALETTE)
        return replace(result, rest=_codebook(meta, source, "shN"), sh_degree=degree, palette=palette)
    shape = _get(meta, source, "means", "shape")
    count = _integer(shape[0] if isinstance(shape, list) and shape else None, source, "means.shape")
    colors = _range(meta, source, "sh0", 4)
    result = SogMeta(count, files, mins, maxs, _range(meta, source, "scales", 3), colors[:, :3], colors[:, 3])
    if "shN" not in meta:
        return result
    return replace(result, rest=_range(meta, source, "shN", 1)[:, 0], sh_degree=None)


def _decode(meta: SogMeta, load: Load, source: str) -> SplatTable:
    count = meta.count

    def pixels(role: str, channels: int = 3) -> np.ndarray:
        """The Gaussians' pixels of one image, its size checked before it is decoded."""
        width, height, bare = _open_image(meta, role, load, source)
        if not count <= width * height <= 2 * count + FREE_COUNT:
            raise InputError(
                f"`{source}`: image `{meta.files[role]}` has {width} x {height} pixels for {count} Gaussians; one each "
                "is needed, and not many more. The file is damaged; export it again."
            )
        found = sog_pack.decode_webp(bare, width, height, f"{source}: {meta.files[role]}")[:count]
        if channels == 4 and found.shape[1] == 3:  # encoders leave out an alpha that is 255 throughout
            found = np.concatenate([found, np.full((count, 1), 255, np.uint8)], axis=1)
        return found

    palette = _decode_palette(meta, load, source) if meta.rest is not None else None
    terms = 0 if palette is None else palette.shape[1]
    check_memory(count * 4 * (14 + 3 * terms), f"reading the {count} Gaussians of `{source}`")
    table = empty_table(count, {0: 0, 3: 1, 8: 2, 15: 3}[terms])
    roles = {"means_l": 3, "means_u": 3, "quats": 4, "scales": 3, "sh0": 4}
    with ThreadPoolExecutor(2) as pool:  # WebP is decoded outside the interpreter's lock
        low, high, quats, scales, colors = pool.map(pixels, roles, roles.values())
    sog_pack.unpack_means(low, high, meta.mins, meta.maxs, table.means)
    sog_pack.unpack_quats(quats, table.quats_wxyz, source)
    for channel in range(3):
        table.log_scales[:, channel] = meta.scales[scales[:, channel], channel]
        table.sh[:, 0, channel] = meta.colors[colors[:, channel], channel]
    table.opacity_logits[:] = meta.opacities[colors[:, 3]]
    if palette is not None:
        codes = pixels("labels")
        labels = codes[:, 0] | codes[:, 1].astype(np.uint16) << 8
        if count and int(labels.max()) >= len(palette):
            raise InputError(
                f"`{source}`: a Gaussian asks for entry {labels.max()} of a palette of {len(palette)}. The file is "
                "damaged; export it again."
            )
        for start in range(0, count, 1 << 14):
            rows = slice(start, start + (1 << 14))
            table.sh[rows, 1:] = palette[labels[rows]]
    return replace(table, axes="RDF")


def _decode_palette(meta: SogMeta, load: Load, source: str) -> np.ndarray:
    """Palette [K, terms, 3] float32 of harmonics above degree 0."""
    width, height, bare = _open_image(meta, "centroids", load, source)
    degrees = {sog_pack.PALETTE_COLUMNS * terms: degree for degree, terms in REST_TERMS.items()}
    degree = degrees.get(width) if meta.sh_degree is None else meta.sh_degree
    if degree not in REST_TERMS or degrees.get(width) != degree:
        raise InputError(
            f"`{source}`: the palette of harmonics is {width} pixels wide; 192, 512 or 960 (degree 1, 2, 3), as stated "
            "in meta.json, are needed. The file is damaged; export it again."
        )
    entries = min(meta.palette, height * sog_pack.PALETTE_COLUMNS)
    if height * sog_pack.PALETTE_COLUMNS > MAX_PALETTE:
        raise InputError(f"`{source}`: the palette of harmonics is {height} rows high; at most 1024 can be addressed.")
    codes = sog_pack.decode_webp(bare, width, height, f"{source}: {meta.files['centroids']}")[:, :3]
    assert meta.rest is not None
    return meta.rest.astype(np.float32)[codes.reshape(-1, REST_TERMS[degree], 3)[:entries]]


def _open_image(meta: SogMeta, role: str, load: Load, source: str) -> tuple[int, int, bytes]:
    name = meta.files[role]
    limit = 8 * meta.count + (5 << 20)  # above what lossless pixels, or the largest palette, can take
    return sog_pack.webp_size(load(name, limit), f"{source}: {name}")


def _encode(
    table: SplatTable, submit: Callable[[np.ndarray], Future[bytes]]
) -> tuple[dict[str, Any], dict[str, Future[bytes]]]:
    """The contents of `meta.json` and the images, whose compression runs while the palette is sought."""
    images: dict[str, Future[bytes]] = {}
    order = sog_pack.morton_order(table.means)

    def queue(name: str, pixels: np.ndarray) -> None:
        images[name] = submit(sog_pack.to_image(pixels[order]))

    low, high, mins, maxs = sog_pack.pack_means(table.means)
    queue("means_l.webp", low)
    queue("means_u.webp", high)
    queue("quats.webp", sog_pack.pack_quats(table.quats_wxyz))
    scale_book, scales = fit_codebook(table.log_scales)
    queue("scales.webp", scales)
    color_book, colors = fit_codebook(table.sh[:, 0])
    queue("sh0.webp", np.concatenate([colors, sog_pack.pack_opacities(table)[:, None]], axis=1))
    meta = {
        "version": 2,
        "asset": {"generator": "gworld"},
        "count": len(table),
        "means": {"mins": mins.tolist(), "maxs": maxs.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": _short(scale_book), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": _short(color_book), "files": ["sh0.webp"]},
    }
    terms = table.sh.shape[1] - 1
    if terms and len(table):
        rest = table.sh[:, 1:].reshape(len(table), 3 * terms)
        palette, labels = fit_palette(rest, palette_size(len(table)))
        book, codes = fit_codebook(palette)
        pixels = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], axis=1).astype(np.uint8)
        images["shN_centroids.webp"] = submit(sog_pack.pack_palette(codes.reshape(-1, terms, 3)))
        queue("shN_labels.webp", pixels)
        files = ["shN_centroids.webp", "shN_labels.webp"]
        meta["shN"] = {"count": len(palette), "bands": table.sh_degree, "codebook": _short(book), "files": files}
    return meta, images


def palette_size(count: int) -> int:
    """Entries of the harmonics' palette: one each up to 4096, then the largest power of two, at most 65,536."""
    return count if count <= 4096 else min(MAX_PALETTE, 1 << (count.bit_length() - 1))


def _short(values: np.ndarray) -> list[float]:
    """Numbers that read back as the same float32, without the digits of float64."""
    return [float(f"{value:.9g}") for value in values.tolist()]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[Load, Callable[[str], int]]]:
    """Ways to load a named part of bounded size, and to ask for its stored size, from an archive or a folder."""
    with open(file, "rb") as stream:
        zipped = stream.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    if not zipped:

        def load_file(name: str, limit: int) -> bytes:
            part = existing_file(safe_join(file.parent, name) if name != "meta.json" else file)
            if part.stat().st_size > limit:
                raise InputError(f"`{part}` has {part.stat().st_size} bytes; at most {limit} make sense.")
            return part.read_bytes()

        yield load_file, lambda name: existing_file(safe_join(file.parent, name)).stat().st_size
        return
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, OverflowError) as error:
        raise InputError(
            f"`{file}` is a damaged zip archive ({str(error)[:80]!r}). Copy or export it again."
        ) from error
    with archive:
        yield (
            (lambda name, limit: _read_member(archive, name, limit, file)),
            (lambda name: min(_member(archive, name, file).compress_size, file.stat().st_size)),
        )


def _member(archive: zipfile.ZipFile, name: str, file: Path) -> zipfile.ZipInfo:
    safe_join(file.parent, name)  # nothing is extracted, but a name that leads outside is no honest one
    try:
        info = archive.getinfo(name)
    except KeyError as error:
        raise InputError(f"`{file}` has no member `{name}`. Is it a SOG archive, complete? Export it again.") from error
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"`{file}`: member `{name}` is encrypted or packed in an unusual way. Export it again.")
    return info


def _read_member(archive: zipfile.ZipFile, name: str, limit: int, file: Path) -> bytes:
    info = _member(archive, name, file)
    try:
        with archive.open(info) as stream:
            data = stream.read(limit + 1)  # the stated size may lie
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"`{file}`: member `{name}` is damaged ({str(error)[:80]!r}). Copy or export the file again."
        ) from error
    if len(data) > limit:
        raise InputError(f"`{file}`: member `{name}` unpacks to more than {limit} bytes; that makes no sense.")
    return data


def _get(meta: Any, source: str, *path: str) -> Any:
    for key in path:
        if not isinstance(meta, dict) or key not in meta:
            raise InputError(f"`{source}`: meta.json lacks `{'.'.join(path)}`. Is it a SOG file? Export it again.")
        meta = meta[key]
    return meta


def _names(meta: Any, source: str, part: str, size: int) -> list[str]:
    names = _get(meta, source, part, "files")
    if not isinstance(names, list) or len(names) != size or not all(isinstance(name, str) for name in names):
        raise InputError(f"`{source}`: meta.json needs {size} file name(s) in `{part}.files`. Export it again.")
    return names


def _integer(value: Any, source: str, what: str, limit: int = sog_pack.MAX_SIDE**2) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise InputError(
            f"`{source}`: `{what}` in meta.json must be a whole number from 0 to {limit}. Export it again."
        )
    return value


def _numbers(meta: Any, source: str, *path: str, size: int | None = None) -> np.ndarray:
    """Finite numbers [size] (or 1 to 256 of them); a single number counts as a list of one."""
    values = _get(meta, source, *path)
    values = values if isinstance(values, list) else [values]
    proper = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    in_range = proper and all(abs(value) <= 1e6 for value in values)
    if not in_range or not 1 <= len(values) <= 256 or size not in (None, len(values)):
        raise InputError(
            f"`{source}`: `{'.'.join(path)}` in meta.json needs {size or '1 to 256'} numbers of size up to 1e6. "
            "Export it again."
        )
    return np.array(values, np.float64)


def _codebook(meta: Any, source: str, part: str) -> np.ndarray:
    """256 values; a shorter book is filled with NaN, which `check_table` refuses where a Gaussian asks for it."""
    book = _numbers(meta, source, part, "codebook")
    return np.concatenate([book, np.full(256 - len(book), np.nan)])


def _range(meta: Any, source: str, part: str, size: int) -> np.ndarray:
    """Values [256, size] of the codes of a linear range."""
    mins, maxs = (_numbers(meta, source, part, end, size=size) for end in ("mins", "maxs"))
    return mins + (maxs - mins) * (np.arange(256) / 255)[:, None]
