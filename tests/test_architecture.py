"""The house stands: floors, fences and size limits, read from the source itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gworld"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms by floor; a room may import from rooms of a lower floor only (within one floor: only itself).
FLOORS = {
    "errors": 1, "geometry": 1, "verbs": 1,
    "scene": 2, "files": 2, "config": 2, "checkpoint": 2, "runlog": 2, "native": 2,
    "formats": 3, "data": 3, "render": 3,
    "agents": 3.5,
    "dynamics": 4, "refine": 4, "capture": 4,
    "simulate": 5, "reconstruct": 5,
    "bench": 6, "evaluate": 6, "viewer": 6,
    "cli": 7,
}  # fmt: skip
ALLOWED_ABOVE_2 = {
    "agents": {"formats", "render"},
    "dynamics": {"agents", "data"},
    "refine": {"render", "data"},
    "capture": {"formats", "render", "agents", "data"},
    "simulate": {"dynamics", "refine", "agents", "render", "data", "formats"},
    "reconstruct": {"capture", "agents", "render", "data", "formats"},
}
TORCH_FREE = (
    *("gworld", "gworld.errors", "gworld.files", "gworld.formats.table", "gworld.scene.links"),
    *(
        f"gworld.cli.{name}"
        for name in ("main", "simulate", "generate", "record", "refine", "view", "reconstruct", "bind")
    ),
)
"""What is read to show a help page, or to read a file of splats: torch takes seconds to load."""
FENCES = {
    "viser": r"viewer/",
    "websockets": r"viewer/",
    "diffusers": r"refine/",
    "pycolmap": r"capture/",
    "mujoco": r"data/simulators.*\.py|agents/skeleton\.py",
    "gymnasium": r"simulate/env\.py|data/simulators_gym\.py",
    "pettingzoo": r"simulate/env\.py|data/simulators_gym\.py",
    "ray": r"cli/cluster\.py",
    "wandb": r"runlog\.py",
    "tensorboard": r"runlog\.py",
    "rerun": r"runlog\.py",
    "roma": r"geometry\.py",
    "ctypes": r"(native|dynamics/native|render/native.*|viewer/allocator)\.py",
    "pickle": r"(?!)",
    "marshal": r"(?!)",
    "shelve": r"(?!)",
}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is entered"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def module_level_imports(tree: ast.Module) -> set[str]:
    plain = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    return imports_of(ast.Module(body=plain, type_ignores=[]))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_file_obeys_floors_fences_and_limits(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    relative, room = path.relative_to(PACKAGE), room_of(path)
    assert len(relative.parts) <= 2, "no path is deeper than gworld/room/file.py"
    assert path.stem != "utils"
    assert len(source.splitlines()) <= 400, "a file has at most 400 lines"
    if room not in ("__init__", "__main__"):
        check_floors(room, imports_of(tree))
    for name in imports_of(tree):
        for package, allowed in FENCES.items():
            if name == package or name.startswith(package + "."):
                assert re.fullmatch(allowed + r".*", str(relative)), f"{package} is fenced off from {relative}"
    check_nodes(tree)
    check_comments(source)


def check_floors(room: str, imports: set[str]) -> None:
    floor = FLOORS[room]
    for name in imports:
        parts = name.split(".")
        if parts[0] != "gworld" or len(parts) < 2 or parts[1] not in FLOORS or parts[1] == room:
            continue
        other = FLOORS[parts[1]]
        if other <= 2:
            assert other <= floor, f"{room} on floor {floor} imports {name} from floor {other}"
        else:
            assert other < floor, f"{room} on floor {floor} imports {name} from floor {other}"
            if room in ALLOWED_ABOVE_2:
                assert parts[1] in ALLOWED_ABOVE_2[room], f"{room} may not import {name}"


def check_nodes(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines, at most 60 are allowed"
            positional = len(node.args.posonlyargs) + len(node.args.args)
            assert positional <= 8, f"{node.name} takes {positional} positional arguments, at most 8 are allowed"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in FORBIDDEN_CALLS, f"{name} is forbidden (line {node.lineno})"
            for keyword in node.keywords:
                bad = keyword.arg in ("shell", "allow_pickle") and ast.unparse(keyword.value) == "True"
                assert not bad, f"{keyword.arg}=True is forbidden (line {node.lineno})"
        if isinstance(node, ast.ClassDef):
            own = [ast.unparse(base) for base in node.bases if ast.unparse(base)[:1].isupper()]
            known = ("Exception", "Protocol", "NamedTuple", "Enum", "Generic", "GWorldError")
            assert not [base for base in own if base not in known and not base.startswith("Generic[")], (
                f"{node.name} inherits from {own}: inheritance depth is at most one"
            )


def check_comments(source: str) -> None:
    for number, line in enumerate(source.splitlines(), 1):
        text = line.strip()
        code = re.match(r"#\s*(def |class |import |from \w+ import |return\b|if .+:$|for .+:$|\w+ = .+\(.*\)$)", text)
        assert not code, f"line {number} is commented-out code: {text}"


def test_broad_except_stands_only_in_the_command_line() -> None:
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            broad = (
                node.type is None or ast.unparse(node.type) == "Exception" if isinstance(node, ast.ExceptHandler) else 0
            )
            if broad:
                found.append(str(path.relative_to(PACKAGE)))
    assert found == ["cli/main.py"]


def test_no_import_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        module = ".".join(("gworld", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        graph[module] = module_level_imports(ast.parse(path.read_text(encoding="utf-8")))
    graph = {module: {name for name in names if name in graph and name != module} for module, names in graph.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import circle: {' -> '.join((*trail, module))}"
        if module not in done:
            for name in graph[module]:
                visit(name, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    assert done == set(graph)


def test_top_level_of_the_project() -> None:
    folders = {"gworld", "cuda_ext", "configs", "scripts", "tests", "assets", "docs"}
    files = {
        "pyproject.toml", "README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
        "Makefile", "constraints.txt",
    }  # fmt: skip
    made = {"build", "dist", "runs", "out", "node_modules", "htmlcov"}
    present = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - made
    present = {name for name in present if not name.endswith(".egg-info")}
    assert present <= folders | files, f"unexpected at the top level: {present - folders - files}"
    assert files <= present


def test_the_project_names_no_place_it_was_made_in() -> None:
    # Spelt in halves, so that this file does not trip over itself.
    words = re.compile("|".join(("/wor" + "k/", "/fa" + "rm/", r"/\.libr" + "ary", "sub" + "agent")))
    suffixes = {".py", ".md", ".toml", ".txt", ".cpp", ".cu", ".h", ".yaml", ".sh", ".json", ".cmake"}
    skip = {".git", ".venv", "build", "node_modules", ".mypy_cache", ".ruff_cache", ".hypothesis", ".pytest_cache"}
    for path in ROOT.rglob("*"):
        if path.suffix in suffixes and not skip & set(path.relative_to(ROOT).parts) and path.is_file():
            assert not words.search(path.read_text(encoding="utf-8", errors="replace")), path


def test_help_pages_load_no_torch() -> None:
    code = f"import sys, {', '.join(TORCH_FREE)}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
