"""Scatter on the GPU: every element of the output is written once, and nothing else is.

A program takes a block of the output's memory, not of a row, so that its stores are aligned whatever the
rows' length is. Bits are moved: the dtype matters only by its size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK_BYTES = 16_384


@triton.jit(do_not_specialize=["rows", "turns", "width", "stride", "total"])  # type: ignore[untyped-decorator]
def scatter_kernel(  # type: ignore[no-untyped-def]
    values, spans, offsets, cu_seqlens, out, rows, turns, width, stride, total,
    PACKED: tl.constexpr, GAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Elements [p BLOCK, (p + 1) BLOCK) of `total`; rows at `cu_seqlens` (B + 1,), or `stride` apart."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    token = tl.arange(0, BLOCK)
    result = tl.zeros((BLOCK,), dtype=out.dtype.element_ty)
    inside = tl.zeros((BLOCK,), dtype=tl.int1)
    row = base * 0
    if PACKED:
        # The first row that ends after the block's start.
        above = row + rows
        while row < above:
            middle = (row + above) // 2
            before = tl.load(cu_seqlens + middle + 1) <= base
            row = tl.where(before, middle + 1, row)
            above = tl.where(before, above, middle)
    else:
        row = base // stride

    while row < rows:
        if PACKED:
            # Relative to the block. Clamped, so that no span leaves its row, nor a row the output.
            start = tl.minimum(tl.maximum(tl.load(cu_seqlens + row), 0), total) - base
            length = tl.minimum(tl.load(cu_seqlens + row + 1), total) - base - start
        else:
            start = row * stride - base
            length = base * 0 + width
        if start < BLOCK:
            if GAPS:
                inside = inside | ((token >= start) & (token < start + length))
            turn = tl.maximum(tl.load(offsets + row), 0)
            last = tl.minimum(tl.load(offsets + row + 1), turns)
            while turn < last:
                first = start + tl.minimum(tl.maximum(tl.load(spans + 2 * turn), 0), length)
                end = start + tl.minimum(tl.maximum(tl.load(spans + 2 * turn + 1), 0), length)
                first = tl.maximum(first, 0)
                end = tl.minimum(end, BLOCK)
                if first < end:
                    covered = (token >= first.to(tl.int32)) & (token < end.to(tl.int32))
                    result = tl.where(covered, tl.load(values + turn), result)
                turn += 1
            row += 1
        else:
            row = row * 0 + rows

    if GAPS:
        tl.store(out + base + token, result, mask=inside & (token < total - base))
    elif base + BLOCK <= total:
        tl.store(out + base + token, result)  # without a mask, which would forbid wide stores
    else:
        tl.store(out + base + token, result, mask=token < total - base)


def scatter_tensor(
    values: Tensor, spans: Tensor, offsets: Tensor, out: Tensor, cu_seqlens: Tensor | None, threads: int
) -> None:
    """`values` (N,) of the dtype of `out`, (B, T), or (total,) with `cu_seqlens` (B + 1,)."""
    if out.numel() == 0:
        return
    bits = _BITS[out.dtype.itemsize]
    target = out.view(bits)
    rows, packed = len(offsets) - 1, cu_seqlens is not None
    width = out.shape[-1]
    stride = width if packed or rows == 1 else out.stride(0)
    total = width if packed else (rows - 1) * stride + width
    block = _BLOCK_BYTES // out.dtype.itemsize
    with torch.cuda.device_of(out):
        scatter_kernel[(triton.cdiv(total, block),)](
            values.view(bits), spans, offsets, offsets if cu_seqlens is None else cu_seqlens, target,
            rows, len(values), width, stride, total, packed, stride > width, block,
        )  # fmt: skip


_TYPES = {
    "spans": "*i64", "offsets": "*i64", "cu_seqlens": "*i64", "rows": "i32", "turns": "i32", "width": "i32",
    "stride": "i32", "PACKED": "constexpr", "GAPS": "constexpr", "BLOCK": "constexpr",
}  # fmt: skip

# For compiling without a GPU: argument types and constants of each kernel.
SIGNATURES: dict[str, list[tuple[dict[str, str], dict[str, object]]]] = {
    "scatter_kernel": [
        (
            {"values": f"*i{8 * size}", "out": f"*i{8 * size}", "total": total, **_TYPES},
            {"PACKED": packed, "GAPS": gaps, "BLOCK": _BLOCK_BYTES // size},
        )
        for size in (2, 4, 8)
        for total in ("i32", "i64")
        for packed, gaps in ((False, False), (False, True), (True, False))
    ]
}
