"""OpenVLA-OFT with discrete action tokens as a Policy: OpenVLA's in all but how tokens are decided.

`act` and `evaluate` run the same pass and read the same logits, so that they agree without a token loop to reproduce.
A shared critic reads the hidden state that predicts the first action token, at the prompt's last column, as OpenVLA's
does; here that column has seen the whole sequence, and depends on the number of action tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.config.policy import Conventions, PolicyConfig
from vla_rl.policies.openvla.decoding import Decides
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla_oft.decoding import ParallelDecoder
from vla_rl.policies.openvla_oft.model import OpenVLAOFT
from vla_rl.policies.prompts import Prompts


class OpenVLAOFTPolicy(OpenVLAPolicy):
    """The ValuePolicy protocol on a model that decides all tokens of a turn in one parallel pass."""

    network: ClassVar[type[OpenVLA]] = OpenVLAOFT
    span_margin: ClassVar[float] = 1e-8

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
        """Load a policy as `OpenVLAPolicy.from_checkpoint` does; published folders play turns of 8 actions.

        Raises UserError for a checkpoint that reads proprioception, and for folders with action heads in files of
        their own.
        """
        policy = super().from_checkpoint(
            folder, config, unnorm_key=unnorm_key, dtype=dtype, seed=seed, conventions=conventions
        )
        if policy.description.extra.get("use_proprio"):
            raise UserError(
                f"{folder} says use_proprio in config.json: such policies read proprioception, which is not supported. "
                "Take a checkpoint that was trained with use_proprio False"
            )
        return policy

    def _new_decoder(self, graphs: bool) -> Decides:
        return ParallelDecoder(self.model, self.num_tokens)  # there is no loop to record

    def _first_hidden(self, pixels: Tensor, prompts: Prompts) -> Float[Tensor, "N D"]:
        undecided = prompts.ids.new_zeros(len(prompts.ids), self.num_tokens)
        return self.model(pixels, prompts, undecided)[1]
