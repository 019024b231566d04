"""Turn values and token spans to a dense array of tokens, or to the packed tokens of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InputError
from ...types import Array, IntArray
from .. import _dispatch

if TYPE_CHECKING:
    import torch

__all__ = ["scatter", "scatter_tensor"]


def scatter(
    values: Array,
    spans: IntArray,
    offsets: IntArray,
    out: Array,
    *,
    num_threads: int | None = None,
    backend: str | None = None,
) -> None:
    """Write ``values[k]`` to the tokens ``spans[k]`` of their rollout's row of `out`, and 0 elsewhere.

    Parameters
    ----------
    values : ndarray of a 2-, 4- or 8-byte type, shape (N,)
        One per turn.
    spans : ndarray of int64, shape (N, 2)
        Half-open token ranges, in order inside a rollout; an empty one writes nothing.
    offsets : ndarray of int64, shape (B + 1,)
        Rollout b has the turns ``offsets[b]`` to ``offsets[b + 1]``.
    out : ndarray of the dtype of `values`, shape (B, T)
        Overwritten whole; rows contiguous.
    num_threads, backend
        As for :func:`matchtir.ops.hungarian`.

    Raises
    ------
    InputError
        If a span leaves its row or overlaps the one before it (the message names rollout and turn), or
        the rows of `out` overlap. Nothing is written then.
    """
    dense = out.shape[1] < 2 or out.strides[1] == out.itemsize
    if len(out) > 1 and dense and abs(out.strides[0]) < out.shape[1] * out.itemsize:
        raise InputError("the rows of out overlap")
    module = _dispatch.load("scatter", backend)
    module.scatter(values, spans, offsets, out, _dispatch.threads(num_threads))


def scatter_tensor(
    turn_values: torch.Tensor,
    spans: torch.Tensor,
    offsets: torch.Tensor,
    out: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor | None = None,
    validate: bool = False,
    num_threads: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Give every token of a tensor the value of its turn, and 0 to tokens outside all spans.

    Values are rounded to the dtype of `out` once and then moved as bits. A custom op of torch:
    ``torch.compile`` takes it whole. No gradient flows through it.

    Parameters
    ----------
    turn_values : tensor of a floating type, shape (N,)
        One per turn.
    spans : tensor of int64 or int32, shape (N, 2)
        Half-open token ranges, relative to the rollout's first token, in order inside a rollout; an empty
        one writes nothing.
    offsets : tensor of int64 or int32, shape (B + 1,)
        Rollout b has the turns ``offsets[b]`` to ``offsets[b + 1]``.
    out : tensor of a floating type of 2, 4 or 8 bytes, shape (B, T), or (total,) with `cu_seqlens`
        Overwritten whole; elements of a row lie beside each other, rows may be any distance apart.
    cu_seqlens : tensor of int64 or int32, shape (B + 1,), optional
        Rollout b has the tokens ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` of `out`. What is beyond the
        last rollout is padding and gets 0.
    validate : bool
        Check the contents of spans and offsets on a GPU too, which waits for it; on the CPU they are always
        checked. Unchecked, a span that leaves its row is cut at the row's end; which value a token gets
        that several spans hold is not defined.
    num_threads : int, optional
        As for :func:`matchtir.ops.hungarian`. The packed form on the CPU takes one.
    backend : {"triton", "native", "reference"}, optional
        Force a backend.

    Returns
    -------
    tensor
        `out`.

    Raises
    ------
    InputError
        If shapes, dtypes or devices do not fit, elements of `out` overlap or the rows are not contiguous;
        where contents are checked, if a span leaves its row or overlaps the one before it (the message names
        rollout and turn), or offsets do not rise from 0. Nothing is written then.
    """
    from .library import scatter_tensor as op

    _check_out(out, cu_seqlens is not None)
    rows = offsets.shape[0] - 1 if offsets.ndim == 1 else -1
    expected = (rows + 1,) if rows >= 0 else ("B + 1",)
    _check_tensor(offsets, "offsets", expected, out)
    if cu_seqlens is not None:
        _check_tensor(cu_seqlens, "cu_seqlens", expected, out)
    elif out.shape[0] != rows:
        raise InputError(f"out has {out.shape[0]} rows; expected {rows}, the rollouts that offsets describe")
    if not turn_values.is_floating_point() or turn_values.ndim != 1 or turn_values.device != out.device:
        raise InputError(
            f"turn_values has shape {tuple(turn_values.shape)} of {turn_values.dtype} on "
            f"{turn_values.device}; expected a floating type of shape (N,) on {out.device}"
        )
    _check_tensor(spans, "spans", (turn_values.shape[0], 2), out)
    op(turn_values.detach(), spans, offsets, out.detach(), cu_seqlens, bool(validate), num_threads, backend)
    return out


def _check_out(out: torch.Tensor, packed: bool) -> None:
    """Refuse a tensor that cannot be written row by row."""
    fits = out.is_floating_point() and out.dtype.itemsize in (2, 4, 8)
    if not fits or out.device.type not in ("cpu", "cuda"):
        raise InputError(
            f"out is a {out.dtype} tensor on {out.device}; expected a floating CPU tensor, or a CUDA one, "
            "of 2, 4 or 8 bytes"
        )
    if out.ndim != 2 - packed:
        shape = "(total,)" if packed else "(B, T)"
        raise InputError(f"out has shape {tuple(out.shape)}; expected {shape}")
    if out.shape[-1] > 1 and out.stride(-1) != 1:
        raise InputError(f"out has strides {out.stride()}; the rows of out must be contiguous")
    if not packed and out.shape[0] > 1 and out.stride(0) < out.shape[1]:
        raise InputError("the rows of out overlap")


def _check_tensor(x: torch.Tensor, name: str, shape: tuple[int | str, ...], like: torch.Tensor) -> None:
    """Refuse what is not an integer tensor of that shape on the device of `like`."""
    import torch

    wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    if x.dtype not in (torch.int64, torch.int32) or tuple(x.shape) != shape or x.device != like.device:
        raise InputError(
            f"{name} has shape {tuple(x.shape)} of {x.dtype} on {x.device}; "
            f"expected int64 or int32 of shape {wanted} on {like.device}"
        )
