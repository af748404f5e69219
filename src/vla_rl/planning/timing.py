"""How long a window takes in an arrangement, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vla_rl.distributed.shards import Shards, tree_nodes
from vla_rl.planning.arrangements import Arrangement, Machine, shards_of
from vla_rl.planning.costs import Line, PolicyCosts
from vla_rl.planning.lookup import RunCosts
from vla_rl.planning.memory import envs_of_rank, workers_of_rank
from vla_rl.planning.simulation import NOTHING, Play, PlayTimes, passes, simulate
from vla_rl.planning.workload import Workload

FORWARD = 1 / 3
"""Share of a pass that is forward."""
MEETINGS_A_MINIBATCH = 4
"""Exchanges of `ThreadedGradients.backward` beside that of the gradients: samples, who has any, sums, numbers."""
MEETINGS_A_WINDOW = 12
"""Small exchanges of a window: the window, the curriculum's outcomes, decisions that all must share."""
TURN_BYTES = 120
"""What a rank tells the others of a turn beside its tokens: flags, rewards, values, numbers of episodes."""
TOKEN_BYTES = 12
"""Of an action token: the token and its log-prob."""
PHASES = ("simulate", "infer", "score", "learn", "sync", "wait")


@dataclass(frozen=True)
class WindowTimes:
    """Seconds of a window, once the warm-up is over."""

    simulate: float
    """Waiting for simulators."""
    infer: float
    score: float
    """Bookkeeping while playing, scoring, advantages."""
    learn: float
    sync: float
    """Exchanges between ranks, and of weights."""
    wait: float
    """For the slowest rank, the mean over all."""
    seconds: float
    """Of the whole window; less than the sum where playing and learning overlap."""


