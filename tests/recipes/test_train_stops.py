"""Training stopped at chosen moments: what is saved by then, and that the whole comes out as if nothing had happened.

On the chain of `vla_rl.envs.known_answers`, in this process. Random moments: test_interruptions.py.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vla_rl.config import CriticConfig, PolicyConfig, TrainConfig, UserError, tiny_model
from vla_rl.config.openvla import LanguageConfig, VisionTowerConfig
from vla_rl.envs.known_answers import ChainEnv, make_chain_envs
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.policies import identity_statistics
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.recipes import train_ppo
from vla_rl.recipes.train_ppo import train
from vla_rl.runtime.run_folder import Run, read_config
from vla_rl.runtime.signals import Stopped
from vla_rl.training import evaluation, pools

TIMED = ("time/", "speed/", "memory/", "wall_seconds", "total/train_seconds", "versions")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of a few thousand weights."""
    folder = tmp_path_factory.mktemp("policy") / "policy"
    tower = VisionTowerConfig(4, 2, 2, 4, patch_size=8, stem_channels=(2, 2))
    language = LanguageConfig(8, 1, 2, 8, 320, 328, max_positions=64, pad_token=320)
    model = tiny_model(16, dino=tower, siglip=tower, action_bins=8, language=language)
    settings = PolicyConfig(device="cpu", critic=CriticConfig(kind="shared"))
    OpenVLAPolicy.create(
        model, ChainEnv.instructions, identity_statistics("metaworld", 4), 4, 1, settings
    ).save(folder)
    return folder


@pytest.fixture(autouse=True)
def play_on_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pools, "make_vector_env", lambda config, *_: SerialVectorEnv(config, make_chain_envs)
    )


def small(policy: Path, root: Path, **run: Any) -> TrainConfig:
    base = TrainConfig()
    env = {"suite": "mt1:drawer-close", "image_size": 16, "action_chunk": 1, "action_repeat": 1}
    settings = {"name": "run", "root": str(root), "save_every": 2, "eval_every": 3, "keep": 9}
    return replace(
        base,
        env=replace(base.env, **env, horizon=6, num_envs=2),
        policy=PolicyConfig(
            checkpoint=str(policy), device="cpu", critic=CriticConfig(kind="shared")
        ),
        schedule=replace(base.schedule, iterations=5),
        rollout=replace(base.rollout, turns=4),
        ppo=replace(base.ppo, minibatch=4, critic_warmup=1),
        eval=replace(base.eval, episodes_per_task=2, videos=0),
        run=replace(base.run, **(settings | run), trackers="none", threads=1),
    )


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not k.startswith(TIMED)}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def outcome(run: Path) -> Any:
    """All that must not depend on stops."""
    final = run / "checkpoints" / "iteration-000005"
    return (
        {f.name: f.read_bytes() for f in sorted((final / "policy").iterdir())},
        (final / "tensors.safetensors").read_bytes(),
        untimed([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]),
        {f.name: untimed(json.loads(f.read_text())) for f in sorted((run / "eval").iterdir())},
    )


@pytest.fixture(scope="module")
def whole(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What comes out without a stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pools,
            "make_vector_env",
            lambda config, *_: SerialVectorEnv(config, make_chain_envs),
        )
        return outcome(train(small(policy, tmp_path_factory.mktemp("whole"))))


def stop_in(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    """SIGTERM comes while what is called `label` is evaluated, after its first episode."""
    evaluate = evaluation.evaluate_policy

    def stopped(*arguments: Any, **keywords: Any) -> Any:
        result = evaluate(*arguments, **keywords)
        if arguments[4] == label:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it went on")
        return result

    monkeypatch.setattr(evaluation, "evaluate_policy", stopped)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("iteration-*"))


