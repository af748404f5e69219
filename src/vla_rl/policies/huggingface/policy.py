"""Any image-text model of Hugging Face as a Policy: act to play, evaluate to learn, save and load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from vla_rl.config.errors import UserError
from vla_rl.config.policy import Conventions, PolicyConfig
from vla_rl.functional import (
    action_log_softmax,
    entropy,
    gather_log_probs,
)
from vla_rl.policies.action_tokens import ActionTokenizer, dataset_name, select_statistics
from vla_rl.policies.critic import CriticInput, CriticSizes, build_critic
from vla_rl.policies.huggingface import network
from vla_rl.policies.huggingface.action_ids import id_table
from vla_rl.policies.huggingface.adapters import read_adapters
from vla_rl.policies.huggingface.conversation import Conversation, Inputs, critic_pixels
from vla_rl.policies.huggingface.description import FAMILY, Description
from vla_rl.policies.huggingface.exporting import fingerprint_of, save_policy
from vla_rl.policies.huggingface.loading import Parts, find_source, frozen_model, load_parts, twin
from vla_rl.policies.openvla.actions import ActsInTurns, TurnActions
from vla_rl.policies.openvla.decoding import FixedTokens, choose_tokens, decisions
from vla_rl.policies.openvla.lora import adapter_state, frozen_twin
from vla_rl.policies.policy import Evaluation, PolicyOutput, Proposals
from vla_rl.policies.safetensors_files import read_tensors
from vla_rl.runtime.call_times import CallTimes, own_seconds
from vla_rl.runtime.devices import resolve_device
from vla_rl.types import Observation

CRITIC_SIDE = 64
"""Side of the images that a critic of its own sees, pixels."""
BLANK_SIDE = 64


def blank(side: int) -> Observation:
    """One observation of noise."""
    frame = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    return Observation(frame, ("",), np.zeros((1, 1), np.float32), np.zeros(1, np.float32))


class _Asked(NamedTuple):
    """A model and the ids of its action tokens, as `choose_tokens` asks it."""

    model: nn.Module
    ids: Int64[Tensor, " bins"]

    def decode(self, state: network.Answering, bins: Int64[Tensor, " N"]) -> Float[Tensor, "N D"]:
        return network.next_token(self.model, state, self.ids[bins])

    def action_logits(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows bins"]:
        return network.action_logits(self.model, hidden, self.ids)


class HuggingFacePolicy(ActsInTurns, nn.Module):
    """The ValuePolicy protocol on an image-text model and a critic.

    A model that has not been fine-tuned yet has no actions: `action_dim` is 0, and all it can do is `with_actions_of`.
    Set `detach_values` while nothing but the critic may learn. Sampling uses torch's global generator unless `uniforms`
    are given.
    """

    def __init__(self, parts: Parts, config: PolicyConfig, device: torch.device) -> None:
        super().__init__()
        self.config, self.name = config, parts.name
        self.description: Any = replace(parts.description, critic=config.critic)
        self.model = parts.model
        self.tokens_added = parts.tokens_added
        self._parts = parts
        sizes = CriticSizes(
            int(self.model.config.get_text_config().hidden_size), CRITIC_SIDE,
            max(self.model.get_input_embeddings().weight.shape[0], len(parts.processor.tokenizer)),
        )  # fmt: skip
        self.critic = build_critic(config.critic, sizes)
        self.conversation = Conversation(
            parts.processor, self.model.config, self.description.prompt, parts.name
        )
        self.action_tokenizer = ActionTokenizer(len(self.description.action_ids))
        self._learned()
        self.detach_values = False
        self.critic_restored = False
        """Whether the critic came from the checkpoint; else it was initialised afresh."""
        self._reference: Any = None
        self.to(device)
        self.eval()
        self._ids = id_table(self.description.action_ids, device)
        self.times = {"prefill": CallTimes(), "tokens": CallTimes()}
        """What `act` cost after its first call: reading images and prompts, and choosing the tokens."""
        self.warm = False
        self._initial_version = self._version()

    def _learned(self) -> None:
        """What the tokens mean, where the model has learned it."""
        described: Description = self.description
        if not described.norm_stats:
            self.unnorm_key = ""
            return
        self.unnorm_key, statistics = select_statistics(described.norm_stats, described.unnorm_key)
        if statistics.q01.size != described.action_dim and not described.unnorm_keys:
            raise UserError(
                f"Action statistics of {dataset_name(self.unnorm_key)!r} have {statistics.q01.size} dimensions, the "
                f"policy {described.action_dim}"
            )
        self.turn_actions = TurnActions(
            self.action_tokenizer, statistics, described.gripper, described.action_chunk, described.action_dim,
        )  # fmt: skip

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
    ) -> HuggingFacePolicy:
        """Load a model as published, or a policy: a folder, a hub id, or adapters in PEFT's format.

        A stored critic is loaded if it was saved under the same CriticConfig; otherwise a fresh one is made from
        `seed` and `critic_restored` is false. Code of a repository is never run.

        Raises UserError for files that are missing, damaged or do not fit together, and for a model that cannot be a
        policy.
        """
        config = config or PolicyConfig()
        device = resolve_device(config.device)
        parts = load_parts(
            folder, config, device, unnorm_key=unnorm_key, dtype=dtype, seed=seed, conventions=conventions,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = cls(parts, config, device)
        policy._check_model()
        if parts.critic_file is not None and parts.description.critic == config.critic:
            policy._load_critic(parts.critic_file)
        return policy

    def _load_critic(self, file: Path) -> None:
        found, wanted = read_tensors([file]), self.critic.state_dict()
        if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in wanted.items()}:
            raise UserError(
                f"{file} does not hold a {self.config.critic.kind} critic for this model"
            )
        self.critic.load_state_dict(found)
        self.critic_restored = True

    def _check_model(self) -> None:
        """Refuse a model whose logits are made another way, or that does not see its image."""
        inputs = self.conversation.inputs(blank(BLANK_SIDE), self.device)
        network.check_head(self.model, inputs, self._ids, self.name)

    @property
    def kind(self) -> str:
        return FAMILY

    @property
    def action_dim(self) -> int:
        return self.description.action_dim

    @property
    def action_chunk(self) -> int:
        return self.description.action_chunk

    @property
    def image_size(self) -> int:
        size = getattr(getattr(self.model.config, "vision_config", None), "image_size", None)
        return size if isinstance(size, int) else 224

    @property
    def resizes_images(self) -> bool:
        """The model's image processor takes frames of any size."""
        return True

    @property
    def num_tokens(self) -> int:
        """K, action tokens per turn."""
        return self.action_dim * self.action_chunk

    @property
    def device(self) -> torch.device:
        return self.model.get_output_embeddings().weight.device

    def _inputs(self, observation: Observation) -> Inputs:
        if not self.num_tokens:
            raise UserError(
                f"{self.name} is a model that has not learned to act: fine-tune it on demonstrations first (vla-rl sft "
                f"--dataset ... --policy.checkpoint {self.name})"
            )
        return self.conversation.inputs(observation, self.device)

    def _fixed(self, instructions: Sequence[str]) -> FixedTokens | None:
        """The tokens that are no decisions; None where there are none."""
        free = self.turn_actions.free(instructions)
        if free is None:
            return None
        return FixedTokens(torch.from_numpy(~free).to(self.device), self.turn_actions.fixed_token)

    def _value(self, observation: Observation, hidden: Tensor | None) -> Float[Tensor, " N"] | None:
        kind, device = self.config.critic.kind, self.device
        time = torch.from_numpy(np.array(observation.time_fraction, np.float32)).to(device)
        if kind != "separate":
            if hidden is not None and (self.detach_values or self.config.critic.detach):
                hidden = hidden.detach()
            return self.critic(CriticInput(time, hidden))
        pixels = critic_pixels(observation.images, CRITIC_SIDE, device)
        words = self.conversation.words(observation.instructions, device)
        return self.critic(CriticInput(time, None, pixels, words))

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
        shape = (len(observation), self.num_tokens)
        if uniforms is not None and uniforms.shape != shape:
            raise ValueError(f"uniforms must have shape {shape}, got {uniforms.shape}")
        with torch.inference_mode():
            started = own_seconds(self.device)
            hidden, state = network.prefill(self.model, self._inputs(observation), shape[1])
            values = self._value(observation, hidden)
            draws = None
            if temperature > 0:
                given = (
                    torch.rand(shape) if uniforms is None else torch.from_numpy(np.array(uniforms))
                )
                draws = given.to(self.device, torch.float32)
            read = own_seconds(self.device)
            fixed = self._fixed(observation.instructions)
            tokens, log_probs = self._choose(hidden, state, draws, temperature, fixed)
            if self.warm:  # the first call finds nothing in place
                self.times["prefill"].add(len(observation), read - started)
                self.times["tokens"].add(len(observation), own_seconds(self.device) - read)
            self.warm = True
        # copies made outside inference mode may take part in training
        values = None if values is None else values.clone()
        return PolicyOutput(tokens.clone(), log_probs.clone(), values)

    def propose(
        self, observation: Observation, temperature: float, uniforms: Float32[np.ndarray, "N J K"]
    ) -> Proposals:
        """Decode J candidates for each observation from one prefill, see `Policy.propose`."""
        if not temperature > 0:
            raise ValueError(
                f"candidates differ only if sampled: temperature must be positive, got {temperature}"
            )
        shape = (len(observation), uniforms.shape[1], self.num_tokens)
        if uniforms.shape != shape or shape[1] == 0:
            raise ValueError(
                f"uniforms must have shape ({len(observation)}, J, {self.num_tokens}), got {uniforms.shape}"
            )
        with torch.inference_mode():
            hidden, state = network.prefill(self.model, self._inputs(observation), shape[2])
            values = self._value(observation, hidden)
            given = np.array(uniforms, np.float32).reshape(-1, shape[2])
            draws = torch.from_numpy(given).to(self.device)
            fixed = self._fixed(
                [text for text in observation.instructions for _ in range(shape[1])]
            )
            hidden = hidden.repeat_interleave(shape[1], 0)
            tokens, log_probs = self._choose(
                hidden, state.repeat(shape[1]), draws, temperature, fixed
            )
        values = None if values is None else values.clone()
        return Proposals(tokens.clone().view(shape), log_probs.clone().view(shape), values)

    def _choose(
        self,
        hidden: Float[Tensor, "N D"],
        state: network.Answering,
        draws: Float32[Tensor, "N K"] | None,
        temperature: float,
        fixed: FixedTokens | None,
    ) -> tuple[Int64[Tensor, "N K"], Float[Tensor, "N K"]]:
        """Draw K tokens one after the other, see `choose_tokens`."""
        asked = _Asked(self.model, self._ids)
        return choose_tokens(asked, hidden, state, draws, temperature, self.num_tokens, fixed)

    def evaluate(
        self, observation: Observation, tokens: Int64[Tensor, "N K"], temperature: float = 1.0
    ) -> Evaluation:
        """Log-probs, entropy and values with gradients, in one teacher-forced pass. See `Policy.evaluate`."""
        logits, hidden = self._logits(self.model, observation, tokens)
        log_probs = action_log_softmax(logits, temperature)
        fixed = self._fixed(observation.instructions)
        return Evaluation(
            decisions(gather_log_probs(log_probs, tokens.to(self.device)), fixed),
            decisions(entropy(log_probs), fixed),
            self._value(observation, hidden),
        )

    def _logits(
        self, model: Any, observation: Observation, tokens: Tensor
    ) -> tuple[Float[Tensor, "N K bins"], Float[Tensor, "N D"]]:
        inputs = self._inputs(observation)
        if tokens.shape != (len(observation), self.num_tokens):
            raise ValueError(
                f"tokens must have shape {(len(observation), self.num_tokens)}, got {tuple(tokens.shape)}"
            )
        said = self._ids[tokens.to(self.device)[:, :-1]]
        hidden = network.whole_answer(model, inputs, said, self.num_tokens)
        return network.action_logits(model, hidden, self._ids), hidden[:, 0]

    def values(self, observation: Observation) -> Float[Tensor, " N"]:
        """V of each observation. A shared critic passes gradients to the trunk unless values are detached."""
        hidden = None
        if self.config.critic.kind == "shared":
            attached = not (self.detach_values or self.config.critic.detach)
            inputs = self._inputs(observation)
            none = self._ids.new_zeros(len(observation), 0)
            with torch.set_grad_enabled(attached and torch.is_grad_enabled()):
                hidden = network.whole_answer(self.model, inputs, none, 1)[:, 0]
        found = self._value(observation, hidden)
        assert found is not None, "asked of a policy without a critic"
        return found

    def keep_reference(self, folder: Path | str | None = None) -> None:
        """Fix the reference policy: the present weights, or those of a checkpoint (when resuming a run).

        With adapters it costs a copy of those, the base is shared; without, a copy of all weights.
        """
        if self.description.lora is None:
            self._reference = (
                twin(self.model)
                if folder is None
                else frozen_model(folder, self.config, self.model, self.device)
            )
            return
        state = adapter_state(self.model) if folder is None else self._stored_adapters(folder)
        self._reference = frozen_twin(self.model, state)

    def _stored_adapters(self, folder: Path | str) -> dict[str, Tensor] | None:
        """The adapters of a checkpoint; None where it has none, and is the base itself."""
        source = find_source(folder, self.config.base)
        return read_adapters(source.folder, self.model) if source.adapted else None

    @torch.no_grad()
    def reference_log_probs(
        self, observation: Observation, tokens: Int64[Tensor, "N K"], temperature: float = 1.0
    ) -> Float[Tensor, "N K"]:
        """Log-probs of the frozen initial policy. See `Policy.reference_log_probs`.

        The copy is made at the first call, if no weight has changed until then; a learner that calls this only
        later says `keep_reference()` first.
        """
        if self._reference is None:
            if self._version() != self._initial_version:
                raise RuntimeError(
                    "the policy has been trained since it was made: call keep_reference() before training, "
                    "or keep_reference(folder) with the initial checkpoint"
                )
            self.keep_reference()
        logits, _ = self._logits(self._reference, observation, tokens)
        log_probs = gather_log_probs(
            action_log_softmax(logits, temperature), tokens.to(self.device)
        )
        return decisions(log_probs, self._fixed(observation.instructions))

    def _version(self) -> int:
        """Counts in-place changes of the model's weights."""
        return sum(parameter._version for parameter in self.model.parameters())

    def with_actions_of(
        self,
        statistics: Mapping[str, Any],
        action_chunk: int,
        image_fit: Literal["stretch", "pad", "crop"] | None = None,
    ) -> HuggingFacePolicy:
        """The same model for the actions of another dataset, see `Policy.with_actions_of`.

        UserError where its frames were padded or cropped to be square: the model's own processor takes them whole.
        """
        if image_fit not in (None, "stretch"):
            raise UserError(
                f"the dataset's frames were made square (image_fit {image_fit}), which this model's image processor "
                "would not do in play: read it with image_fit stretch"
            )
        first = next(iter(statistics))
        description = replace(
            self.description,
            norm_stats={**self.description.norm_stats, **statistics},
            unnorm_key=first,
            unnorm_keys=tuple(statistics) if len(statistics) > 1 else (),
            action_dim=max(len(one["action"]["q01"]) for one in statistics.values()),
            action_chunk=action_chunk,
        )
        return HuggingFacePolicy(
            replace(self._parts, description=description), self.config, self.device
        )

    def policy_parameters(self) -> list[nn.Parameter]:
        """All weights of the model that are trained: the adapters alone if there are any.

        Raises UserError where they are less than float32: in bfloat16 steps of a learning rate's size are rounded away.
        """
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        coarse = {p.dtype for p in trained if p.dtype.itemsize < torch.float32.itemsize}
        if coarse:
            raise UserError(
                f"the model's weights are {coarse.pop()} and cannot be trained in that precision: train adapters on "
                "them (policy.lora), or all weights in float32 (policy.dtype float32, 24 bytes a weight)"
            )
        return trained

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())

    def save(self, folder: Path) -> None:
        """Write the checkpoint, see `exporting`. Adapters go without their base."""
        save_policy(self, folder)

    def fingerprint(self) -> str:
        return fingerprint_of(self)
