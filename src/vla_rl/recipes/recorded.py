"""Recorded observations of an OpenVLA model, with the answers of its own code where they were recorded as well.

An .npz file, in the layout of the references that this project is tested with:

    images_uint8 [N, S, S, 3] uint8, input_ids_padded [N, L] and prompt_lengths [N] integers
    greedy_tokens [N, K] vocabulary ids, greedy_logprob_action256 [N, K, T] and temperatures [T] (one of them 1)
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.config.openvla import ModelConfig
from vla_rl.policies.prompts import Prompts
from vla_rl.runtime.external import Phrase, check_array, fault

MOST_BYTES = 2**30
_NEEDED = ("images_uint8", "input_ids_padded", "prompt_lengths")
_ANSWERS = ("greedy_tokens", "greedy_logprob_action256", "temperatures")


@dataclass(frozen=True)
class Recorded:
    """Observations, prepared and in words' ids; and what OpenVLA's own code answered greedily."""

    images: UInt8[Tensor, "N 3 S S"]
    prompts: Prompts
    tokens: Int64[Tensor, "N K"] | None = None
    """Vocabulary ids."""
    log_probs: Float32[Tensor, "N K"] | None = None
    """At temperature 1, over action ids alone."""
    source: Path | None = None
    """The file."""


def read_recorded(path: Path, model: ModelConfig) -> Recorded:
    """Read such a file. Raises UserError where it is missing, damaged or of another model."""
    arrays = _read(path)
    missing = [name for name in _NEEDED if name not in arrays]
    if missing:
        raise fault(path, "", f"arrays {', '.join(_NEEDED)}", Phrase(f"none called {missing[0]}"))
    size = model.image_size
    images = check_array(
        arrays["images_uint8"],
        source=path,
        key="images_uint8",
        shape=(None, size, size, 3),
        kinds="u",
    )
    rows = len(images)
    ids = _integers(arrays, "input_ids_padded", path, (rows, None))
    lengths = _integers(arrays, "prompt_lengths", path, (rows,))
    if not rows or lengths.min() < 1 or lengths.max() > ids.shape[1]:
        raise fault(
            path, "prompt_lengths", f"1 to {ids.shape[1]}, the ids of a row", Phrase("others")
        )
    first = model.language.text_vocab - model.action_bins
    for row, length in zip(ids, lengths, strict=True):
        if row[:length].min() < 0 or row[:length].max() >= first:
            raise fault(path, "input_ids_padded", f"ids of text, below {first}", Phrase("others"))
    pictures = torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
    prompts = Prompts(torch.from_numpy(ids), lengths)
    if not all(name in arrays for name in _ANSWERS):
        return Recorded(pictures, prompts, source=path)
    tokens = _integers(arrays, "greedy_tokens", path, (rows, None))
    if tokens.min() < first or tokens.max() >= model.language.text_vocab:
        raise fault(path, "greedy_tokens", f"ids of actions, from {first} on", Phrase("others"))
    told = check_array(
        arrays["greedy_logprob_action256"], source=path, key="greedy_logprob_action256",
        shape=(*tokens.shape, None), kinds="f",
    )  # fmt: skip
    at = np.flatnonzero(arrays["temperatures"] == 1.0)
    if len(at) != 1 or arrays["temperatures"].shape != (told.shape[2],):
        raise fault(
            path, "temperatures", "one for each log-prob, and one of them 1", Phrase("others")
        )
    log_probs = torch.from_numpy(told[..., at[0]].astype(np.float32))
    return Recorded(pictures, prompts, torch.from_numpy(tokens), log_probs, path)


def _read(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                raise fault(path, "", f"at most {MOST_BYTES} bytes", Phrase("a larger file"))
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in (*_NEEDED, *_ANSWERS) if name in file.files}
    except FileNotFoundError as error:
        raise UserError(
            f"--observations: expected a number or an .npz file, and there is no file {path}"
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise fault(path, "", "an .npz file", Phrase(f"none ({error})")) from error


def _integers(
    arrays: Mapping[str, np.ndarray], key: str, path: Path, shape: tuple[int | None, ...]
) -> np.ndarray:
    found = check_array(arrays[key], source=path, key=key, shape=shape, kinds="iu")
    return found.astype(np.int64)
