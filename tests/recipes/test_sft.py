"""Supervised fine-tuning: the update, the augmentation, and the recipe from dataset to checkpoint."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.algorithms.sft import SFT, epoch_batches, random_shift, schedule, shift_images
from vla_rl.config import (
    DemosConfig,
    EnvConfig,
    ImagePreprocessing,
    PolicyConfig,
    SFTConfig,
    UserError,
    tiny_model,
)  # fmt: skip
from vla_rl.config.openvla import OPENVLA_LIBERO_IMAGES
from vla_rl.data.demonstrations import (
    NORMALISED_ROBOTS,
    action_chunks,
    demonstration_features,
    load_demonstrations,
)
from vla_rl.data.lerobot import LeRobotReader, LeRobotWriter, camera
from vla_rl.data.own_successes import with_successes
from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies.openvla.processing import with_protocol
from vla_rl.recipes.sft import build_policy, fine_tune
from vla_rl.runtime.locate import locate_policy

TASKS = ("open the drawer", "close the window")


def write_dataset(
    folder, episodes=6, length=4, size=32, action_size=4, robot=NORMALISED_ROBOTS[0], width=None
):
    """Episodes whose image's brightness tells the action."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 128, (size, width or size, 3), dtype=np.uint8)
    features = demonstration_features(size, 4, action_size, video=False)
    features["observation.images.image"] = camera(size, width or size, video=False)
    with LeRobotWriter(folder, fps=16, features=features, robot_type=robot) as writer:
        for number in range(episodes):
            last = np.arange(length) == length - 1
            level = rng.integers(0, 256, length).astype(np.uint8)
            frames = {
                "observation.images.image": level[:, None, None, None] // 2 + texture,
                "observation.state": np.zeros((length, 4), np.float32),
                "action": np.repeat(level[:, None] / 127.5 - 1, action_size, 1).astype(np.float32),
                "next.reward": last.astype(np.float32),
                "next.done": last,
                "next.success": last,
                "initial_state": np.full(length, number),
            }
            writer.add_episode(frames, task=TASKS[number % 2])
    return folder


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "demos")


def config(dataset, out, **changes):
    return SFTConfig(
        **{"dataset": str(dataset), "out": str(out), "epochs": 2, "batch_size": 8, **changes}
    )


def learner_and_batch(dataset, **changes):
    settings = config(dataset, "unused", **changes)
    demos = load_demonstrations(dataset)
    policy = build_policy(settings, with_successes(demos, (), settings.action_chunk))
    tokens = policy.encode_actions(
        action_chunks(demos.actions, demos.episode_ids, settings.action_chunk)
    )
    rows = np.arange(len(demos))
    return SFT(policy, settings, total_steps=100), demos.observation(rows), tokens


# -- augmentation ----------------------------------------------------------------------------------


def test_a_shift_moves_the_content_down_and_right_and_repeats_the_edge():
    image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1).repeat(3, axis=3)
    moved = shift_images(image, np.array([[1, 0]]), 2)[0, :, :, 0]
    assert moved.tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    moved = shift_images(image, np.array([[0, -2]]), 2)[0, :, :, 0]
    assert moved.tolist() == [[2, 2, 2], [5, 5, 5], [8, 8, 8]]


@given(dy=st.integers(-3, 3), dx=st.integers(-3, 3), seed=st.integers(0, 99))
def test_the_inside_of_a_shifted_image_is_the_rolled_one(dy, dx, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, 9, 10, 3), dtype=np.uint8)
    moved = shift_images(images, np.array([[dy, dx], [0, 0]]), 3)
    assert moved.shape == images.shape
    assert moved.dtype == np.uint8
    np.testing.assert_array_equal(
        moved[0, 3:-3, 3:-3], np.roll(images[0], (dy, dx), (0, 1))[3:-3, 3:-3]
    )
    np.testing.assert_array_equal(moved[1], images[1])


def test_random_shifts_differ_between_images_stay_in_range_and_follow_the_seed():
    one = np.zeros((21, 21, 3), np.uint8)
    one[10, 10] = 255
    images = np.stack([one] * 200)
    moved = random_shift(images, 2, np.random.default_rng(0))
    places = np.argwhere(moved[..., 0] == 255)[:, 1:] - 10
    assert len(places) == 200
    assert {tuple(place) for place in places} == {
        (y, x) for y in range(-2, 3) for x in range(-2, 3)
    }
    np.testing.assert_array_equal(moved, random_shift(images, 2, np.random.default_rng(0)))
    np.testing.assert_array_equal(random_shift(images, 0, np.random.default_rng(0)), images)


# -- schedule and batches --------------------------------------------------------------------------


