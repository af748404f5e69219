"""Read the report as a reader does, and edit the files it is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from builders.example_run import write_json, write_lines
from vla_rl.report.page.write import render
from vla_rl.report.run_data import read_run

VOID = {"meta", "link", "img", "br", "path", "rect", "hr", "input"}


class Page(HTMLParser):
    """The text one reads, the tags, and what they refer to; checks that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for key, value in attrs if key in ("src", "href", "poster", "action")
        ]
        self.handlers += [key for key, _ in attrs if key.startswith("on")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def page_of(folder: Path) -> Page:
    return Page(render(read_run(folder)))


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(file.read_text())
    changed = change(value)
    write_json(file, value if changed is None else changed)


def edit_lines(file: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    changed = change(rows)
    write_lines(file, rows if changed is None else changed)


def set_(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tree: tree.update(values)
