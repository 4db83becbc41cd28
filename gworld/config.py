"""Strict configuration: frozen dataclasses to and from plain YAML, every key checked, nothing executed.

A knob is a field of the frozen dataclass in the file that reads it. A recipe is a YAML mapping of some of those fields;
the command line overrides it; the merged result is written into the run and repeats it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from gworld.errors import UsageError
from gworld.files import atomic_write, existing_file

T = TypeVar("T")
MAX_CONFIG_BYTES = 1 << 20


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases (no expansion bombs), without repeated keys, with `1e-3` read as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1} uses an alias; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.YAMLError(f"line {node.value[position][0].start_mark.line + 1} repeats the key `{key}`")
        return super().construct_mapping(node, deep)


class _StrictDumper(yaml.SafeDumper):
    """Safe YAML that quotes every text the strict loader would take for a number."""


_SCIENTIFIC = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
for _kind in (_StrictLoader, _StrictDumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789"))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The mapping of a YAML recipe; raises `UsageError` when it is too large, not YAML, or not a mapping."""
    file = existing_file(path)
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise UsageError(f"`{file}` has {file.stat().st_size} bytes; a recipe has at most {MAX_CONFIG_BYTES}.")
    try:
        loader = _StrictLoader(file.read_text(encoding="utf-8"))
        value = loader.get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"`{file}` is not a plain YAML recipe: {reason}.") from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"`{file}` holds a {type(value).__name__}; a mapping of option names to values is needed.")
    return value


def load_config(kind: type[T], path: str | Path) -> T:
    """A config of dataclass `kind` from a YAML recipe over the defaults; raises `UsageError` for a bad key or value."""
    return config_from(kind, read_recipe(path), source=f"`{path}`")


def save_config(config: Any, path: str | Path) -> None:
    """Write a config dataclass as YAML, atomically; `load_config` gives back an equal one."""
    with atomic_write(path, "w") as stream:
        plain = mapping_from(config)
        yaml.dump(plain, stream, _StrictDumper, sort_keys=False, allow_unicode=True, default_flow_style=None)


def mapping_from(config: Any) -> dict[str, Any]:
    """A config dataclass as plain YAML values (paths become strings, tuples lists)."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def config_from(kind: type[T], mapping: dict[str, Any], source: str = "the config", base: T | None = None) -> T:
    """Build dataclass `kind` from a mapping over `base` (or the defaults).

    Raises `UsageError` naming `source` and the dotted key for an unknown key (with the nearest known one) or a value of
    the wrong type.
    """
    return _build(kind, mapping, source, "", base)


def _build(kind: Any, mapping: Any, source: str, prefix: str, base: Any) -> Any:
    if not isinstance(mapping, dict):
        raise UsageError(f"{source}: `{prefix.rstrip('.')}` is {mapping!r}; a mapping of options is needed.")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if f.init]
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean `{prefix}{near[0]}`?" if near else f"Known options: {', '.join(known)}."
            raise UsageError(f"{source}: unknown option `{prefix}{key}`. {hint}")
        old = getattr(base, key) if base is not None else _default(kind, key)
        values[key] = _convert(hints[key], value, source, prefix + key, old)
    try:
        return dataclasses.replace(base, **values) if base is not None else kind(**values)
    except TypeError as error:
        missing = [f.name for f in dataclasses.fields(kind) if f.name not in values and _default(kind, f.name) is None]
        raise UsageError(
            f"{source}: options missing under `{prefix or kind.__name__}`: {', '.join(missing)}."
        ) from error


def _default(kind: Any, name: str) -> Any:
    spec = next(f for f in dataclasses.fields(kind) if f.name == name)
    if spec.default is not dataclasses.MISSING:
        return spec.default
    return spec.default_factory() if spec.default_factory is not dataclasses.MISSING else None


def _convert(hint: Any, value: Any, source: str, key: str, old: Any) -> Any:
    """`value` as the annotated type `hint`, or `UsageError`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _convert(arguments[0], value, source, key, old)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, source, key + ".", old if isinstance(old, typing.cast(type, hint)) else None)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, source, key, old)
    if origin is Literal:
        if value in arguments and type(value) in {type(choice) for choice in arguments}:
            return value
        near = difflib.get_close_matches(str(value), [str(choice) for choice in arguments], n=1)
        hint_text = f" Did you mean `{near[0]}`?" if near else ""
        raise UsageError(
            f"{source}: `{key}` is {value!r}; one of {', '.join(map(str, arguments))} is needed.{hint_text}"
        )
    if origin in (tuple, list):
        return _convert_sequence(origin, arguments, value, source, key)
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(source, key, value, "a mapping")
        return {k: _convert(arguments[1], v, source, f"{key}.{k}", None) for k, v in value.items()}
    return _convert_scalar(hint, value, source, key)


def _convert_union(choices: tuple[Any, ...], value: Any, source: str, key: str, old: Any) -> Any:
    if value is None and type(None) in choices:
        return None
    problem: UsageError | None = None
    for choice in choices:
        if choice is not type(None):
            try:
                return _convert(choice, value, source, key, old)
            except UsageError as error:
                problem = problem or error
    assert problem is not None
    raise problem


def _convert_sequence(origin: Any, arguments: tuple[Any, ...], value: Any, source: str, key: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _wrong(source, key, value, "a list")
    if origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
        inner = [arguments[0]] * len(value)
    else:
        inner = list(arguments)
        if len(inner) != len(value):
            raise _wrong(source, key, value, f"a list of {len(inner)} values")
    items = [_convert(h, v, source, f"{key}[{i}]", None) for i, (h, v) in enumerate(zip(inner, value, strict=True))]
    return origin(items)


def _convert_scalar(hint: Any, value: Any, source: str, key: str) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value):
            raise _wrong(source, key, value, "a number")
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text", Path: "a path"}
    raise _wrong(source, key, value, names.get(hint, f"a value of type {hint}"))


def _wrong(source: str, key: str, value: Any, need: str) -> UsageError:
    return UsageError(f"{source}: `{key}` is {value!r}; {need} is needed.")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return mapping_from(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