def test_schedule_warms_up_linearly_and_ends_at_a_twentieth():
    assert schedule(0, 10, 1000) == pytest.approx(0.1)
    assert schedule(9, 10, 10**9) == pytest.approx(1.0)
    assert schedule(500, 0, 1000) == pytest.approx(0.525)  # half way: the mean of 1 and 0.05
    assert schedule(1000, 10, 1000) == pytest.approx(0.05)
    values = [schedule(step, 10, 1000) for step in range(10, 1000)]
    assert values == sorted(values, reverse=True)


@given(samples=st.integers(1, 300), size=st.integers(1, 80))
def test_an_epoch_is_every_sample_once(samples, size):
    rows = np.arange(samples) * 3
    batches = epoch_batches(rows, size, np.random.default_rng(0))
    assert sorted(np.concatenate(batches)) == rows.tolist()
    lengths = [len(batch) for batch in batches]
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) < 2 * size


# -- the update ------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_negative_log_prob_and_batches_do_not_change_it(dataset):
    learner, seen, tokens = learner_and_batch(dataset, batch_size=5)
    with torch.no_grad():
        log_probs = learner.policy.evaluate(seen, tokens).log_probs
    assert log_probs.shape == tokens.shape
    expected = -float(log_probs.mean())
    assert learner.loss(seen, tokens) == pytest.approx(expected, abs=1e-5)
    assert expected == pytest.approx(math.log(32), abs=1.5)  # about uniform over the 32 bins
    assert learner.update(seen, tokens)["loss"] == pytest.approx(expected, abs=1e-5)


def test_micro_batches_give_the_same_step(dataset):
    """Parts of 7 of a batch of 24: loss, gradients and gradient norm are those of the whole."""
    whole, seen, tokens = learner_and_batch(dataset)
    parts, _, _ = learner_and_batch(dataset, micro_batch=7)
    one, two = whole.update(seen, tokens), parts.update(seen, tokens)
    assert len(tokens) == 24
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    for a, b in zip(whole.parameters, parts.parameters, strict=True):
        # sums in another order: rounding is a share of the largest entry, not of each
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-4 * a.grad.abs().max().item())


def test_an_update_changes_the_policy_and_never_the_critic(dataset):
    learner, seen, tokens = learner_and_batch(dataset)
    policy = [p.detach().clone() for p in learner.policy.policy_parameters()]
    critic = [p.detach().clone() for p in learner.policy.critic_parameters()]
    for _ in range(2):
        learner.update(seen, tokens)
    assert all(map(torch.equal, critic, learner.policy.critic_parameters()))
    changed = [
        not torch.equal(a, b)
        for a, b in zip(policy, learner.policy.policy_parameters(), strict=True)
    ]
    assert all(changed)


def test_learning_rate_and_gradient_norm_are_those_of_the_step(dataset):
    learner, seen, tokens = learner_and_batch(
        dataset, learning_rate=1e-2, warmup_steps=4, max_grad_norm=1e-3
    )
    assert [learner.update(seen, tokens)["learning_rate"] for _ in range(2)] == pytest.approx(
        [1e-2 * schedule(step, 4, 100) for step in (0, 1)]
    )
    assert learner.update(seen, tokens)["grad_norm"] > 1e-3  # reported before clipping
    norm = torch.linalg.vector_norm(
        torch.stack([p.grad.norm() for p in learner.parameters if p.grad is not None])
    )
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(dataset, value):
    learner, seen, tokens = learner_and_batch(dataset)
    learner.update(seen, tokens)
    broken, *others = learner.parameters
    with torch.no_grad():
        broken.fill_(value)
    before = [p.detach().clone() for p in others]
    with pytest.raises(
        UserError, match=r"diverged: loss is (nan|inf) at step 1 of 100.*Lower the learning rate"
    ):
        learner.update(seen, tokens)
    assert all(map(torch.equal, before, others))


def test_a_last_step_to_weights_too_large_to_use_is_noticed(dataset):
    learner, seen, tokens = learner_and_batch(dataset)
    learner.config = replace(learner.config, learning_rate=1e30)
    learner.steps = learner.total_steps - 1
    with pytest.raises(UserError, match=r"the loss after the last step is nan.*nothing of it is"):
        learner.update(seen, tokens)


def test_a_step_to_a_weight_that_is_not_finite_is_noticed(dataset):
    learner, seen, tokens = learner_and_batch(dataset)

    def spoil(*_):
        with torch.no_grad():
            learner.parameters[-1].view(-1)[0] = float("inf")

    learner.optimizer.register_step_post_hook(spoil)
    with pytest.raises(UserError, match="diverged: a weight after the step is not finite"):
        learner.update(seen, tokens)


