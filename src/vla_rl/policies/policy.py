"""OpenVLA as a Policy: act to play, evaluate to learn, save and load."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla_rl.config.errors import UserError
from vla_rl.config.model import ModelConfig, PolicyConfig
from vla_rl.functional import (
    action_log_softmax,
    entropy,
    gather_log_probs,
    sample_from_uniforms,
)
from vla_rl.policies import checkpoint as files
from vla_rl.policies import lora
from vla_rl.policies.action_tokens import ActionTokenizer, select_statistics
from vla_rl.policies.critic import CriticInput, build_critic
from vla_rl.policies.hf_config import Checkpoint, read_checkpoint_config, write_checkpoint_config
from vla_rl.policies.openvla import OpenVLA, Prompts, initialise
from vla_rl.policies.processing import Processor, pixel_values, raw_pixels
from vla_rl.policies.protocol import Evaluation, PolicyOutput
from vla_rl.policies.tokenizer import build_tiny_tokenizer, load_tokenizer
from vla_rl.runtime.devices import resolve_device
from vla_rl.types import Observation


class OpenVLAPolicy(nn.Module):
    """The Policy protocol on an OpenVLA model and a critic.

    Set `detach_values` while nothing but the critic may learn (critic warm-up): the value loss then stops at the
    shared trunk. Sampling uses torch's global generator unless `uniforms` are given.
    """

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
        self.description = description
        self.model = model
        self.critic = build_critic(config.critic, description.model)
        self.processor = Processor(description.model, tokenizer)
        self.action_tokenizer = ActionTokenizer(
            description.model.action_bins,
            description.model.bin_style,
            description.model.language.text_vocab,
        )
        self.unnorm_key, self.statistics = select_statistics(
            description.norm_stats, description.unnorm_key
        )
        if self.statistics.q01.size != description.action_dim:
            raise UserError(
                f"Action statistics of {self.unnorm_key!r} have {self.statistics.q01.size} dimensions, the policy "
                f"{description.action_dim}"
            )
        self.detach_values = False
        self.critic_restored = False
        """Whether the critic came from the checkpoint (true) or was initialised afresh."""
        self._reference: list[OpenVLA] = []  # in a list: not a submodule, never saved or trained
        self.to(device)
        self.eval()
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
    ) -> OpenVLAPolicy:
        """A randomly initialised policy with a tokenizer built from `instructions`; the same seed, the same policy.

        norm_stats: official format, exactly one dataset (see `action_tokens.identity_statistics`).
        """
        config = config or PolicyConfig()
        device = resolve_device(config.device)
        tokenizer = build_tiny_tokenizer(instructions, model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = OpenVLA(model)
            initialise(network)
            network.freeze_unused()
            if config.lora is not None:
                lora.add_adapters(network, config.lora)
            description = Checkpoint(
                model, norm_stats, action_dim, action_chunk, critic=config.critic, lora=config.lora
            )
            return cls(network, tokenizer, description, config, device)

    @classmethod
    def from_checkpoint(
        cls,
        folder: Path | str,
        config: PolicyConfig | None = None,
        *,
        unnorm_key: str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> OpenVLAPolicy:
        """Load a policy from a checkpoint folder, official or ours.

        A stored critic is loaded if it was saved under the same CriticConfig; otherwise a fresh one is made from
        `seed` and `critic_restored` is false. Stored adapters are loaded; `config.lora` puts new ones on a
        checkpoint without. dtype: of the base weights; adapters and critic are always float32.

        Raises UserError for missing, truncated or ill-fitting files.
        """
        folder = Path(folder)
        config = config or PolicyConfig()
        device = resolve_device(config.device)
        description = read_checkpoint_config(folder)
        if unnorm_key is not None:
            description = replace(description, unnorm_key=unnorm_key)
        tokenizer = load_tokenizer(folder / files.TOKENIZER_FILE)
        stored_critic = description.critic
        network, description = _load_network(folder, description, config, device, dtype)
        description = replace(description, critic=config.critic)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = cls(network, tokenizer, description, config, device)
        if stored_critic == config.critic:
            file = folder / files.CRITIC_FILE
            files.load_into(policy.critic, file, f"a {config.critic.kind} critic")
            policy.critic_restored = True
        return policy

    @property
    def action_dim(self) -> int:
        return self.description.action_dim

    @property
    def action_chunk(self) -> int:
        return self.description.action_chunk

    @property
    def num_tokens(self) -> int:
        """K, action tokens per turn."""
        return self.action_dim * self.action_chunk

    @property
    def device(self) -> torch.device:
        return self.model.language_model.lm_head.weight.device

    def _inputs(self, observation: Observation) -> tuple[Tensor, Prompts, Tensor]:
        self.processor.check_images(observation.images)
        raw = raw_pixels(observation.images, self.device)
        prompts = self.processor.prompts(observation.instructions, self.device)
        time = torch.from_numpy(np.array(observation.time_fraction, dtype=np.float32))
        return raw, prompts, time.to(self.device)

    def _value(
        self, raw: Tensor, prompts: Prompts, time: Tensor, hidden: Tensor | None
    ) -> Float32[Tensor, " N"]:
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
        with torch.inference_mode():
            tokens, log_probs, values = self._decode(observation, temperature, uniforms)
        # copies made outside inference mode may take part in training
        return PolicyOutput(tokens.clone(), log_probs.clone(), values.clone())

    def _decode(
        self, observation: Observation, temperature: float, uniforms: np.ndarray | None
    ) -> tuple[Int64[Tensor, "N K"], Float32[Tensor, "N K"], Float32[Tensor, " N"]]:
        raw, prompts, time = self._inputs(observation)
        shape = (len(observation), self.num_tokens)
        if uniforms is not None and uniforms.shape != shape:
            raise ValueError(f"uniforms must have shape {shape}, got {uniforms.shape}")
        hidden, state = self.model.prefill(
            pixel_values(raw, self.processor.config), prompts, self.num_tokens
        )
        values = self._value(raw, prompts, time, hidden)
        draws = None
        if temperature > 0:
            given = torch.rand(shape) if uniforms is None else torch.from_numpy(np.array(uniforms))
            draws = given.to(self.device, torch.float32)
        tokens: list[Tensor] = []
        log_probs: list[Tensor] = []
        for k in range(self.num_tokens):
            if k > 0:
                hidden = self.model.decode(state, tokens[-1])
            logits = self.model.action_logits(hidden)
            if draws is None:
                tokens.append(logits.argmax(-1))
                continue
            log_probs.append(action_log_softmax(logits, temperature))
            tokens.append(sample_from_uniforms(log_probs[-1], draws[:, k]))
        chosen = torch.stack(tokens, 1)
        if draws is None:
            return chosen, torch.zeros(shape, device=self.device), values
        return chosen, gather_log_probs(torch.stack(log_probs, 1), chosen), values

    def evaluate(
        self, observation: Observation, tokens: Int64[Tensor, "N K"], temperature: float = 1.0
    ) -> Evaluation:
        """Log-probs, entropy and values with gradients, in one teacher-forced pass. See `Policy.evaluate`."""
        raw, prompts, time = self._inputs(observation)
        logits, hidden = self._logits(self.model, raw, prompts, tokens)
        log_probs = action_log_softmax(logits, temperature)
        return Evaluation(
            gather_log_probs(log_probs, tokens.to(self.device)),
            entropy(log_probs),
            self._value(raw, prompts, time, hidden),
        )

    def _logits(
        self, model: OpenVLA, raw: Tensor, prompts: Prompts, tokens: Tensor
    ) -> tuple[Float[Tensor, "N K bins"], Float[Tensor, "N D"]]:
        if tokens.shape != (len(raw), self.num_tokens):
            raise ValueError(
                f"tokens must have shape {(len(raw), self.num_tokens)}, got {tuple(tokens.shape)}"
            )
        return model(pixel_values(raw, self.processor.config), prompts, tokens.to(self.device))

    def values(self, observation: Observation) -> Float[Tensor, " N"]:
        """V of each observation. A shared critic passes gradients to the trunk unless values are detached."""
        raw, prompts, time = self._inputs(observation)
        hidden = None
        if self.config.critic.kind == "shared":
            attached = not (self.detach_values or self.config.critic.detach)
            with torch.set_grad_enabled(attached and torch.is_grad_enabled()):
                hidden = self.model.first_hidden(pixel_values(raw, self.processor.config), prompts)
        return self._value(raw, prompts, time, hidden)

    def keep_reference(self, folder: Path | str | None = None) -> None:
        """Fix the reference policy: the present weights, or those of a checkpoint (when resuming a run).

        With adapters nothing is kept, the base is the reference. Without, this costs one copy of the weights.
        """
        if self.description.lora is not None:
            return
        if folder is None:
            reference = copy.deepcopy(self.model)
        else:
            reference = files.load_model(
                Path(folder), self.description.model, self.device, self.model.dtype
            )
        self._reference[:] = [reference.requires_grad_(False).eval()]

    @torch.no_grad()
    def reference_log_probs(
        self, observation: Observation, tokens: Int64[Tensor, "N K"], temperature: float = 1.0
    ) -> Float[Tensor, "N K"]:
        """Log-probs of the frozen initial policy. See `Policy.reference_log_probs`.

        The copy is made at the first call, if no weight has changed until then; a learner that calls this only
        later says `keep_reference()` first.
        """
        raw, prompts, _ = self._inputs(observation)
        if self.description.lora is not None:
            with lora.adapters_off(self.model):
                logits, _ = self._logits(self.model, raw, prompts, tokens)
        else:
            if not self._reference:
                if self._version() != self._initial_version:
                    raise RuntimeError(
                        "the policy has been trained since it was made: call keep_reference() before training, "
                        "or keep_reference(folder) with the initial checkpoint"
                    )
                self.keep_reference()
            logits, _ = self._logits(self._reference[0], raw, prompts, tokens)
        return gather_log_probs(action_log_softmax(logits, temperature), tokens.to(self.device))

    def _version(self) -> int:
        """Counts in-place changes of the model's weights."""
        return sum(parameter._version for parameter in self.model.parameters())

    def decode_actions(self, tokens: Int64[Tensor, "N K"]) -> Float32[np.ndarray, "N C A"]:
        """Tokens to un-normalised actions in the simulator's units."""
        values = self.action_tokenizer.decode(tokens.detach().cpu().numpy())
        shaped = values.reshape(len(values), self.action_chunk, self.action_dim)
        return self.statistics.unnormalize(shaped).astype(np.float32)

    def encode_actions(
        self, actions: Float32[np.ndarray, "N C A"] | Float64[np.ndarray, "N C A"]
    ) -> Int64[Tensor, "N K"]:
        """Actions in the simulator's units to tokens, the inverse of `decode_actions` up to the bins' width.

        Raises UserError if chunk or action size is not the policy's.
        """
        if actions.shape[1:] != (self.action_chunk, self.action_dim):
            raise UserError(
                f"The policy plays {self.action_chunk} actions of size {self.action_dim} per turn, got actions of "
                f"shape {tuple(actions.shape)}: check action_chunk and the dataset's action size"
            )
        bins = self.action_tokenizer.encode(self.statistics.normalize(actions))
        return torch.from_numpy(bins.reshape(len(bins), self.num_tokens))

    def policy_parameters(self) -> list[nn.Parameter]:
        """All weights of the model that are trained: the adapters alone if there are any."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())

    def save(self, folder: Path) -> None:
        """Write the checkpoint, see `vla_rl.policies.checkpoint`. Adapters go without a base that has a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint_config(folder, self.description)
        self.processor.tokenizer.save(str(folder / files.TOKENIZER_FILE))
        if self.description.lora is not None:
            files.save_tensors(lora.adapter_state(self.model), folder / files.ADAPTER_FILE)
        if self.description.base is None:
            files.save_tensors(lora.base_state(self.model), folder / files.MODEL_FILE)
        files.save_tensors(self.critic.state_dict(), folder / files.CRITIC_FILE)


def _load_network(
    folder: Path,
    description: Checkpoint,
    config: PolicyConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[OpenVLA, Checkpoint]:
    """The model with its adapters, and the description of what `save` will write."""
    stored = description.lora
    if stored is not None and config.lora is not None and not lora.same_shape(config.lora, stored):
        raise UserError(
            f"{folder} holds adapters of {stored}, the configuration asks for {config.lora}: use the stored settings"
        )
    base = Path(description.base) if description.base else folder
    if not files.has_weights(base):
        raise UserError(
            f"No model weights ({files.MODEL_FILE} or {files.INDEX_FILE}) in {base}"
            + (f", the base of the adapters in {folder}" if description.base else "")
        )
    network = files.load_model(base, description.model, device, dtype)
    wanted = config.lora or stored
    if wanted is None:
        return network, description
    lora.add_adapters(network, wanted)
    if stored is not None:
        file = folder / files.ADAPTER_FILE
        tensors = files.read_tensors([file], torch.float32)
        files.check_fit(tensors, lora.adapter_state(network), file, "these adapters")
        lora.load_adapter_state(network, tensors)
        return network, replace(description, lora=wanted)
    return network, replace(description, lora=wanted, base=str(folder.resolve()))
