"""Mutants of a valid file: each is made from its number alone, so that one that fails can be made again."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

from tests.fuzz.shells import SHELLS, Parts

TRUNCATIONS = 512
COUNTS = (0, 1, -1, 10**9, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64, 10**30)
TEXTS = ("nan", "inf", "-inf", "1e38", "1e39", "1e400", "1e-45", "", "x", "0x10", "1_0", "\u0663", "9" * 5000)
FLOATS = (float("nan"), float("inf"), float("-inf"), 1e38, -1e38, 1e-45, 1e-38, -0.0, 1e10)
JSON_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    1e308,
    0.5,
    "",
    "../x",
    "/etc/passwd",
    [],
    {},
    [[]],
    [0] * 99,
)


def mutate(parts: Parts, number: int, shell: str | None, seed: int = 0) -> Parts:
    """Mutant `number` of a file, or of a folder of files, given as named parts.

    Numbers below 512 cut at that byte; the others are drawn: inside the container where there is a `shell`.
    """
    rng = random.Random(f"{seed}:{number}")
    name = sorted(parts)[number % len(parts)]
    data = parts[name]
    if number < TRUNCATIONS:
        data = data[: number // len(parts)]
    elif shell and rng.random() < 0.6:
        container = SHELLS[shell]
        if rng.random() < 0.12:
            data = container.attack(data, rng)
        else:
            inner = container.open(data)
            chosen = rng.choice(sorted(inner))
            inner[chosen] = _damage(inner[chosen], rng, chosen)
            data = container.close(inner)
    else:
        data = _damage(data, rng, name)
    return {**parts, name: data}


def _damage(data: bytes, rng: random.Random, name: str) -> bytes:
    if name.endswith(".json") and rng.random() < 0.7:
        return _json_value(data, rng)
    if name.endswith(".txt") and rng.random() < 0.7:
        return rng.choice([_text_number, _text_line, _text_word])(data, rng)
    kinds: list[Callable[[bytes, random.Random], bytes]] = [
        _text_number, _text_number, _text_line, _text_word, _integer, _integer,
        _float, _float, _flip, _blocks, _cut, _pad,
    ]  # fmt: skip
    for _ in range(rng.choice([1, 1, 1, 2])):
        data = rng.choice(kinds)(data, rng)
    return data


def _header_end(data: bytes) -> int:
    """Where readable text at the beginning ends (at least 64 bytes): numbers of headers are there."""
    end = data.find(b"end_header")
    return max(64, end if end >= 0 else min(len(data), 2048))


def _text_number(data: bytes, rng: random.Random) -> bytes:
    """Replace a decimal number by its neighbours, by huge ones, by words."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?", data[: _header_end(data)]))
    if not found:
        return _integer(data, rng)
    match = rng.choice(found)
    if rng.random() < 0.7 and b"." not in match[0] and b"e" not in match[0].lower():
        value = int(match[0])
        text = str(rng.choice([value - 1, value + 1, value * 2, *COUNTS]))
    else:
        text = rng.choice(TEXTS)
    return data[: match.start()] + text.encode() + data[match.end() :]


def _text_line(data: bytes, rng: random.Random) -> bytes:
    """Remove, repeat or swap lines of the header."""
    end = _header_end(data)
    lines = data[:end].split(b"\n")
    one, two = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.choice(["remove", "repeat", "swap", "empty"])
    if kind == "remove":
        del lines[one]
    elif kind == "repeat":
        lines.insert(two, lines[one])
    elif kind == "swap":
        lines[one], lines[two] = lines[two], lines[one]
    else:
        lines[one] = rng.choice([b"", b" ", b"\xff\xfe", b"\0", lines[one] + b" x", lines[one] * 3])
    return b"\n".join(lines) + data[end:]


def _text_word(data: bytes, rng: random.Random) -> bytes:
    """Put another word of the header in a word's place: other types, names, elements."""
    words = list(re.finditer(rb"[A-Za-z_][\w]*", data[: _header_end(data)]))
    if not words:
        return _flip(data, rng)
    one, two = rng.choice(words), rng.choice(words)
    word = rng.choice(
        [two[0], b"list", b"double", b"uchar", b"int", b"link", b"ascii", b"binary_big_endian", b"\xc3\xa9"]
    )
    return data[: one.start()] + word + data[one.end() :]