def test_a_gradient_that_is_not_finite_stops_before_any_weight_changes(dataset):
    learner, seen, tokens = learner_and_batch(dataset)
    before = [p.detach().clone() for p in learner.parameters]
    learner.parameters[0].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="diverged: gradient norm is nan"):
        learner.update(seen, tokens)
    assert all(map(torch.equal, before, learner.parameters))


# -- the recipe ------------------------------------------------------------------------------------


def test_the_checkpoint_plays_what_was_saved_and_keeps_actions_as_they_are(dataset, tmp_path):
    kept = []
    folder = fine_tune(
        config(dataset, tmp_path / "out"),
        evaluate=lambda policy, epoch: kept.append(policy) or 0.25,
    )
    assert folder == tmp_path / "out" / "policy"
    loaded, demos = OpenVLAPolicy.from_checkpoint(folder), load_demonstrations(dataset)
    seen = demos.observation(np.arange(8))
    assert torch.equal(loaded.act(seen, 0.0).tokens, kept[0].act(seen, 0.0).tokens)
    assert (loaded.action_dim, loaded.action_chunk) == (4, 2)
    action = json.loads((folder / "dataset_statistics.json").read_text())["demos"]["action"]
    assert (action["q01"], action["q99"]) == ([-1.0] * 4, [1.0] * 4)
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")) == [
        "config.json", "metrics.jsonl", "policy", "run.json",
    ]  # fmt: skip


def test_metrics_have_a_line_an_epoch_and_success_where_it_is_measured(tmp_path):
    dataset = write_dataset(tmp_path / "demos", episodes=10)  # five a task: one of each is held out
    calls = []
    fine_tune(
        config(dataset, tmp_path / "out", epochs=3),
        evaluate=lambda _, epoch: calls.append(epoch) or 0.25,
    )
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(0 < line["sft/loss"] < 10 and 0 < line["sft/validation_loss"] < 10 for line in lines)
    assert calls == [3]
    assert [line.get("sft/success") for line in lines] == [None, None, 0.25]


