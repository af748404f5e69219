"""The site: the API reference names what is public, and all of it can be built without a network."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vla_rl

ROOT = Path(__file__).parents[2]
DIRECTIVE = re.compile(r"^::: vla_rl\.(\w+)$", re.MULTILINE)


def test_every_public_name_is_in_the_reference_once() -> None:
    named = DIRECTIVE.findall((ROOT / "docs" / "reference.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(vla_rl.__all__)


def documented(name: str, module: str) -> bool:
    """Whether a class, a function or a table has words of its own in the sources; dataclasses write their own else."""
    file = Path(vla_rl.__file__).parent.joinpath(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return bool(ast.get_docstring(node))
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name:
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return documented(name, str(node.module).removeprefix("vla_rl."))
    return False


def test_every_public_name_says_what_it_is() -> None:
    silent = [name for name, module in vla_rl._MODULE_OF.items() if not documented(name, module)]
    assert not silent, f"without a docstring: {silent}"
    assert not documented("SUMMARIES", "recipes.presets")


@pytest.mark.slow
def test_the_site_is_built_and_shows_the_reference(tmp_path: Path) -> None:
    """Every public name with its own heading, and the words of its docstring."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip("needs the extra vla-rl[docs]: make docs")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **nowhere},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")
    missing = [name for name in vla_rl.__all__ if f'id="vla_rl.{name}"' not in page]
    assert not missing, f"without a heading: {missing}"
    assert "Raises ConfigError with the nearest name if there is none" in page  # of `preset`
