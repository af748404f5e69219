"""From words to configurations, in this process: what is understood, and how mistakes are answered."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from vla_rl import __version__
from vla_rl.cli import COMMANDS, main
from vla_rl.cli.arguments import EvalArguments
from vla_rl.cli.commands import parse_command
from vla_rl.cli.training import DEFAULT_PRESET, train_request
from vla_rl.config import (
    AblationConfig,
    DemosConfig,
    LoraConfig,
    ScheduleConfig,
    TrainConfig,
    UserError,
)
from vla_rl.config.search import ScalingConfig
from vla_rl.recipes.presets import PRESETS, SUMMARIES, preset
from vla_rl.runtime.run_folder import Run


def request(line: str) -> tuple[TrainConfig, Path | None]:
    return train_request(line.split(), parse_command)


def error(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """The one line that `vla-rl LINE` answers on standard error."""
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"vla-rl: [^\n]+\n", printed.err)
    return printed.err


def test_a_preset_with_overrides_differs_from_it_in_those_alone() -> None:
    config, resume = request(
        "metaworld-mt5 --optimizer.learning-rate 1e-3 --ppo.clip_high=0.3 --run.name x"
        " --ppo.no-normalize-advantages --run.trackers none --curriculum.mode frontier --eval.split train"
    )
    base = PRESETS["metaworld-mt5"]
    assert resume is None
    assert config == replace(
        base,
        optimizer=replace(base.optimizer, learning_rate=1e-3),
        ppo=replace(base.ppo, clip_high=0.3, normalize_advantages=False),
        run=replace(base.run, name="x", trackers="none"),
        curriculum=replace(base.curriculum, mode="frontier"),
        eval=replace(base.eval, split="train"),
    )


def test_options_of_before_work_and_say_how_they_are_called_now(
    capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    old = "--ppo.turns 7 --ppo.learning_rate=1e-3 --ppo.imitation-coef 0.2 --run.name x"
    new = "--rollout.turns 7 --optimizer.learning-rate 1e-3 --ppo.self-imitation-coef 0.2 --run.name x"
    assert request(f"metaworld-mt5 {old}") == request(f"metaworld-mt5 {new}")
    assert capsys.readouterr().err.splitlines() == [
        "vla-rl train: --ppo.turns is called --rollout.turns now",
        "vla-rl train: --ppo.learning-rate is called --optimizer.learning-rate now",
        "vla-rl train: --ppo.imitation-coef is called --ppo.self-imitation-coef now",
    ]
    assert request(f"--resume {finished} --ppo.iterations 99")[0].schedule.iterations == 99
    told = "vla-rl train: --ppo.iterations is called --schedule.iterations now\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("train", "--reward.judge runs/reward", "--reward.model runs/reward"),
        ("train", "--reward.judge=runs/reward", "--reward.model runs/reward"),
        ("train", "--reward.judge simulator", "--reward.kind simulator"),
        ("train", "--reward.judge=simulator --run.seed 3", "--reward.kind simulator --run.seed 3"),
        ("train", "--reward.model simulator", "--reward.kind simulator"),
        ("ablate", "--judge simulator", "--reward-kind simulator"),
        ("ablate", "--judge runs/reward", "--reward-model runs/reward"),
        (
            "eval",
            "x --best-of 2 --chooser judge --judge a",
            "x --best-of 2 --chooser reward-model --reward-model a",
        ),
        ("test-time", "x --choosers judge random", "x --choosers reward-model random"),
        ("test-time", "x --search.judge a", "x --search.reward-model a"),
    ],
)
def test_the_reward_model_was_called_a_judge(
    command: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = {
        "train": TrainConfig, "ablate": AblationConfig, "eval": EvalArguments, "test-time": ScalingConfig,
    }[command]  # fmt: skip
    found = parse_command(cls, old.split(), command)
    told = capsys.readouterr().err.splitlines()
    assert found == parse_command(cls, new.split(), command)
    assert capsys.readouterr().err == ""
    assert told
    assert all(line.startswith(f"vla-rl {command}: ") and line.endswith(" now") for line in told)


@pytest.mark.parametrize("name", PRESETS)
def test_without_overrides_a_preset_is_what_it_is_but_for_a_name_with_the_time(name: str) -> None:
    config, _ = request(name)
    assert re.fullmatch(rf"{name}-\d{{8}}-\d{{6}}", config.run.name)
    assert replace(config, run=replace(config.run, name="")) == preset(name)


def test_no_preset_is_the_default_one() -> None:
    config, _ = request("--run.name x")
    assert config.env == PRESETS[DEFAULT_PRESET].env
    named, _ = request("")
    assert named.run.name.startswith(f"{DEFAULT_PRESET}-")


def test_any_lora_option_turns_adapters_on() -> None:
    assert request("--run.name x")[0].policy.lora is None
    assert request("--policy.lora")[0].policy.lora == LoraConfig()
    assert request("--policy.lora.rank 4 --policy.lora.vision")[0].policy.lora == LoraConfig(
        rank=4, vision=True
    )


def test_every_preset_has_a_line_in_the_help_and_the_papers_numbers_are_the_papers() -> None:
    assert PRESETS.keys() == SUMMARIES.keys()
    paper = PRESETS["metaworld-mt5-paper"]
    ppo, optimizer = paper.ppo, paper.optimizer
    assert (paper.rollout.temperature, optimizer.learning_rate) == (1.5, 2e-5)
    assert ppo.critic_learning_rate == 5e-5
    assert (ppo.critic_warmup, ppo.gamma, ppo.gae_lambda, ppo.epochs) == (5, 0.99, 0.95, 1)
    assert (ppo.clip_low, ppo.clip_high, ppo.value_clip, ppo.ratio) == (0.2, 0.2, 0.2, "action")
    assert (optimizer.adam_eps, optimizer.adam_beta2) == (1e-5, 0.999)
    assert (optimizer.warmup_steps, optimizer.final_learning_rate) == (0, 1.0)
    assert not ppo.normalize_advantages
    assert ppo.self_imitation_coef == ppo.kl_coef == ppo.entropy_coef == 0
    assert (paper.policy.critic.kind, paper.policy.critic.time_fraction) == ("shared", False)
    assert paper.curriculum.mode == "paper"
    assert paper.env == PRESETS["metaworld-mt5"].env


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("trian", ["no command 'trian'", "'train'"]),
        ("--verison", ["no option '--verison'", "'--version'"]),
        ("train metaworld-mt6", ["no preset 'metaworld-mt6'", "'metaworld-mt5'"]),
        (
            "train --optimizer.learnin-rate 3",
            ["no option --optimizer.learnin-rate", "'--optimizer.learning-rate'"],
        ),
        (
            "train --ppo.learnin-rate 3",  # near to a name of before
            ["no option --ppo.learnin-rate", "'--optimizer.learning-rate'"],
        ),
        ("train --learning-rate=3", ["no option --learning-rate", "'--optimizer.learning-rate'"]),
        ("train -x", ["no option -x"]),
        (
            "train --no-ppo.recompute-log-probs",
            ["no option --no-ppo.recompute-log-probs", "'--ppo.no-recompute-log-probs'"],
        ),
        ("train --policy.lora.rnk 3", ["no option --policy.lora.rnk", "'--policy.lora.rank'"]),
        (
            "train --optimizer.learning-rate abc",
            ["--optimizer.learning-rate: expected a number, got 'abc'"],
        ),
        (
            "train --schedule.iterations 2.5",
            ["--schedule.iterations: expected a whole number, got '2.5'"],
        ),
        ("train --ppo.ratio tokn", ["--ppo.ratio: expected one of token, action", "'token'"]),
        ("train --schedule.iterations", ["--schedule.iterations needs a value"]),
        ("train --schedule.iterations 0", ["a run needs an end", "schedule.episodes"]),
        (
            "train --schedule.iterations -3",
            ["schedule.iterations: expected a whole number of at least 0, got -3"],
        ),
        (
            "train --schedule.minutes nan",
            ["schedule.minutes: expected a finite number of at least 0, got nan"],
        ),
        (
            "train --rollout.turns 0",
            ["rollout.turns: expected a whole number of at least 1, got 0"],
        ),
        ("train --env.held-out 1000", ["env.held_out must lie in 1..initial_states-1"]),
        (
            "train --ppo.normalize-advantages yes",
            ["--ppo.normalize-advantages is a switch", "'yes'", "--ppo.no-normalize-advantages"],
        ),
        (
            "train --ppo.no-normalize-advantages no",
            ["--ppo.no-normalize-advantages is a switch", "opposite is --ppo.normalize-advantages"],
        ),
        ("train --schedule.iterations 2 metaworld-mt5", ["nothing for 'metaworld-mt5' to set"]),
        (
            "train --ppo.time-limit-is-terminal --policy.critic.no-time-fraction",
            ["ppo.time_limit_is_terminal needs a critic that sees the time"],
        ),
        ("train --resume", ["--resume needs a value"]),
        ("eval", ["CHECKPOINT is missing"]),
        (
            "eval x --split heldout",
            ["--split: expected one of auto, held-out, train, all", "'held-out'"],
        ),
        (
            "eval x --episodes-per-task 0",
            ["eval: episodes_per_task: expected a whole number of at least 1, got 0"],
        ),
        ("eval x --tempratur 1", ["no option --tempratur", "'--temperature'"]),
        ("report", ["RUN is missing"]),
        ("test-time x --sizes 1 x", ["--sizes: no list of its kind: '1', 'x'"]),
        ("demos --noise -1", ["demos: noise: expected a number of at least 0, got -1.0"]),
        ("sft --epochs x", ["--epochs: expected a whole number, got 'x'"]),
        ("quickstart --minutes 0", ["quickstart: minutes: expected a number above 0, got 0.0"]),
        ("doctor --jsn", ["no option --jsn", "'--json'"]),
    ],
)
def test_a_mistake_is_one_line_with_what_was_expected(
    capsys: pytest.CaptureFixture[str], line: str, parts: list[str]
) -> None:
    answer = error(capsys, line)
    for part in parts:
        assert part in answer


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_the_width_of_the_terminal_does_not_change_the_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert (
        error(capsys, "train --ppo.gamma 2")
        == "vla-rl: train: ppo.gamma: expected a number from 0 to 1, got 2.0\n"
    )
    assert "takes" not in error(capsys, "train --optimizer.learning-rate abc")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    config = replace(TrainConfig(), run=replace(TrainConfig().run, seed=7))
    with Run.create(tmp_path, "first", config, []) as run:
        return run.folder


def test_resume_takes_the_runs_own_configuration_and_a_new_length(finished: Path) -> None:
    config, resume = request(
        f"--resume {finished} --schedule.iterations 99 --schedule.minutes=3 --schedule.episodes 500"
    )
    assert resume == finished
    saved = replace(TrainConfig(), run=replace(TrainConfig().run, seed=7))
    longer = ScheduleConfig(iterations=99, minutes=3.0, episodes=500)
    assert config == replace(saved, schedule=longer)
    assert request(f"--schedule.iterations 99 --resume={finished}")[0].schedule.iterations == 99


def test_resume_changes_nothing_else(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = error(capsys, f"train --resume {finished} --optimizer.learning-rate 1e-4")
    assert "--optimizer.learning-rate cannot change in a resumed run" in answer
    assert "leave out 'metaworld-mt5'" in error(capsys, f"train metaworld-mt5 --resume {finished}")


def test_resume_of_a_missing_or_damaged_run_is_one_line(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = error(capsys, f"train --resume {finished.parent / 'frist'}")
    assert "no run folder at" in answer
    assert "Did you mean 'first'?" in answer
    (finished / "config.json").write_text('{"ppo":')
    assert "config.json: expected valid JSON" in error(capsys, f"train --resume {finished}")


def test_what_would_be_refused_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ppo.gamma: expected" in error(capsys, "train --print-config --ppo.gamma 7")
    assert "'--print-config'" in error(capsys, "train --print-confg")


def test_a_resumed_run_prints_its_own(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(finished), "--print-config", "--schedule.minutes", "3"])
    settings = json.loads(capsys.readouterr().out)
    assert (settings["run"]["seed"], settings["schedule"]["minutes"]) == (7, 3.0)


@pytest.mark.parametrize(
    ("old", "new"), [("curve runs/none", "learning-curve"), ("scaling", "test-time")]
)
def test_a_command_of_before_works_and_names_the_new_one(
    capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    assert main(old.split()) == 2  # for the run that is not there
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"vla-rl: {old.split()[0]} is called {new} now"
    assert "runs/none" in second or second.startswith(f"vla-rl: {new}: CHECKPOINT is missing")
    with pytest.raises(SystemExit) as leaving:
        main([old.split()[0], "--help"])
    assert leaving.value.code == 0
    assert f"usage: vla-rl {new}" in capsys.readouterr().out


def test_a_command_without_options_has_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr("vla_rl.cli.commands.require_extras", lambda *_: None)
    monkeypatch.setattr("vla_rl.recipes.demos.collect_demos", given.append)
    assert main(["demos"]) == 0
    assert given == [DemosConfig()]


@pytest.mark.parametrize(
    ("words", "rank"),
    [("--backbone some/vlm --lora.rank 4", 4), ("--backbone some/vlm --lora", 32), ("", None)],
)
def test_adapters_of_a_reward_model(
    monkeypatch: pytest.MonkeyPatch, words: str, rank: int | None
) -> None:
    given = []
    monkeypatch.setattr("vla_rl.cli.commands.require_extras", lambda *_: None)
    monkeypatch.setattr("vla_rl.recipes.train_reward.train_reward", given.append)
    assert main(["reward", "train", *words.split()]) == 0
    assert (given[0].lora.rank if given[0].lora else None) == rank


def test_version_and_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vla-rl {__version__}\n"
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {name} " in overview for name in COMMANDS)
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == overview


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no preset"):
        main(["train", "metaworld-mt6", "--debug"])
    monkeypatch.setenv("VLA_RL_DEBUG", "1")
    with pytest.raises(UserError, match="no preset"):
        main(["train", "metaworld-mt6"])
    monkeypatch.setenv("VLA_RL_DEBUG", "0")
    assert main(["train", "metaworld-mt6"]) == 2


@pytest.mark.parametrize(
    ("raised", "code", "shown"),
    [
        (KeyboardInterrupt(), 130, "stopped at once"),
        (UserError("first\n  second"), 2, "vla-rl: first second"),
        (OSError(28, "No space left on device", "runs/x"), 2, "cannot write runs/x: No space left"),
    ],
)
def test_what_a_command_raises_becomes_a_line_and_a_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
    shown: str,
) -> None:
    def fail(*_: object) -> int:
        raise raised

    monkeypatch.setitem(COMMANDS, "doctor", COMMANDS["doctor"]._replace(run=fail))
    assert main(["doctor"]) == code
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize("raised", [ValueError("ours"), FileNotFoundError(2, "gone", "/dev/shm/x")])
def test_our_own_defects_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def fail(*_: object) -> int:
        raise raised

    monkeypatch.setitem(COMMANDS, "doctor", COMMANDS["doctor"]._replace(run=fail))
    with pytest.raises(type(raised)):
        main(["doctor"])
