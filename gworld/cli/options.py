"""Options of a command: a frozen dataclass, filled from defaults, then a YAML recipe, then flags."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import tyro

from gworld.errors import UsageError

T = TypeVar("T")
MARKS = (tyro.conf.FlagCreatePairsOff,)


def parse_options(kind: type[T], arguments: Sequence[str], name: str, about: str) -> T:
    """`kind` from the command line over `--config RECIPE.yaml` over its defaults.

    Raises `UsageError` with one sentence for anything that does not parse; `--help` prints and exits.
    """
    rest, recipe = _take_config(list(arguments))
    default = _recipe_default(kind, recipe) if recipe else None
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                kind,
                args=rest,
                default=default,
                prog=f"gworld {name}",
                description=f"{about} Takes --config RECIPE.yaml too; flags override it.",
                config=MARKS,
            )
            return cast(T, parsed)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{_first_fact(complaint.getvalue())} See `gworld {name} --help`.") from None


def completion_script(kinds: dict[str, Any], shell: str) -> str:
    """A completion script for the whole command line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        arguments = ["--tyro-print-completion", shell]
        tyro.extras.subcommand_cli_from_dict(kinds, prog="gworld", args=arguments, config=MARKS)
    return out.getvalue()


def print_json(value: Any) -> None:
    """Print one JSON object for machines on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False, default=str))


def say(text: str = "") -> None:
    """Print a line for people on stderr, so that stdout stays clean for results."""
    print(text, file=sys.stderr, flush=True)


def ticker(label: str, count: int, begin: float) -> Callable[[int], None]:
    """A function that prints a plain line of progress, at most every five seconds; `begin` by `time.monotonic`."""
    from gworld.runlog import progress_line

    last = begin

    def tick(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 5.0:
            last = now
            say(progress_line(label, done, count, now - begin))

    return tick


def _take_config(arguments: list[str]) -> tuple[list[str], str | None]:
    if sum(word == "--config" or word.startswith("--config=") for word in arguments) > 1:
        raise UsageError("`--config` was given twice; one recipe is read.")
    for index, word in enumerate(arguments):
        if word == "--config":
            if index + 1 == len(arguments):
                raise UsageError("`--config` needs the path of a YAML recipe.")
            return arguments[:index] + arguments[index + 2 :], arguments[index + 1]
        if word.startswith("--config="):
            return arguments[:index] + arguments[index + 1 :], word.partition("=")[2]
    return arguments, None


def _recipe_default(kind: Any, recipe: str) -> Any:
    """Defaults overlaid by a recipe; fields without a default that it leaves out stay missing, for tyro to ask for."""
    from gworld.config import config_from, read_recipe

    mapping = read_recipe(Path(recipe))
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    absent = dict.fromkeys(required - set(mapping), tyro.MISSING)
    base = kind(**dict.fromkeys(required, tyro.MISSING))
    config = config_from(kind, mapping, source=f"`{recipe}`", base=base)
    return dataclasses.replace(config, **absent)


def _first_fact(text: str) -> str:
    """What tyro's boxed message says, as one sentence: its first paragraph, and the option it thinks was meant."""
    # The first line is the box's title; borders and rules are drawn with ASCII where the terminal has no others.
    lines = [line.strip(" │|╭╮╰╯+") for line in text.splitlines()[1:]]
    lines = lines[1:] if lines and not lines[0].strip("─-") else lines
    rules = [index for index, line in enumerate(lines) if not line.strip("─-")]
    fact = " ".join(lines[: rules[0] if rules else None]) or "the options could not be read"
    fact = re.sub(r"^Missing from gworld \w+: ([A-Z]+) .*", r"\1 is missing", fact)
    fact = re.sub(r"invalid literal for int\(\) with base 10: ('.*')", r"\1 is not a whole number", fact)
    fact = re.sub(r"could not convert string to float: ('.*')", r"\1 is not a number", fact)
    sentence = fact if fact.split()[0].isupper() else fact[0].lower() + fact[1:]
    sentence = sentence if sentence.endswith((".", "?", "!")) else sentence + "."
    if "Perhaps you meant:" in lines:
        sentence += f" Did you mean `{lines[lines.index('Perhaps you meant:') + 1].split()[0]}`?"
    return sentence
