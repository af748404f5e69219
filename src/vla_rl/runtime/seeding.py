"""Randomness that can be repeated: global seeds, keyed streams, and generator states as data.

torch is imported only by the functions that need it: simulator processes use the keyed streams.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from vla_rl.config.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Json = dict[str, Any]


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators (all GPUs included)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # seeds every CUDA device too


def generator(seed: int, *keys: int | str) -> np.random.Generator:
    """An independent random stream for each (seed, keys), the same in every process and release.

    Philox, a counter-based generator (Salmon et al. 2011), keyed by a hash of the arguments: streams
    of different keys are unrelated, and none depends on how often another one was drawn from.

        uniforms = generator(seed, "eval", task, initial_state, turn).random(K, dtype=np.float32)
    """
    text = json.dumps([int(seed), *(key if isinstance(key, str) else int(key) for key in keys)])
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def numpy_rng_state(rng: np.random.Generator) -> Json:
    """The state of `rng` as JSON values."""
    return _plain(dict(rng.bit_generator.state))


def restore_numpy_rng(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Put `rng` into a state that `numpy_rng_state` gave.

    Raises UserError if it belongs to another kind of bit generator.
    """
    own = rng.bit_generator.state
    if state.get("bit_generator") != own["bit_generator"]:
        raise UserError(
            f"the saved random state is of a {state.get('bit_generator')} generator, this one is a "
            f"{own['bit_generator']}: the checkpoint is from another version, start a new run"
        )
    rng.bit_generator.state = _like(own, state)


def torch_rng_state() -> dict[str, Tensor]:
    """The states of torch's global generators: "cpu" and one "cuda:<i>" for each GPU in use."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            states[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
    return states


def restore_torch_rng(states: Mapping[str, Tensor | UInt8[np.ndarray, " n"]]) -> None:
    """Restore what `torch_rng_state` returned; states of GPUs this machine lacks are left out."""
    import torch

    for device, state in states.items():
        tensor = torch.as_tensor(state, dtype=torch.uint8).cpu()
        if device == "cpu":
            torch.set_rng_state(tensor)
        elif (
            torch.cuda.is_available() and int(device.partition(":")[2]) < torch.cuda.device_count()
        ):
            torch.cuda.set_rng_state(tensor, device)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _like(own: Any, saved: Any) -> Any:
    """`saved` with lists turned back into arrays where `own` has them."""
    if isinstance(own, Mapping):
        return {key: _like(item, saved[key]) for key, item in own.items()}
    return np.asarray(saved, dtype=own.dtype) if isinstance(own, np.ndarray) else saved
