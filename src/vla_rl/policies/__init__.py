"""Policies: the protocol, and OpenVLA with its tokenizers, critic, adapters and checkpoints."""

from vla_rl.policies.action_tokens import (
    ActionStatistics,
    ActionTokenizer,
    identity_statistics,
    select_statistics,
)
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla.processing import Processor
from vla_rl.policies.openvla.tokenizer import build_tiny_tokenizer
from vla_rl.policies.policy import Evaluation, Policy, PolicyOutput, Proposals, ValuePolicy

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
    "ValuePolicy",
    "build_tiny_tokenizer",
    "identity_statistics",
    "select_statistics",
]
