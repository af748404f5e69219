"""What an iteration cost, told finely enough that `vla-rl plan` can say what another one will cost."""

from __future__ import annotations

from typing import Any

from vla_rl.distributed.world import SingleProcess, World
from vla_rl.rollout.collector import Collected
from vla_rl.runtime.call_times import CallTimes

CALLS = "time/calls"
OWN = "time/own"


def cost_metrics(
    policy: Any, learner: Any, collected: Collected, world: World = SingleProcess()
) -> dict[str, float]:
    """Sums over all processes since the last iteration, evaluations between the two included.

    `time/calls/<kind>/...`: `prefill` and `tokens` of `act`; `policy` and `critic` passes of the learner, its `steps`
    beside them, its `check` of the sampler; `step`, `image` and `reset` of the simulators. `time/own/...`: processor
    seconds of the main threads while playing. What a policy, a learner or a simulator does not count is left out.
    """
    times = dict(collected.simulators)
    for counting in (policy, learner):
        times |= {name: counted.take() for name, counted in getattr(counting, "times", {}).items()}
    total = {name: CallTimes() for name in times}
    for of_rank in world.gather(times):
        for name, counted in of_rank.items():
            total[name].merge(counted)
    metrics = {f"{OWN}/{name}": seconds for name, seconds in collected.own_seconds.items()}
    metrics["time/collect_other"] = collected.seconds.get("other", 0.0)
    for name, counted in total.items():
        metrics |= counted.metrics(f"{CALLS}/{name}")
    return metrics
