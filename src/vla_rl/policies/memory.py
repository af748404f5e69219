"""How much memory training and playing take, as a family of policies says it, and the micro-batch that fits."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from vla_rl.config.errors import UserError

FRAGMENTATION = 1.05
GB = 1e9


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes on the device that computes."""

    weights: float
    trained: float
    caches: float
    per_sample: float
    """Of a micro-batch in training, of a batch of observations in inference."""
    once: float
    """Needed once, whatever the batch: one layer's activations of one sample are in per_sample, this is the rest."""
    present: float = 0.0
    """Of all these, what a policy that has just been loaded holds already."""

    def total(self, samples: int) -> float:
        """Bytes with so many samples at a time."""
        held = self.weights + self.trained + self.caches
        return (held + samples * self.per_sample) * FRAGMENTATION + self.once

    def most_samples(self, free: float) -> int:
        """The most samples at a time that fit into `free` bytes; 0 if not even one does."""
        held = self.weights + self.trained + self.caches
        left = (free - self.once) / FRAGMENTATION - held
        return max(0, int(left // self.per_sample))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, with what torch itself has reserved and does not use."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def largest_micro_batch(budget: MemoryBudget, device: torch.device, most: int) -> int:
    """The largest power of two of samples, at most `most`, that the free memory of `device` allows.

    To be called with the weights on the device and before anything else is. Raises UserError if not even one sample
    fits.
    """
    free = free_memory(device) + budget.present
    fitting = budget.most_samples(free)
    if fitting == 0:
        raise UserError(
            f"training this model takes {budget.total(1) / GB:.1f} GB at the least, {free / GB:.1f} GB are free: set "
            "policy.activation_checkpointing, lower env.num_envs, or train adapters (policy.lora)"
        )
    return min(1 << (fitting.bit_length() - 1), most)
