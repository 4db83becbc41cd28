"""`gw.render` and `gw.simulate` are callable whatever was imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

ORDERS = {
    "verb first": "import gworld as gw; gw.render; gw.simulate; import gworld.render.paths, gworld.simulate.engine",
    "room first": "import gworld.render.paths, gworld.simulate.engine; import gworld as gw",
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_verb_stays_callable(order: str) -> None:
    script = f"""{ORDERS[order]}
for verb in (gw.render, gw.simulate):
    try:
        verb()
    except TypeError as error:
        print(error)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "render() missing" in told and "simulate() missing" in told
