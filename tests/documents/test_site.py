"""The site: the API reference names what is public, and all of it can be built without a network."""

from __future__ import annotations

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


def test_every_public_name_has_a_docstring() -> None:
    tables = {"ALGORITHMS", "BENCHMARKS", "POLICIES", "PRESETS", "REWARDS"}
    assert tables == {name for name in vla_rl.__all__ if name.isupper()} - {"PPO"}
    for name in set(vla_rl.__all__) - tables:
        own = vars(getattr(vla_rl, name)).get("__doc__") or getattr(vla_rl, name).__doc__
        assert own, f"{name} says nothing of itself"
        assert not own.startswith(f"{name}("), f"{name} has what dataclass writes, no words"


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
