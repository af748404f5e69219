"""A page's blocks as a reader takes them: what is a file is written, what is a command or a program is run, in order.

    ```bash                                      commands, run one after the other
    ```python                                    a program; all of a page share their names
    ```python title="slider.py"                  a file, written where the commands are run; any language
    ```text title="output"                       lines that the block before has to have said; `...` stands for others
    ```toml title="not run: why"                 shown, and for that reason left alone

Any other block is a mistake of the page.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vla_rl.cli import main

Kind = Literal["commands", "program", "file", "output", "not run", "unmarked"]
FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
FILE_NAME = re.compile(r"[\w-]+\.[a-z]+")
SHELL_SIGNS = set("|&;<>$`(){}*?~")
"""In an unquoted word, any of these asks for a shell."""


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is that of its opening fence, from 1."""

    language: str
    title: str
    text: str
    line: int

    @property
    def kind(self) -> Kind:
        if self.title.startswith("not run:"):
            return "not run" if len(self.title.split()) >= 5 else "unmarked"
        if FILE_NAME.fullmatch(self.title):
            return "file"
        if self.title == "output" and self.language == "text":
            return "output"
        if not self.title and self.language in ("bash", "python"):
            return "commands" if self.language == "bash" else "program"
        return "unmarked"


def blocks_of(page: str) -> list[Block]:
    """All fenced blocks of a page, and indented ones as blocks without a language. ValueError if one has no end."""
    found: list[Block] = []
    lines = page.splitlines()
    number = 0
    while number < len(lines):
        opened = FENCE.match(lines[number])
        if opened is None:
            if lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
                found.append(Block("", "", lines[number].strip(), number + 1))
            number += 1
            continue
        indent, fence, info = len(opened[1]), opened[2], opened[3].strip()
        inside = range(number + 1, len(lines))
        end = next((i for i in inside if lines[i].strip() == fence), None)
        if end is None:
            raise ValueError(f"line {number + 1}: this block has no end")
        title = re.search(r'title="([^"]*)"', info)
        text = "\n".join(line[indent:] for line in lines[number + 1 : end])
        language = info.split()[0] if info and not info.startswith("title=") else ""
        found.append(Block(language, title[1] if title else "", text + "\n", number + 1))
        number = end + 1
    return found


def mistakes_of(blocks: list[Block]) -> list[str]:
    """What would be neither run nor marked, one sentence each."""
    found = []
    for place, block in enumerate(blocks):
        later = "\n".join(b.text for b in blocks[place + 1 :] if b.kind in ("commands", "program"))
        if block.kind == "unmarked":
            found.append(f"line {block.line}: neither run nor marked with a reason of some words")
        elif block.kind == "file" and block.title.partition(".")[0] not in later:
            found.append(f"line {block.line}: nothing that is run uses {block.title}")
        elif block.kind == "output" and (
            place == 0 or blocks[place - 1].kind not in ("commands", "program")
        ):
            found.append(f"line {block.line}: an output that belongs to no block before it")
    return found


def commands_of(text: str) -> list[str]:
    """Commands of a bash block: lines, those that end with a backslash joined, comments left out."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [
        line.strip()
        for line in joined.splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]


def run_command(line: str, folder: Path) -> str:
    """Run one command in `folder`; what it said where it did not go through this process' own output.

    `vla-rl` alone is called here, which saves loading torch again; all else is bash's. AssertionError where it fails.
    """
    words = shlex.split(line, comments=True)
    if words[0] == "vla-rl" and not SHELL_SIGNS & set(re.sub(r"'[^']*'|\"[^\"]*\"", "", line)):
        code = main(words[1:])
        assert code == 0, f"{line}\nended with {code}"
        return ""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PATH": beside},
    )  # fmt: skip
    assert done.returncode == 0, f"{line}\nended with {done.returncode}\n{done.stderr[-3000:]}"
    return done.stderr + done.stdout


def missing_lines(expected: str, said: str) -> list[str]:
    """Lines of `expected` that `said` does not have in this order, blanks apart; `...` stands for anything."""
    lines, place, missing = [" ".join(line.split()) for line in said.splitlines()], 0, []
    for wanted in (" ".join(line.split()) for line in expected.splitlines()):
        if wanted in ("", "..."):
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("...")))
        found = next((i for i in range(place, len(lines)) if pattern.fullmatch(lines[i])), None)
        if found is None:
            missing.append(wanted)
        else:
            place = found + 1
    return missing


def follow(page: Path, folder: Path, said: Callable[[], str]) -> None:
    """Do what a page says, in `folder`, which is the current one. said: what came out since it was last asked."""
    names: dict[str, Any] = {"__name__": "__main__"}
    answer = ""
    for block in blocks_of(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{block.line}"
        if block.kind == "file":
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.kind == "commands":
            said()
            answer = "".join(run_command(line, folder) + said() for line in commands_of(block.text))
        elif block.kind == "program":
            said()
            exec(compile(block.text, where, "exec"), names)
            answer = said()
        elif block.kind == "output":
            missing = missing_lines(block.text, answer)
            assert not missing, f"{where}: not said: {missing}\n--- but:\n{answer}"
