"""The reward model on a Hugging Face image-text model: a tiny Qwen2.5-VL of random weights, made here; nothing is
fetched."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_vlm import write_vlm

from vla_rl.algorithms.reward_model import RewardModelBatch, RewardModelLearner
from vla_rl.config import LoraConfig, RewardModelConfig, UserError
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.model import probability
from vla_rl.rewards.process.vlm import VlmProcessRewardModel

WORDS = ["open the drawer", "push it", "close the window with great care"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture
def copy(backbone, tmp_path):
    return shutil.copytree(backbone, tmp_path / "backbone")


def config(backbone, **changes) -> RewardModelConfig:
    settings = {"lora": LoraConfig(rank=4), "device": "cpu", **changes}
    return RewardModelConfig(backbone=str(backbone), **settings).resolved()


def images(count: int = 3, history: int = 0) -> np.ndarray:
    shape = (count, history, 32, 32, 3) if history else (count, 32, 32, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_the_models_own_template_makes_the_conversation(backbone):
    reward_model = VlmProcessRewardModel.create(config(backbone, history=2))
    inputs = reward_model.inputs(
        images(3, history=2), [reward_model.question(word) for word in WORDS]
    )
    text = reward_model.processor.tokenizer.decode(inputs["input_ids"][0])
    assert (
        "The task is open the drawer, is it completed?<|im_end|>\n<|im_start|>assistant\n" in text
    )
    assert text.count("<|vision_start|>") == 2
    # every row ends where the answer begins, padding stands in front
    assert (inputs["attention_mask"][:, -1] == 1).all()
    assert (inputs["attention_mask"][1:2, 0] == 0).all()


def test_a_padded_batch_equals_its_rows_and_everything_counts(backbone):
    reward_model = VlmProcessRewardModel.create(config(backbone))
    odds = reward_model.log_odds(images(), WORDS)
    for row in range(3):
        alone = reward_model.log_odds(images()[row : row + 1], WORDS[row : row + 1])
        np.testing.assert_allclose(alone, odds[row : row + 1], atol=1e-4)
    assert np.abs(reward_model.log_odds(255 - images(), WORDS) - odds).min() > 1e-3
    assert np.abs(reward_model.log_odds(images(), WORDS[::-1]) - odds)[[0, 2]].min() > 1e-3


def test_log_odds_are_those_of_the_answers_tokens(backbone):
    reward_model = VlmProcessRewardModel.create(config(backbone))
    inputs = reward_model.inputs(images()[:, None], [reward_model.question(word) for word in WORDS])
    with torch.no_grad():
        logits = reward_model.model(**inputs).logits[:, -1]
    tokenizer = reward_model.processor.tokenizer
    one, nought = (tokenizer.convert_tokens_to_ids(letter) for letter in "10")
    wanted = (logits[:, one] - logits[:, nought]).numpy()
    np.testing.assert_allclose(reward_model.log_odds(images(), WORDS), wanted, atol=1e-4)


def test_actions_are_written_out_where_they_are_seen(backbone):
    reward_model = VlmProcessRewardModel.create(config(backbone, sees_actions=True), (2, 3))
    given = np.array([[[0.1, -0.25, 1], [0, 0.5, -1]]] * 3, np.float32)
    assert reward_model.question("x", given[0]).endswith(
        "The next action: (10, -25, 100) (0, 50, -100)"
    )
    odds = reward_model.log_odds(images(), WORDS, given)
    assert np.abs(reward_model.log_odds(images(), WORDS, -given) - odds).min() > 1e-4
    with pytest.raises(UserError, match="got none"):
        reward_model.log_odds(images(), WORDS)


def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(backbone):
    reward_model = VlmProcessRewardModel.create(config(backbone))
    whole = VlmProcessRewardModel.create(config(backbone, lora=None, all_weights=True))
    np.testing.assert_allclose(
        reward_model.log_odds(images(), WORDS), whole.log_odds(images(), WORDS), atol=1e-5
    )
    trained = [name for name, p in reward_model.model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_" in name and "language_model" in name for name in trained)
    assert all(parameter.dtype == torch.float32 for parameter in reward_model.trained_parameters())
    wide = VlmProcessRewardModel.create(config(backbone, lora=LoraConfig(rank=4, vision=True)))
    assert any("visual" in n for n, p in wide.model.named_parameters() if p.requires_grad)
    assert not any("lm_head" in n for n, p in wide.model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("all_weights", [False, True])
def test_training_teaches_it_and_the_disk_keeps_it(backbone, tmp_path, all_weights):
    settings = config(
        backbone, lora=None if all_weights else LoraConfig(rank=4), all_weights=all_weights,
        learning_rate=0.003 if all_weights else 0.02, warmup_steps=0,
    )  # fmt: skip
    reward_model = VlmProcessRewardModel.create(settings)
    batch = RewardModelBatch(
        images()[:, None], WORDS, np.zeros((3, 1, 4), np.float32),
        np.array([True, False, True]), np.ones(3, bool),
    )  # fmt: skip
    learner = RewardModelLearner(reward_model, settings, total_steps=40)
    losses = [learner.update(batch)["loss"] for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    odds = reward_model.log_odds(images(), WORDS)
    assert ((probability(odds) > 0.5) == batch.positive).all()
    reward_model.save(tmp_path / "reward_model")
    kinds = {path.suffix for path in (tmp_path / "reward_model").iterdir()}
    assert kinds <= {".json", ".safetensors"}
    back = load_reward_model(tmp_path, "cpu")
    np.testing.assert_allclose(back.log_odds(images(), WORDS), odds, atol=1e-5)


# -- refusals --------------------------------------------------------------------------------------


def test_a_place_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        VlmProcessRewardModel.create(config(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"expected a config\.json"):
        VlmProcessRewardModel.create(config(tmp_path))


def test_a_language_model_is_refused(tmp_path):
    settings = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="is a 'llama' model, expected one that takes images"):
        VlmProcessRewardModel.create(config(tmp_path))


def test_a_missing_processor_is_refused(copy):
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="expected a processor"):
        VlmProcessRewardModel.create(config(copy))


def test_a_missing_chat_template_is_refused(copy):
    (copy / "chat_template.json").unlink()
    with pytest.raises(UserError, match="no chat template"):
        VlmProcessRewardModel.create(config(copy))


def test_pickled_weights_are_not_read(copy):
    (copy / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are never read"):
        VlmProcessRewardModel.create(config(copy))


def test_code_of_a_repository_is_not_run(copy):
    ran = copy / "ran"
    (copy / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    settings = json.loads((copy / "config.json").read_text())
    settings |= {
        "model_type": "own_vl",
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForImageTextToText": "modeling_own.Own",
        },
    }
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="never run"):
        VlmProcessRewardModel.create(config(copy))
    assert not ran.exists()


def test_answers_of_several_tokens_are_refused(backbone):
    with pytest.raises(UserError, match="'yes' is 3 tokens"):
        VlmProcessRewardModel.create(config(backbone, positive_answer="yes"))


def test_adapters_of_another_model_are_refused(backbone, copy, tmp_path):
    VlmProcessRewardModel.create(config(copy)).save(tmp_path / "reward_model")
    settings = json.loads((copy / "config.json").read_text())
    settings["text_config"]["num_hidden_layers"] = 1
    settings["text_config"]["layer_types"] = settings["text_config"]["layer_types"][:1]
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="Was another model put in that place"):
        load_reward_model(tmp_path / "reward_model", "cpu")
    shutil.rmtree(copy)
    with pytest.raises(UserError, match="there is no folder"):
        load_reward_model(tmp_path / "reward_model", "cpu")
