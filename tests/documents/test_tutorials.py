"""The tutorials, followed to the letter in an empty folder; and that nothing in them is quietly left out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.tutorials import (
    blocks_of,
    commands_of,
    follow,
    missing_lines,
    mistakes_of,
    run_command,
)
from vla_rl.envs.registry import BENCHMARKS

DOCS = Path(__file__).parents[2] / "docs"
TUTORIALS = ("your-simulator.md", "your-model.md", "your-reward.md", "your-cluster.md")


@pytest.mark.parametrize("page", TUTORIALS)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    blocks = blocks_of((DOCS / page).read_text(encoding="utf-8"))
    assert not mistakes_of(blocks)
    assert sum(block.kind in ("commands", "program") for block in blocks) >= 4


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty folder to follow a page in; what it taught this process is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    known, modules = dict(BENCHMARKS), set(sys.modules)
    yield tmp_path
    BENCHMARKS.clear()
    BENCHMARKS.update(known)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def said_to(capfd: pytest.CaptureFixture) -> Callable[[], str]:
    """What came out since it was last asked: on a terminal the result of a command stands below its progress."""
    return lambda: "".join(reversed(capfd.readouterr()))


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS)
def test_a_page_does_what_it_says(page: str, reader: Path, capfd: pytest.CaptureFixture) -> None:
    follow(DOCS / page, reader, said_to(capfd))


PAGE = """# A page

```python title="slider.py"
mark = 0.9
```

```bash
echo it is   said
# a comment
echo twice \\
    in two lines
```

```text title="output"
it is said
...
twice in ... lines
```

```python
import slider

print(slider.mark)
```

```text title="output"
0.9
```

```toml title="not run: it belongs to a package"
a = 1
```
"""


def test_a_page_is_followed(tmp_path: Path, reader: Path, capfd: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert not mistakes_of(blocks_of(PAGE))
    follow(page, reader, said_to(capfd))
    page.write_text(PAGE.replace("0.9\n```\n\n```toml", "0.8\n```\n\n```toml"))
    with pytest.raises(AssertionError, match=r"page\.md:26: not said: \['0\.8'\]"):
        follow(page, reader, said_to(capfd))


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```text\nvla-rl doctor\n```", "line 1: neither run nor marked"),
        ("```\nvla-rl doctor\n```", "line 1: neither run nor marked"),
        ("words\n\n    vla-rl doctor", "line 3: neither run nor marked"),
        ('```bash title="not run:"\nvla-rl doctor\n```', "line 1: neither run nor marked"),
        ('```bash title="not run: no GPU"\nx\n```', "line 1: neither run nor marked"),
        ('```bash title="output"\nx\n```', "line 1: neither run nor marked"),
        ('```python title="alone.py"\nx = 1\n```', "line 1: nothing that is run uses alone.py"),
        ('```text title="output"\nx\n```', "line 1: an output that belongs to no block"),
    ],
)
def test_what_is_neither_run_nor_marked_is_found(block: str, complaint: str) -> None:
    found = mistakes_of(blocks_of(block))
    assert len(found) == 1
    assert found[0].startswith(complaint)


def test_a_command_that_fails_ends_the_page(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ended with 3"):
        run_command("exit 3", tmp_path)
    with pytest.raises(AssertionError, match="ended with 2"):
        run_command("vla-rl report runs/none", tmp_path)


def test_lines_of_an_output_are_looked_for_in_their_order() -> None:
    assert missing_lines("a\n...\nb 1", "a\nx\nb   1\n") == []
    assert missing_lines("b\na", "a\nb\n") == ["a"]
    assert missing_lines("from ... to 3", "from 1 to 3\n") == []
    assert missing_lines("from ... to 3", "from 1 to 31\n") == ["from ... to 3"]
    assert commands_of("a \\\n   b\n\n# c\nd\n") == ["a b", "d"]
