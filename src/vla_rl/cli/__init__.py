"""The command line: `vla-rl COMMAND`.

A user's mistake is one line on standard error and exit code 2. Nothing heavy is imported before a command
needs it: simulator processes import this module too.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from vla_rl import __version__
from vla_rl.cli.commands import COMMANDS, parse_command
from vla_rl.cli.options import say
from vla_rl.config import UserError, nearest
from vla_rl.config.old_names import OLD_COMMANDS
from vla_rl.runtime.extras import explain
from vla_rl.runtime.signals import Stopped, show_cursor, stop_at_once

__all__ = ["COMMANDS", "main"]

_GO_ON = (
    "quickstart", "sft", "reward train", "scaling", "test-time", "ablate", "compare data", "reproduce",
)  # fmt: skip
"""Commands that keep what they have done so far."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0, 1 (failed), 2 (a user's mistake), or as shells have it after a signal: 130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP).
    """
    if argv is not None:
        return _answer(list(argv))
    try:
        code = _answer(sys.argv[1:])
    except SystemExit as end:
        if isinstance(end.code, int):
            _end_as_rank(end.code)
        raise
    _end_as_rank(code)
    return code


def _end_as_rank(code: int) -> None:
    """End a process that was one of several ranks, at once.

    While the interpreter takes itself apart, the threads of torch.distributed abort it once in fifty times, after
    everything is done (torch 2.13).
    """
    world = sys.modules.get("vla_rl.distributed.torch_world")
    if world is not None and world.joined:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _answer(arguments: list[str]) -> int:
    debug = "--debug" in arguments or os.environ.get("VLA_RL_DEBUG", "") not in ("", "0")
    arguments = [word for word in arguments if word != "--debug"]
    try:
        with stop_at_once():
            return _dispatch(arguments, debug)
    except KeyboardInterrupt as interrupt:
        show_cursor()
        if debug:
            raise
        stopped = interrupt if isinstance(interrupt, Stopped) else Stopped()
        return _say(str(stopped) or _stopped_at_once(arguments), stopped.exit_code)
    except UserError as error:
        if debug:
            raise
        return _say(str(error), 2)
    except ImportError as error:
        missing = explain(error)
        if debug or missing is None:
            raise
        return _say(str(missing), 2)
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return _say(f"cannot write {error.filename or 'to the disk'}: {error.strerror}", 2)


def _stopped_at_once(arguments: list[str]) -> str:
    command = " ".join(arguments[:2])
    again = "the same command starts again"
    if command.startswith(_GO_ON) or any(word.startswith("--seeds") for word in arguments):
        again = "the same command goes on"
    elif command.startswith("train"):
        again = "`vla-rl train --resume RUN` goes on from the last checkpoint, if there is one"
    return f"stopped at once; what was saved before is whole, and {again}"


def _say(message: str, code: int) -> int:
    print(f"vla-rl: {' '.join(message.split())}", file=sys.stderr)
    return code


def _dispatch(arguments: list[str], debug: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(_overview())
        return 0
    name, *rest = arguments
    if name in ("-V", "--version"):
        say(f"vla-rl {__version__}")
        return 0
    if name in OLD_COMMANDS:
        print(f"vla-rl: {name} is called {OLD_COMMANDS[name]} now", file=sys.stderr)
        name = OLD_COMMANDS[name]
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    parts = [command.split()[1] for command in COMMANDS if command.startswith(f"{name} ")]
    alone = name in COMMANDS  # it does something without a second word, too
    if parts and not alone and rest[:1] in ([], ["-h"], ["--help"], ["help"]):
        say(_overview(name))
        return 0
    if parts and not alone:
        raise UserError(f"there is no command {name} {rest[0]!r}.{nearest(rest[0], parts)}")
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        known = [*COMMANDS, "--help", "--version"]
        raise UserError(f"there is no {kind} {name!r}.{nearest(name, known)}")
    from vla_rl.runtime.progress import set_up_logging

    set_up_logging(logging.DEBUG if debug else logging.INFO)
    return COMMANDS[name].run(rest, parse_command)


def _overview(group: str = "") -> str:
    """All commands, or those of a group such as `reward`."""
    lines = [f"usage: vla-rl {group or 'COMMAND'}{' COMMAND' if group else ''} [OPTIONS]", ""]
    if not group:
        lines += ["Make pretrained vision-language-action policies better by practice.", ""]
    shown = {name: entry for name, entry in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, shown)) + 1
    lines += ["commands:", *(f"  {name:<{width}} {entry.summary}" for name, entry in shown.items())]
    lines += ["", "options:"]
    lines += ["  --help      this text; `vla-rl COMMAND --help` lists the command's options"]
    lines += ["  --version   the version", "  --debug     show the traceback of an error"]
    return "\n".join([*lines, "", "Start with:  vla-rl quickstart"])
