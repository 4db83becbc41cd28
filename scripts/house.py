"""Write docs/house.md: every file of the house in one line, from its docstring (or first comment).

python scripts/house.py          # rewrite
python scripts/house.py --check  # exit 1 if the list is out of date
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "house.md"
HEAD = [
    "# Every file in one line",
    "",
    "Made by `scripts/house.py` from the files' own first sentences; ARCHITECTURE.md tells the rules.",
]


def about(path: Path) -> str:
    """What a file says of itself in its first sentence."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    first = text.partition("\n")[0].strip()
    return first.lstrip("/*# ").removesuffix("*/").strip() if first.startswith(("//", "/*", "#")) else ""


def house() -> str:
    """The page, room by room."""
    lines = list(HEAD)
    rooms = sorted(p.parent for p in (ROOT / "gworld").glob("*/__init__.py"))
    for folder in (ROOT / "gworld", *rooms, ROOT / "cuda_ext"):
        files = [
            p for p in sorted(folder.iterdir()) if p.suffix in (".py", ".h", ".cpp", ".cu") and p.stem != "__init__"
        ]
        described = [f"- `{path.name}`: {about(path)}" for path in files if about(path)]
        lines += ["", f"## {folder.relative_to(ROOT)}/", "", *described]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Rewrite or check the page."""
    if "--check" in sys.argv:
        return int(not PAGE.exists() or house() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(house(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
