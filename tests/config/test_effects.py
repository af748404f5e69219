"""An option that has no effect is said: for every field of every command it is known when it counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vla_rl.cli.arguments import DoctorArguments, EvalArguments, PlanArguments, ReportArguments
from vla_rl.cli.commands import COMMANDS
from vla_rl.cli.door_arguments import RemoteEvalArguments, ServeArguments
from vla_rl.cli.fields import options_of
from vla_rl.config import (
    AblationConfig,
    DemosConfig,
    ExportConfig,
    LoraConfig,
    RewardEvalConfig,
    RewardLabelConfig,
    RewardModelConfig,
    SFTConfig,
    TrainConfig,
)
from vla_rl.config.effects import EFFECTS, without_effect
from vla_rl.config.parallel import ParallelConfig
from vla_rl.config.preference import PreferConfig
from vla_rl.config.push import PushConfig
from vla_rl.config.search import ScalingConfig

CONFIGS: dict[str, Any] = {
    type(config).__name__: config
    for config in (
        TrainConfig(),
        SFTConfig(),
        PreferConfig(),
        DemosConfig(),
        RewardModelConfig(),
        RewardLabelConfig("x"),
        RewardEvalConfig("x"),
        EvalArguments(Path("x")),
        RemoteEvalArguments("ws://x:1"),
        ServeArguments(Path("x")),
        ReportArguments(Path("x")),
        DoctorArguments(),
        PlanArguments(),
        ScalingConfig("x"),
        ExportConfig("x"),
        PushConfig("x", "me/x"),
        AblationConfig(),
    )
}
UNCONDITIONAL = {
    "QuickstartConfig", "ConvertArguments", "RewardCollectConfig", "RewardScoreConfig", "LearningCurveArguments",
    "FilmArguments", "CertifyArguments", "EngineServeArguments", "CompareConfig", "CompareDataConfig", "AnalysisConfig",
    "AgreementConfig", "CheckEnvArguments", "ReproduceConfig", "RerunConfig",
}  # fmt: skip
"""Configurations of commands all of whose options always count."""

_ENV = (
    "env.{suite,image_size,action_repeat,action_chunk,horizon,num_envs,num_workers,initial_states,held_out,"
    "camera,wrist_camera,effects,mesh_faces,settle_steps,step_timeout,start_timeout,max_restarts}"
)
ALWAYS = {
    "TrainConfig": (
        "algorithm", _ENV,
        "policy.{checkpoint,kind,lora,activation_checkpointing,device}",
        "schedule.{iterations,minutes,episodes}", "rollout.temperature",
        "optimizer.{learning_rate,adam_beta2,adam_eps,weight_decay,warmup_steps,final_learning_rate,max_grad_norm}",
        "reward.{kind,model}", "curriculum.{mode,window,prior}", "starts.dataset",
        "eval.{split,episodes_per_task,seed,videos}",
        "run.{name,root,seed,save_every,keep,eval_every,torch_threads,trackers}",
        "parallel.{arrangement,shards,engine,staleness,timeout,shard}",
    ),
    "SFTConfig": (
        "{dataset,camera,image_size,image_fit,episodes_per_task,successes,out,action_chunk,actions,epochs,batch_size,"
        "micro_batch,learning_rate,weight_decay,warmup_steps,random_shift,validation_fraction,max_grad_norm,seed}",
        "policy.{checkpoint,kind,lora,activation_checkpointing,device}",
    ),
    "PreferConfig": (
        "{dataset,out,camera,image_size,image_fit,compare,pairs,success_weight,reward_model,beta,self_imitation_coef,window,"
        "epochs,minibatch,micro_batch,learning_rate,weight_decay,warmup_steps,max_grad_norm,validation_fraction,seed}",
        "policy.{checkpoint,kind,lora,activation_checkpointing,device,base,unnorm_key,dtype,images,gripper}",
        "policy.vlm.{action_tokens,bins,prompt}",
    ),
    "DemosConfig": (_ENV, "{out,episodes_per_task,noise,image_format,snapshots,seed}"),
    "RewardModelConfig": (
        "{datasets,out,start,head,sees_actions,history,camera,image_size,image_fit,"
        "held_out_tasks,validation_fraction,mismatched_share,epochs,batch_size,micro_batch,learning_rate,weight_decay,"
        "warmup_steps,max_grad_norm,random_shift,device,seed}",
    ),
    "RewardLabelConfig": ("labels.scheme", "{out,action_chunk,camera,image_fit,plot}"),
    "RewardEvalConfig": ("{datasets,out,bins,resamples}",),
    "EvalArguments": (
        "protocol.{suite,episodes_per_task,temperature,videos}",
        "{horizon,kind,unnorm_key,base,dtype,starts,json,workers}",
    ),
    "ScalingConfig": (
        "search.{mode,temperature,greedy_first}", "protocol.{suite,split,episodes_per_task,seed}",
        "{sizes,choosers,out,bootstrap,workers}",
    ),
    "PushConfig": ("{to_folder,license,base}",),
    "ExportConfig": ("{out,merged,adapter,kind,base,unnorm_key}",),
    "DoctorArguments": ("{json,checkpoint}",), "ReportArguments": ("live",),
    "AblationConfig": (
        "{preset,checkpoint,reward_kind,reward_model,out,build_up,seeds,minutes,parallel,cores,episodes_per_task}",
    ),
    "RemoteEvalArguments": (
        "protocol.{suite,split,episodes_per_task,videos}",
        "remote.{replan,action_repeat,horizon,image_size,camera,wrist_camera,light,key_file,timeout}", "{json,workers}",
    ),
    "ServeArguments": (
        "{protocol,suite,robot,answer_timeout,idle_timeout,host,port,key_file,temperature,unnorm_key,kind,base,dtype}",
        "limits.{low,high,change,box_low,box_high}",
    ),
}  # fmt: skip
"""Fields that count whatever else is set. A new field belongs here or into the table of `vla_rl.config.effects`."""
ALWAYS["PlanArguments"] = (
    *ALWAYS["TrainConfig"],
    "{gpus,cpus,ram,nodes,episodes,episode_turns,costs,calibrate,json,save_costs}",
)


def expanded(patterns: tuple[str, ...]) -> set[str]:
    """`{a,b}` and `group.{a,b}` as the fields they stand for."""
    found: set[str] = set()
    for pattern in patterns:
        group, brace, names = pattern.partition("{")
        found |= {group + name for name in names.rstrip("}").split(",")} if brace else {pattern}
    return found


def conditional(name: str) -> set[str]:
    classes = [cls.__name__ for cls in type(CONFIGS[name]).__mro__]
    return {f for known in classes for effect in EFFECTS.get(known, ()) for f in effect.fields}


@pytest.mark.parametrize("name", CONFIGS)
def test_of_every_field_it_is_known_when_it_counts(name: str) -> None:
    config = CONFIGS[name]
    fields = {option.attributes for option in options_of(type(config), config)}
    groups = {
        field for field in conditional(name) if any(f.startswith(f"{field}.") for f in fields)
    }
    covered = {f for f in fields if f in conditional(name) or f.rpartition(".")[0] in groups}
    assert expanded(ALWAYS[name]) | covered == fields
    assert expanded(ALWAYS[name]) & covered == set()
    # what the table names exists: an adapter's settings are a field only where there is one
    assert conditional(name) - groups - fields <= {"lora", "policy.lora.dropout"}


def test_the_configurations_of_all_commands_are_looked_at() -> None:
    used = {entry.config.__name__ for entry in COMMANDS.values()}
    used |= {"RemoteEvalArguments"}  # of `eval --policy`
    assert used == CONFIGS.keys() | UNCONDITIONAL
    assert EFFECTS.keys() == CONFIGS.keys()


def changed(config: Any, settings: dict[str, Any]) -> Any:
    for path, value in settings.items():
        group, _, rest = path.partition(".")
        inner = changed(getattr(config, group), {rest: value}) if rest else value
        config = replace(config, **{group: inner})
    return config


ADAPTERS = LoraConfig(dropout=0.1)
SHARED, SEPARATE = {"policy.critic.kind": "shared"}, {"policy.critic.kind": "separate"}
MODEL, REFRESHED = {"reward.model": "x"}, {"reward.model": "x", "reward.refresh_every": 5}
SIMULATOR, SHARDED = {"reward.kind": "simulator"}, {"parallel.shard": "fsdp2"}
GRPO, TPO = {"algorithm": "grpo"}, {"algorithm": "tpo"}
POOLS = {"parallel": ParallelConfig(arrangement="pools")}
AHEAD = {"parallel": ParallelConfig(arrangement="pools", actors=1, staleness=1)}
CASES: list[tuple[str, str, str, dict[str, Any], dict[str, Any]]] = [
    # configuration, fields, what is said, without effect where, with effect where
    ("TrainConfig", "policy.decode_graphs", "warning", {"policy.device": "cpu"}, {"policy.device": "cuda:1"}),
    (
        "TrainConfig", "policy.decode_graphs", "warning", {"policy.device": "auto", "policy.kind": "openvla-oft"},
        {"policy.device": "auto"},
    ),
    (
        "TrainConfig", "policy.decode_graphs", "warning", {"policy.device": "auto", **SHARDED},
        {"policy.device": "auto"},
    ),
    ("TrainConfig", "ppo.epochs policy.critic.kind rollout.turns", "error", GRPO, {}),
    ("TrainConfig", "ppo.clip_high policy.critic.width", "error", TPO, {}),
    ("TrainConfig", "grpo.group_size", "error", {}, GRPO),
    ("TrainConfig", "tpo.beta", "error", GRPO, TPO),
    ("TrainConfig", "grpo.extra_groups", "error", GRPO | {"grpo.keep": "all"}, GRPO),
    ("TrainConfig", "grpo.kl_estimator", "warning", GRPO, GRPO | {"grpo.kl_coef": 0.1}),
    ("TrainConfig", "tpo.reward_weight", "error", TPO, TPO | MODEL),
    ("TrainConfig", "parallel.gather", "error", {}, SHARDED),
    ("TrainConfig", "run.threads", "warning", {"policy.device": "cuda"}, {"policy.device": "cpu"}),
    ("TrainConfig", "parallel.engine_address", "error", {}, {"parallel.engine": "vllm"}),
    (
        "TrainConfig", "parallel.engine_python parallel.engine_memory", "error",
        {"parallel.engine": "vllm", "parallel.engine_address": "unix:x"}, {"parallel.engine": "vllm"},
    ),
    ("TrainConfig", "policy.lora.dropout", "error", {"policy.lora": ADAPTERS}, {"policy.lora": ADAPTERS}),
    ("TrainConfig", "policy.critic.width", "error", SHARED, SEPARATE),
    ("TrainConfig", "policy.critic.detach ppo.value_clip ppo.value_coef", "error", SEPARATE, SHARED),
    ("TrainConfig", "ppo.value_coef", "error", SHARED | {"policy.critic.detach": True}, SHARED),
    ("TrainConfig", "ppo.critic_first_epochs ppo.critic_replay", "error", SHARED, SEPARATE),
    ("TrainConfig", "ppo.critic_epochs", "error", SHARED | {"ppo.critic_warmup": 0}, SHARED),
    ("TrainConfig", "ppo.critic_epochs", "error", SHARED | {"ppo.critic_warmup": 0}, SEPARATE),
    ("TrainConfig", "ppo.critic_warmup", "warning", {"schedule.iterations": 2}, {"schedule.iterations": 3}),
    ("TrainConfig", "parallel.learners parallel.actors parallel.hosts parallel.ray", "error", {}, POOLS),
    ("TrainConfig", "parallel.ranks", "error", POOLS, {}),
    ("TrainConfig", "ppo.importance_cap", "warning", POOLS, AHEAD),
    ("TrainConfig", "ppo.kept_successes", "error", {"ppo.self_imitation_coef": 0.0}, {}),
    ("TrainConfig", "ppo.kept_half_life", "error", {}, {"ppo.kept_successes": 8}),
    ("TrainConfig", "ppo.normalize_within ppo.normalize_floor", "error", {"ppo.normalize_advantages": False}, {}),
    ("TrainConfig", "ppo.kl_estimator", "warning", {"ppo.kl_coef": 0.0}, {"ppo.kl_coef": 0.1}),
    ("TrainConfig", "reward.weight reward.form reward.limit reward.normalize", "error", {}, MODEL),
    ("TrainConfig", "reward.weight reward.form reward.limit reward.normalize", "error", {}, SIMULATOR),
    ("TrainConfig", "reward.limit", "error", MODEL | {"reward.form": "progress"}, MODEL),
    ("TrainConfig", "reward.refresh_every", "error", SIMULATOR, MODEL),
    ("TrainConfig", "reward.refresh_episodes reward.refresh_epochs", "error", MODEL, REFRESHED),
    ("TrainConfig", "curriculum.tau", "error", {"curriculum.mode": "levels"}, {"curriculum.mode": "frontier"}),
    ("TrainConfig", "curriculum.slow_window", "error", {}, {"curriculum.mode": "progress"}),
    ("TrainConfig", "curriculum.floor", "error", {"curriculum.mode": "uniform"}, {"curriculum.mode": "levels"}),
    (
        "TrainConfig",
        "curriculum.levels curriculum.level_threshold curriculum.level_window curriculum.level_share", "error",
        {"curriculum.mode": "frontier"}, {"curriculum.mode": "levels"},
    ),
    ("TrainConfig", "eval.suite", "error", {"eval.suite": "mt10"}, {"eval.suite": "mt5"}),
    ("TrainConfig", "eval.temperature", "error", {"run.eval_every": 0}, {"run.eval_every": 10}),
    (
        "TrainConfig",
        "policy.base policy.unnorm_key policy.dtype policy.images policy.gripper policy.vlm.bins", "error",
        {"policy.scratch": "mini"}, {"policy.checkpoint": "x"},
    ),
    *(
        (name, "policy.scratch", "error", {"policy.checkpoint": "x"}, {}) for name in ("TrainConfig", "SFTConfig")
    ),
    (
        "SFTConfig",
        "policy.base policy.unnorm_key policy.dtype policy.images policy.gripper policy.vlm.bins", "error", {},
        {"policy.checkpoint": "x"},
    ),
    ("PreferConfig", "reward_weight", "error", {}, {"reward_model": "x"}),
    ("PreferConfig", "policy.scratch", "error", {}, {}),
    ("PreferConfig", "policy.critic.kind policy.decode_graphs", "warning", {}, {}),
    ("PreferConfig", "policy.lora.dropout", "error", {"policy.lora": ADAPTERS}, {"policy.lora": ADAPTERS}),
    ("SFTConfig", "policy.critic.kind policy.critic.width policy.decode_graphs", "warning", {}, {}),
    (
        "SFTConfig", "fast.vocabulary fast.scale fast.max_tokens fast.tokenizer", "error", {}, {"actions": "fast"},
    ),
    (
        "SFTConfig", "fast.vocabulary fast.scale", "error", {"actions": "fast", "fast.tokenizer": "x"},
        {"actions": "fast"},
    ),
    *(
        (name, "labels.num_segments labels.failure_peak labels.failure_end labels.positive_progress", "error", {},
         {"labels.scheme": "segments"})
        for name in ("RewardModelConfig", "RewardLabelConfig")
    ),
    *(
        (name, "labels.gripper labels.window labels.margin labels.ends_are_key labels.failure_share", "error",
         {"labels.scheme": "segments"}, {})
        for name in ("RewardModelConfig", "RewardLabelConfig")
    ),
    ("RewardModelConfig", "backbone lora.rank all_weights", "error", {"start": "x"}, {"backbone": "y"}),
    ("RewardModelConfig", "action_coef", "error", {"backbone": "y"}, {}),
    ("RewardModelConfig", "prompt positive_answer negative_answer", "error", {"head": "regression"}, {}),
    ("RewardModelConfig", "labels.scheme", "error", {"head": "regression"}, {}),
    (
        "RewardModelConfig", "labels.num_segments labels.failure_peak", "error", {},
        {"head": "regression"},
    ),
    ("RewardModelConfig", "dtype", "error", {}, {"backbone": "y"}),
    ("RewardModelConfig", "action_chunk", "error", {"action_coef": 0.0}, {"action_coef": 0.0, "sees_actions": True}),
    ("RewardModelConfig", "action_chunk", "error", {"backbone": "y"}, {}),
    ("RewardModelConfig", "threads", "warning", {"device": "cuda:0"}, {"device": "auto"}),
    ("RewardLabelConfig", "max_plots", "error", {}, {"plot": True}),
    ("PlanArguments", "gpu_memory gpu", "warning", {}, {"gpus": 8}),
    ("PlanArguments", "policy.critic.width", "error", SHARED, SEPARATE),
    ("RewardEvalConfig", "seed", "warning", {"resamples": 0}, {}),
    (
        "TrainConfig", "starts.share starts.draw starts.fraction starts.measured starts.step starts.window "
        "starts.threshold", "error", {}, {"starts.dataset": "x"},
    ),
    (
        "TrainConfig", "starts.fraction starts.measured starts.step starts.window starts.threshold", "error",
        {"starts.dataset": "x", "starts.draw": "uniform"}, {"starts.dataset": "x"},
    ),
    ("EvalArguments", "fractions", "error", {}, {"starts": "x"}),
    ("EvalArguments", "best_of protocol.split", "error", {"starts": "x"}, {}),
    ("EvalArguments", "mode chooser reward_model lookahead success_ahead", "error", {}, {"best_of": 2}),
    (
        "EvalArguments", "refine_from temperatures turn_budget", "error", {"best_of": 2},
        {"best_of": 2, "mode": "refine"},
    ),
    (
        "EvalArguments", "trajectory_turns turn_budget", "error", {"mode": "trajectory"},
        {"best_of": 2, "mode": "trajectory"},
    ),
    (
        "EvalArguments", "trajectory_turns", "error", {"best_of": 2, "mode": "refine"},
        {"best_of": 2, "mode": "trajectory"},
    ),
    ("EvalArguments", "lookahead success_ahead", "error", {"best_of": 2, "mode": "refine"}, {"best_of": 2}),
    ("EvalArguments", "success_ahead", "error", {"best_of": 2, "chooser": "random"}, {"best_of": 2}),
    ("EvalArguments", "reward_model", "error", {"best_of": 2, "chooser": "simulator"}, {"best_of": 2}),
    ("EvalArguments", "videos_out", "error", {}, {"protocol.videos": 1}),
    ("EvalArguments", "protocol.seed", "warning", {}, {"protocol.temperature": 1.0}),
    ("EvalArguments", "protocol.seed", "warning", {}, {"best_of": 4}),
    ("RemoteEvalArguments", "videos_out", "error", {}, {"protocol.videos": 1}),
    ("RemoteEvalArguments", "protocol.temperature protocol.seed", "error", {}, {}),
    ("ServeArguments", "seed", "warning", {}, {"temperature": 1.0}),
    ("ServeArguments", "limits.beyond", "error", {}, {"limits.change": (0.1,)}),
    ("ServeArguments", "require_sequence", "error", {"protocol": "vla-eval"}, {}),
    ("ReportArguments", "out", "error", {"live": True}, {"live": False}),
    ("ReportArguments", "port pause", "error", {}, {"live": True}),
    ("DoctorArguments", "dataset unnorm_key", "error", {}, {"checkpoint": "x", "dataset": "y"}),
    ("DoctorArguments", "unnorm_key", "error", {"checkpoint": "x"}, {"checkpoint": "x", "dataset": "y"}),
    (
        "ScalingConfig", "search.best_of search.chooser search.success_ahead protocol.temperature protocol.videos",
        "error", {}, {},
    ),
    ("ScalingConfig", "search.lookahead search.execute", "error", {"search.mode": "action"}, {}),
    ("ScalingConfig", "search.trajectory_turns search.turn_budget", "error", {}, {"search.mode": "trajectory"}),
    (
        "ScalingConfig", "search.refine_from search.temperatures search.turn_budget", "error", {},
        {"search.mode": "refine"},
    ),
    ("ScalingConfig", "search.reward_model", "error", {"choosers": ("random",)}, {"choosers": ("reward-model-alone",)}),
    ("PushConfig", "public", "error", {"to_folder": "x"}, {"to_folder": ""}),
    ("ExportConfig", "dtype shard_gigabytes", "error", {"adapter": True}, {"merged": True}),
    ("AblationConfig", "iterations", "error", {"minutes": 1.0}, {}),
    ("AblationConfig", "cells", "error", {"build_up": True}, {}),
    ("AblationConfig", "best_of", "error", {}, {"build_up": True}),
]  # fmt: skip
NEVER = {
    "TrainConfig": ("policy.lora.dropout",),
    "SFTConfig": ("policy.critic", "policy.decode_graphs"),
    "PreferConfig": (
        "policy.scratch",
        "policy.critic",
        "policy.decode_graphs",
        "policy.lora.dropout",
    ),
    "ScalingConfig": ("search", "protocol"),
    "RemoteEvalArguments": ("protocol",),
}
"""Of these the table says that they never count: there is no example of the opposite."""


@pytest.mark.parametrize(
    ("name", "fields", "severity", "ignored", "counted"),
    CASES,
    ids=[f"{c[0]}-{c[1]}" for c in CASES],
)
def test_what_does_not_count_is_said_and_what_counts_is_not(
    name: str, fields: str, severity: str, ignored: dict[str, Any], counted: dict[str, Any]
) -> None:
    options = {field: f"--{field.replace('_', '-')}" for field in fields.split()}
    for field, option in options.items():
        found = without_effect(changed(CONFIGS[name], ignored), {field: option})
        assert [f.severity for f in found] == [severity]
        assert found[0].message.startswith(f"{option} has no effect: ")
        if ignored != counted:
            assert without_effect(changed(CONFIGS[name], counted), {field: option}) == []
        else:
            assert field.startswith(NEVER[name])


def test_every_line_of_the_table_has_an_example() -> None:
    seen = {
        (name, effect.because)
        for name, fields, _, ignored, _ in CASES
        for effect in EFFECTS[name]
        for field in fields.split()
        if any(field == f or field.startswith(f"{f}.") for f in effect.fields)
        and not effect.counts(changed(CONFIGS[name], ignored))
    }
    assert {(name, effect.because) for name in EFFECTS for effect in EFFECTS[name]} == seen


def test_what_is_the_same_for_several_options_is_said_once() -> None:
    given = {
        "reward.weight": "--reward.weight",
        "ppo.value_clip": "--ppo.value-clip",
        "reward.form": "--reward.form",
    }
    weight, clip = without_effect(TrainConfig(), given)
    assert weight.message.startswith(
        "--reward.weight and --reward.form have no effect: success is the only reward"
    )
    assert clip.message.startswith("--ppo.value-clip has no effect: ")


def test_what_says_the_same_as_the_default_is_worth_no_more_than_a_line() -> None:
    (finding,) = without_effect(
        TrainConfig(), {"ppo.value_clip": "--ppo.value-clip"}, lambda _: False
    )
    assert finding.severity == "warning"
