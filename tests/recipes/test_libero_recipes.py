"""The paper's preset, evaluation and demonstrations on the real LIBERO, with weights in OpenVLA's format but tiny."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from vla_rl.cli import main
from vla_rl.config import DemosConfig, TrainConfig, UserError
from vla_rl.data.demonstrations import load_demonstrations
from vla_rl.envs.defaults import laptop_env
from vla_rl.policies import build_tiny_tokenizer
from vla_rl.policies.openvla.config_files import read_checkpoint_config
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.presets import preset
from vla_rl.recipes.ranks import train_on_ranks
from vla_rl.recipes.train_ppo import train

pytest.importorskip("libero", reason="needs the extra vla-rl[libero]")
pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
pytestmark = pytest.mark.sim

GOLDEN = Path(__file__).parents[1] / "fixtures" / "openvla_a"
INSTRUCTION = "pick up the black bowl between the plate and the ramekin and place it on the plate"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as OpenVLA's code writes it: its class at 224 px, statistics of all suites, a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoints") / "official"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.npz", "actions*", "*.md"))
    model = read_checkpoint_config(folder).model
    build_tiny_tokenizer((INSTRUCTION,), model).save(str(folder / "tokenizer.json"))
    return folder


def short(config: TrainConfig, checkpoint: Path, root: Path) -> TrainConfig:
    """The preset with the sizes of a test: two updates, one evaluation among them."""
    return replace(
        config,
        env=replace(
            config.env, suite="libero-spatial:0", num_envs=2, num_workers=1, horizon=5, mesh_faces=300
        ),
        policy=replace(config.policy, checkpoint=str(checkpoint), device="cpu"),
        # no episode succeeds: without a bonus for entropy there would be nothing to learn from
        schedule=replace(config.schedule, iterations=2),
        rollout=replace(config.rollout, turns=4),
        ppo=replace(config.ppo, minibatch=4, critic_warmup=1, entropy_coef=0.01),
        eval=replace(config.eval, episodes_per_task=1),
        run=replace(config.run, name="run", root=str(root), eval_every=2, trackers="none"),
    )  # fmt: skip


@pytest.mark.slow
def test_the_papers_preset_runs_end_to_end(official: Path, tmp_path: Path) -> None:
    config = short(preset("libero-spatial-openvla-7b"), official, tmp_path)
    run = train(config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["losses/value"]) for line in lines)
    evaluation = json.loads((run / "eval" / "iteration-000002.json").read_text())
    assert evaluation["suite"] == "libero-spatial:0"
    assert (evaluation["horizon"], evaluation["split"], evaluation["initial_states"]) == (
        5,
        "all",
        [0],
    )
    assert evaluation["infrastructure_errors"] == 0
    assert evaluation["versions"]["robosuite"]
    require_moved(run, official)


@pytest.mark.slow
def test_four_suites_are_practised_each_with_its_own_statistics_and_horizon(
    official: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="also need those of 'libero_object', 'libero_goal'"):
        train(jointly(official, tmp_path / "refused"))
    joint = tmp_path / "joint"
    shutil.copytree(official, joint)
    file = joint / "dataset_statistics.json"
    one = json.loads(file.read_text())["libero_spatial_no_noops"]
    names = [f"libero_{suite}_no_noops" for suite in ("spatial", "object", "goal", "10")]
    file.write_text(json.dumps(dict.fromkeys(names, one)))
    run = train(jointly(joint, tmp_path))
    result = json.loads((run / "eval" / "iteration-000002.json").read_text())
    clocks = {name: row["horizon"] for name, row in result["suites"].items()}
    assert clocks == {"libero-spatial": 6, "libero-object": 7, "libero-goal": 8, "libero-10": 13}
    assert {name: row["mean_turns"] for name, row in result["suites"].items()} == clocks
    saved = next((run / "checkpoints").glob("*2/policy"))
    said = [json.loads(file.read_text()) for file in saved.glob("*.json")]
    assert any(names == one.get("vla_rl", one).get("unnorm_keys") for one in said)


def jointly(checkpoint: Path, root: Path) -> TrainConfig:
    config = short(preset("libero-40-openvla-7b"), checkpoint, root)
    env = replace(config.env, suite="libero-40:0,10,20,30", num_envs=4, horizon=0, action_repeat=40)
    return replace(config, env=env, curriculum=replace(config.curriculum, mode="uniform"))


def require_moved(run: Path, official: Path) -> None:
    """Adapters of every linear layer of the language model have moved, in PEFT's format; the base has not."""
    adapters = load_file(
        run / "checkpoints" / "iteration-000002" / "policy" / "adapter_model.safetensors"
    )
    moved = {name for name, values in adapters.items() if "lora_B" in name and np.any(values)}
    layers = read_checkpoint_config(official).model.language.layers
    assert len(moved) == 7 * layers
    assert all("language_model" in name for name in moved)


