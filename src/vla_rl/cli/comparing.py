"""What the commands that compare do: they run a recipe, and show the table it wrote."""

from __future__ import annotations

from pathlib import Path

from vla_rl.cli.options import ParseCommand, say
from vla_rl.config.comparison import CompareConfig


def compare(words: list[str], parse_command: ParseCommand) -> int:
    config = parse_command(CompareConfig, words, "compare")
    from vla_rl.report.comparison.write import compare_runs

    show_table(compare_runs(config.runs, config.out, config.title))
    return 0


def show_table(table: Path) -> None:
    say(f"{table.read_text(encoding='utf-8')}\nTable: {table}")
