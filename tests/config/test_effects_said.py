"""An option that has no effect: what the command line says of it, and when it says nothing."""

from __future__ import annotations

import pytest

from vla_rl.cli import main
from vla_rl.recipes.presets import PRESETS


def test_a_preset_has_no_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert PRESETS["metaworld-mt5-paper"].ppo.kl_coef == 0
    for name in ("metaworld-mt5-paper", "libero-goal-openvla-7b"):
        with pytest.raises(SystemExit):
            main(["train", name, "--print-config"])
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (
            "train --ppo.value-clip 0.2",
            2,
            "train: --ppo.value-clip has no effect: the value loss is clipped",
        ),
        ("train --ppo.value-clip 0", 0, "train: --ppo.value-clip has no effect"),
        ("train metaworld-mt5-paper --ppo.value-clip 0.3", 0, ""),
        ("train --env.settle-steps 3", 2, "no effect: Meta-World makes nothing of it"),
        ("demos --env.suite toy --env.mesh-faces 9", 2, "no effect: Toy makes nothing of it"),
        ("demos --env.suite libero-goal --env.settle-steps 3", 0, ""),
        ("train --eval.suite mt10", 2, "train: --eval.suite has no effect"),
        ("train --reward.no-normalize", 0, "train: --reward.no-normalize has no effect"),
        ("train --reward.judge x --reward.weight 0.4", 0, "--reward.judge"),
        (
            "eval x --reward-model y",
            2,
            "eval: --reward-model has no effect: without --best-of 2 or more",
        ),
        ("eval x --judge y", 2, "eval: --reward-model has no effect"),
        ("eval x --lookahead 5 --mode action", 2, "--lookahead and --mode have no effect"),
        ("eval x --seed 3", 0, "eval: --seed has no effect: greedy play draws nothing"),
        ("eval x --best-of 4 --lookahead 5 --reward-model y", 0, ""),
        ("sft --policy.critic.width 8", 0, "sft: --policy.critic.width has no effect"),
        (
            "sft --policy.gripper openvla",
            2,
            "sft: --policy.gripper has no effect: the policy is built from scratch",
        ),
        (
            "reward train --start x --lora.rank 4 --backbone y",
            2,
            "--lora.rank has no effect: the reward model given with start",
        ),
    ],
)
def test_the_command_line_says_it(
    capsys: pytest.CaptureFixture[str], line: str, code: int, said: str
) -> None:
    words = [*line.split(), "--print-config"]
    if code == 0:
        with pytest.raises(SystemExit) as leaving:
            main(words)
        assert leaving.value.code == 0
    else:
        assert main(words) == code
    printed = capsys.readouterr()
    assert (printed.out == "") == (code == 2)
    assert said in printed.err
    about_names = printed.err.count(" is called ")
    assert printed.err.count("\n") - about_names == (1 if "effect" in said else 0)
