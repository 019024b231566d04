"""The loop that all backends share: logits in tiles of tokens by words, made, used and overwritten.

A tile is ``hidden[a:b] @ weight[c:d].T`` in one buffer that is used again and again. Forward, the backend's
row kernel adds it to four running numbers a token; backward, the same product is made again and the kernel
turns it into its gradient in place, which two more products carry to the hidden states and the weight.

Words are the outer loop: a block of the weight is read once, and its gradient is done before the next block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from ...errors import InputError

# Elements of a tile. On the CPU 8 MB of float32, which the caches hold between product and row kernel:
# with 4,096 tokens of 32,000 words the row kernels take a third of the time they take on 64 MB.
TILE_ON_CPU, _TILE_ELSEWHERE = 2**21, 2**26
_TOKENS_ON_CPU, _TOKENS_ELSEWHERE = 1024, 8192
_FEWEST_WORDS = 64


@dataclass(frozen=True)
class Plan:
    """How a call is done: the options of `logprobs`, and the backend's module."""

    module: ModuleType
    temperature: float
    ignore_index: int
    chunk_size: int | None
    skip_ignored: bool
    compute: torch.dtype
    threads: int


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of results and sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_targets(targets: Tensor, vocabulary: int, ignore_index: int) -> None:
    """Refuse words (N,) that are not in the vocabulary; on the CPU only, elsewhere it would wait."""
    if targets.device.type != "cpu":
        return
    bad = ((targets < 0) | (targets >= vocabulary)) & (targets != ignore_index)
    if bad.any():
        at = int(bad.to(torch.int8).argmax())
        raise InputError(
            f"targets holds {int(targets[at])} at token {at}; expected 0 to {vocabulary - 1}, or "
            f"ignore_index={ignore_index}"
        )


