"""Which options count when: an option that is given where it has no effect is said, never ignored in silence.

    vla-rl train --ppo.value-clip 0.2
    vla-rl: train: --ppo.value-clip has no effect: the value loss is clipped for a shared critic only (...)

One table, by the configuration of a command. What a preset or a default says is not looked at, only what somebody gave.
"""

# pyright: basic
# A condition looks at the configuration of whatever command it belongs to.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vla_rl.config.effect import Effect, Severity
from vla_rl.config.effects_fast import FAST
from vla_rl.config.effects_robots import PREFER, SERVE
from vla_rl.config.effects_search import EVAL, TEST_TIME, VIDEOS_OUT
from vla_rl.config.group_effects import GROUP_EFFECTS


class Finding(NamedTuple):
    """Options without effect for one and the same reason."""

    severity: Severity
    message: str


def without_effect(
    config: Any,
    given: Mapping[str, str],
    changed: Callable[[str], bool] = lambda _: True,
    others: Sequence[Effect] = (),
) -> list[Finding]:
    """The options that have no effect in `config`.

    given: dotted field -> the option as it was typed. changed: whether a field is other than the preset or the default
    has it; one that was given but says the same is worth a warning and no more. others: what is known beside the
    table, of the simulator for example.
    """
    together: dict[tuple[str, Severity], list[str]] = {}
    for field, option in given.items():
        effect = _missed(config, field, others)
        if effect is not None:
            severity = effect.severity if changed(field) else "warning"
            together.setdefault((effect.because, severity), []).append(option)
    return [
        Finding(severity, f"{_listed(options)} no effect: {because}")
        for (because, severity), options in together.items()
    ]


def _missed(config: Any, field: str, others: Sequence[Effect]) -> Effect | None:
    """What says that `field` does not count in `config`, if anything does."""
    known = [e for cls in type(config).__mro__ for e in EFFECTS.get(cls.__name__, ())]
    for effect in (*known, *others):
        if _covers(effect.fields, field) and not effect.counts(config):
            return effect
    return None


def _listed(options: list[str]) -> str:
    *first, last = options
    return f"{', '.join(first)} and {last} have" if first else f"{last} has"


def _covers(fields: tuple[str, ...], field: str) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in fields)


def _named(group: str, names: str) -> tuple[str, ...]:
    return tuple(f"{group}.{name}" for name in names.split())


# --------------------------------------------------------------------------------------------------
# Conditions


def _shared(config: Any) -> bool:
    return config.policy.critic.kind == "shared"


def _separate(config: Any) -> bool:
    return config.policy.critic.kind == "separate"


def _warms_up(config: Any) -> bool:
    return config.ppo.critic_warmup > 0 or config.ppo.critic_warmup_until_explained


def _dense_reward(config: Any) -> bool:
    return config.reward.chosen_kind != "success"


def _reward_model(config: Any) -> bool:
    return config.reward.chosen_kind == "process"


def _regresses(config: Any) -> bool:
    return getattr(config, "head", "") == "regression"


def _scheme(config: Any) -> str:
    return "segments" if _regresses(config) else config.labels.scheme


def _on_gpu(config: Any) -> bool:
    return config.policy.device.startswith("cuda")


# --------------------------------------------------------------------------------------------------
# The table

