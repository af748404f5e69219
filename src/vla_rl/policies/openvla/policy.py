"""OpenVLA as a Policy: act to play, evaluate to learn, save and load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla_rl.config.errors import UserError
from vla_rl.config.openvla import ModelConfig
from vla_rl.config.policy import Conventions, PolicyConfig
from vla_rl.distributed.sharding import Sharding
from vla_rl.functional import action_log_softmax, entropy, gather_log_probs
from vla_rl.policies.action_tokens import (
    ActionTokenizer,
    dataset_name,
    select_statistics,
)
from vla_rl.policies.critic import CriticInput, build_critic
from vla_rl.policies.fast.actions import FastTokens
from vla_rl.policies.openvla import checkpoint as files
from vla_rl.policies.openvla import lora
from vla_rl.policies.openvla.actions import ActsInTurns, turn_actions_of
from vla_rl.policies.openvla.config_files import Checkpoint, with_dataset
from vla_rl.policies.openvla.decoding import (
    Decides,
    TokenDecoder,
    decisions,
    record_cuda_graph,
    require_candidates,
)
from vla_rl.policies.openvla.exporting import fingerprint_of, save_policy
from vla_rl.policies.openvla.loading import load_parts
from vla_rl.policies.openvla.model import OpenVLA, critic_sizes, initialise
from vla_rl.policies.openvla.processing import (
    Processor,
    pixel_values,
    with_image_fit,
    with_protocol,
)
from vla_rl.policies.openvla.reference import Reference
from vla_rl.policies.openvla.sharding import blank_observation, split
from vla_rl.policies.openvla.tokenizer import build_tiny_tokenizer
from vla_rl.policies.policy import Evaluation, PolicyOutput, Proposals
from vla_rl.policies.prompts import Prompts
from vla_rl.runtime.call_times import CallTimes, own_seconds
from vla_rl.runtime.devices import resolve_device
from vla_rl.types import Observation

T = TypeVar("T")


class OpenVLAPolicy(ActsInTurns, nn.Module):
    """The ValuePolicy protocol on an OpenVLA model and a critic.

    Set `detach_values` while nothing but the critic may learn (critic warm-up): the value loss then stops at the
    shared trunk. Sampling uses torch's global generator unless `uniforms` are given.
    """

    network: ClassVar[type[OpenVLA]] = OpenVLA
    """The class of model that it plays with."""
    span_margin: ClassVar[float] = 0.0
    """Added to q99 - q01 when actions are un-normalised."""

    def __init__(
        self,
        model: OpenVLA,
        tokenizer: Tokenizer,
        description: Checkpoint,
        config: PolicyConfig,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.config = config
        description = replace(description, model=with_protocol(description.model, config))
        self.description = description
        self.model = model
        self.critic = build_critic(config.critic, critic_sizes(description.model))
        self.processor = Processor(description.model, tokenizer)
        bins, style = description.model.action_bins, description.model.bin_style
        vocabulary = description.model.language.text_vocab
        self.action_tokenizer = ActionTokenizer(bins, style, vocabulary)
        norm_stats, key = description.norm_stats, description.unnorm_key
        self.unnorm_key, self.statistics = select_statistics(norm_stats, key)
        if self.statistics.q01.size != description.action_dim and not description.unnorm_keys:
            name, size = dataset_name(self.unnorm_key), self.statistics.q01.size
            raise UserError(
                f"Action statistics of {name!r} have {size} dimensions, the policy {description.action_dim}"
            )
        self.turn_actions = turn_actions_of(
            description, self.action_tokenizer, self.statistics, self.span_margin
        )
        self.detach_values = False
        self.critic_restored = False
        """Whether the critic came from the checkpoint; else it was initialised afresh."""
        self.stored_dtypes: dict[str, torch.dtype] = {}
        """Precision of the model's tensors in the files they were read from; `save` keeps it where nothing is lost."""
        self.model.checkpoint_activations(config.activation_checkpointing)
        self._reference: Reference | None = None
        self.sharding: Sharding | None = None
        self.to(device)
        self.eval()
        self.decoder = self._new_decoder(config.decode_graphs and device.type == "cuda")
        self.times = {"prefill": CallTimes(), "tokens": CallTimes()}
        """What `act` cost after its first call: reading images and prompts, and choosing the tokens."""
        self.warm = False
        self._initial_version = self._version()

    @classmethod
    def create(
        cls,
        model: ModelConfig,
        instructions: Sequence[str],
        norm_stats: dict[str, Any],
        action_dim: int,
        action_chunk: int,
        config: PolicyConfig | None = None,
        seed: int = 0,
        fast: FastTokens | None = None,
    ) -> OpenVLAPolicy:
        """A randomly initialised policy with a tokenizer built from `instructions`; the same seed, the same policy.

        norm_stats: official format, one dataset (see `action_tokens.identity_statistics`) or one of each suite.
        fast: what actions are written in; None: a bin for each number.
        """
        config = config or PolicyConfig()
        device = resolve_device(config.device)
        tokenizer = build_tiny_tokenizer(instructions, model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = cls.network(model)
            initialise(network)
            network.freeze_unused()
            if config.lora is not None:
                lora.add_adapters(network, config.lora)
            several = tuple(norm_stats) if len(norm_stats) > 1 else ()
            description = Checkpoint(
                model, norm_stats, action_dim, action_chunk, next(iter(several), None), several,
                config.critic, config.lora, kind=cls.network.kind, fast=fast,
            )  # fmt: skip
            return cls(network, tokenizer, description, config, device)

    @classmethod
    def from_checkpoint(
        cls,
        folder: Path | str,
        config: PolicyConfig | None = None,
        *,
        unnorm_key: str | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        conventions: Conventions | None = None,
    ) -> OpenVLAPolicy:
        """Load a policy from a checkpoint, official or ours: a folder, a hub id, or adapters in PEFT's format.

        A stored critic is loaded if it was saved under the same CriticConfig; otherwise a fresh one is made from
        `seed` and `critic_restored` is false. Adapters of our own checkpoints stay adapters, those in PEFT's format
        are merged; `config.lora` puts new ones on a checkpoint without. unnorm_key and dtype (of the model's
        weights; adapters and critic are always float32) take the place of `config`'s. conventions: a benchmark's, for
        checkpoints that do not say how their images and actions are meant.

        Raises UserError for missing, truncated or ill-fitting files.
        """
        config = config or PolicyConfig()
        device = resolve_device(config.device)
        parts = load_parts(folder, config, device, unnorm_key, dtype, conventions, cls.network)
        network = parts.network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = cls(network.model, parts.tokenizer, network.description, config, device)
        policy.stored_dtypes = network.stored
        if parts.stored_critic == config.critic:
            files.load_into(policy.critic, parts.critic_file, f"a {config.critic.kind} critic")
            policy.critic_restored = True
        return policy

    @property
    def kind(self) -> str:
        return self.network.kind

    @property
    def action_dim(self) -> int:
        return self.description.action_dim

    @property
    def action_chunk(self) -> int:
        return self.description.action_chunk

    @property
    def image_size(self) -> int:
        return self.description.model.image_size

    @property
    def resizes_images(self) -> bool:
        return self.description.model.images.resize != "none"

    @property
    def device(self) -> torch.device:
        return self.model.language_model.lm_head.weight.device

    def _new_decoder(self, graphs: bool) -> Decides:
        recorder = record_cuda_graph if graphs else None
        return TokenDecoder(self.model, self.num_tokens, recorder, self.turn_actions.end_token)

    def _inputs(self, observation: Observation) -> tuple[Tensor, Prompts, Tensor]:
        raw = self.processor.raw(observation.images, self.device)
        prompts = self.processor.prompts(observation.instructions, self.device)
        time = torch.from_numpy(np.array(observation.time_fraction, dtype=np.float32))
        return raw, prompts, time.to(self.device)

    def _value(
        self, raw: Tensor, prompts: Prompts, time: Tensor, hidden: Tensor | None
    ) -> Float[Tensor, " N"] | None:
        if hidden is not None and (self.detach_values or self.config.critic.detach):
            hidden = hidden.detach()
        return self.critic(CriticInput(time, hidden, raw, prompts))

    def act(
        self,
        observation: Observation,
        temperature: float = 1.0,
        uniforms: Float32[np.ndarray, "N K"] | None = None,
    ) -> PolicyOutput:
        """Decode K tokens for each observation, see `Policy.act`.

        At temperature 0 the choice is certain and its log-prob is 0.
        """
        if temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or positive, got {temperature}")
        return self._in_step("act", lambda: self._act(observation, temperature, uniforms))

    def _act(
        self, observation: Observation, temperature: float, uniforms: np.ndarray | None = None
    ) -> PolicyOutput:
        with self._playing():
            tokens, log_probs, values = self._decode(observation, temperature, uniforms)
        # copies made outside inference mode may take part in training
        values = None if values is None else values.clone()
        return PolicyOutput(tokens.clone(), log_probs.clone(), values)

    def propose(
        self, observation: Observation, temperature: float, uniforms: Float32[np.ndarray, "N J K"]
    ) -> Proposals:
        """Decode J candidates for each observation from one prefill, see `Policy.propose`."""
        require_candidates(uniforms, len(observation), self.num_tokens, temperature)
        return self._in_step("act", lambda: self._propose(observation, temperature, uniforms))

    def _propose(
        self, observation: Observation, temperature: float, uniforms: Float32[np.ndarray, "N J K"]
    ) -> Proposals:
        shape = uniforms.shape
        with self._playing():
            raw, prompts, time = self._inputs(observation)
            pixels = pixel_values(raw, self.processor.config)
            hidden, repeated, state = self.decoder.prefill_shared(pixels, prompts, shape[1])
            values = self._value(raw, prompts, time, hidden)
            given = np.array(uniforms, dtype=np.float32).reshape(-1, self.num_tokens)
            draws = torch.from_numpy(given).to(self.device)
            words = [text for text in observation.instructions for _ in range(shape[1])]
            fixed = self._fixed(words)
            tokens, log_probs = self.decoder.choose(repeated, state, draws, temperature, fixed)
        # copies made outside inference mode may take part in training
        values = None if values is None else values.clone()
        return Proposals(tokens.clone().view(shape), log_probs.clone().view(shape), values)

    def _decode(
        self, observation: Observation, temperature: float, uniforms: np.ndarray | None
    ) -> tuple[Int64[Tensor, "N K"], Float[Tensor, "N K"], Float[Tensor, " N"] | None]:
        started = own_seconds(self.device)
        raw, prompts, time = self._inputs(observation)
        shape = (len(observation), self.num_tokens)
        if uniforms is not None and uniforms.shape != shape:
            raise ValueError(f"uniforms must have shape {shape}, got {uniforms.shape}")
        hidden, state = self.decoder.prefill(pixel_values(raw, self.processor.config), prompts)
        values = self._value(raw, prompts, time, hidden)
        draws = None
        if temperature > 0:
            given = torch.rand(shape) if uniforms is None else torch.from_numpy(np.array(uniforms))
            draws = given.to(self.device, torch.float32)
        read = own_seconds(self.device)
        fixed = self._fixed(observation.instructions)
        tokens, log_probs = self.decoder.choose(hidden, state, draws, temperature, fixed)
        if self.warm:  # the first call finds nothing in place
            self.times["prefill"].add(len(observation), read - started)
            self.times["tokens"].add(len(observation), own_seconds(self.device) - read)
        self.warm = True
        return tokens, log_probs, values

    def evaluate(
        self, observation: Observation, tokens: Int64[Tensor, "N K"], temperature: float = 1.0
    ) -> Evaluation:
        """Log-probs, entropy and values with gradients, in one teacher-forced pass. See `Policy.evaluate`."""
        raw, prompts, time = self._inputs(observation)
        logits, hidden = self._logits(self.model, raw, prompts, tokens)
        log_probs = action_log_softmax(logits, temperature)
        fixed = self._fixed(observation.instructions, tokens)
        ends = fixed is not None and self.turn_actions.end_token is not None
        return Evaluation(
            decisions(gather_log_probs(log_probs, tokens.to(self.device)), fixed),
            decisions(entropy(log_probs), fixed),
            self._value(raw, prompts, time, hidden),
            ~fixed.where if fixed is not None and ends else None,
        )

    def _logits(
        self, model: OpenVLA, raw: Tensor, prompts: Prompts, tokens: Tensor
    ) -> tuple[Float[Tensor, "N K bins"], Float[Tensor, "N D"]]:
        if tokens.shape != (len(raw), self.num_tokens):
            raise ValueError(
                f"tokens must have shape {(len(raw), self.num_tokens)}, got {tuple(tokens.shape)}"
            )
        with nullcontext() if self.sharding is None else self.sharding.meeting("a pass"):
            return model(pixel_values(raw, self.processor.config), prompts, tokens.to(self.device))

    def values(self, observation: Observation) -> Float[Tensor, " N"]:
        """V of each observation. A shared critic passes gradients to the trunk unless values are detached."""
        if self.config.critic.kind == "shared":
            return self._in_step("values", lambda: self._values(observation))
        return self._values(observation)

    def _values(self, observation: Observation) -> Float[Tensor, " N"]:
        raw, prompts, time = self._inputs(observation)
        hidden = None
        if self.config.critic.kind == "shared":
            attached = not (self.detach_values or self.config.critic.detach)
            with torch.set_grad_enabled(attached and torch.is_grad_enabled()):
                hidden = self._first_hidden(pixel_values(raw, self.processor.config), prompts)
        found = self._value(raw, prompts, time, hidden)
        assert found is not None, "asked of a policy without a critic"
        return found

    def _first_hidden(self, pixels: Tensor, prompts: Prompts) -> Float[Tensor, "N D"]:
        return self.model.first_hidden(pixels, prompts)

    def keep_reference(self, folder: Path | str | None = None) -> None:
        """Fix the reference policy: the present weights, or those of a checkpoint (when resuming a run).

        It is a model of its own, so that several threads may evaluate both at once. With adapters it costs a copy of
        those, the base is shared; without, a copy of all weights. To be called before `shard`.
        """
        if self.sharding is not None:
            raise RuntimeError("the weights are divided among ranks: keep_reference() comes before")
        adapted = self.description.lora is not None
        self._reference = Reference(self.model, adapted, folder, self.config, self.device)

    @torch.no_grad()
    def reference_log_probs(
        self, observation: Observation, tokens: Int64[Tensor, "N K"], temperature: float = 1.0
    ) -> Float[Tensor, "N K"]:
        """Log-probs of the frozen initial policy. See `Policy.reference_log_probs`.

        The copy is made at the first call, if no weight has changed until then; a learner that calls this only
        later says `keep_reference()` first.
        """
        raw, prompts, _ = self._inputs(observation)
        if self._reference is None:
            if self._version() != self._initial_version:
                raise RuntimeError(
                    "the policy has been trained since it was made: call keep_reference() before training, "
                    "or keep_reference(folder) with the initial checkpoint"
                )
            self.keep_reference()
        assert self._reference is not None
        with self._reference.weights(self.model) as model:
            logits, _ = self._logits(model, raw, prompts, tokens)
        log_probs = gather_log_probs(
            action_log_softmax(logits, temperature), tokens.to(self.device)
        )
        return decisions(log_probs, self._fixed(observation.instructions, tokens))

    def shard(self, sharding: Sharding) -> None:
        """Keep this rank's part of the model's weights, see `Shardable.shard`. The critic stays whole everywhere."""
        with self._reference.split_with(self.model, sharding) if self._reference else nullcontext():
            split(self.model, sharding)
        self.critic.to(sharding.device)
        # a recording would read weights where they lay in another window
        self.decoder = self._new_decoder(graphs=False)
        nothing = blank_observation(self.image_size)
        sharding.answer("act", lambda: self._act(nothing, 0.0))
        sharding.answer("values", lambda: self._values(nothing))
        self.sharding = sharding

    def _in_step(self, kind: str, call: Callable[[], T]) -> T:
        return call() if self.sharding is None else self.sharding.together(kind, call)

    def _playing(self) -> AbstractContextManager[Any]:
        # weights that are put together in inference mode could never be trained
        return torch.inference_mode() if self.sharding is None else torch.no_grad()

    def _version(self) -> int:
        """Counts in-place changes of the model's weights."""
        return sum(parameter._version for parameter in self.model.parameters())

    def with_actions_of(
        self,
        statistics: Mapping[str, Any],
        action_chunk: int,
        image_fit: Literal["stretch", "pad", "crop"] | None = None,
        fast: FastTokens | None = None,
    ) -> OpenVLAPolicy:
        """The same model for the actions and images of another dataset, see `Policy.with_actions_of`.

        fast: what to write actions in from now on; None: what they are written in already.
        """
        description = with_dataset(self.description, statistics, action_chunk, fast)
        description = replace(description, model=with_image_fit(description.model, image_fit))
        self.model.config = description.model  # which says how many ids are actions
        tokenizer = self.processor.tokenizer
        policy = type(self)(self.model, tokenizer, description, self.config, self.device)
        policy.stored_dtypes = self.stored_dtypes
        return policy

    def policy_parameters(self) -> list[nn.Parameter]:
        """All weights of the model that are trained: the adapters alone if there are any.

        Raises UserError where they are less than float32: in bfloat16 steps of a learning rate's size are rounded away.
        """
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        coarse = {p.dtype for p in trained if p.dtype.itemsize < torch.float32.itemsize}
        if coarse:
            raise UserError(
                f"the model's weights are {coarse.pop()} and cannot be trained in that precision: train adapters on "
                "them (policy.lora), or all weights in float32 (policy.dtype float32, 24 bytes a weight; on several "
                "ranks with parallel.shard fsdp2 they compute in bfloat16)"
            )
        return trained

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())

    def save(self, folder: Path) -> None:
        """Write the checkpoint, see `exporting`. Adapters go without a base that has a folder."""
        save_policy(self, folder)

    def fingerprint(self) -> str:
        return fingerprint_of(self)
