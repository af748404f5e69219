"""A model of Hugging Face through the product by commands alone: demonstrations, fine-tuning, PPO, GRPO, export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.image_text_models import write_image_text_model
from vla_rl.cli import main

pytest.importorskip("transformers", reason="needs the extra vla-rl[lora]")
pytest.importorskip("pyarrow", reason="needs the extra vla-rl[data]")

WORLD = ("--env.num-envs", "4", "--env.num-workers", "1")
SHORT = (
    *WORLD, "--policy.device", "cpu", "--env.action-chunk", "2", "--schedule.iterations", "1",
    "--schedule.episodes", "0", "--env.horizon", "2", "--eval.episodes-per-task", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, demonstrations, and the model fine-tuned on them."""
    root = tmp_path_factory.mktemp("huggingface")
    write_image_text_model("idefics3", root / "model")
    demos = ("demos", "--env.suite", "toy", *WORLD, "--episodes-per-task", "1")
    assert main([*demos, "--out", str(root / "demos")]) == 0
    assert main(["sft", *sft(root), "--policy.vlm.bins", "16", "--out", str(root / "sft")]) == 0
    return root


def sft(root: Path) -> list[str]:
    return [
        "--dataset", str(root / "demos"), "--policy.checkpoint", str(root / "model"), "--policy.device", "cpu",
        "--epochs", "1", "--batch-size", "8", "--action-chunk", "2",
    ]  # fmt: skip


def trained(room: Path, out: Path, preset: str, *options: str) -> dict[str, float]:
    """The last metrics of a short run."""
    where = ("--run.root", str(out), "--run.name", "run")
    policy = ("--policy.checkpoint", str(room / "sft" / "policy"))
    assert main(["train", preset, *SHORT, *where, *policy, *options]) == 0
    return json.loads((out / "run" / "metrics.jsonl").read_text().splitlines()[-1])


PPO = ("--rollout.turns", "3", "--ppo.minibatch", "6", "--ppo.critic-warmup", "0")


def test_fine_tuning_and_ppo_on_all_weights(room: Path, tmp_path: Path) -> None:
    metrics = trained(room, tmp_path, "toy", *PPO, "--ppo.kl-coef", "0.1")
    assert metrics["losses/grad_norm_policy"] > 0
    # before its first step the learner is the policy that played
    assert metrics["losses/logprob_max_difference"] < 1e-5
    policy = next((tmp_path / "run" / "checkpoints").glob("iteration-*")) / "policy"
    assert (policy / "model.safetensors").is_file()
    assert json.loads((policy / "config.json").read_text())["model_type"] == "idefics3"


def test_ppo_on_adapters_goes_on_and_is_exported(room: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    trained(room, tmp_path, "toy", *PPO, "--ppo.kl-coef", "0.1", "--policy.lora.rank", "4")
    run = str(tmp_path / "run")
    assert main(["export", run, "--out", str(tmp_path / "whole")]) == 0
    assert main(["export", run, "--adapter", "--out", str(tmp_path / "adapter")]) == 0
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert main(["train", "--resume", run, "--schedule.iterations", "2"]) == 0


def test_grpo(room: Path, tmp_path: Path) -> None:
    groups = ("--grpo.group-size", "2", "--grpo.groups", "2", "--grpo.extra-groups", "0")
    metrics = trained(room, tmp_path, "toy-grpo", *groups)
    assert metrics["iteration"] == 1


def test_a_model_that_has_not_learned_to_act_is_not_practised(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--policy.checkpoint", str(room / "model"), "--policy.vlm.bins", "16")
    where = ("--run.root", str(tmp_path), "--run.name", "run")
    assert main(["train", "toy", *SHORT, *where, *model]) == 2
    assert "has not learned to act: fine-tune it on demonstrations first" in capsys.readouterr().err
    assert main(["sft", *sft(room), "--policy.vlm.prompt", "go", "--out", str(tmp_path / "o")]) == 2
    assert "policy.vlm.prompt must hold {instruction}, got 'go'" in capsys.readouterr().err
