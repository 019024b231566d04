"""The op on tensors as torch sees it: opaque to ``torch.compile``, with its data checks inside."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...types import IntArray
from .. import _dispatch
from .._spans import check_offsets, check_spans


def _host(x: Tensor) -> IntArray:
    """An integer tensor as int64 on the host."""
    array: IntArray = x.to("cpu", torch.int64).numpy()
    return array


def _run(
    turn_values: Tensor,
    spans: Tensor,
    offsets: Tensor,
    out: Tensor,
    cu_seqlens: Tensor | None,
    validate: bool,
    num_threads: int | None,
    backend: str | None,
) -> None:
    module = _dispatch.load("scatter", backend, out.device.type)
    threads = _dispatch.threads(num_threads)
    if validate or out.device.type == "cpu":
        starts = _host(offsets)
        check_offsets(starts, "offsets", len(turn_values), len(turn_values))
        if cu_seqlens is None:
            widths = np.full(out.shape[0], out.shape[1])
        else:
            rows = _host(cu_seqlens)
            check_offsets(rows, "cu_seqlens", 0, out.shape[0])
            widths = np.diff(rows)
        check_spans(_host(spans), starts, widths)
    module.scatter_tensor(
        turn_values.to(out.dtype).contiguous(),
        spans.to(torch.int64).contiguous(),
        offsets.to(torch.int64).contiguous(),
        out,
        None if cu_seqlens is None else cu_seqlens.to(torch.int64).contiguous(),
        threads,
    )


scatter_tensor = torch.library.custom_op(
    "matchtir::scatter",
    _run,
    mutates_args=("out",),
    schema=(
        "(Tensor turn_values, Tensor spans, Tensor offsets, Tensor(a!) out, Tensor? cu_seqlens, "
        "bool validate, int? num_threads, str? backend) -> ()"
    ),
)


@scatter_tensor.register_fake  # type: ignore[untyped-decorator]
def _fake(*_: object) -> None:
    return None
