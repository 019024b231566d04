"""Log-probability and entropy of each token from hidden states and an output head, the logits never whole."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, InputError
from .. import _dispatch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["logprobs", "logprobs_from_logits"]


def logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk_size: int | None = None,
    ignore_index: int = -100,
    skip_ignored: bool | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and the entropy it was chosen with, from the states before the head.

    With ``z = (hidden @ weight.T + bias) / temperature``, token by token and in nats::

        logp = z[target] - log sum_v exp z_v
        H    = -sum_v p_v log p_v,   p = softmax(z)

    The logits are made a tile at a time, in one small buffer, and made again for the gradient: memory beyond
    the result does not grow with tokens times words.

    Parameters
    ----------
    hidden : tensor of float64, float32, bfloat16 or float16, shape (..., H)
        States after the last norm; differentiable.
    weight : tensor of the dtype of `hidden`, shape (V, H)
        Of the head, as ``torch.nn.Linear`` stores it; differentiable.
    targets : tensor of int64, shape (...)
        The word whose log-probability is wanted, 0 to V - 1, or `ignore_index`. It is the token that
        *follows* the state: shift before the call.
    bias : tensor of the dtype of `hidden`, shape (V,), optional
        Differentiable. Minus infinity takes a word out.
    temperature : float
        Of the softmax; positive. 1 for the model's own distribution.
    entropy : bool
        Return the entropy too.
    chunk_size : int, optional
        Tokens of a tile; default at most 1,024 on the CPU and 8,192 elsewhere. The words of a tile are
        chosen so that the buffer holds 2 million logits on the CPU and 64 million elsewhere.
    ignore_index : int
        A token with this target gets log-probability 0, entropy 0 and no gradient.
    skip_ignored : bool, optional
        Leave ignored tokens out of the products, and out of those of the gradient tokens whose gradient is
        0 too. They then cost nothing, whatever they hold. The default does it on the CPU only: a GPU has to
        be waited for to count them.
    num_threads : int, optional
        Of the row kernels of the Numba backend; ``MATCHTIR_NUM_THREADS``, or else torch's number of
        threads, on which the products run. The row kernels' results do not depend on it.
    backend : {"triton", "numba", "reference"}, optional
        Force a backend.

    Returns
    -------
    logps : tensor of float32, or float64 if `hidden` is, shape (...)
        Differentiable once.
    entropy : tensor, as `logps`, or None
        Differentiable once; None unless asked for.

    Raises
    ------
    InputError
        For a tensor of another shape, dtype or device than described; for a target outside the vocabulary
        where `targets` are on the CPU (elsewhere its log-probability is NaN); at backward if `weight` or
        `bias` is not of the shape that it had.
    ConfigError
        For an option out of range.
    NotImplementedError
        When the gradient is differentiated.

    Notes
    -----
    Products are in the dtype of the inputs, or of ``torch.autocast``; everything between logits and results
    is in float32 (float64 for float64). In low precision the gradients are summed in float32: of the hidden
    states whole, of the weight a block of words at a time.

    Tokens, and so log-probabilities, do not depend on each other: a call on half of the tokens gives the
    same numbers, but for the rounding of the products. Without tokens the gradients are 0. With V = 1 the
    log-probability, the entropy and all gradients are 0.

    The weight is kept for the backward pass as the tensor that was passed. Where it is a DeepSpeed ZeRO-3
    parameter, gather it around the backward pass as well as around the call: a `GatheredParameters` context
    around each, or one around both. A parameter that is not gathered then is an InputError.

    Examples
    --------
    >>> import torch
    >>> hidden, weight = torch.zeros(2, 3), torch.zeros(4, 3)
    >>> logps, entropy = logprobs(hidden, weight, torch.tensor([1, -100]), entropy=True)
    >>> logps.exp().tolist(), (entropy / torch.log(torch.tensor(4.0))).tolist()
    ([0.25, 1.0], [1.0, 0.0])
    """
    import torch

    from . import library

    _check_tensors({"hidden": hidden, "weight": weight, "bias": bias}, targets)
    if hidden.dim() < 1 or weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise InputError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; "
            "expected (..., H) and (V, H)"
        )
    if weight.shape[0] == 0:
        raise InputError("weight has no rows; expected a vocabulary of at least one word")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias has shape {tuple(bias.shape)}; expected {tuple(weight.shape[:1])}")
    if targets.shape != hidden.shape[:-1]:
        raise InputError(f"targets have shape {tuple(targets.shape)}; expected {tuple(hidden.shape[:-1])}")
    compute = hidden.dtype
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (hidden.dtype, weight.dtype):
        compute = torch.get_autocast_dtype(device)
    elif any(x.dtype != hidden.dtype for x in (weight, bias) if x is not None):
        raise InputError(
            f"hidden is {hidden.dtype} and weight {weight.dtype}"
            + ("" if bias is None else f" and bias {bias.dtype}")
            + "; expected one dtype, or torch.autocast"
        )
    options = _options(temperature, ignore_index, chunk_size, skip_ignored, compute, num_threads, backend)
    flat = hidden.reshape(-1, hidden.shape[-1]) if hidden.shape[-1] else hidden.new_empty(targets.numel(), 0)
    logps, entropies, _ = library.head(flat, weight, bias, targets.reshape(-1).contiguous(), *options)
    return logps.view(targets.shape), entropies.view(targets.shape) if entropy else None


