"""Which ids of a model's vocabulary stand for action bins.

last      the last ids of its text vocabulary, rarest of all: OpenVLA's convention (arXiv:2406.09246, section 3.2).
          Bin b has the id that is b places from the end, as there. Special and image tokens are none of them.
added     tokens of their own, <action_0> and so on, with rows of their own in embedding and output head
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vla_rl.config.errors import UserError

ADDED = "<action_{}>"


def last_ids(tokenizer: Any, rows: int, bins: int) -> tuple[int, ...]:
    """The ids of `bins` action bins, from the end of the text vocabulary. rows: of the embedding.

    Tokens that were added to the tokenizer are no text: special ones, images, places, separators.
    """
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    text = sorted(
        (i for i in tokenizer.get_vocab().values() if i not in added and i < rows), reverse=True
    )
    if len(text) < 2 * bins:
        raise UserError(
            f"the model's text vocabulary has {len(text)} tokens, and {bins} of them would be actions: set "
            "policy.vlm.bins lower, or policy.vlm.action-tokens added"
        )
    return tuple(text[:bins])


def add_action_tokens(model: Any, tokenizer: Any, bins: int, seed: int) -> tuple[int, ...]:
    """Give the tokenizer `bins` special tokens and the model rows for them, in place; returns their ids.

    New rows are drawn around the mean of those that were there, each dimension with its own spread. A vocabulary that
    has spare rows, as Qwen's, is not made larger.
    """
    from tokenizers import AddedToken

    names = [ADDED.format(i) for i in range(bins)]
    taken = [name for name in names if name in tokenizer.get_vocab()]
    if taken:
        raise UserError(
            f"the model's tokenizer has a token {taken[0]} already: take policy.vlm.action-tokens last"
        )
    before = len(tokenizer)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    ids = tuple(int(i) for i in tokenizer.convert_tokens_to_ids(names))
    rows = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= rows:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    _draw_rows(model.get_input_embeddings().weight, ids, min(before, rows), generator)
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        _draw_rows(head.weight, ids, min(before, rows), generator)
        if head.bias is not None:
            with torch.no_grad():
                head.bias[list(ids)] = 0.0
    return ids


def _draw_rows(
    weight: nn.Parameter, ids: tuple[int, ...], known: int, generator: torch.Generator
) -> None:
    """Rows `ids` like the first `known` ones."""
    with torch.no_grad():
        rows = weight[:known].float()
        noise = torch.randn(len(ids), weight.shape[1], generator=generator).to(weight.device)
        weight[list(ids)] = (rows.mean(0) + noise * rows.std(0)).to(weight.dtype)


def check_ids(ids: tuple[int, ...], rows: int, forbidden: set[int], where: str) -> None:
    """Raise UserError where stored action ids do not fit the model they are used with."""
    wrong = [i for i in ids if i >= rows or i in forbidden]
    if wrong:
        raise UserError(
            f"{where}: action id {wrong[0]} is beyond the model's {rows} tokens or stands for images: the file belongs "
            "to another model"
        )


def image_id(config: Any) -> int | None:
    """Id of the placeholder that images take the place of; None where the model has none."""
    for name in ("image_token_id", "image_token_index"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    return None


def id_table(ids: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64, device=device)
