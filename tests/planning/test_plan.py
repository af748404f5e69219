"""The plan as a whole: what it recommends, what it marks, what it says where nothing fits, and the command itself."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vla_rl.cli import main
from vla_rl.config import LoraConfig, TrainConfig
from vla_rl.planning.arrangements import Arrangement, Machine, arrangements, shards_of
from vla_rl.planning.costs import Costs, Line, packaged, to_json
from vla_rl.planning.lookup import costs_of
from vla_rl.planning.plan import Plan, plan
from vla_rl.planning.timing import PHASES
from vla_rl.planning.workload import workload
from vla_rl.recipes.plan import costs_for
from vla_rl.recipes.presets import PRESETS, preset

SEVEN_B = "libero-spatial-openvla-7b"
EIGHT = Machine(1, 8, 80e9, 96, None)
PAIR = Machine(1, 0, 0.0, 2, 24e9)
Run = Callable[..., tuple[int, str, str]]


def many(envs: int) -> TrainConfig:
    config = preset(SEVEN_B)
    return replace(config, env=replace(config.env, num_envs=envs))


def made(config: TrainConfig, machine: Machine, **options: Any) -> Plan:
    return plan(config, machine, costs_for(machine), **options)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(["plan", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


WINDOWS = [name for name, config in PRESETS.items() if not config.compares_groups]


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - set(WINDOWS)))
def test_what_plays_no_windows_is_refused(name: str, run: Run) -> None:
    code, _, said = run(name)
    assert code == 2
    assert "cannot be planned: how many episodes an iteration plays depends on how they end" in said


@pytest.mark.parametrize("name", WINDOWS)
def test_every_preset_can_be_planned(name: str) -> None:
    """On what it is for: a laptop, or eight GPUs of 80 GB."""
    large = "openvla" in name
    found = made(preset(name), EIGHT if large else PAIR)
    assert any(row.fits for row in found.rows)
    assert found.recommended is not None
    for row in found.rows:
        assert row.times.seconds > 0
        phases = sum(getattr(row.times, name) for name in PHASES)
        assert row.arrangement.staleness or phases == pytest.approx(row.times.seconds)


def test_rates_and_hours_follow_from_the_window() -> None:
    found = made(many(80), EIGHT, episodes=5000, episode_turns=100.0)
    row = found.rows[1]
    assert row.arrangement == Arrangement("ranks", 8)
    assert row.turns_a_second == pytest.approx(80 * 128 / row.times.seconds)
    assert row.episodes_a_second == pytest.approx(row.turns_a_second / 100)
    assert row.steps_a_second == pytest.approx(
        row.turns_a_second
    )  # one action a turn, held for one step
    assert row.hours == pytest.approx(5000 / row.episodes_a_second / 3600)
    assert row.gpu_hours == pytest.approx(8 * row.hours)


def test_known_times_of_one_rank() -> None:
    """One environment, one worker: 3 turns of (0.1 decide, 2 steps of 0.5, 0.2 image); then 4 + 2 x 6 s of learning."""
    base = packaged("laptop")
    line = Line(0.1, 0.0)
    costs = replace(
        base,
        simulators=(replace(base.simulators[0], step=0.5, image=0.2, reset=0.0),),
        policies=(
            replace(
                base.policies[0], prefill=line, token=Line(0.0, 0.0), learn=Line(3.0, 0.0), critic=Line(2.0, 0.0),
                step=1.0, overlap=1.0,
            ),
        ),
        processes=(replace(base.processes[0], turn=Line(0, 0), window=Line(0.25, 0), values=Line(0, 0)),),
    )  # fmt: skip
    config = preset("metaworld-mt5")
    config = replace(
        config,
        env=replace(config.env, num_envs=1, action_chunk=2, action_repeat=1),
        rollout=replace(config.rollout, turns=3),
        ppo=replace(config.ppo, minibatch=100, epochs=4, critic_epochs=2, critic_replay=1),
    )
    single, *_ = plan(config, PAIR, costs).rows
    assert single.times.infer == pytest.approx(3 * 0.1)
    assert single.times.simulate == pytest.approx(3 * (2 * 0.5 + 0.2))
    assert single.times.score == pytest.approx(0.25)
    # the sampler is checked in a forward pass, a third of one; then one minibatch an epoch
    assert single.times.learn == pytest.approx(3.0 / 3 + 4 * (3.0 + 1.0) + 2 * (2.0 + 1.0))
    assert (single.times.sync, single.times.wait) == (0, pytest.approx(0))


def test_ranks_that_share_a_core_take_as_long_as_their_work() -> None:
    """Two ranks on one core: what they divide takes as long as in one rank, what each does for itself twice as long."""
    base = packaged("laptop")
    line = Line(0.0, 0.01)
    policies = (replace(base.policies[0], learn=line, critic=Line(0, 0), step=1.0, overlap=1.0),)
    costs = replace(base, policies=policies)
    config = preset("metaworld-mt5")
    machine = replace(PAIR, cpus=1)
    config = replace(config, parallel=replace(config.parallel, ranks=2))
    single, pair = (row.times.learn for row in plan(config, machine, costs).rows)
    steps = 2 * (1600 // 256) + 2 * (3 * 1600 // 256)
    assert pair - single == pytest.approx(steps * 1.0, rel=1e-6)


def test_more_gpus_are_not_slower_and_cost_the_same_or_more() -> None:
    """As many environments a GPU, and turns of a minibatch."""
    rates, costs_of_all = [], []
    for gpus in (1, 2, 4, 8):
        config = many(10 * gpus)
        config = replace(config, ppo=replace(config.ppo, minibatch=128 * gpus))
        found = made(config, Machine(1, gpus, 80e9, 12 * gpus, None))
        best = max((r for r in found.rows if r.fits), key=lambda r: r.turns_a_second)
        rates.append(best.turns_a_second)
        costs_of_all.append(best.gpu_hours)
    assert rates == sorted(rates)
    # a rank of its own saves some fixed costs, exchanges cost more: within 5 %
    assert costs_of_all[-1] > 0.95 * costs_of_all[0]


def test_slower_simulators_engines_and_learners_make_a_window_longer() -> None:
    base = costs_for(EIGHT)
    seconds = plan(many(80), EIGHT, base).rows[1].times

    def slower(costs: Costs) -> Any:
        return plan(many(80), EIGHT, costs).rows[1].times

    simulators = tuple(replace(s, step=s.step * 30) for s in base.simulators)
    assert slower(replace(base, simulators=simulators)).simulate > seconds.simulate
    prefill = tuple(replace(p, prefill=p.prefill.times(2)) for p in base.policies)
    assert slower(replace(base, policies=prefill)).infer > 1.5 * seconds.infer
    learn = tuple(replace(p, learn=p.learn.times(2)) for p in base.policies)
    assert slower(replace(base, policies=learn)).learn > 1.5 * seconds.learn
    links = tuple(replace(link, bandwidth=link.bandwidth / 10) for link in base.links)
    assert slower(replace(base, links=links)).sync > seconds.sync


def test_what_rests_on_an_assumption_is_marked() -> None:
    found = made(many(80), EIGHT)
    assert {"simulate", "infer", "learn", "sync"} <= set(found.rows[1].assumed)
    assert "published" in " ".join(found.assumptions["infer"])
    base = packaged("laptop")
    metaworld = plan(preset("metaworld-mt5"), PAIR, base)
    assert metaworld.assumptions == {}
    assert all(row.assumed == () for row in metaworld.rows)
    other = plan(preset("libero-spatial-tiny"), PAIR, base)
    assert "score" in other.assumptions  # bookkeeping was measured on Meta-World


def test_other_kinds_of_gpu_are_scaled_and_said() -> None:
    h200, a100 = (made(many(80), replace(EIGHT, gpu=kind)) for kind in ("h200", "a100"))
    assert a100.rows[1].times.learn > 2 * h200.rows[1].times.learn
    assert any("a100 scaled" in note for note in a100.assumptions["learn"])


def test_costs_of_other_settings_are_scaled_and_said() -> None:
    """Checkpointing takes a third more; more action tokens take more of everything that depends on them."""
    config = preset("metaworld-mt5")
    base = packaged("laptop")
    plain = costs_of(workload(config, 0), base, "h200")
    kept = replace(config, policy=replace(config.policy, activation_checkpointing=True))
    again = costs_of(workload(kept, 0), base, "h200")
    assert again.policy.learn.each == pytest.approx(plain.policy.learn.each * 4 / 3)
    assert "learn" in again.assumed
    chunk = replace(config, env=replace(config.env, action_chunk=8))
    longer = costs_of(workload(chunk, 0), base, "h200")
    assert longer.policy.learn.each > 1.1 * plain.policy.learn.each
    assert longer.policy.learn.fixed == plain.policy.learn.fixed
    adapters = replace(config, policy=replace(config.policy, lora=LoraConfig()))
    assert costs_of(workload(adapters, 0), base, "h200").policy.learn.each < plain.policy.learn.each


def test_nothing_fits_and_what_would_is_said() -> None:
    small = replace(EIGHT, gpus=1, gpu_memory=24e9)
    config = many(64)
    found = made(config, small)
    assert (found.recommended, found.reason) == (None, "nothing fits")
    assert any("GPU memory" in row.obstacle for row in found.rows)
    named = " ".join(found.would_fit)
    assert "--gpu-memory 80" in named
    assert "--env.num-envs 2" in named
    whole = replace(many(10), policy=replace(config.policy, lora=None))
    ways = made(whole, replace(EIGHT, gpus=1)).would_fit
    assert any(way.startswith("--policy.lora") for way in ways)
    assert any("fsdp2" in way for way in ways)


def test_every_way_that_would_fit_does(run: Run) -> None:
    """The options are taken by their word."""
    words = [SEVEN_B, "--gpus", "1", "--gpu-memory", "24", "--env.num-envs", "64", "--cpus", "12"]
    small = replace(EIGHT, gpus=1, gpu_memory=24e9, cpus=12)
    options = [way for way in made(many(64), small).would_fit if way.startswith("--")]
    assert options
    for way in options:
        code, out, _ = run(*words, *way.split())
        assert code == 0
        assert "Nothing fits" not in out


def test_arrangements_of_a_machine() -> None:
    names = [one.name for one in arrangements(EIGHT)]
    assert names[:3] == ["single", "ranks 8", "ranks 8, fsdp2"]
    assert "pools 7 + 1" in names
    assert "pools 4 + 4, staleness 1" in names
    assert [one.name for one in arrangements(PAIR)] == ["single", "ranks 2"]
    assert [one.name for one in arrangements(replace(PAIR, cpus=1), asked=3)] == [
        "single",
        "ranks 3",
    ]
    two = list(arrangements(replace(EIGHT, nodes=2)))
    assert (two[1].ranks, two[1].ranks_a_node) == (16, 8)


def test_more_ranks_than_environments_is_an_obstacle() -> None:
    found = made(preset(SEVEN_B), replace(EIGHT, nodes=2))
    assert "set env.num_envs to 16 or more" in found.rows[1].obstacle
    assert shards_of(Arrangement("ranks", 8), many(80)) == 8


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["metaworld-mt5", "--cpus", "2", "--env.num_envs", "64"], {"env": {"num_envs": 64}}),
        ([SEVEN_B, "--gpus", "4", "--env.num-envs=40", "--costs"], {"env": {"num_envs": 40}}),
        (["toy", "--parallel.ranks", "2", "--json=FILE", "--run.name", "x"], {"run": {"name": "x"}}),
    ],
)  # fmt: skip
def test_the_command_is_one_that_train_takes(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    expected: dict[str, Any],
) -> None:
    words = [word.replace("FILE", str(tmp_path / "plan.json")) for word in words]
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(to_json(packaged("laptop"))))
    words += [str(file)] if words[-1] == "--costs" else []
    code, out, _ = run(*words)
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("  vla-rl train"))
    _, *command = shlex.split(line)
    with pytest.raises(SystemExit) as leaving:
        main([*command, "--print-config"])
    assert leaving.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    for group, values in expected.items():
        assert printed[group].items() >= values.items()


def test_the_plan_as_json_and_costs_that_are_kept(run: Run, tmp_path: Path) -> None:
    file, kept = tmp_path / "plan.json", tmp_path / "costs.json"
    words = ["metaworld-mt5", "--cpus", "2", "--ram", "16"]
    code, out, err = run(*words, "--json", str(file), "--save-costs", str(kept))
    assert (code, err) == (0, "")
    found = json.loads(file.read_text())
    assert found["recommended"] in [row["name"] for row in found["arrangements"]]
    assert [row["ranks"] for row in found["arrangements"]] == [1, 2]
    assert found["machine"]["memory"] == 16e9
    assert "Recommended" in out
    code, again, _ = run(*words, "--costs", str(kept))
    table = [line for line in out.splitlines() if line.startswith("single")]
    assert [line for line in again.splitlines() if line.startswith("single")] == table


def damaged(change: Callable[[dict[str, Any]], Any]) -> str:
    costs = to_json(packaged("laptop"))
    return json.dumps(change(costs) or costs)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected JSON, got an empty file"),
        ("[1, 2", "damaged text"),
        ("[]", "expected an object"),
        (damaged(lambda c: c.update(format=7)), "expected version 1 of the costs file, got 7"),
        (damaged(lambda c: c.pop("format") and None), 'expected the key "format"'),
        (damaged(lambda c: c["simulators"][0].update(step=-1.0)), "simulators[0].step: expected a number of at"),
        (damaged(lambda c: c["policies"][0].update(learn="slow")), "policies[0].learn"),
        (damaged(lambda c: c["links"][0].update(bandwidth=0)), "links[0].bandwidth: expected a number of at least 1"),
        (damaged(lambda c: c["links"][0].update(latency=float("nan"))), "expected a finite number"),
        (damaged(lambda c: c["policies"][0].update(source="guessed")), "policies[0].source"),
        (damaged(lambda c: c.update(simulators=[], policies=[], processes=[], links=[])), "holds no costs"),
    ],
)  # fmt: skip
def test_a_costs_file_that_is_damaged_or_of_another_version(
    run: Run, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "costs.json"
    file.write_text(text)
    code, out, err = run("toy", "--costs", str(file))
    assert (code, out) == (2, "")
    assert said in err
    assert str(file) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["metaworld-mt6"], "there is no preset 'metaworld-mt6'. Did you mean"),
        ([SEVEN_B], "needs a GPU: set --gpus and --gpu-memory"),
        ([SEVEN_B, "--gpus", "0"], "needs a GPU"),
        (["toy", "--gpus", "-1"], "gpus: expected a whole number from 0 to 64, got -1"),
        (["toy", "--nodes", "0"], "nodes: expected a whole number"),
        (["toy", "--gpu-memory", "0"], "gpu_memory: expected a number"),
        (["toy", "--cpus", "-2"], "cpus: expected a whole number"),
        (["toy", "--episodes", "-5"], "episodes: expected a whole number"),
        (["toy", "--gpu", "h300", "--gpus", "1"], "--gpu: expected one of"),
        (["toy", "--costs", "nowhere.json"], "there is no costs file and no run folder at nowhere.json"),
        (["toy", "--policy.device", "cuda"], "policy.device cuda needs a GPU: set --gpus"),
        (["toy", "--policy.checkpoint", "nowhere"], "there is no policy at nowhere"),
        (["toy", "--env.num-envs", "0"], "env.num_envs"),
        (["toy", "--json", "."], "."),
        (["toy", "--gpuz", "1"], "there is no option --gpuz"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_gpu_that_is_not_there_has_no_kind(run: Run) -> None:
    code, _, err = run("metaworld-mt5", "--gpu-memory", "40")
    assert code == 0
    assert "--gpu-memory has no effect: there is no GPU" in err


def test_planning_imports_no_simulator() -> None:
    code = (
        "import sys; from vla_rl.cli import main; main(['plan', 'libero-spatial-openvla-7b', '--gpus', '2']); "
        "print([m for m in ('mujoco', 'metaworld', 'libero', 'robosuite', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
