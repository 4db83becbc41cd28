"""The command line: finds the command, reads its options, runs it, turns a failure into a sentence and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

from gworld import __version__
from gworld.errors import GWorldError, UsageError

# name -> (module, one line). Modules are imported only when their command runs, so that `--help` stays instant.
COMMANDS = {
    "reconstruct": ("gworld.cli.reconstruct", "Turn footage or posed pictures into a Gaussian world, with a report."),
    "bind": ("gworld.cli.bind", "Put a robot or an object into a world."),
    "record": ("gworld.cli.record", "Record episodes from simulated scenes with several agents."),
    "ingest": ("gworld.cli.ingest", "Turn a recorded data set into episodes."),
    "backdrop": ("gworld.cli.backdrop", "Lay what standing cameras see on a plane: a static world to bind into."),
    "track": ("gworld.cli.track", "Follow robots and objects through calibrated video: poses, joints, overlays."),
    "train": ("gworld.cli.train", "Train a dynamics network from episodes or laws, or a refiner from photos."),
    "convert": ("gworld.cli.convert", "Convert splat files and posed image sets; crop, clean, decimate, transform."),
    "info": ("gworld.cli.info", "Describe a splat file, a world or a posed image set; draw a thumbnail."),
    "simulate": ("gworld.cli.simulate", "Run a world under any actions of all its agents, to video and labels."),
    "evaluate": ("gworld.cli.evaluate", "Judge a rollout or a run in one page: errors, baselines, physics, films."),
    "generate": ("gworld.cli.generate", "Make episodes by the thousand out of a world: varied, judged, resumed."),
    "view": ("gworld.cli.view", "Look into a world in the browser: play rollouts, drive agents, see true pixels."),
    "render": ("gworld.cli.render", "Render a world or a splat file along a camera path to video or pictures."),
    "refine": ("gworld.cli.refine", "Turn rendered film into footage, where the world is unsure, and nowhere else."),
    "doctor": ("gworld.cli.doctor", "Say which backends and components work here, and what mends the others."),
    "bench": ("gworld.cli.bench", "Measure gworld on this machine, beside its baselines and peers."),
    "demo": ("gworld.cli.demo", "Films of two agents pushing things become a world, dynamics, a judged run."),
}

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, as `help_text` lists them."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # torch's threads spin for a while after each of its operations, on the cores our renderer's threads need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _dispatch(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except GWorldError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; no half-written file is left.", INTERRUPTED)
    except MemoryError:
        return _fail("memory ran out. Use a smaller input, or close other programs.", 5)
    except BrokenPipeError:
        # The reader of our output went away (`gworld info | head`); silence the flush at exit too.
        _discard_stdout()
        return 0
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _discard_stdout()
        what = f"`{error.filename}`" if error.filename else "the output"
        return _fail(f"{what} cannot be used: {error.strerror}.", 5 if full else 3)
    except Exception as error:  # the one broad except: whatever gets here is a bug of ours
        traceback.print_exc()
        return _fail(f"a bug in gworld {__version__}: {type(error).__name__}. Please report the lines above.", 1)


def _terminate(*_: object) -> None:
    """On SIGTERM leave by an exception, so that temporary files are removed on the way out."""
    raise SystemExit(128 + signal.SIGTERM)


def _discard_stdout() -> None:
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"gworld {__version__}")
        return 0
    if arguments[0] == "--completion":
        print(_completion(arguments[1:]), end="")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean `gworld {near[0]}`?" if near else "See `gworld --help`."
        raise UsageError(f"there is no command `{name}`. {hint}")
    from gworld.cli.options import parse_options

    module: Any = importlib.import_module(COMMANDS[name][0])
    options = parse_options(module.Options, arguments[1:], name, COMMANDS[name][1])
    return module.run(options) or 0


def help_text() -> str:
    """What `gworld --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            f"gworld {__version__}: videos of robots become a world you can act in.",
            "",
            "usage: gworld COMMAND [OPTIONS]        gworld COMMAND --help",
            "",
            *lines,
            "",
            "  --version             print the version",
            "  --completion SHELL    print a completion script for bash, zsh or tcsh",
            "",
            "Every command takes --config RECIPE.yaml; flags override it. Exit codes: 0 ok, 1 bug, 2 usage,",
            "3 bad input, 4 missing backend or extra, 5 out of memory or disk, 130 interrupted.",
        ]
    )


def _completion(arguments: list[str]) -> str:
    from gworld.cli.options import completion_script

    shell = arguments[0] if arguments else ""
    if shell not in ("bash", "zsh", "tcsh"):
        raise UsageError(f"`--completion {shell}` names no shell; bash, zsh or tcsh is needed.")
    kinds = {name: importlib.import_module(module).Options for name, (module, _) in COMMANDS.items()}
    return completion_script(kinds, shell)


def _fail(message: str, code: int) -> int:
    print(f"gworld: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
