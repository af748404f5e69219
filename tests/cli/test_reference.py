"""The page of all options is what the dataclasses say today."""

from __future__ import annotations

import re
from pathlib import Path

from vla_rl.cli.commands import COMMANDS
from vla_rl.cli.fields import options_of
from vla_rl.cli.reference import WRITE, reference

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), f"write it again: {WRITE}"


def test_every_option_of_every_command_has_a_line_with_its_meaning() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` (\|.*\|)$", reference(), flags=re.MULTILINE))
    for entry in COMMANDS.values():
        for option in options_of(entry.config):
            # the opposite of a switch has no line of its own; `eval` has the protocol's options without their group
            flat = option.name.replace("--protocol.", "--")
            positive = option.name.replace("no-", "", 1)
            adapters = f"{option.name}.rank"  # there are none by default
            assert {option.name, flat, positive, adapters} & rows.keys(), option.name
    for name, cells in rows.items():
        kind, _, _, text = (cell.strip() for cell in re.split(r"(?<!\\)\|", cells)[1:-1])
        assert kind, name
        assert text, name


def test_known_lines() -> None:
    page = reference()
    assert (
        "| `--ppo.clip-high` | number | `0.28` | at least 0 | The ratio is clipped at 1 plus this; more room upwards "
        "than downwards keeps rare actions alive (DAPO, arXiv:2503.14476). |"
    ) in page
    assert "| `CHECKPOINT` | path |  |  | A run folder, one of its checkpoints" in page
    assert "| `--run.trackers` | text | `auto` |  |" in page
    assert "| `--choosers` | list of: `reward-model-alone`, " in page
    assert "| `--sizes` | list of: whole number | `1 2 4 8 16 32` | each from 1 to 65536 |" in page
    # a group is described once, and named by each command that has it
    assert page.count("\n### policy.critic\n") == 1
    assert "[`--policy.critic.*`](#policycritic)" in page
