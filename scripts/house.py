"""Write the house's list of files into README.md, one line each from its docstring (or first comment), between markers.

python scripts/house.py          # rewrite
python scripts/house.py --check  # exit 1 if the list is out of date
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- house: made by scripts/house.py -->", "<!-- /house -->"


def about(path: Path) -> str:
    """What a file says of itself in its first sentence."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    first = text.partition("\n")[0].strip()
    return first.lstrip("/*# ").removesuffix("*/").strip() if first.startswith(("//", "/*", "#")) else ""


def house() -> str:
    """The list, room by room."""
    lines = []
    for folder in (
        "gworld",
        "gworld/scene",
        "gworld/formats",
        "gworld/data",
        "gworld/render",
        "gworld/bench",
        "gworld/cli",
        "cuda_ext",
    ):
        files = [
            p
            for p in sorted((ROOT / folder).iterdir())
            if p.suffix in (".py", ".h", ".cpp", ".cu") and p.stem != "__init__"
        ]
        described = [f"- `{path.name}`: {about(path)}" for path in files if about(path)]
        lines += ["", f"**{folder}/**", "", *described]
    return "\n".join([BEGIN, *lines, "", END])


def main() -> int:
    """Rewrite or check the README."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    start, stop = text.index(BEGIN), text.index(END) + len(END)
    wanted = text[:start] + house() + text[stop:]
    if "--check" in sys.argv:
        return int(wanted != text)
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
