"""What `import vla_rl` offers, and that docs/api.md is true: its ten lines improve a policy."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vla_rl

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there_and_said_once_everywhere() -> None:
    assert vla_rl.__all__ == sorted(vla_rl.__all__, key=lambda name: (not name.isupper(), name))
    tree = ast.parse(Path(vla_rl.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    for_type_checkers = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(for_type_checkers) == set(vla_rl.__all__) <= set(dir(vla_rl))
    for name, module in for_type_checkers.items():
        assert vla_rl._MODULE_OF[name] == str(module).removeprefix("vla_rl."), name
        assert getattr(vla_rl, name) is not None
    assert (Path(vla_rl.__file__).parent / "py.typed").is_file()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = vla_rl.trian
    with pytest.raises(ImportError):
        exec("from vla_rl import trian")


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import vla_rl; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pydantic", "jaxtyping"} & set(ast.literal_eval(done.stdout))


def programs(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.mark.slow
def test_ten_lines_improve_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From random weights, on held-out initial states: the margin is for processors that round otherwise."""
    monkeypatch.chdir(tmp_path)
    ten_lines, _, loop = programs("api.md")
    assert len([line for line in ten_lines.splitlines() if line.strip()]) <= 10
    names: dict = {}
    exec(ten_lines, names)
    run = names["run"]
    for mode in ("greedy", "sampled"):
        before, after = (
            json.loads((run / "eval" / f"{when}-{mode}.json").read_text())["overall"][
                "success_rate"
            ]
            for when in ("before", "after")
        )
        assert before < 0.3
        assert after > 0.6
    assert names["result"]["overall"]["success_rate"] > 0.6
    assert names["result"]["split"] == "held-out"
    assert "toy" in (run / "report.html").read_text()
    exec(loop, names)
    assert names["losses"]["losses/policy_steps"] > 0
