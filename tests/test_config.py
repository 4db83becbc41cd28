"""Strict configuration: what is accepted round-trips, what is not is one sentence with the key in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from gworld.config import config_from, load_config, mapping_from, save_config
from gworld.errors import UsageError


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    kind: Literal["mcmc", "classic"] = "mcmc"


@dataclass(frozen=True)
class Sample:
    steps: int = 100
    name: str = "run"
    out: Path = Path("runs/x")
    flag: bool = False
    budget: int | None = None
    size: tuple[int, int] = (640, 480)
    tags: tuple[str, ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    inner: Inner = Inner()


def test_round_trip_is_equal(tmp_path: Path) -> None:
    config = Sample(7, "ü: x", Path("a b/c"), True, 5, (3, 4), ("a", "1e5"), {"k": 2.0}, Inner(2e-4, "classic"))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(Sample, tmp_path / "config.yaml") == config
    assert config_from(Sample, mapping_from(config)) == config


def test_partial_recipe_keeps_nested_defaults(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("inner: {rate: 1e-4}\nsteps: 3\n")
    assert load_config(Sample, path) == Sample(steps=3, inner=Inner(rate=1e-4))
    base = Sample(inner=Inner(kind="classic"))
    assert config_from(Sample, {"inner": {"rate": 0.5}}, base=base).inner == Inner(0.5, "classic")
    path.write_text("")
    assert load_config(Sample, path) == Sample()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", r"unknown option `stepz`. Did you mean `steps`\?"),
        ("inner: {rat: 3}", r"unknown option `inner.rat`. Did you mean `inner.rate`\?"),
        ("steps: 1.5", "`steps` is 1.5; a whole number is needed"),
        ("steps: true", "`steps` is True; a whole number is needed"),
        ("inner: {rate: .nan}", "`inner.rate` is nan; a number is needed"),
        ("inner: {kind: mcmd}", r"one of mcmc, classic is needed. Did you mean `mcmc`\?"),
        ("inner: 3", "a mapping of options is needed"),
        ("name: no", "`name` is False; text is needed"),
        ("size: [1]", "a list of 2 values is needed"),
        ("size: [1, x]", r"`size\[1\]` is 'x'; a whole number"),
        ("budget: x", "`budget` is 'x'; a whole number is needed"),
        ("steps: 1\nsteps: 2", "line 2 repeats the key `steps`"),
        ("a: &x [1]\nb: *x", "line 2 uses an alias"),
        ("!!python/object/apply:os.system [ls]", "not a plain YAML recipe"),
        ("[1, 2]", "holds a list; a mapping"),
        ("a: [", "not a plain YAML recipe"),
        ("1: 2", "a mapping of option names"),
    ],
)
def test_bad_recipes_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_config(Sample, path)
    assert "\n" not in str(caught.value)


def test_nesting_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: " + "[" * 50_000)
    with pytest.raises(UsageError, match="not a plain YAML recipe"):
        load_config(Sample, path)
