"""Weights of which every rank keeps a part: torch's FSDP2 (`fully_shard`), and what has to be done in step under it.

A unit (a layer) is put together from all ranks' parts when it computes, and only then: in the forward pass, and again
in the backward pass, after which each rank gets its part of the summed gradient. So every pass is a meeting of all
ranks. Ranks must make the same passes in the same order, also one that has nothing to compute: it makes an empty one.

    sharding = Sharding(world, device)
    sharding.split(model, units, methods)      # before an optimizer is made
    with sharding.playing(): ...               # ranks act, each as often as it needs to
    with sharding.lending(optimizers): ...     # rank 0 asks for whole tensors and writes them

Zhao et al. 2023 (arXiv:2304.11277); https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from vla_rl.config.errors import ConfigError, UserError
from vla_rl.distributed.torch_world import TorchWorld
from vla_rl.distributed.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

SAMPLED = 16
"""Values of a tensor by which it is told from another."""
Gather = Literal["window", "call"]
"""window: all weights are put together for a whole window of play. call: layer by layer, in every call."""


class Sharding:
    """How a policy's weights are divided among the ranks, and the meetings that this takes."""

    def __init__(
        self,
        world: World,
        device: torch.device,
        gather: Gather = "window",
        compute: torch.dtype = torch.float32,
    ) -> None:
        """device: where this rank keeps its part. compute: the precision in which the policy is to compute.

        Raises ConfigError where weights cannot be divided: one rank, or an old torch.
        """
        meeting = require_sharding(world)
        self.world, self.device, self.gather, self.compute = meeting, device, gather, compute
        self.roots: list[nn.Module] = []
        self._mesh = _mesh(meeting, device)
        self._blanks: dict[str, Callable[[], object]] = {}
        self._plays = False  # inside `playing`, where calls are announced
        self._lent: list[Tensor] | None = None
        self._lent_at: dict[int, int] = {}
        self._sample = hashlib.sha256()

    def split(
        self,
        root: nn.Module,
        units: Iterable[nn.Module],
        methods: Iterable[str] = (),
        compute: torch.dtype = torch.float32,
    ) -> None:
        """Keep this rank's part of `root`'s parameters alone, on the device. No meeting: each rank cuts its own copy.

        units: modules that are put together one at a time; what is in none of them belongs to the root. methods: of
        the root, that compute beside `forward`. compute: another precision than that of the weights; none if float32.
        """
        from torch.distributed.fsdp import (
            FSDPModule,
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        for name, parameter in root.named_parameters():
            some = parameter.detach().reshape(-1)[:SAMPLED].float().cpu().numpy()
            self._sample.update(f"{name} {tuple(parameter.shape)}".encode() + some.tobytes())
        coarse = None if compute == torch.float32 else compute
        # the model converts its inputs by itself: FSDP would copy the state that decoding changes in place
        precision = MixedPrecisionPolicy(coarse, torch.float32, cast_forward_inputs=False)
        for module in (*units, root):
            # the root too: what it held beyond a pass would be out of date after a step
            fully_shard(module, mesh=self._mesh, mp_policy=precision, reshard_after_forward=True)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                # plain sums: the losses are divided by the samples of all ranks already
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        for method in methods:
            register_fsdp_forward_method(root, method)
        self.roots.append(root)

    def require_same(self) -> None:
        """Raise UserError unless all ranks have cut their parts from the same weights, by some of each tensor."""
        samples = self.world.gather(self._sample.hexdigest())
        other = [rank for rank, sample in enumerate(samples) if sample != samples[0]]
        if other:
            raise UserError(
                f"rank {other[0]} has read other weights than rank 0: the checkpoint must be the same on every machine"
            )

    # ----------------------------------------------------------------------------------------------
    # Playing

    def answer(self, kind: str, blank: Callable[[], object]) -> None:
        """Name a kind of call that a rank makes when it needs to, and an empty call with the same passes."""
        self._blanks[kind] = blank

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Inside, each rank makes as many calls as it needs to, none if it has nothing to play. All ranks enter.

        gather window: the weights are whole meanwhile. call: before each call the ranks agree on what is due, and who
        has nothing to ask makes an empty call; who is done stays here until all are.
        """
        if self._plays:
            raise RuntimeError("the ranks play already")
        self._plays = True
        try:
            if self.gather == "window":
                with self._whole():
                    yield
            else:
                yield
                self.together("", None)
        finally:
            self._plays = False

    @contextmanager
    def _whole(self) -> Iterator[None]:
        from torch.distributed.fsdp import FSDPModule

        root = self.roots[0]
        parts = [module for module in root.modules() if isinstance(module, FSDPModule)]
        with self.meeting("putting the weights together"):
            for module in parts:
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()
        try:
            yield
        finally:
            for module in parts:
                module.set_reshard_after_forward(True, recurse=False)
            # also drops the record of calls, by which FSDP chooses what to fetch ahead in a backward pass: it differs
            # from rank to rank, and a call may have been broken off
            parts[0].reset_iter_state()

    def together(self, kind: str, own: Callable[[], T] | None) -> T:
        """Make a call of a kind together with the other ranks, see `playing`. Outside of it the caller is in step."""
        if own is not None and not (self._plays and self.gather == "call"):
            with self.meeting("a pass"):
                return own()
        while True:
            asked = self.world.gather(kind)
            result: Any = None
            for each in sorted(set(asked) - {""}):
                with self.meeting("a pass"):
                    if each == kind:
                        assert own is not None
                        result = own()
                    else:
                        with torch.no_grad():
                            self._blanks[each]()
            if own is not None or not any(asked):
                return result

    @contextmanager
    def meeting(self, what: str) -> Iterator[None]:
        """Inside, a rank that is lost raises RankLostError. FSDP's own meetings end with other errors."""
        with self.world.meeting(what, computes=True):
            yield

    # ----------------------------------------------------------------------------------------------
    # Whole tensors, to save them

    @contextmanager
    def lending(self, optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
        """Inside, `whole` works on rank 0; the others leave it at once to give their parts until rank 0 is done."""
        self._lent = [
            *(p for root in self.roots for p in root.parameters() if is_sharded(p)),
            *_state_tensors(optimizers),
        ]
        # a detached tensor is another object over the same memory, of which rank 0 always has some
        self._lent_at = {local(tensor).data_ptr(): i for i, tensor in enumerate(self._lent)}
        try:
            if self.world.rank == 0:
                try:
                    yield
                finally:
                    self.world.broadcast(None)
            else:
                yield
                while (index := self.world.broadcast(-1)) is not None:
                    self._put_together(self._lent[index])
        finally:
            self._lent = None

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor in one piece on the host: one at a time on the device. On rank 0, inside `lending`."""
        if not is_sharded(tensor):
            return tensor.detach().cpu()
        if self._lent is None:
            raise RuntimeError("a sharded tensor is whole inside `lending` alone")
        self.world.broadcast(self._lent_at[local(tensor).data_ptr()])
        return self._put_together(tensor)

    def _put_together(self, tensor: Tensor) -> Tensor:
        with self.meeting("gathering a tensor"):
            return tensor.detach().full_tensor().cpu()  # type: ignore[attr-defined]


def require_sharding(world: World) -> TorchWorld:
    """Raise ConfigError unless weights can be divided among these ranks."""
    if world.size == 1:
        raise ConfigError(
            "parallel.shard fsdp2 divides the weights among ranks, and there is one: set parallel.ranks 2 or more, or "
            "parallel.shard none"
        )
    if not isinstance(world, TorchWorld):
        raise ConfigError("parallel.shard fsdp2 needs ranks that meet through torch.distributed")
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "reset_iter_state"):
        raise ConfigError(
            f"parallel.shard fsdp2 needs torch 2.13 or newer, this is {torch.__version__}: update torch, or set "
            "parallel.shard none"
        )
    return world


def _mesh(world: TorchWorld, device: torch.device) -> DeviceMesh:
    from torch.distributed.device_mesh import DeviceMesh

    group = world.group_of(device)
    if group is None:
        raise ConfigError(
            "parallel.shard fsdp2 on GPUs needs NCCL and a GPU for each rank of a machine: take as many ranks as GPUs, "
            "or set policy.device cpu"
        )
    with world.meeting("the start"):
        return DeviceMesh.from_group(group, device.type)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a rank holds a part of the tensor alone."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, in the same memory; of one that is not sharded, all of it."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()  # type: ignore[attr-defined]


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as a part of it, divided as `like` is, on its device. No meeting."""
    if not is_sharded(like) or not tensor.ndim:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(
        tensor.to(like.device), sharded.device_mesh, sharded.placements, src_data_rank=None
    )


def _state_tensors(optimizers: Iterable[torch.optim.Optimizer]) -> Sequence[Tensor]:
    return [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and is_sharded(value)
    ]
