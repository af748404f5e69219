"""Which policy to train, and what of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge, Le

from vla_rl.config.bounds import Config, ShareBelowOne
from vla_rl.config.errors import require


@dataclass(frozen=True)
class LoraConfig(Config, group="policy.lora"):
    """Low-rank adapters through peft; the base stays frozen and is the KL reference."""

    rank: Annotated[int, Ge(1), Le(65536)] = 32
    """Rank r of each adapter, the inner size of its two factors."""
    alpha: Annotated[int, Ge(1), Le(65536)] = 16
    """An adapter's output is scaled by alpha / rank."""
    dropout: ShareBelowOne = 0.0
    """Share of an adapter's inputs that are dropped in supervised training; PPO drops none."""
    vision: bool = False
    """Also adapt the linear layers of both vision towers."""


@dataclass(frozen=True)
class CriticConfig(Config, group="policy.critic"):
    """The value function."""

    kind: Literal["shared", "separate", "none"] = "separate"
    """shared: a head on the policy's hidden state that predicts the first action token. separate: a small
    convolutional network of its own. none: there is none, as in GRPO and TPO whatever is said here."""
    time_fraction: bool = True
    """The critic sees which share of the horizon has passed (the policy never does)."""
    width: Annotated[int, Ge(1), Le(4096)] = 16
    """Channels of the separate critic's first convolution."""
    detach: bool = False
    """shared only: the value loss never reaches the trunk, not only during warm-up."""


@dataclass(frozen=True)
class Conventions(Config):
    """What a benchmark's published checkpoints mean by actions and images, which they do not say themselves.

    Used for checkpoints that say nothing; ours record it, and what the configuration asks for comes before both.
    """

    images: Literal["as-is", "openvla-libero", "openvla-libero-uncropped"] = "as-is"
    """What happens to a frame before the model sees it."""
    gripper: Literal["as-is", "openvla"] = "as-is"
    """Meaning of the gripper's dimension, see ModelConfig.gripper."""
    unnorm_key: str = ""
    """Dataset whose action statistics are taken if the checkpoint has it, `<key>_no_noops` after it."""


class SuiteActions(NamedTuple):
    """What a suite asks of the policy that plays it: which statistics its actions have, and how many numbers."""

    dataset: str
    """Of published checkpoints for the suite."""
    robot: str
    """The suite's robot as datasets call it; statistics of that name are for all suites of the robot."""
    size: int
    every_suite: frozenset[str] = frozenset()
    """Names of datasets that belong to one suite or robot each, of all suites."""


@dataclass(frozen=True)
class VlmConfig(Config, group="policy.vlm"):
    """How an image-text model of Hugging Face becomes a policy, in fine-tuning; its checkpoint says so afterwards."""

    action_tokens: Literal["last", "added"] = "last"
    """Which tokens are actions. last: the last ids of the model's text vocabulary, as in OpenVLA, never special or
    image tokens. added: special tokens of their own, <action_0> and so on; all weights are trained then."""
    bins: Annotated[int, Ge(2), Le(4096)] = 256
    """Action tokens, and values that a number of an action can take."""
    prompt: str = "What action should the robot take to {instruction}?"
    """What the user says after the images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            "{instruction}" in self.prompt,
            f"policy.vlm.prompt must hold {{instruction}}, got {self.prompt!r}",
        )


@dataclass(frozen=True)
class PolicyConfig(Config, group="policy"):
    """Which policy to train, and what of it."""

    checkpoint: str = ""
    """Folder or hub id (openvla/openvla-7b, owner/name@revision) of the pretrained policy, or of an adapter in PEFT's
    format; empty builds one from scratch."""
    scratch: Literal["", "tiny", "mini"] = ""
    """Model to build with random weights where there is no checkpoint: tiny for 64 px, mini for 32 px and simple
    scenes. Empty: fine-tuning builds the tiny one, and PPO asks for a checkpoint."""
    kind: str = ""
    """Class of the policy. openvla: action tokens one after another. openvla-oft: all of a turn in one parallel pass
    (OpenVLA-OFT with discrete tokens). Empty: what the checkpoint says; published ones of OpenVLA-OFT do not say it."""
    base: str = ""
    """Folder or hub id of the model that adapters belong to, where it is not the one they name themselves."""
    unnorm_key: str = ""
    """Dataset whose action statistics un-normalise actions, e.g. libero_spatial (`<key>_no_noops` is tried after it);
    empty takes the checkpoint's own or only one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights. auto: bfloat16 for large models (1e9 weights) on a GPU, else float32. Whatever is
    trained is float32: adapters and critic always, and without adapters the model must be."""
    images: Literal["checkpoint", "as-is", "openvla-libero", "openvla-libero-uncropped"] = (
        "checkpoint"
    )
    """What happens to a frame before the model sees it. checkpoint: what is written there (official ones say nothing:
    as-is). openvla-libero: JPEG round trip, lanczos3 to 224 px, centre crop of 0.9 of the area."""
    gripper: Literal["checkpoint", "as-is", "openvla"] = "checkpoint"
    """Meaning of the gripper's dimension, see ModelConfig.gripper; openvla for OpenVLA's checkpoints in LIBERO."""
    lora: LoraConfig | None = None
    """Adapters instead of training all weights."""
    vlm: VlmConfig = field(default_factory=VlmConfig)
    """How an image-text model of Hugging Face becomes a policy."""
    activation_checkpointing: bool = False
    """Compute the layers' inner activations a second time in the backward pass instead of keeping them: the same
    gradients, about a third more time, a fraction of the memory."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """The value function."""
    device: str = "auto"
    """auto takes CUDA where there is a GPU, else the CPU."""
    decode_graphs: bool = True
    """GPU only: replay the token loop as a CUDA graph. Each batch shape that returns keeps its key-value cache
    (OpenVLA-7B: 157 MB per observation); off, that memory is free between calls."""