def window_times(
    load: Workload, arrangement: Arrangement, machine: Machine, costs: RunCosts, micro_batch: int
) -> WindowTimes:
    """Predict a window."""
    envs, ranks = load.config.env.num_envs, arrangement.ranks
    slowest = _play(load, arrangement, machine, costs, envs_of_rank(load, ranks))
    mean = slowest
    if envs % ranks > 0 and ranks <= envs:  # some ranks have one environment less
        fastest = _play(load, arrangement, machine, costs, envs // ranks)
        mean = _between(slowest, fastest, envs % ranks / ranks)
    cores = machine.cpus / arrangement.ranks_a_node
    score = costs.process.window.at(load.turns) * max(1.0, 1.0 / cores)
    learn, steps = _learning(load, arrangement, machine, costs.policy, micro_batch)
    sync = _exchanges(load, arrangement, costs, steps, micro_batch)
    played = slowest.total + score
    learned = learn + sync
    return WindowTimes(
        simulate=mean.simulate,
        infer=mean.infer,
        score=mean.other + score,
        learn=learn,
        sync=sync,
        wait=max(0.0, slowest.total - mean.simulate - mean.infer - mean.other),
        seconds=max(played, learned) if arrangement.staleness else played + learned,
    )


def _between(first: PlayTimes, second: PlayTimes, share: float) -> PlayTimes:
    """The mean of two kinds of ranks, of which the first has `share`."""
    mixed = {
        name: share * getattr(first, name) + (1 - share) * getattr(second, name)
        for name in vars(first)
    }
    return PlayTimes(**mixed)


def _play(
    load: Workload, arrangement: Arrangement, machine: Machine, costs: RunCosts, envs: int
) -> PlayTimes:
    config, simulator, policy = load.config, costs.simulator, costs.policy
    env = config.env
    length = min(simulator.episode_turns or env.horizon, env.horizon)
    steps = env.action_chunk * env.action_repeat * simulator.steps_share
    token = policy.token.times(max(0, load.tokens - 1))
    infer = Line(policy.prefill.fixed + token.fixed, policy.prefill.each + token.each)
    pools = arrangement.kind == "pools"
    if arrangement.kind == "fsdp2":  # the weights are gathered for the window
        gathered = load.weights * load.itemsize * (1 - 1 / arrangement.ranks)
        start = _of_ranks(arrangement, costs, gathered)
    else:
        start = 0.0
    weights = costs.links["weights"]
    played = simulate(
        Play(
            envs=envs,
            turns=config.rollout.turns,
            workers=workers_of_rank(load, arrangement, machine),
            cores=machine.cpus / arrangement.ranks_a_node,
            turn=steps * simulator.step + simulator.image,
            reset=simulator.reset,
            episode_turns=length,
            staggered=length < env.horizon,
            infer=infer,
            on_device=load.on_gpu,
            values=costs.process.values if load.separate_critic else policy.prefill,
            overhead=costs.process.turn,
            ranks=-(-arrangement.ranks // arrangement.actors) if pools else 1,
            transfer=Line(2 * weights.latency, load.image_bytes / weights.bandwidth)
            if pools
            else NOTHING,
        )
    )
    return replace(played, total=played.total + start, infer=played.infer + start)


def learning_seconds(
    load: Workload,
    arrangement: Arrangement,
    machine: Machine,
    policy: PolicyCosts,
    micro_batch: int,
) -> float:
    """Seconds of an update, exchanges aside."""
    return _learning(load, arrangement, machine, policy, micro_batch)[0]


def _learning(
    load: Workload,
    arrangement: Arrangement,
    machine: Machine,
    policy: PolicyCosts,
    micro_batch: int,
) -> tuple[float, int]:
    """Seconds of an update of the rank that has most, and its minibatches."""
    config = load.config
    ppo, shards = config.ppo, shards_of(arrangement, config)
    cores = machine.cpus / arrangement.ranks_a_node
    threads = (
        1 if load.on_gpu else config.run.threads or max(1, machine.cpus // arrangement.ranks_a_node)
    )
    own = -(-shards // arrangement.ranks)
    # what every rank does for itself takes longer where ranks share a core
    crowded = 1.0 if load.on_gpu else max(1.0, 1.0 / cores)

    def minibatches(samples: int, epochs: int, line: Line) -> tuple[float, int]:
        steps = max(1, samples // ppo.minibatch)
        part = samples / steps / shards
        if load.on_gpu:
            seconds = own * _in_micro_batches(line, part, micro_batch)
        else:
            one = _in_micro_batches(line, part, ppo.micro_batch)
            seconds = passes(own, one, threads, cores, policy.overlap)
        return epochs * steps * (seconds + crowded * policy.step), epochs * steps

    seconds, steps = minibatches(load.turns, ppo.epochs, policy.learn)
    checked = (
        load.turns / arrangement.ranks
        if ppo.recompute_log_probs
        else _a_minibatch(load, arrangement)
    )
    line = policy.prefill if load.on_gpu else policy.learn.times(FORWARD)
    seconds += crowded * _in_micro_batches(line, checked, micro_batch if load.on_gpu else 0)
    if load.separate_critic:
        critic, more = minibatches(load.turns * ppo.critic_replay, ppo.critic_epochs, policy.critic)
        seconds, steps = seconds + critic, steps + more
    return seconds, steps


def _a_minibatch(load: Workload, arrangement: Arrangement) -> float:
    return load.turns / max(1, load.turns // load.config.ppo.minibatch) / arrangement.ranks


def _in_micro_batches(line: Line, samples: float, micro_batch: int) -> float:
    """Seconds for `samples` of one shard, in micro-batches of so many; 0: all at once."""
    if micro_batch <= 0 or samples <= micro_batch:
        return line.at(samples)
    calls = -(-samples // micro_batch)
    return calls * line.fixed + line.each * samples


def exchanged_bytes(parameters: int, ranks: int, shards: int) -> float:
    """Bytes of gradients that a rank receives for one minibatch, as `algorithms.gradients.ThreadedGradients` has it.

    Each rank adds up one stretch of all gradients: it receives that of every other rank, for each of its branches, and
    then the other ranks' sums.
    """
    if ranks == 1:
        return 0.0
    spread = Shards(shards, shards, 0, ranks)
    branches = max(len(tree_nodes(0, shards, spread.shards_of(rank))) for rank in range(ranks))
    padded = -(-parameters // ranks) * ranks
    return 4.0 * padded * (ranks - 1) / ranks * (branches + 1)


def _of_ranks(
    arrangement: Arrangement, costs: RunCosts, received: float, on_gpu: bool = True
) -> float:
    """Seconds until every rank has received so many bytes, in equal parts from the others.

    Around a ring: as many steps as there are other ranks, each with the latency of the slowest link.
    """
    inside, between = costs.links["gpus" if on_gpu else "processes"], costs.links["nodes"]
    others = max(1, arrangement.ranks - 1)
    if arrangement.nodes == 1:
        return others * inside.latency + received / inside.bandwidth
    near = (arrangement.ranks_a_node - 1) / others
    moved = received * near / inside.bandwidth + received * (1 - near) / between.bandwidth
    return others * max(inside.latency, between.latency) + moved


def _exchanges(
    load: Workload, arrangement: Arrangement, costs: RunCosts, steps: int, micro_batch: int
) -> float:
    """Seconds of a window that go into exchanges."""
    ranks = arrangement.ranks
    seconds = 0.0
    if arrangement.kind == "pools":
        changed = 4.0 * (load.trained + load.critic)
        seconds += costs.links["weights"].at(changed) * arrangement.actors
    if ranks == 1:
        return seconds

    def meet(received: float) -> float:
        return _of_ranks(arrangement, costs, received, load.on_gpu)

    told = load.turns * (TURN_BYTES + TOKEN_BYTES * load.tokens)
    seconds += MEETINGS_A_WINDOW * meet(0.0) + meet(told)
    if arrangement.kind == "fsdp2":
        return seconds + steps * _sharded_step(load, arrangement, costs, micro_batch)
    shards = shards_of(arrangement, load.config)
    gradients = exchanged_bytes(load.trained, ranks, shards)
    return seconds + steps * (MEETINGS_A_MINIBATCH * meet(0.0) + meet(gradients))


def _sharded_step(
    load: Workload, arrangement: Arrangement, costs: RunCosts, micro_batch: int
) -> float:
    """A minibatch with sharded weights: gathered forward and backward each time, gradients reduced and scattered."""
    share = 1 - 1 / arrangement.ranks
    own = -(-shards_of(arrangement, load.config) // arrangement.ranks)
    part = _a_minibatch(load, arrangement) / own
    times = own * max(1, -(-part // micro_batch) if micro_batch else 1)
    gathered = 2 * load.weights * load.itemsize * share * times
    reduced = 4.0 * load.trained * share
    return _of_ranks(arrangement, costs, gathered + reduced)