def test_the_same_seed_gives_the_same_weights_to_the_bit(dataset, tmp_path):
    weights = [
        (fine_tune(config(dataset, tmp_path / name, seed=seed)) / "model.safetensors").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_a_checkpoint_is_fine_tuned_further_with_the_new_datasets_statistics(dataset, tmp_path):
    first = fine_tune(config(dataset, tmp_path / "first"))
    other = write_dataset(tmp_path / "arm", robot="arm")
    again = config(
        other,
        tmp_path / "second",
        policy=PolicyConfig(checkpoint=str(first)),
        epochs=1,
        learning_rate=1e-6,
    )
    loaded = OpenVLAPolicy.from_checkpoint(fine_tune(again))
    demos = load_demonstrations(other)
    assert loaded.unnorm_key == "arm"
    np.testing.assert_allclose(loaded.statistics.q99, demos.action_high)
    before = OpenVLAPolicy.from_checkpoint(first).policy_parameters()
    for old, new in zip(before, loaded.policy_parameters(), strict=True):
        torch.testing.assert_close(
            old, new, atol=1e-4, rtol=0
        )  # nearly the old weights: not from scratch


# -- cameras that are not square --------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_frames_are_made_square_in_play_as_in_training(tmp_path, fit):
    dataset = write_dataset(tmp_path / "wide", size=48, width=64, episodes=2)
    settings = config(dataset, tmp_path / "out", epochs=1, image_size=32, image_fit=fit)
    loaded = OpenVLAPolicy.from_checkpoint(fine_tune(settings))
    images = loaded.description.model.images
    assert (images.fit, images.resize) == (fit, "lanczos3")
    frames = LeRobotReader(dataset).pictures("observation.images.image", 1)
    demos = load_demonstrations(dataset, image_size=32, image_fit=fit)
    assert demos.image_fit == fit
    seen = loaded.processor.raw(frames, torch.device("cpu")).permute(0, 2, 3, 1).numpy()
    # two implementations of the same filter, rounded: they differ by one grey level at most
    trained = demos.images[demos.episode_ids == 1]
    assert np.abs(seen - trained.astype(np.float32)).max() <= 1
    bars = max(trained[:, :3].mean(), trained[:, -3:].mean())
    assert (bars < 2) == (fit == "pad")
    again = loaded.processor.raw(trained, torch.device("cpu")).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(again, trained)  # training images pass as they are


def test_square_cameras_leave_the_model_as_it_was(dataset, tmp_path):
    loaded = OpenVLAPolicy.from_checkpoint(fine_tune(config(dataset, tmp_path / "out", epochs=1)))
    assert loaded.description.model.images == ImagePreprocessing()


def test_frames_that_are_not_square_are_refused_where_nobody_says_how_they_fit(tmp_path):
    dataset = write_dataset(tmp_path / "wide", size=16, width=32, episodes=1)
    with pytest.raises(UserError, match=r"expected square pictures .* got 16 x 32.*--image-fit"):
        load_demonstrations(dataset)
    assert load_demonstrations(dataset, image_fit="pad").image_size == 32
    assert load_demonstrations(dataset, image_fit="crop").image_size == 16


def test_a_checkpoint_says_which_size_of_images_it_takes(dataset, tmp_path):
    first = fine_tune(config(dataset, tmp_path / "first", epochs=1))
    other = write_dataset(tmp_path / "large", size=64)
    settings = config(other, tmp_path / "second", policy=PolicyConfig(checkpoint=str(first)))
    with pytest.raises(
        UserError, match=r"expected images of 32 px, .* got 64 px\. Give --image-size 32"
    ):
        fine_tune(settings)


def test_a_policy_of_wide_frames_keeps_how_they_fit_under_another_protocol(tmp_path):
    """The protocols are about JPEG, size and crop; they know square cameras alone."""
    model = replace(tiny_model(32), images=ImagePreprocessing(fit="crop", resize="lanczos3"))
    asked = with_protocol(model, PolicyConfig(images="openvla-libero"))
    assert asked.images == replace(OPENVLA_LIBERO_IMAGES, fit="crop")


# -- faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["[]", "", "{", '{"a": NaN}'])
def test_a_damaged_environment_is_named_before_anything_is_learned(dataset, tmp_path, content):
    (dataset / "meta" / "environment.json").write_text(content)
    with pytest.raises(UserError, match=r"meta/environment\.json: "):
        fine_tune(config(dataset, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_environment_elsewhere_is_not_copied(dataset, tmp_path):
    (tmp_path / "secret").write_text("{}")
    (dataset / "meta" / "environment.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="a link that leads out of it"):
        fine_tune(config(dataset, tmp_path / "out"))


def test_a_dataset_of_another_action_size_than_the_checkpoints(dataset, tmp_path):
    first = fine_tune(config(dataset, tmp_path / "first", epochs=1))
    other = write_dataset(tmp_path / "seven", action_size=7)
    settings = config(other, tmp_path / "second", policy=PolicyConfig(checkpoint=str(first)))
    with pytest.raises(UserError, match=r"expected actions of size 4, .* got 7"):
        fine_tune(settings)
    assert not (tmp_path / "second").exists()


def test_a_folder_in_use_is_refused_and_left_alone(dataset, tmp_path):
    folder = fine_tune(config(dataset, tmp_path / "out", epochs=1))
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="not empty"):
        fine_tune(config(dataset, tmp_path / "out", epochs=1, seed=1))
    assert (folder / "model.safetensors").read_bytes() == before


def test_an_empty_or_missing_dataset(dataset, tmp_path):
    path = dataset / "meta" / "info.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"total_episodes": 0, "total_frames": 0})
    )
    with pytest.raises(UserError, match="empty dataset"):
        fine_tune(config(dataset, tmp_path / "out"))
    with pytest.raises(UserError, match="no such folder"):
        fine_tune(config(tmp_path / "nothing", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.sim
@pytest.mark.slow
def test_real_demonstrations_are_learned_by_heart(tmp_path):
    """Known answer: with enough epochs the greedy tokens are the demonstrated ones."""
    from vla_rl.recipes.demos import collect_demos

    env = EnvConfig(suite="mt1:button-press-topdown", num_workers=1)
    dataset = collect_demos(DemosConfig(env=env, out=str(tmp_path / "demos"), episodes_per_task=2))
    settings = config(
        dataset,
        tmp_path / "out",
        epochs=150,
        batch_size=26,
        random_shift=0,
        learning_rate=2e-3,
        warmup_steps=20,
    )
    folder = fine_tune(replace(settings, validation_fraction=0.0))
    policy, demos = (
        OpenVLAPolicy.from_checkpoint(folder),
        load_demonstrations(dataset, action_size=4),
    )
    chunks = action_chunks(demos.actions, demos.episode_ids, 2)
    tokens = policy.encode_actions(chunks)
    seen = demos.observation(np.arange(len(demos)))
    assert torch.equal(policy.act(seen, temperature=0.0).tokens, tokens)
    last = (tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["sft/loss"] < 0.02
    # evaluation finds where the demonstrations were played
    where = replace(env, num_workers=0)
    assert locate_policy(tmp_path / "out") == locate_policy(folder) == (folder, where)
    # what is played is what was demonstrated, up to half a bin
    assert np.abs(policy.decode_actions(tokens) - chunks).max() <= 1 / 31 + 1e-6
