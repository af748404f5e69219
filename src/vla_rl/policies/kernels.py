"""Matrix products and attention of the policy, chosen for speed on CPUs and left to torch elsewhere.

Float32 products on a CPU go to oneDNN: torch's default there is MKL, which on AMD processors leaves half of
the AVX-512 units idle (103 against 231 GFLOP/s on one core of an EPYC). oneDNN also adds a residual, multiplies
a gate or applies an activation in the same pass. Every function falls back to the plain torch expression.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SMALL_PRODUCT = 2**20
"""Products of fewer multiplications stay with torch: calling oneDNN costs about 10 microseconds."""
SMALL_ATTENTION = 64 * 64
"""Up to so many scores per head, plain products and a softmax beat the fused kernel on a CPU."""


def _find_onednn() -> Any:
    """Return torch's fused linear operator, or None in builds without oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        return torch.ops.mkldnn._linear_pointwise
    except AttributeError:
        return None


_ONEDNN = _find_onednn()


def _onednn_takes(x: Tensor, weight: Tensor) -> bool:
    return (
        _ONEDNN is not None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= SMALL_PRODUCT
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _ONEDNN(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """y = x W^T + b with all three products of the backward pass in oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1]).contiguous()
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _product(rows, weight.t()).view(*grad.shape[:-1], weight.shape[1])
        if ctx.needs_input_grad[1]:
            inputs = x.reshape(-1, x.shape[-1])
            # oneDNN is faster with the longer side as columns of the result
            if weight.shape[0] > weight.shape[1]:
                grad_weight = _product(inputs.t(), rows.t()).t().contiguous()
            else:
                grad_weight = _product(rows.t(), inputs.t())
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias


def linear(
    x: Float[Tensor, "*rows i"],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "*rows o"]:
    """Compute x W^T + b; differentiable once."""
    if not _onednn_takes(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear with the product above; peft wraps it like any other linear layer."""

    def forward(self, input: Float[Tensor, "*rows i"]) -> Float[Tensor, "*rows o"]:
        return linear(input, self.weight, self.bias)


def _fuses(layer: nn.Module, x: Tensor) -> bool:
    """Whether `layer` is bare (no adapter around it) and no gradient is wanted."""
    if not isinstance(layer, Linear) or not _onednn_takes(x, layer.weight):
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad))


def linear_gelu(layer: nn.Module, x: Float[Tensor, "*rows i"]) -> Float[Tensor, "*rows o"]:
    """GELU(layer(x)), the exact (erf) GELU."""
    if _fuses(layer, x):
        return _ONEDNN(x, layer.weight, layer.bias, "gelu", [], "none")
    return F.gelu(layer(x))


def linear_add(
    layer: nn.Module, x: Float[Tensor, "*rows i"], residual: Float[Tensor, "*rows o"]
) -> Float[Tensor, "*rows o"]:
    """Add layer(x) to `residual`."""
    if _fuses(layer, x) and residual.is_contiguous():
        return _ONEDNN.binary(x, residual, layer.weight, layer.bias, "add")
    return residual + layer(x)


def gated_linear(
    gate: nn.Module, up: nn.Module, x: Float[Tensor, "*rows i"]
) -> Float[Tensor, "*rows o"]:
    """SiLU(gate(x)) * up(x)."""
    if _fuses(gate, x) and _fuses(up, x):
        opened = _ONEDNN(x, gate.weight, gate.bias, "swish", [], "")
        return _ONEDNN.binary(x, opened, up.weight, up.bias, "mul")
    return F.silu(gate(x)) * up(x)


def add_low_rank(
    y: Float[Tensor, "*rows o"],
    x: Float[Tensor, "*rows i"],
    down: Float[Tensor, "r i"],
    up: Float[Tensor, "o r"],
    scale: float,
) -> Float[Tensor, "*rows o"]:
    """Compute y + scale (x down^T) up^T in the precision of `x`, to which finer weights are rounded.

    Gradients of the weights come back in the weights' own precision.
    """
    inner = x.reshape(-1, x.shape[-1]) @ down.to(x.dtype).t()
    rows = y.reshape(-1, y.shape[-1])
    return torch.addmm(rows, inner, up.to(x.dtype).t(), alpha=scale).view_as(y)


def run_block(block: nn.Module, x: Tensor, *rest: Any, recompute: bool) -> Tensor:
    """block(x, *rest); with `recompute` its inner activations are computed again in the backward pass, not kept.

    Without dropout nothing in it is random, so the generator need not be wound back (which is not safe with several
    threads) and gradients are the same to the bit.
    """
    if not recompute or not torch.is_grad_enabled():
        return block(x, *rest)
    if not x.requires_grad and not any(p.requires_grad for p in block.parameters()):
        return block(x, *rest)  # a frozen block keeps nothing anyway; its input would be kept
    return checkpoint(block, x, *rest, use_reentrant=False, preserve_rng_state=block.training)  # type: ignore[no-any-return]


def attend(
    q: Float[Tensor, "N h Q d"],
    k: Float[Tensor, "N h S d"],
    v: Float[Tensor, "N h S d"],
    bias: Float[Tensor, "*N_1 Q S"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "N h Q d"]:
    """softmax(q k^T / sqrt(d) + bias) v; `causal` needs Q = S and hides later columns."""
    queries, columns = q.shape[-2], k.shape[-2]
    plain = (
        q.device.type == "cpu" and q.dtype == torch.float32
    )  # coarser types would round the scores
    if not plain or queries * columns > SMALL_ATTENTION:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)
    if causal and queries > 1:
        bias = causal_bias(columns, q.device, q.dtype)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    if bias is not None:
        scores = scores + bias
    return torch.matmul(torch.softmax(scores, -1), v)


@functools.lru_cache(maxsize=32)
def causal_bias(
    size: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "size size"]:
    """0 where column s may be seen from row q (s <= q), minus infinity elsewhere."""
    # autograd refuses to keep tensors made in inference mode, and this one is shared with training
    with torch.inference_mode(False):
        return torch.full((size, size), -torch.inf, device=device, dtype=dtype).triu(1)


@functools.lru_cache(maxsize=32)
def rotary_tables(
    positions: int, head_dim: int, theta: float, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "positions d"], Float[Tensor, "positions d"]]:
    """Cosines, and sines with the sign of the half-split rotation: (-sin, sin)."""
    with torch.inference_mode(False):
        exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
        steps = torch.arange(positions, device=device, dtype=torch.float32)
        angles = torch.outer(steps, 1.0 / theta**exponents)
        cos, sin = angles.cos(), angles.sin()
        return (
            torch.cat((cos, cos), -1).to(dtype),
            torch.cat((-sin, sin), -1).to(dtype),
        )


def rotate(
    x: Float[Tensor, "N S h d"], cos: Float[Tensor, "*N_S 1 d"], sin: Float[Tensor, "*N_S 1 d"]
) -> Float[Tensor, "N S h d"]:
    """Rotary position embedding, half-split: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat((second, first), -1), sin)
