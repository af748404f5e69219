"""Whatever moment a command is stopped or killed at: no child survives, nothing half-written stays, nothing is lost.

The commands are the product's own, on the toy benchmark. Each is played once to its end. Then it is stopped at random
moments, by each signal in turn, and given again until it comes to its end: the result must be the same.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_server import PRESET, SIZE, SUITE, CommandServer

from vla_rl.config import PolicyConfig, tiny_model
from vla_rl.config.openvla import LanguageConfig, VisionTowerConfig
from vla_rl.envs.registry import benchmark
from vla_rl.envs.toy.tasks import INSTRUCTIONS
from vla_rl.policies import identity_statistics
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.runtime.partial import read_name

ENV = ("--env.suite", SUITE, "--env.num-workers", "2", "--env.image-size", str(SIZE))
# what differs between two runs of the same thing, and says nothing about its result
TIMED = ("time/", "speed/", "memory/", "seconds", "wall_", "total/train_seconds", "versions")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    with CommandServer(tmp_path_factory.mktemp("output")) as running:
        yield running


@pytest.fixture(scope="module")
def course(server: CommandServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations, and a policy of a few thousand weights to go on from."""
    folder = tmp_path_factory.mktemp("course")
    server.run("demos", *ENV, "--episodes-per-task", "3", "--out", str(folder / "demos"))
    tower = VisionTowerConfig(8, 2, 2, 16, patch_size=8, stem_channels=(4, 4))
    language = LanguageConfig(8, 1, 2, 16, 320, 328, max_positions=64, pad_token=320)
    model = tiny_model(SIZE, dino=tower, siglip=tower, action_bins=16, language=language)
    statistics = identity_statistics("toy", benchmark(SUITE).action_dim)
    OpenVLAPolicy.create(
        model, list(INSTRUCTIONS.values()), statistics, benchmark(SUITE).action_dim, 2,
        PolicyConfig(device="cpu"),
    ).save(folder / "policy")  # fmt: skip
    return folder


def untimed(value: Any) -> Any:
    """JSON without the keys that measure time or name the place."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not any(word in k for word in TIMED)}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def rows(path: Path) -> Any:
    return untimed([json.loads(line) for line in path.read_text().splitlines()])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unfinished(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if read_name(path.name)]


# -- what each command leaves that must not depend on interruptions


def of_dataset(out: Path) -> Any:
    return contents(out)


def of_fine_tuning(out: Path) -> Any:
    return contents(out / "policy"), rows(out / "metrics.jsonl"), (out / "checkpoints").exists()


def of_reward_model(out: Path) -> Any:
    return contents(out / "reward_model"), rows(out / "metrics.jsonl")


def of_training(out: Path) -> Any:
    run = out / "run"
    last = run / "checkpoints" / "iteration-000004"
    evaluations = {
        path.name: untimed(json.loads(path.read_text()))
        for path in sorted((run / "eval").glob("*.json"))
    }
    tensors = (last / "tensors.safetensors").read_bytes()
    return contents(last / "policy"), tensors, rows(run / "metrics.jsonl"), evaluations


def of_ablation(out: Path) -> Any:
    runs = sorted(path.parent for path in out.glob("*/run.json"))
    evaluations = [
        untimed(json.loads((run / "eval" / "after-sampled.json").read_text())) for run in runs
    ]
    return [run.name for run in runs], evaluations, (out / "table.md").read_text()


def of_evaluation(out: Path) -> Any:
    return untimed(json.loads((out / "result.json").read_text()))


def of_study(out: Path) -> Any:
    return {
        path.name: untimed(json.loads(path.read_text())).get("episodes")
        for path in sorted(out.rglob("*.json"))
    }


def of_quickstart(out: Path) -> Any:
    evaluations = {
        path.name: untimed(json.loads(path.read_text())) for path in out.glob("ppo/eval/*.json")
    }
    return contents(out / "demos"), of_fine_tuning(out / "sft"), evaluations


@dataclass(frozen=True)
class Case:
    """A command line with {out} and {course} in it, and what of its output counts."""

    words: str
    outcome: Callable[[Path], Any]
    again: str = ""
    """How to go on, where it is not the same command."""


TRAIN = f"train {PRESET} --policy.checkpoint {{course}}/policy --run.root {{out}} --run.name run"
CASES = {
    "demos": Case(
        f"demos {' '.join(ENV)} --episodes-per-task 6 --out {{out}}", of_dataset
    ),
    "sft": Case(
        "sft --dataset {course}/demos --policy.checkpoint {course}/policy --action-chunk 2 --epochs 4 --batch-size 2 "
        "--validation-fraction 0.34 --out {out}",
        of_fine_tuning,
    ),
    "train": Case(TRAIN, of_training, "train --resume {out}/run"),
    "ablate": Case(
        f"ablate {PRESET} --checkpoint {{course}}/policy --cells full no-warmup --seeds 1 --parallel 2 "
        "--cores 1 --iterations 3 --episodes-per-task 2 --out {out}",
        of_ablation,
    ),
    "eval": Case(
        f"eval {{course}}/policy --suite {SUITE} --episodes-per-task 6 --json {{out}}/result.json --workers 2",
        of_evaluation,
    ),
    "reward-collect": Case(
        "reward collect {course}/policy --episodes-per-task 6 --workers 2 --out {out}", of_dataset
    ),
    "reward-train": Case(
        "reward train --datasets {course}/demos --labels.scheme segments --epochs 3 --batch-size 4 "
        "--validation-fraction 0.34 --threads 1 --out {out}",
        of_reward_model,
    ),
    "export": Case("export {course}/policy --out {out}", of_dataset),
    "test-time": Case(
        f"test-time {{course}}/policy --choosers random --sizes 1 2 --protocol.suite {SUITE} "
        "--protocol.episodes-per-task 2 --workers 2 --bootstrap 100 --out {out}",
        of_study,
    ),
    "quickstart": Case(
        f"quickstart --preset {PRESET} --demos-per-task 2 --sft-epochs 4 --episodes 16 --episodes-per-task 2 "
        "--out {out}",
        of_quickstart,
    ),
}  # fmt: skip
QUICK = ("demos", "sft", "train", "eval", "export", "reward-train", "test-time")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_killed_at_any_moment_and_given_again_it_comes_to_the_same(
    name: str, server: CommandServer, course: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    words = [word.format(out=tmp_path / "whole", course=course) for word in case.words.split()]
    seconds = server.run(*words).seconds
    expected = case.outcome(tmp_path / "whole")

    out = tmp_path / "stopped"
    first = [word.format(out=out, course=course) for word in case.words.split()]
    again = [word.format(out=out, course=course) for word in case.again.split()] or first
    chance = random.Random(name)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        command = server.start(*(again if (out / "run" / "config.json").exists() else first))
        time.sleep(chance.uniform(0.0, 0.8 * seconds))
        # batch systems and service managers send it to all processes at once
        command.kill(number, everybody=number == signal.SIGTERM)
        code = command.wait().code
        assert command.survivors() == []
        assert "Traceback" not in command.output()
        if code == 0:
            break  # it was faster than the signal
        handled = number != signal.SIGKILL
        assert code == (128 + number if handled else -number), command.output()
        if handled:
            assert "again" in command.output() or "go" in command.output()
            assert unfinished(tmp_path) == []
    if code != 0:
        command = server.start(*(again if (out / "run" / "config.json").exists() else first))
        assert command.wait().code == 0, command.output()
    assert unfinished(tmp_path) == []
    assert case.outcome(out) == expected
    shutil.rmtree(out)
