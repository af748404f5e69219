"""The text below each field of a dataclass, which Python itself does not keep: for --help and the documentation."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import textwrap
from typing import Any


@functools.cache
def field_docs(cls: type[Any]) -> dict[str, str]:
    """The docstring of each field of the dataclass `cls`, on one line; fields without one are left out."""
    docs: dict[str, str] = {}
    for base in cls.__bases__:
        if dataclasses.is_dataclass(base):
            docs |= field_docs(base)
    body = _classes(cls.__module__)[cls.__qualname__].body
    for field, text in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            docs[field.target.id] = " ".join(text.value.value.split())
    return docs


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    source = textwrap.dedent(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
