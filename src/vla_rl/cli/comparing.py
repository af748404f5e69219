"""What the commands that compare do: they run a recipe, and show the table it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vla_rl.cli.options import ParseCommand, say
from vla_rl.cli.training import SeedsRequest, ablation_request, train_request
from vla_rl.config import UserError
from vla_rl.config.comparison import CompareConfig, CompareDataConfig
from vla_rl.runtime.extras import need

if TYPE_CHECKING:
    from vla_rl.distributed.place import Place


def compare(words: list[str], parse_command: ParseCommand) -> int:
    config = parse_command(CompareConfig, words, "compare")
    from vla_rl.report.comparison.write import compare_runs

    show_table(compare_runs(config.runs, config.out, config.title))
    return 0


def compare_data(words: list[str], parse_command: ParseCommand) -> int:
    chosen = words[0] if words and not words[0].startswith("-") else None
    base = CompareDataConfig(preset=chosen) if chosen else CompareDataConfig()
    config = parse_command(CompareDataConfig, words[1:] if chosen else words, "compare data", base)
    from vla_rl.recipes.compare_data import compare_data

    show_table(compare_data(config))
    return 0


def ablate(words: list[str], parse_command: ParseCommand) -> int:
    config = ablation_request(words, parse_command)
    if config.build_up:
        from vla_rl.recipes.build_up import build_up

        table = build_up(config)
    else:
        from vla_rl.recipes.ablate import ablate

        table = ablate(config)
    show_table(table)
    return 0


def train_seeds(
    words: list[str], parse_command: ParseCommand, several: SeedsRequest, place: Place | None
) -> int:
    """`vla-rl train ... --seeds N`."""
    if place is not None and place.size > 1:
        raise UserError(
            f"train: --seeds starts its runs itself, and this is one of {place.size} ranks of a launcher: start it "
            f"once, "
            "with --parallel.ranks"
        )
    need("matplotlib", purpose="train --seeds")
    config, _ = train_request(words, parse_command)
    from vla_rl.recipes.seeds import train_seeds

    show_table(train_seeds(config, *several))
    return 0


def show_table(table: Path) -> None:
    say(f"{table.read_text(encoding='utf-8')}\nTable: {table}")