@pytest.mark.slow
def test_the_papers_preset_on_two_ranks(official: Path, tmp_path: Path) -> None:
    """Two processes with a simulator each play and learn together."""
    config = short(preset("libero-spatial-openvla-7b"), official, tmp_path)
    config = replace(
        config,
        parallel=replace(config.parallel, ranks=2),
        run=replace(config.run, eval_every=0),
    )
    run = train_on_ranks(config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["rollout/turns"] for line in lines] == [8, 8]
    assert all(np.isfinite(line["losses/value"]) for line in lines)
    shares = [json.loads(line) for line in (run / "ranks.jsonl").read_text().splitlines()]
    assert [(share["0/turns"], share["1/turns"]) for share in shares] == [(4, 4), (4, 4)]
    require_moved(run, official)


def test_evaluation_of_an_official_checkpoint(official: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    words = ["eval", str(official), "--suite", "libero-spatial:4", "--episodes-per-task", "2"]
    assert main([*words, "--horizon", "3", "--workers", "1", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert (result["split"], result["initial_states"], result["horizon"]) == ("all", [0, 1], 3)
    assert (result["action_chunk"], result["action_repeat"]) == (1, 1)
    (task,) = result["tasks"]
    assert task.startswith("pick_up_the_black_bowl_in_the_top_drawer")
    assert result["overall"]["mean_simulator_steps"] == 3


def test_a_policy_of_another_robot_is_refused(official: Path, capsys) -> None:
    assert main(["eval", str(official), "--suite", "mt5", "--unnorm-key", "libero_spatial"]) == 2
    assert "7 numbers an action, but mt5 (Meta-World) is played with 4" in capsys.readouterr().err


@pytest.mark.slow
def test_demonstrations_of_the_scripted_expert(tmp_path: Path) -> None:
    env = replace(laptop_env("libero-object:0"), image_size=32, num_workers=1)
    config = DemosConfig(env=env, out=str(tmp_path / "demos"), episodes_per_task=1, seed=3)
    demos = load_demonstrations(collect_demos(config))
    assert demos.instructions == ("pick up the alphabet soup and place it in the basket",)
    assert demos.actions.shape[1:] == (7,)
    assert demos.proprio.shape[1:] == (8,)
    assert demos.action_low.tolist() == [-1.0] * 7
    assert demos.action_high.tolist() == [1.0] * 7
    # gripper: open on the way there, closed on the way to the basket
    assert demos.actions[0, 6] == -1
    assert demos.actions[:, 6].max() == 1
    # the robot has moved as the actions say: the first is executed before the second image
    assert not np.array_equal(demos.images[0], demos.images[-1])
    assert np.abs(demos.proprio[-1, :3] - demos.proprio[0, :3]).max() > 0.05


def test_more_demonstrations_than_initial_states(tmp_path: Path) -> None:
    env = replace(laptop_env("libero-object:0"), num_workers=1)
    with pytest.raises(UserError, match="30 initial states"):
        collect_demos(DemosConfig(env=env, out=str(tmp_path / "demos"), episodes_per_task=31))


def test_defaults_of_demos_are_the_benchmarks(capsys) -> None:
    """`--env.suite` alone decides: nobody must know LIBERO's other sizes."""
    with pytest.raises(SystemExit):
        main(["demos", "--env.suite", "libero-object", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--env.initial-states INT" in text
    assert "(default: 50)" in text
