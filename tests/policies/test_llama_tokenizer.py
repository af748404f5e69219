"""Llama's own tokenizer on all LIBERO prompts.

Its files may not be redistributed with this project. Point VLA_RL_LLAMA_TOKENIZER at a folder with Llama's
`tokenizer.json`, `all_libero_prompts.json` (a list of {task_language, prompt, input_ids}) and, for the round trip
of action words, `libero_prompts.json`, to run these.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vla_rl.config import OPENVLA_7B
from vla_rl.policies import Processor
from vla_rl.policies.openvla.tokenizer import load_tokenizer

VARIABLE = "VLA_RL_LLAMA_TOKENIZER"
FOLDER = Path(os.environ.get(VARIABLE, ""))
pytestmark = pytest.mark.skipif(
    VARIABLE not in os.environ, reason=f"{VARIABLE} names no folder with Llama's tokenizer"
)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(OPENVLA_7B, load_tokenizer(FOLDER / "tokenizer.json"))


def test_every_libero_prompt_has_the_official_ids(processor: Processor) -> None:
    tasks = json.loads((FOLDER / "all_libero_prompts.json").read_text())
    assert len(tasks) == 130
    for task in tasks:
        instruction = task["task_language"]
        assert OPENVLA_7B.prompt.format(instruction=instruction.lower()) == task["prompt"]
        # predict_action appends the empty token, which the tokenizer never ends a prompt with
        assert list(processor.prompt_ids(instruction)) == [*task["input_ids"], 29871], instruction


def test_the_ids_that_predict_action_feeds(processor: Processor) -> None:
    prompts = json.loads((FOLDER / "libero_prompts.json").read_text())["prompts"]
    for prompt in prompts:
        got = list(processor.prompt_ids(prompt["instruction"]))
        assert got == prompt["predict_action_input_ids"]


def test_published_examples(processor: Processor) -> None:
    cases = json.loads((FOLDER / "published_test_cases.json").read_text())
    for case in cases:
        assert processor.tokenizer.encode(case["text"]).ids == case["ids"], case["text"]
