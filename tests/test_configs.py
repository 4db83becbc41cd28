"""Every recipe in configs/ fits the options of the command it is for, and does what its comment says."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from gworld.cli.main import COMMANDS
from gworld.cli.options import parse_options

RECIPES = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_fits_its_command(recipe: Path) -> None:
    command = recipe.stem.partition("-")[0]
    assert f"gworld {command} --config configs/{recipe.name}" in recipe.read_text(encoding="utf-8")
    module = importlib.import_module(COMMANDS[command][0])
    arguments = {"convert": ["a.ply", "b.ply"], "reconstruct": ["--out", "run"]}.get(command, ["a.ply"])
    options = parse_options(module.Options, [*arguments, "--config", str(recipe)], command, "")
    defaults = parse_options(module.Options, arguments, command, "")
    assert options != defaults


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 3
