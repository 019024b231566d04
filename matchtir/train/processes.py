"""What processes that train together say to each other, over torch.distributed; also for one alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from torch import Tensor
from torch import distributed as dist

_PATIENCE = timedelta(days=1)
_talk: Any = None


def open_channel() -> None:
    """Give the processes a group of their own for what they say to each other. All call it, once.

    It is gloo's, also beside NCCL: objects stay in the host's memory, and a process may wait for another that
    still samples, or writes a checkpoint, for longer than the minutes after which NCCL ends a run.
    """
    global _talk
    if world_size() > 1 and _talk is None:
        _talk = dist.new_group(backend="gloo", timeout=_PATIENCE)


def rank() -> int:
    """This process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier(group=_talk)


def broadcast(value: Any) -> Any:
    """A picklable object of process 0, on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_talk)
    return box[0]


def gather(value: Any) -> list[Any]:
    """The picklable objects of all processes in their order, on every process."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=_talk)
    return found


def reduce(values: Tensor, how: str = "sum") -> Tensor:
    """Sum, "min" or "max" of a tensor over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(
            values, {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}[how]
        )
    return values
