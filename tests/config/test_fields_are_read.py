"""No configuration field is accepted and then ignored."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import vla_rl
import vla_rl.config
from vla_rl.config.quickstart import QuickstartConfig

SOURCE = Path(vla_rl.__file__).parent
CLASSES = sorted(
    {
        QuickstartConfig,
        *(
            cls
            for cls in vars(vla_rl.config).values()
            if isinstance(cls, type) and dataclasses.is_dataclass(cls)
        ),
    },
    key=lambda cls: cls.__name__,
)


def attributes_read() -> set[str]:
    """Names of all attributes loaded outside `config/`, where fields are only declared and checked."""
    names: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if SOURCE / "config" in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
    return names


READ = attributes_read()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_is_read_somewhere(cls: type) -> None:
    fields = {field.name for field in dataclasses.fields(cls)}
    assert fields - READ == set(), f"{cls.__name__} has fields that nothing reads"
