"""Turn values to tokens: spans from a loss mask, and the dense ``[B, T]`` array that trainers take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .ops import scatter as _scatter
from .ops import scatter_tensor
from .ops._spans import check_spans
from .types import Array, IntArray, Ragged, spans_of_turns

if TYPE_CHECKING:
    import torch

    AnyArray = TypeVar("AnyArray", Array, torch.Tensor)


def _is_torch(x: Any) -> bool:
    """Whether `x` is a tensor, without importing torch."""
    return type(x).__module__.partition(".")[0] == "torch" or hasattr(x, "__torch_function__")


def spans_from_mask(mask: npt.ArrayLike | torch.Tensor) -> Ragged:
    """Spans of the model's own tokens: the runs of ones of a loss mask.

    Parameters
    ----------
    mask : array or CPU tensor of bool or number, shape (B, T)
        Not zero where the model wrote the token, 0 where the prompt, the environment or padding did.

    Returns
    -------
    Ragged of int64, values of shape (number of runs, 2)
        Half-open ranges ``[start, end)``, in order, one per run.

    Raises
    ------
    InputError
        If the mask has not two dimensions.

    Notes
    -----
    Two turns with no environment token between them are one run; pass spans that were recorded
    while sampling where that happens. No text is searched, so a model that prints a turn marker
    moves nothing.

    Examples
    --------
    >>> spans_from_mask([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0]]).tolist()
    [[[1, 3], [4, 5]], []]
    """
    if _is_torch(mask):
        mask = (mask != 0).cpu().numpy()  # type: ignore[union-attr]
    own = np.asarray(mask) != 0
    if own.ndim != 2:
        raise InputError(f"mask has shape {own.shape}; expected (B, T)")
    edges = np.zeros((own.shape[0], own.shape[1] + 1), dtype=np.int8)
    edges[:, :-1] = own
    edges[:, 1:] -= own
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    spans = np.stack([starts, ends], axis=1).astype(np.int64)
    return Ragged.from_lengths(spans, np.bincount(rows, minlength=own.shape[0]))


def scatter(
    turn_values: Ragged,
    spans: Ragged,
    shape: tuple[int, int] | None = None,
    *,
    out: AnyArray | None = None,
    dtype: npt.DTypeLike = np.float32,
    num_threads: int | None = None,
) -> AnyArray:
    """Give every token the value of its turn; tokens outside all spans get 0.

    Parameters
    ----------
    turn_values : Ragged, N values
        One per turn, `Credit.turn_advantages` for example.
    spans : Ragged of int64, values of shape (N, 2)
        Half-open token ranges ``[start, end)`` of the turns in their rollout's row, in order. An
        empty range is a turn without tokens.
    shape : (B, T)
        Shape of the result; not needed with `out`.
    out : ndarray or tensor of a floating type of 2, 4 or 8 bytes, shape (B, T), optional
        Overwritten whole and returned; its rows must be contiguous. bfloat16 tensors too. On a GPU the
        turns are copied to it; :func:`matchtir.ops.scatter_tensor` takes turns that are there.
    dtype : dtype
        Of the result, without `out`.
    num_threads : int, optional
        As for :func:`matchtir.ops.hungarian`.

    Returns
    -------
    ndarray or tensor, shape (B, T)
        `out`, or a new NumPy array.

    Raises
    ------
    InputError
        If spans and turns do not belong together, shapes or dtypes do not fit, or a span leaves its
        row or overlaps the one before it; the message names rollout and turn, and `out` is untouched.

    Examples
    --------
    >>> turns = Ragged.from_lists([[1.0, -2.0], [0.5]])
    >>> spans = Ragged(np.array([[1, 3], [4, 5], [0, 2]]), turns.offsets)
    >>> scatter(turns, spans, (2, 5)).tolist()
    [[0.0, 1.0, 1.0, 0.0, -2.0], [0.5, 0.5, 0.0, 0.0, 0.0]]
    """
    checked = spans_of_turns(spans, turn_values)
    if turn_values.values.ndim != 1:
        raise InputError(f"turn_values have shape {turn_values.values.shape}; expected one value a turn")
    if out is None:
        if shape is None:
            raise InputError("neither shape nor out was given; expected one of them")
        if min(shape, default=0) < 0:
            raise InputError(f"shape is {tuple(shape)}; expected no negative size")
        result: Any = np.empty(shape, dtype=dtype)
    else:
        if not _is_torch(out) and not isinstance(out, np.ndarray):
            raise InputError(f"out is a {type(out).__name__}; expected an array or a tensor")
        result = out
        if shape is not None and tuple(out.shape) != tuple(shape):
            raise InputError(f"out has shape {tuple(out.shape)}; expected {tuple(shape)}")
    if len(result.shape) != 2 or result.shape[0] != len(turn_values):
        raise InputError(f"the result has shape {tuple(result.shape)}; expected ({len(turn_values)}, T)")
    if _is_torch(result):
        _scatter_torch(turn_values, checked, result, num_threads)
    else:
        values = _numpy_values(turn_values.values, result)
        _scatter(values, checked, turn_values.offsets, result, num_threads=num_threads)
    return result  # type: ignore[no-any-return]


def _numpy_values(values: Array, out: Array) -> Array:
    """Values in the dtype of `out`, which is refused where it cannot be written."""
    if out.dtype.kind != "f" or out.dtype.itemsize not in (2, 4, 8) or not out.dtype.isnative:
        raise InputError(f"out is {out.dtype}; expected a native floating type of 2, 4 or 8 bytes")
    if not out.flags.writeable:
        raise InputError("out is read-only")
    return np.ascontiguousarray(values, dtype=out.dtype)


def _scatter_torch(turns: Ragged, spans: IntArray, out: torch.Tensor, num_threads: int | None) -> None:
    """Write turns and their spans (N, 2) to a tensor, on its device."""
    import torch

    values = np.ascontiguousarray(turns.values, dtype=np.float64)
    if out.device.type != "cpu":
        # Here they are at hand; on a device the op would wait for them.
        check_spans(spans, turns.offsets, np.full(len(out), out.shape[1]))
    here, ranges, offsets = (torch.from_numpy(x).to(out.device) for x in (values, spans, turns.offsets))
    scatter_tensor(here, ranges, offsets, out, num_threads=num_threads)
