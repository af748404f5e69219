"""Every option of every command as one page of documentation, made from the dataclasses that also make `--help`.

python -m vla_rl.cli.reference docs/configuration.md
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from vla_rl.cli.arguments import EvalArguments
from vla_rl.cli.commands import COMMANDS
from vla_rl.cli.door_arguments import RemoteEvalArguments
from vla_rl.config import TrainConfig
from vla_rl.config.bounds import bounds_in_words, declared, without_bounds
from vla_rl.config.docstrings import field_docs
from vla_rl.runtime.files import write_text

WRITE = "python -m vla_rl.cli.reference docs/configuration.md"
_HEAD = f"""# Configuration

<!-- Written by `{WRITE}` from the dataclasses in src/vla_rl/config and src/vla_rl/cli/arguments.py: change those. -->

Every option of every command, as `vla-rl COMMAND --help` shows them.

- An option is the field's name with dashes, after the name of its group: `--ppo.clip-high 0.3`, or
  `--ppo.clip-high=0.3`.
- A switch takes no value. Its opposite has `no-` before the last name: `--ppo.no-normalize-advantages`.
- What has no default is given without a name, before the options.
- Numbers outside the bounds are refused, and so are infinity and NaN. An option that would have no effect beside the
  others is refused too, or said in a line where it makes no difference.
- `vla-rl COMMAND OPTIONS --print-config` prints all settings as JSON, and ends. A run folder holds the same as
  `config.json`.
- `vla-rl train PRESET` and `vla-rl ablate PRESET` start from a preset. The defaults below are those of our own recipe,
  `metaworld-mt5`; `vla-rl train PRESET --help` shows the preset's.
"""
_KINDS = {int: "whole number", float: "number", bool: "switch", str: "text", Path: "path"}
_REMOTE = (
    "eval --policy",
    "evaluate a policy that another program serves with openpi's protocol",
    RemoteEvalArguments,
)
_Row = tuple[str, str, str, str, str]


def reference() -> str:
    """The whole page, in Markdown."""
    parts = [_HEAD, "## Commands\n"]
    groups: dict[str, type[Any]] = {}
    sections = [(name, entry.summary, entry.config) for name, entry in COMMANDS.items()]
    sections.insert(1 + list(COMMANDS).index("eval"), _REMOTE)
    for command, summary, cls in sections:
        flat = cls in (EvalArguments, RemoteEvalArguments)
        parts.append(f"### vla-rl {command}\n\n{summary[0].upper()}{summary[1:]}.\n")
        rows, inner = _fields(cls, "", flat)
        if rows:
            parts.append(_table(rows))
        if inner:
            groups |= inner
            named = ", ".join(f"[`--{name}.*`](#{_anchor(name)})" for name in inner)
            parts.append(f"Groups: {named}.\n")
    parts.append("## Groups\n")
    order = [*_nested(TrainConfig, ""), *groups]
    for name in dict.fromkeys(order):
        cls = groups[name]
        doc = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        rows, _ = _fields(cls, f"{name}.", flat=False)
        parts.append(f"### {name}\n\n{doc}\n\n{_table(rows)}")
    return "\n".join(parts)


def _fields(cls: type[Any], prefix: str, flat: bool) -> tuple[list[_Row], dict[str, type[Any]]]:
    """Rows of a dataclass's own fields, and the groups within it by their names; `flat` has theirs among its own."""
    rows: list[_Row] = []
    groups: dict[str, type[Any]] = {}
    docs, hints = field_docs(cls), declared(cls)
    for entry in dataclasses.fields(cls):
        kind = without_bounds(hints[entry.name])
        if not dataclasses.is_dataclass(kind):
            rows.append(_row(entry, hints[entry.name], docs.get(entry.name, ""), prefix))
        elif flat:
            rows += _fields(typing.cast(Any, kind), "", flat)[0]
        else:
            name = f"{prefix}{entry.name}"
            groups |= {name: kind, **_nested(kind, f"{name}.")}  # type: ignore[dict-item]
    return rows, groups


def _nested(cls: Any, prefix: str) -> dict[str, Any]:
    return _fields(cls, prefix, flat=False)[1]


def _row(entry: dataclasses.Field[Any], hint: Any, doc: str, prefix: str) -> _Row:
    missing = dataclasses.MISSING
    if entry.default is missing and entry.default_factory is missing:
        return f"`{entry.name.upper()}`", _kind(hint), "", bounds_in_words(hint), doc
    value = entry.default if entry.default is not missing else entry.default_factory()  # type: ignore[misc]
    name = f"--{prefix}{entry.name}".replace("_", "-")
    return f"`{name}`", _kind(hint), _shown(value), bounds_in_words(hint), doc


def _kind(hint: Any) -> str:
    kind = without_bounds(hint)
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"list of: {_kind(typing.get_args(kind)[0])}"
    return _KINDS[kind]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`"
    return f"`{value}`"


def _table(rows: Sequence[_Row]) -> str:
    return "\n".join(_lines(rows)) + "\n"


def _lines(rows: Sequence[_Row]) -> Iterator[str]:
    yield "| option | type | default | bounds | |"
    yield "|---|---|---|---|---|"
    for row in rows:
        # a bar would end the cell, and a tag would vanish
        yield "| " + " | ".join(c.replace("|", r"\|").replace("<", "&lt;") for c in row) + " |"


def _anchor(heading: str) -> str:
    return heading.replace(".", "")


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), reference())
