"""The official way to decode: transformers' LlamaForCausalLM.generate on a policy's own weights."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies.openvla.processing import pixel_values, raw_pixels
from vla_rl.types import Observation


def transformers_generate(policy: OpenVLAPolicy) -> Callable[[Observation, bool], torch.Tensor]:
    """A function from observations (prompts of one length) to action bins [N, K], greedy.

    Vision and projector as in ours, then `generate` over the whole vocabulary, which is what OpenVLA's own
    `predict_action` calls for a single image. The second argument restricts it to the action ids.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = policy.description.model
    language = config.language
    sizes = LlamaConfig(
        vocab_size=language.padded_vocab,
        hidden_size=language.hidden,
        intermediate_size=language.mlp_width,
        num_hidden_layers=language.layers,
        num_attention_heads=language.heads,
        rms_norm_eps=language.rms_norm_eps,
        max_position_embeddings=language.max_positions,
        bos_token_id=language.bos_token,
        eos_token_id=None,
        pad_token_id=language.pad_token,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):  # the weights are the policy's own, not copies of them
        llama = LlamaForCausalLM(sizes).eval()
    llama.load_state_dict(policy.model.language_model.state_dict(), assign=True)
    with torch.device(policy.device):  # tables that no checkpoint holds
        llama.model.rotary_emb = type(llama.model.rotary_emb)(sizes)
    first, end = language.text_vocab - config.action_bins, language.text_vocab
    actions = list(range(first, end))

    def generate(observation: Observation, restricted: bool = False) -> torch.Tensor:
        with torch.inference_mode():
            pixels = pixel_values(raw_pixels(observation.images, policy.device), config)
            prompts = policy.processor.prompts(observation.instructions, policy.device)
            text = llama.get_input_embeddings()(prompts.ids)
            images = policy.model.embed_images(pixels)
            embedded = torch.cat([text[:, :1], images, text[:, 1:]], 1)
            ids = llama.generate(  # type: ignore[misc]
                inputs_embeds=embedded,
                attention_mask=torch.ones(
                    embedded.shape[:2], dtype=torch.int64, device=policy.device
                ),
                max_new_tokens=policy.num_tokens,
                do_sample=False,
                prefix_allowed_tokens_fn=(lambda *_: actions) if restricted else None,
            )
        return end - 1 - ids

    return generate
