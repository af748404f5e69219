"""Instructions to prompt tokens, images to pixel values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders.policies import INSTRUCTIONS
from vla_rl.config import OPENVLA_7B, UserError, tiny_model
from vla_rl.policies import Processor, build_tiny_tokenizer
from vla_rl.policies.openvla.processing import pixel_values, raw_pixels

MODEL = tiny_model()
TOKENIZER = build_tiny_tokenizer(INSTRUCTIONS, MODEL)
CPU = torch.device("cpu")


def test_prompts_are_short() -> None:
    processor = Processor(MODEL, TOKENIZER)
    assert len(processor.prompt_ids("open the drawer")) == 6  # BOS, "In:", three words, "?\nOut:"
    assert len(processor.prompt_ids(INSTRUCTIONS[2])) == 9


def test_prompt_starts_with_bos_and_is_lower_cased() -> None:
    processor = Processor(MODEL, TOKENIZER)
    ids = processor.prompt_ids("Open the DRAWER")
    assert ids[0] == MODEL.language.bos_token == 1
    assert ids == processor.prompt_ids("open the drawer")


@given(text=st.text(max_size=40))
def test_any_text_can_be_said(text: str) -> None:
    """Ids stay below the action tokens, nothing is unknown, and the text can be read back."""
    processor = Processor(MODEL, TOKENIZER)
    ids = processor.prompt_ids(text)
    assert max(ids) < MODEL.language.text_vocab - MODEL.action_bins
    assert 0 not in ids
    if not text.isascii() or "\u2581" in text:
        return
    assert TOKENIZER.decode(list(ids)) == f"In: {text.lower()}?\nOut:"


def test_different_words_differ() -> None:
    processor = Processor(MODEL, TOKENIZER)
    prompts = {processor.prompt_ids(text) for text in (*INSTRUCTIONS, "opens the drawer", "ope n")}
    assert len(prompts) == 5


def test_tokenizer_depends_on_the_set_of_instructions_alone() -> None:
    again = build_tiny_tokenizer((*reversed(INSTRUCTIONS), INSTRUCTIONS[0]), MODEL)
    assert again.to_str() == TOKENIZER.to_str()


def test_too_many_words_fall_back_to_bytes() -> None:
    words = [f"word{i}" for i in range(1000)]
    processor = Processor(MODEL, build_tiny_tokenizer(words, MODEL))
    for text in words:
        assert max(processor.prompt_ids(text)) < 480


def test_no_room_for_the_bytes_is_a_user_error() -> None:
    small = replace(MODEL, language=replace(MODEL.language, text_vocab=256))
    with pytest.raises(UserError, match="text_vocab 256 is too small"):
        build_tiny_tokenizer(INSTRUCTIONS, small)


def test_final_prompt_token_is_appended_once() -> None:
    plain = Processor(MODEL, TOKENIZER).prompt_ids("open the drawer")
    appended = Processor(replace(MODEL, final_prompt_token=7), TOKENIZER)
    assert appended.prompt_ids("open the drawer") == (*plain, 7)
    kept = Processor(replace(MODEL, final_prompt_token=plain[-1]), TOKENIZER)
    assert kept.prompt_ids("open the drawer") == plain


def test_a_foreign_tokenizer_is_refused() -> None:
    foreign = build_tiny_tokenizer([f"w{i}" for i in range(400)], OPENVLA_7B)
    with pytest.raises(UserError, match="belongs to another model"):
        Processor(MODEL, foreign).prompt_ids("w399")


def test_batches_are_padded_on_the_right() -> None:
    processor = Processor(MODEL, TOKENIZER)
    prompts = processor.prompts((INSTRUCTIONS[0], INSTRUCTIONS[2]), CPU)
    assert prompts.lengths.tolist() == [6, 9]
    assert not prompts.equal_length
    assert prompts.ids[0, 6:].tolist() == [512] * 3
    assert tuple(prompts.ids[0, :6].tolist()) == processor.prompt_ids(INSTRUCTIONS[0])


def test_pixel_values_are_both_normalisations_stacked() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    images.setflags(write=False)
    got = pixel_values(raw_pixels(images, CPU), MODEL)
    scaled = torch.from_numpy(images.copy()).permute(0, 3, 1, 2) / 255
    for first, tower in ((0, MODEL.dino), (3, MODEL.siglip)):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tower.mean, tower.std))
        torch.testing.assert_close(
            got[:, first : first + 3], (scaled - mean) / std, atol=1e-6, rtol=0
        )