def _tile(tokens: int, words: int, device: str, chunk_size: int | None) -> tuple[int, int]:
    """Tokens and words of a tile; blocks of words are about equal, and multiples of 64."""
    size, default = (TILE_ON_CPU, _TOKENS_ON_CPU) if device == "cpu" else (_TILE_ELSEWHERE, _TOKENS_ELSEWHERE)
    rows = max(1, min(tokens, chunk_size or default))
    most = max(_FEWEST_WORDS, size // rows)
    blocks = -(-words // most)
    each = -(-words // blocks)
    return rows, min(words, -(-each // _FEWEST_WORDS) * _FEWEST_WORDS)


def scale_of(plan: Plan, like: Tensor) -> Tensor:
    """1 / temperature, (1,), in the dtype of the sums: as an argument of a kernel it would be float32."""
    return torch.full((1,), 1.0 / plan.temperature, dtype=wide(like.dtype), device=like.device)


def fresh_state(tokens: int, like: Tensor) -> Tensor:
    """State (4, tokens) before the first block; a target that never comes stays NaN."""
    state = torch.zeros((4, tokens), dtype=wide(like.dtype), device=like.device)
    state[0] = -torch.inf
    state[3] = torch.nan
    return state


def finish(state: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """logps, entropy and lse (n,); 0 for an ignored token, NaN for a target outside the vocabulary."""
    most, total, weighted, target = state
    ignored = targets == ignore_index
    log_total = total.log()
    missing = target.isnan()
    lse = most + log_total
    found = [(target - most) - log_total, log_total - weighted / total, lse]
    return tuple(x.masked_fill(missing, torch.nan).masked_fill(ignored, 0.0) for x in found)


def row_table(
    plan: Plan, targets: Tensor, lse: Tensor, entropy: Tensor, g: Tensor | None, h: Tensor | None
) -> Tensor:
    """What the backward kernel needs of each token (4, N): see `reference.backward`."""
    factor = 1.0 / plan.temperature
    rows = lse.new_zeros((4, len(targets)))
    rows[0] = lse
    if g is not None:
        rows[1] = g * factor
        rows[2] = rows[1]
    if h is not None:
        rows[3] = h * factor
        rows[2] += rows[3] * entropy
    rows[1:].masked_fill_(targets == plan.ignore_index, 0.0)
    return rows


def _blocks(
    weight: Tensor, bias: Tensor | None, words: int, compute: torch.dtype
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """First word, weight (C, H) and bias (C,) of each block, in the dtype of the products."""
    for first in range(0, weight.shape[0], words):
        block = slice(first, first + words)
        yield first, weight[block].to(compute), None if bias is None else bias[block].to(compute)


def _kept(keep: Tensor) -> Tensor | None:
    """Numbers of the tokens to keep, (n,); None for all of them, which then need not be gathered."""
    return None if keep.all() else keep.nonzero()[:, 0]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """A tile (R, C), in the buffer."""
    shape = (hidden.shape[0], weight.shape[0])
    tile = buffer[: shape[0] * shape[1]].view(shape)
    if bias is None:
        return torch.mm(hidden, weight.T, out=tile)
    return torch.addmm(bias, hidden, weight.T, out=tile)


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a @ b, or total = a @ b if it is the first; the sum is kept in the dtype of `total`."""
    if a.dtype != total.dtype:
        product = torch.mm(a, b)
        total.copy_(product) if first else total.add_(product)
    elif first:
        torch.mm(a, b, out=total)
    else:
        total.addmm_(a, b)


def forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """logps, entropy and lse (N,) of hidden (N, H), weight (V, H), bias (V,), targets (N,)."""
    index = _kept(targets != plan.ignore_index) if plan.skip_ignored else None
    x = (hidden if index is None else hidden[index]).to(plan.compute)
    y = targets if index is None else targets[index]
    state = fresh_state(len(y), hidden)
    if len(y):
        rows, words = _tile(len(y), len(weight), x.device.type, plan.chunk_size)
        buffer = x.new_empty(rows * words)
        scale = scale_of(plan, hidden)
        for first, w, b in _blocks(weight, bias, words, plan.compute):
            for start in range(0, len(y), rows):
                part = slice(start, start + rows)
                tile = _logits(x[part], w, b, buffer)
                plan.module.forward(
                    tile, y[part], first, scale, plan.ignore_index, state[:, part], plan.threads
                )
    found = finish(state, y, plan.ignore_index)
    if index is None:
        return found
    return tuple(f.new_zeros(len(targets)).index_copy_(0, index, f) for f in found)


def backward(
    grad_logps: Tensor | None,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    lse: Tensor,
    entropy: Tensor,
    needs: list[bool],
    plan: Plan,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden (N, H), weight (V, H) and bias (V,); None for one that is not needed."""
    table = row_table(plan, targets, lse, entropy, grad_logps, grad_entropy)
    # A token without a gradient costs nothing: an ignored one, a clipped one, one of advantage 0.
    index = _kept((table[1:] != 0).any(dim=0)) if plan.skip_ignored else None
    x = (hidden if index is None else hidden[index]).to(plan.compute)
    y = targets if index is None else targets[index]
    table = table if index is None else table[:, index]
    inputs = (hidden, weight, bias)
    if not len(y):
        zero = [
            i.new_zeros(i.shape) if n and i is not None else None for i, n in zip(inputs, needs, strict=True)
        ]
        return zero[0], zero[1], zero[2]
    exact = wide(hidden.dtype)
    grads = [
        x.new_empty(x.shape, dtype=exact) if needs[0] else None,
        weight.new_empty(weight.shape) if needs[1] else None,
        bias.new_empty(bias.shape) if needs[2] and bias is not None else None,
    ]
    rows, words = _tile(len(y), len(weight), x.device.type, plan.chunk_size)
    buffer = x.new_empty(rows * words)
    scale = scale_of(plan, hidden)
    alone = rows >= len(y)
    for first, w, b in _blocks(weight, bias, words, plan.compute):
        block = slice(first, first + len(w))
        d_weight, d_bias = (None if g is None else _sum_for(g[block], exact, alone) for g in grads[1:])
        for start in range(0, len(y), rows):
            part = slice(start, start + rows)
            tile = _logits(x[part], w, b, buffer)
            plan.module.backward(tile, tile, y[part], first, scale, table[:, part], plan.threads)
            if grads[0] is not None:
                _add_product(grads[0][part], tile, w, first == 0)
            if d_weight is not None:
                _add_product(d_weight, tile.T, x[part], start == 0)
            if d_bias is not None:
                part_sum = tile.sum(dim=0, dtype=exact)
                d_bias.copy_(part_sum) if start == 0 else d_bias.add_(part_sum)
        for grad, total in zip(grads[1:], (d_weight, d_bias), strict=True):
            if grad is not None and total is not None and total.dtype != grad.dtype:
                grad[block] = total
    if grads[0] is not None:
        d_hidden = grads[0].to(hidden.dtype)
        grads[0] = (
            d_hidden if index is None else hidden.new_zeros(hidden.shape).index_copy_(0, index, d_hidden)
        )
    return grads[0], grads[1], grads[2]


def _sum_for(grad: Tensor, exact: torch.dtype, alone: bool) -> Tensor:
    """Where a block's gradient is summed: in place, or aside where several terms meet in a coarse dtype."""
    return grad if alone or grad.dtype == exact else torch.empty_like(grad, dtype=exact)
