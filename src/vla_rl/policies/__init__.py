"""Policies: the protocol, and OpenVLA with its tokenizers, critic, adapters and checkpoints."""

from vla_rl.policies.action_tokens import (
    ActionStatistics,
    ActionTokenizer,
    identity_statistics,
    select_statistics,
)
from vla_rl.policies.openvla import OpenVLA
from vla_rl.policies.policy import OpenVLAPolicy
from vla_rl.policies.processing import Processor
from vla_rl.policies.protocol import Evaluation, Policy, PolicyOutput, Proposals
from vla_rl.policies.tokenizer import build_tiny_tokenizer

__all__ = [
    "ActionStatistics",
    "ActionTokenizer",
    "Evaluation",
    "OpenVLA",
    "OpenVLAPolicy",
    "Policy",
    "PolicyOutput",
    "Processor",
    "Proposals",
    "build_tiny_tokenizer",
    "identity_statistics",
    "select_statistics",
]
