"""Where the learners of a run lie in the cluster: as near to each other as there is room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from vla_rl.config.errors import UserError
from vla_rl.config.parallel import ParallelConfig
from vla_rl.distributed.ray_cluster import Share, share_of
from vla_rl.distributed.ray_errors import PeerSilentError, answer_of, require_ray


class SeatHolder:
    """Keeps what Ray has set aside for the process that was started, which is no actor itself."""

    def gpus(self) -> list[str]:
        """Numbers of its GPUs on that machine."""
        return [str(number) for number in require_ray().get_gpu_ids()]


@dataclass(frozen=True)
class Seats:
    """The places of the learners; the first is that of this process."""

    address: str
    """Of this machine, for the others to meet at."""
    share: Share
    group: Any
    """Ray's placement group, one bundle for each learner; None where there is one learner and no GPU."""
    holder: Any

    def of(self, rank: int) -> dict[str, Any]:
        """Options of the Ray actor that is learner `rank`."""
        ray = require_ray()
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
            placement_group=self.group, placement_group_bundle_index=rank
        )
        return {
            "num_cpus": self.share.cpus,
            "num_gpus": self.share.gpus,
            "scheduling_strategy": strategy,
        }

    def sit_down(self, device: str) -> None:
        """Compute on the GPU that Ray has set aside for this process, not on one that it gives to others."""
        if self.holder is None or self.share.gpus == 0 or device not in ("auto", "cuda"):
            return
        numbers = answer_of(self.holder.gpus.remote(), 60.0, "the holder of this process's GPU")
        if numbers:
            # before anything has asked CUDA which GPUs there are
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(numbers)


@contextmanager
def take_seats(parallel: ParallelConfig) -> Iterator[Seats]:
    """Reserve room for the learners, one of them on this machine; it is given back at the end.

    UserError where there is not enough room within `parallel.timeout` seconds.
    """
    ray = require_ray()
    share, address = share_of(parallel), ray.util.get_node_ip_address()
    if parallel.learners == 1 and share.gpus == 0:
        yield Seats(address, share, None, None)
        return
    bundle = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
    here = bundle | {f"node:{address}": 0.001}
    bundles = [here] + [dict(bundle) for _ in range(1, parallel.learners)]
    group = ray.util.placement_group(bundles, strategy="PACK")
    holder = None
    try:
        try:
            answer_of(group.ready(), parallel.timeout, "the Ray cluster")
        except PeerSilentError as error:
            raise UserError(
                f"the Ray cluster has had no room for {parallel.learners} learners with {bundle} each, one of them on "
                f"this machine, for {parallel.timeout:g} seconds (parallel.timeout). It has "
                f"{ray.cluster_resources()}, of which are free {ray.available_resources()}"
            ) from error
        seats = Seats(address, share, group, None)
        if share.gpus:
            holder = ray.remote(SeatHolder).options(**seats.of(0)).remote()
        yield Seats(address, share, group, holder)
    finally:
        with suppress(Exception):
            if holder is not None:
                ray.kill(holder)
            ray.util.remove_placement_group(group)