def _place(data: bytes, rng: random.Random, size: int) -> int:
    """An offset, often in the header, often aligned."""
    limit = max(1, len(data) - size + 1)
    place = rng.randrange(min(limit, 64) if rng.random() < 0.4 else limit)
    return place - place % 4 if rng.random() < 0.6 else place


def _integer(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a binary integer: counts, offsets, lengths."""
    size = rng.choice([1, 2, 4, 4, 8])
    if len(data) < size:
        return data
    place = _place(data, rng, size)
    old = int.from_bytes(data[place : place + size], "little")
    value = rng.choice([old - 1, old + 1, old * 2, *COUNTS]) % (1 << 8 * size)
    return data[:place] + value.to_bytes(size, "little") + data[place + size :]


def _float(data: bytes, rng: random.Random) -> bytes:
    """Overwrite float32 or float64 numbers by NaN, infinities, huge and denormal values."""
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 4])):
        code, size = rng.choice([("<f", 4), ("<f", 4), ("<d", 8)])
        if len(result) >= size:
            struct.pack_into(code, result, min(_place(data, rng, size), len(result) - size), rng.choice(FLOATS))
    return bytes(result)


def _flip(data: bytes, rng: random.Random) -> bytes:
    """Flip up to 16 bits."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 16) if data else 0):
        result[_place(data, rng, 1)] ^= 1 << rng.randrange(8)
    return bytes(result)


def _blocks(data: bytes, rng: random.Random) -> bytes:
    """Swap, repeat or remove blocks."""
    a, b, c, d = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    kind = rng.choice(["swap", "repeat", "remove", "zero"])
    if kind == "swap":
        return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
    if kind == "repeat":
        return data[:b] + data[a:b] + data[b:]
    return data[:a] + data[b:] if kind == "remove" else data[:a] + bytes(b - a) + data[b:]


def _cut(data: bytes, rng: random.Random) -> bytes:
    """Truncate anywhere."""
    return data[: rng.randrange(len(data) + 1)]


def _pad(data: bytes, rng: random.Random) -> bytes:
    """Append zeros, noise or the file itself; or put a byte before it."""
    extra = rng.choice([bytes(rng.randint(1, 5000)), rng.randbytes(rng.randint(1, 64)), data, b"\n"])
    return data + extra if rng.random() < 0.8 else extra[:1] + data


def _json_value(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or nest one value of a JSON document."""
    try:
        document = json.loads(data)
    except ValueError:
        return data
    holder = {"root": document}
    places: list[tuple[Any, Any]] = []
    stack: list[Any] = [holder]
    while stack:
        owner = stack.pop()
        for key in owner if isinstance(owner, dict) else range(len(owner)):
            places.append((owner, key))
            if isinstance(owner[key], (dict, list)):
                stack.append(owner[key])
    for _ in range(rng.choice([1, 1, 2])):
        owner, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.15 and owner is not holder and isinstance(owner, dict):
            owner.pop(key, None)
        elif kind < 0.4 and (isinstance(owner, list) or key in owner):
            owner[key] = _near(owner[key] if isinstance(owner, dict) or key < len(owner) else 0, rng)
        elif isinstance(owner, dict) or key < len(owner):
            owner[key] = rng.choice(JSON_VALUES)
    text = json.dumps(holder["root"])
    if rng.random() < 0.06:
        text = rng.choice(
            ["[" * 100_000, '{"a":' * 50_000, text.replace("0", "NaN", 1), text.replace("1", "1e999", 1), "9" * 10_000]
        )
    return text.encode()


def _near(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return rng.choice([value - 1, value + 1, -value, value * 1000, value + 0.5, str(value), [value]])
    if isinstance(value, float):
        return rng.choice([-value, value * 1e30, 1e39, 1e308, 1e-45, 0.0, str(value), float("nan"), float("inf")])
    if isinstance(value, str):
        return rng.choice([value + "x", value[:-1], value.upper(), "../" + value, "/" + value, value * 1000, 7, "\0"])
    if isinstance(value, list):
        return rng.choice([value[:-1], value + value, [*value, None], {"0": value}, value[::-1]])
    return rng.choice([[value], list(value), {**value, "extra": value}])
