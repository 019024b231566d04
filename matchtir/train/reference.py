"""The reference model of the KL term: frozen, and asked for log-probabilities only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from .batches import Batch
from .config import TrainConfig
from .deepspeed import Engine, shard_frozen
from .engine_settings import stage_of
from .policy import PolicyModel, frozen_copy


class Reference:
    """The policy as it is when this is made.

    Where adapters are trained it is the policy without them, and costs no memory. Otherwise it is a copy on
    each process, which stays in the host's memory between uses with ``deepspeed.offload_reference``; under
    ZeRO-3 its weights are shared out among the processes as the policy's are.

    Parameters
    ----------
    policy : PolicyModel
        Before :func:`matchtir.train.deepspeed.initialize` takes it.
    config : TrainConfig
    """

    def __init__(self, policy: PolicyModel, config: TrainConfig) -> None:
        self._offload = config.deepspeed.offload_reference
        self._adapters = policy.adapters
        self._shared_out = stage_of(config) == 3 and not policy.adapters
        self._model: Any = None
        if not policy.adapters:
            copy = frozen_copy(policy)
            self._model = shard_frozen(copy, config) if self._shared_out else copy

    @contextmanager
    def ready(self, engine: Engine) -> Iterator[Callable[[Batch, float], tuple[Tensor, Tensor]]]:
        """The model on the engine's device, called as :meth:`PolicyModel.forward` is."""
        if self._adapters:
            with engine.policy.without_adapters():
                yield engine.forward
        elif self._shared_out:
            yield self._model
        else:
            self._model.to(engine.device)
            yield self._model
            if self._offload:
                self._model.to("cpu")