_LOADED = _named("policy", "base unnorm_key dtype images gripper vlm")
_FROM_SCRATCH = "the policy is built from scratch, not loaded; these are its own"
_SCRATCH = Effect(
    ("policy.scratch",),
    lambda c: not c.policy.checkpoint,
    "the policy is loaded from policy.checkpoint; leave out one of the two",
)
_DECODE_GRAPHS = Effect(
    ("policy.decode_graphs",),
    lambda c: c.policy.device != "cpu",
    "CUDA graphs are for a GPU, and policy.device is cpu",
    "warning",
)
_NO_LOOP = Effect(
    ("policy.decode_graphs",),
    lambda c: c.policy.kind != "openvla-oft",
    "parallel decoding has no token loop to record",
    "warning",
)
_LABELS = (
    Effect(
        _named(
            "labels",
            "gripper gripper_change gripper_hysteresis min_segment near_zero_speed leaving_speed speed_floor "
            "ends_are_key window window_share margin failure_share",
        ),
        lambda c: _scheme(c) == "keyframe",
        "it belongs to labels.scheme keyframe",
    ),
    Effect(
        _named("labels", "num_segments failure_peak failure_end positive_progress"),
        lambda c: _scheme(c) == "segments",
        "it belongs to labels.scheme segments",
    ),
)
_TRAIN = (
    *GROUP_EFFECTS,
    _SCRATCH,
    Effect(_LOADED, lambda c: c.policy.checkpoint or not c.policy.scratch, _FROM_SCRATCH),
    _DECODE_GRAPHS,
    _NO_LOOP,
    Effect(
        ("policy.decode_graphs",),
        lambda c: c.parallel.shard == "none",
        "CUDA graphs need weights that stay where they are, and parallel.shard fsdp2 moves them",
        "warning",
    ),
    Effect(
        ("parallel.gather",),
        lambda c: c.parallel.shard == "fsdp2",
        "all weights are whole at all times; set parallel.shard fsdp2",
    ),
    Effect(
        ("policy.critic.width",),
        _separate,
        "a shared critic has no convolutions; set policy.critic.kind separate",
    ),
    Effect(
        ("policy.critic.detach",),
        _shared,
        "a separate critic has no trunk to detach from; set policy.critic.kind shared",
    ),
    Effect(
        ("policy.lora.dropout",),
        lambda c: False,
        "PPO compares how likely a turn was before and after an update, which must not depend on what is dropped; give "
        "it to `vla-rl sft`",
    ),
    Effect(
        ("ppo.value_clip",),
        _shared,
        "the value loss is clipped for a shared critic only; set policy.critic.kind shared",
    ),
    Effect(
        ("ppo.value_coef",),
        lambda c: _shared(c) and not c.policy.critic.detach,
        "the value loss has a loss and an optimizer of its own unless the critic is shared and attached; set "
        "policy.critic.kind shared, or ppo.critic_learning_rate",
    ),
    Effect(
        _named("ppo", "critic_first_epochs critic_replay"),
        _separate,
        "a shared critic learns with the policy, from the same window; set policy.critic.kind separate",
    ),
    Effect(
        ("ppo.critic_epochs",),
        lambda c: _separate(c) or _warms_up(c),
        "a shared critic learns with the policy, in passes of its own only during a warm-up; set ppo.critic_warmup",
    ),
    Effect(
        ("ppo.critic_warmup",),
        lambda c: not 0 < c.schedule.iterations <= c.ppo.critic_warmup,
        "the run ends with the critic's warm-up, so that the policy never learns; raise schedule.iterations",
        "warning",
    ),
    Effect(
        _named("parallel", "learners actors hosts ray"),
        lambda c: c.parallel.arrangement == "pools",
        "it belongs to parallel.arrangement pools; set that, or parallel.ranks for several processes of this machine",
    ),
    Effect(
        _named("parallel", "ranks"),
        lambda c: c.parallel.arrangement == "ranks",
        "with parallel.arrangement pools, parallel.learners says how many processes learn",
    ),
    Effect(
        ("ppo.importance_cap",),
        lambda c: c.parallel.staleness > 0,
        "no turn is weighted where the learner's own weights play; set parallel.staleness 1",
        "warning",
    ),
    Effect(
        ("ppo.kept_successes",),
        lambda c: c.ppo.self_imitation_coef > 0,
        "ppo.self_imitation_coef is 0, so that no success is imitated",
    ),
    Effect(
        ("ppo.kept_half_life",),
        lambda c: c.ppo.kept_successes > 0,
        "no success is kept; set ppo.kept_successes",
    ),
    Effect(
        _named("ppo", "normalize_within normalize_floor"),
        lambda c: c.ppo.normalize_advantages,
        "with ppo.normalize_advantages off they are not whitened",
    ),
    Effect(
        ("ppo.kl_estimator",),
        lambda c: c.ppo.kl_coef > 0,
        "ppo.kl_coef is 0, so there is no KL penalty",
        "warning",
    ),
    Effect(
        _named("reward", "weight form limit normalize"),
        _dense_reward,
        "success is the only reward; give a process reward model with reward.model",
    ),
    Effect(
        ("reward.limit",),
        lambda c: c.reward.form == "additive",
        "it belongs to reward.form additive",
    ),
    Effect(
        ("reward.refresh_every",),
        _reward_model,
        "there is no process reward model to train on; give one with reward.model",
    ),
    Effect(
        _named("reward", "refresh_episodes refresh_epochs"),
        lambda c: _reward_model(c) and c.reward.refresh_every > 0,
        "the reward model is never refreshed; set reward.model and reward.refresh_every",
    ),
    Effect(
        ("curriculum.tau",),
        lambda c: c.curriculum.mode in ("paper", "frontier"),
        "it belongs to curriculum.mode paper and frontier",
    ),
    Effect(
        ("curriculum.floor",),
        lambda c: c.curriculum.mode != "uniform",
        "curriculum.mode uniform gives every task the same probability anyway",
    ),
    Effect(
        ("curriculum.slow_window",),
        lambda c: c.curriculum.mode == "progress",
        "it belongs to curriculum.mode progress",
    ),
    Effect(
        _named("curriculum", "levels level_threshold level_window level_share"),
        lambda c: c.curriculum.mode == "levels",
        "it belongs to curriculum.mode levels",
    ),
    Effect(
        _named("starts", "share draw fraction measured step window threshold"),
        lambda c: bool(c.starts.dataset),
        "every episode starts at its beginning; give demonstrations with snapshots with starts.dataset",
    ),
    Effect(
        _named("starts", "fraction measured step window threshold"),
        lambda c: c.starts.draw == "reverse",
        "it belongs to starts.draw reverse",
    ),
    Effect(
        ("eval.suite",),
        lambda c: c.eval.suite in ("", c.env.suite),
        "training evaluates on the tasks it practises; for others use `vla-rl eval RUN --suite`",
    ),
    Effect(
        ("eval.temperature",),
        lambda c: c.run.eval_every > 0,
        "before and after training both greedy and sampled play are evaluated; it counts between, with run.eval_every",
    ),
    Effect(
        _named("parallel", "engine_python engine_memory engine_address"),
        lambda c: c.parallel.engine != "own",
        "the policy that learns plays itself; set parallel.engine vllm",
    ),
    Effect(
        _named("parallel", "engine_python engine_memory"),
        lambda c: not c.parallel.engine_address,
        "the engine at parallel.engine_address runs already",
    ),
    Effect(
        ("run.threads",),
        lambda c: not _on_gpu(c),
        "the learner splits a minibatch on the CPU only, and policy.device is a GPU",
        "warning",
    ),
)
_SFT = (
    _SCRATCH,
    *FAST,
    Effect(_LOADED, lambda c: bool(c.policy.checkpoint), _FROM_SCRATCH),
    Effect(
        ("policy.critic",),
        lambda c: False,
        "fine-tuning trains no critic; set it in `vla-rl train`",
        "warning",
    ),
    Effect(
        ("policy.decode_graphs",),
        lambda c: False,
        "fine-tuning decodes nothing",
        "warning",
    ),
)
_REWARD_TRAIN = (
    *_LABELS,
    Effect(
        ("prompt", "positive_answer", "negative_answer"),
        lambda c: not _regresses(c),
        "head regression has a question of its own and answers with a number",
    ),
    Effect(
        ("labels.scheme",),
        lambda c: not _regresses(c) or c.labels.scheme == "segments",
        "head regression learns the progress of labels.scheme segments",
    ),
    Effect(
        ("backbone", "lora", "all_weights"),
        lambda c: not c.start,
        "the reward model given with start keeps its own backbone and adapters",
    ),
    Effect(("action_coef",), lambda c: c.is_tiny, "only the tiny backbone learns to name actions"),
    Effect(
        ("dtype",),
        lambda c: not c.is_tiny,
        "the tiny backbone is trained whole, in float32",
    ),
    Effect(
        ("action_chunk",),
        lambda c: c.reads_actions or (c.is_tiny and c.action_coef > 0),
        "the reward model neither sees nor names actions; set sees_actions",
    ),
    Effect(
        ("threads",),
        lambda c: not c.device.startswith("cuda"),
        "a batch is split on the CPU only, and device is a GPU",
        "warning",
    ),
)
EFFECTS: Mapping[str, tuple[Effect, ...]] = {
    "TrainConfig": _TRAIN,
    "PlanArguments": (
        Effect(
            ("gpu_memory", "gpu"), lambda c: c.gpus > 0, "there is no GPU: set --gpus", "warning"
        ),
    ),
    "SFTConfig": _SFT,
    "PreferConfig": PREFER,
    "DemosConfig": (),
    "RewardModelConfig": _REWARD_TRAIN,
    "RewardLabelConfig": (
        *_LABELS,
        Effect(("max_plots",), lambda c: c.plot, "nothing is drawn without --plot"),
    ),
    "RewardEvalConfig": (
        Effect(
            ("seed",),
            lambda c: c.resamples > 0,
            "it is the bootstrap's, and resamples is 0",
            "warning",
        ),
    ),
    "EvalArguments": EVAL,
    "ScalingConfig": TEST_TIME,
    "RemoteEvalArguments": (
        VIDEOS_OUT,
        Effect(
            ("protocol.temperature", "protocol.seed"),
            lambda c: False,
            "the server decides whether it samples",
        ),
    ),
    "ServeArguments": SERVE,
    "DoctorArguments": (
        Effect(
            ("dataset", "unnorm_key"),
            lambda c: bool(c.checkpoint),
            "it is asked of a checkpoint; set --checkpoint",
        ),
        Effect(("unnorm_key",), lambda c: bool(c.dataset), "no actions are read; set --dataset"),
    ),
    "ReportArguments": (
        Effect(("out",), lambda c: not c.live, "a live report writes no file; leave --live out"),
        Effect(("port", "pause"), lambda c: c.live, "a report is a file; set --live"),
    ),
    "ExportConfig": (
        Effect(
            ("dtype", "shard_gigabytes"),
            lambda c: not c.adapter,
            "it belongs to merged weights, and --adapter writes the adapters alone",
        ),
    ),
    "PushConfig": (
        Effect(("public",), lambda c: not c.to_folder, "--to-folder sends nothing to the hub"),
    ),
    "AblationConfig": (
        Effect(
            ("iterations",),
            lambda c: c.minutes == 0,
            "minutes decide how long the runs are; leave out one of the two",
        ),
        Effect(
            ("cells",),
            lambda c: not c.build_up,
            "a build-up has rows of its own; leave out --build-up to take the recipe apart",
        ),
        Effect(("best_of",), lambda c: c.build_up, "only a build-up (--build-up) searches"),
    ),
}
"""By the name of a command's configuration; one made of another has that one's too."""