@pytest.mark.parametrize(
    ("label", "iteration", "said"),
    [
        ("evaluate before greedy", 0, "there was nothing to save yet"),
        ("evaluate iteration 3", 3, "everything is saved"),
        ("evaluate after sampled", 5, "everything is saved"),
    ],
)
def test_a_signal_ends_an_evaluation_at_once_and_what_was_learned_is_saved(
    label: str,
    iteration: int,
    said: str,
    policy: Path,
    whole: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        stop_in(patch, label)
        with pytest.raises(Stopped, match=said) as stopped:
            train(small(policy, tmp_path))
    run = tmp_path / "run"
    assert stopped.value.exit_code == 143
    assert f"SIGTERM after iteration {iteration}" in str(stopped.value)
    assert f"vla-rl train --resume {run}" in str(stopped.value)
    assert [name for name in checkpoints(run) if name.endswith(f"{iteration:06d}")] == (
        [f"iteration-{iteration:06d}"] if iteration else []
    )
    assert outcome(train(read_config(run, TrainConfig), run))[0:4] == whole


class Killed(BaseException):
    """Stands for kill -9: nothing of the run's own is done any more."""


def kill_in(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, when: Callable[..., bool]
) -> None:
    original = getattr(module, name)

    def killed(*arguments: Any, **keywords: Any) -> Any:
        if when(*arguments, **keywords):
            raise Killed
        return original(*arguments, **keywords)

    monkeypatch.setattr(module, name, killed)


def test_killed_in_the_last_evaluation_nothing_is_learned_again(
    policy: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take hours; the final checkpoint is there before it begins."""
    with monkeypatch.context() as patch:
        kill_in(
            patch, evaluation, "evaluate_policy",
            lambda *arguments, **_: arguments[4].startswith("evaluate after"),
        )  # fmt: skip
        with pytest.raises(Killed):
            train(small(policy, tmp_path, save_every=100))
    run = tmp_path / "run"
    assert checkpoints(run) == ["iteration-000005"]
    with monkeypatch.context() as patch:
        patch.setattr(train_ppo, "compute_advantages", None)  # whoever learns would need it
        train(read_config(run, TrainConfig), run)
    assert outcome(run)[0:3] == whole[0:3]
    assert (run / "eval" / "after-sampled.json").is_file()


def test_killed_before_the_first_checkpoint_no_line_is_there_twice(
    policy: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # in its second iteration, when the first is logged and nothing is saved
        kill_in(
            patch, train_ppo, "compute_advantages",
            lambda *_: (tmp_path / "run" / "metrics.jsonl").stat().st_size > 0,
        )  # fmt: skip
        with pytest.raises(Killed):
            train(small(policy, tmp_path))
    run = tmp_path / "run"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    assert outcome(train(read_config(run, TrainConfig), run)) == whole


def test_a_run_that_cannot_be_read_any_more_is_left_as_it_is(policy: Path, tmp_path: Path) -> None:
    """Before, it began anew at 0, and its new checkpoints were deleted in favour of the unreadable ones."""
    run = train(small(policy, tmp_path))
    for folder in (run / "checkpoints").glob("iteration-*"):
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text.replace("checkpoint 1", "checkpoint 2"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="written by another version"):
        train(read_config(run, TrainConfig), run)
    changed = {path.name for path in before if path.read_bytes() != before[path]}
    assert changed <= {"run.json", ".lock"}  # who tried, and when


def test_a_newer_checkpoint_that_is_damaged_is_set_aside_and_the_run_goes_on(
    policy: Path, whole: Any, tmp_path: Path
) -> None:
    run = train(small(policy, tmp_path))
    (run / "checkpoints" / "iteration-000005" / "state.json").write_text("{}")
    assert outcome(train(read_config(run, TrainConfig), run)) == whole
    assert (run / "checkpoints" / "unreadable-iteration-000005").is_dir()
    with Run.open(run) as opened:
        assert opened.latest() == run / "checkpoints" / "iteration-000005"


@pytest.mark.parametrize(
    ("name", "value"), [("num_envs", 3), ("horizon", 4), ("action_repeat", 2), ("held_out", 7)]
)
def test_a_run_goes_on_with_the_environments_of_its_checkpoint_alone(
    policy: Path, tmp_path: Path, name: str, value: int
) -> None:
    run = train(small(policy, tmp_path))
    config = read_config(run, TrainConfig)
    longer = replace(config, schedule=replace(config.schedule, iterations=8))
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*.safetensors")}
    with pytest.raises(UserError, match=rf"config\.json says env\.{name} {value} instead of \d+"):
        train(replace(longer, env=replace(config.env, **{name: value})), resume=run)
    assert {p: p.read_bytes() for p in (run / "checkpoints").rglob("*.safetensors")} == before
    patient = replace(longer, env=replace(config.env, step_timeout=99.0))
    train(patient, resume=run)