def logprobs_from_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    ignore_index: int = -100,
    num_threads: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same from logits that are there already, read in place.

    Parameters
    ----------
    logits : tensor of float64, float32, bfloat16 or float16, shape (..., V)
        Differentiable. The leading dimensions may have any strides, as in ``logits[:, :-1]``; if the last is
        not contiguous, a copy is made. Minus infinity takes a word out.
    targets : tensor of int64, shape (...)
    temperature : float
        As for :func:`logprobs`, like all that follow.
    entropy : bool
    ignore_index : int
    num_threads : int, optional
    backend : {"triton", "numba", "reference"}, optional

    Returns
    -------
    logps : tensor, shape (...)
        As :func:`logprobs` returns it.
    entropy : tensor, shape (...), or None
        The same. The gradient is a new tensor of the shape and dtype of `logits`.

    Raises
    ------
    InputError, ConfigError, NotImplementedError
        As :func:`logprobs` does.

    Examples
    --------
    >>> import torch
    >>> logps, _ = logprobs_from_logits(torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.tensor([0, 1]))
    >>> logps.exp().tolist()
    [0.5, 0.5]
    """
    from . import library

    _check_tensors({"logits": logits}, targets)
    if logits.dim() < 1 or logits.shape[-1] == 0 or targets.shape != logits.shape[:-1]:
        raise InputError(
            f"logits have shape {tuple(logits.shape)} and targets {tuple(targets.shape)}; "
            "expected (..., V) and (...), V at least 1"
        )
    options = _options(temperature, ignore_index, None, False, logits.dtype, num_threads, backend)
    logps, entropies, _ = library.from_logits(logits, targets.reshape(-1).contiguous(), *options)
    return logps.view(targets.shape), entropies.view(targets.shape) if entropy else None


def _check_tensors(floats: dict[str, Tensor | None], targets: Tensor) -> None:
    """Types, dtypes and devices; only a bias may be None."""
    import torch

    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    device = None
    for name, x in {**floats, "targets": targets}.items():
        if x is None and name == "bias":
            continue
        if not isinstance(x, torch.Tensor):
            raise InputError(f"{name} is a {type(x).__name__}; expected a tensor")
        if name == "targets" and x.dtype != torch.int64:
            raise InputError(f"targets are {x.dtype}; expected int64")
        if name != "targets" and x.dtype not in dtypes:
            raise InputError(f"{name} is {x.dtype}; expected float64, float32, bfloat16 or float16")
        device = device or x.device
        if x.device != device:
            raise InputError(f"{name} is on {x.device}; expected {device}, as the first argument")


def _options(
    temperature: float,
    ignore_index: int,
    chunk_size: int | None,
    skip_ignored: bool | None,
    compute: Any,
    num_threads: int | None,
    backend: str | None,
) -> tuple[Any, ...]:
    """Options as the custom ops take them, in their order."""
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, Real)
        or not 0 < temperature < float("inf")
    ):
        raise ConfigError(f"temperature is {temperature!r}; expected a positive number")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral):
        raise ConfigError(f"ignore_index is {ignore_index!r}; expected an integer")
    if chunk_size is not None and (
        isinstance(chunk_size, bool) or not isinstance(chunk_size, Integral) or chunk_size < 1
    ):
        raise ConfigError(f"chunk_size is {chunk_size!r}; expected a positive integer or None")
    if not isinstance(skip_ignored, (bool, type(None))):
        raise ConfigError(f"skip_ignored is {skip_ignored!r}; expected True, False or None")
    if num_threads is not None:
        num_threads = _dispatch.threads(num_threads)
    return float(temperature), int(ignore_index), chunk_size, skip_ignored, compute, num_threads, backend
