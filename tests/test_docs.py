"""The pages tell the truth: every command line in them parses, every file that they link to is there."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
from pathlib import Path

import pytest

from gworld.cli.main import COMMANDS
from gworld.cli.options import parse_options
from gworld.errors import GWorldError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
GOLDEN = ROOT / "tests" / "golden" / "cli"
LEFT_OUT = re.compile(r"(^|\s)(\.\.\.?|\||--help)(\s|$)")
"""What stands for something else: `..`, and `|` between choices."""


def commands_of(page: Path) -> list[str]:
    """The lines of a page that are commands of ours, without comments; those that leave something out are skipped."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:    |\$ )(gworld [a-z].*)$", text, re.MULTILINE)
    inside = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines += [line.removeprefix("$ ") for block in inside for line in block.splitlines() if "gworld " in line[:9]]
    return [re.sub(r"\s+#.*", "", line) for line in lines if not LEFT_OUT.search(re.sub(r"\s+#.*", "", line))]


@functools.cache
def complaint(line: str) -> str:
    """What is wrong with a command line; empty where it parses."""
    name, *words = shlex.split(line)[1:]
    if name not in COMMANDS:
        return f"no such command: {line}\n"
    try:
        parse_options(importlib.import_module(COMMANDS[name][0]).Options, words, name, COMMANDS[name][1])
    except (GWorldError, SystemExit) as error:
        return f"{line}: {error}\n"
    return ""


def unknown_flags(text: str) -> list[str]:
    """Flags that a sentence names together with their command, and that its help does not know."""
    found = []
    for line in re.findall(r"`(gworld [a-z]+ [^`\n]*--[^`\n]*)`", text):
        words = line.split()
        known = (GOLDEN / f"help-{words[1]}.txt").read_text(encoding="utf-8")
        flags = [word.split("=")[0] for word in words[2:] if word.startswith("--")]
        found += [f"{line}: no {flag}\n" for flag in flags if not re.search(rf"{re.escape(flag)}[\s,|]", known)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse_and_links_lead_somewhere(page: Path) -> None:
    wrong = [complaint(line) for line in commands_of(page)]
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    wrong += unknown_flags(text)
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text):
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
            wrong.append(f"no such file: {target}\n")
    assert "".join(wrong) == ""
