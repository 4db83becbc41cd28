"""The README tells the truth: its list of files is current, its commands and names exist, its Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gworld.cli.main import COMMANDS
from gworld.formats.world import save_world

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_list_of_files_is_current() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "house.py"), "--check"], check=False)
    assert done.returncode == 0, "run python scripts/house.py"


def test_commands_and_links_exist() -> None:
    used = set(re.findall(r"^    gworld (\w+)", README, re.MULTILINE))
    assert used and used <= set(COMMANDS)
    for target in re.findall(r"\]\(([^)#h][^)]*)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r'src="([^"]+)"', README):
        assert (ROOT / target).is_file(), target


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gworld.data.toys import tabletop_world

    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code) == 1
    save_world(tabletop_world(0.05), tmp_path / "out" / "demo" / "world")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([sys.executable, "-c", code[0]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 3, 480, 640, 3])" in done.stdout
    assert (tmp_path / "views.mp4").stat().st_size > 1000
