"""The policy as the update sees it: log-probabilities of own tokens, never logits of the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops import logprobs
from .batches import Batch

# Settings of transformers models that change logits after the output head, with the value that does not.
_AFTER_THE_HEAD: dict[str, tuple[Any, ...]] = {
    "final_logit_softcapping": (None,),
    "final_logit_soft_cap": (None,),
    "logits_soft_cap": (None,),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "lm_head_multiplier": (None, 1),
}


class TokenHead(nn.Linear):  # type: ignore[misc]
    """An output head that gives logits, or the log-probabilities of known targets without whole logits.

    It stands in the model in the place of its `nn.Linear` and has its parameters under the same names. So
    whoever shards them gathers the weight for both passes, as for any other module.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> TokenHead:
        """A head with the parameters of `linear`, the same objects."""
        head = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        head.train(linear.training)
        return head

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of hidden (..., H); with targets (n,) log-probabilities and entropies of hidden (n, H)."""
        if targets is None:
            logits: Tensor = super().forward(hidden)
            return logits
        logps, entropies = logprobs(
            hidden, self.weight, targets, bias=self.bias, temperature=temperature, entropy=True
        )
        assert entropies is not None
        return logps, entropies


class PolicyModel(nn.Module):  # type: ignore[misc]
    """A causal language model that is asked for the log-probabilities of the tokens it wrote.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        With an output head of its own, and where it can run: it is asked for the logits of two tokens. The
        head is replaced by a :class:`TokenHead` with the same parameters; what the model computes stays the
        same, `generate` included.

    Attributes
    ----------
    model
        The model, for generation and for writing it out.

    Raises
    ------
    ConfigError
        If the model has no output head, one that is no `nn.Linear` (an adapter on it, say), or one whose
        products are not its logits (soft-capped or scaled): the name of the setting is given.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._check_settings()
        self._replace_head()
        self._check_logits()

    @property
    def language_model(self) -> Any:
        """The transformers model, without peft's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def adapters(self) -> bool:
        """Whether adapters are trained, so that the reference model is this one without them."""
        return hasattr(self.model, "peft_config")

    def forward(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of each own token.

        Parameters
        ----------
        batch : Batch
            On the device of the model.
        temperature : float
            Divides the logits; what the rollouts were sampled with.

        Returns
        -------
        logps, entropies : Tensor of float32, of the shape of the batch: (B, T), or (total,) if it is packed
            In nats; 0 outside of the turns' own tokens. Differentiable.
        """
        inputs = {"input_ids": batch.tokens, "use_cache": False, **batch.attention}
        hidden = self.language_model.base_model(**inputs).last_hidden_state.flatten(0, 1)
        tokens = batch.tokens.flatten()
        logps, entropies = self.language_model.get_output_embeddings()(
            hidden.index_select(0, batch.places - 1), tokens[batch.places], temperature
        )
        shape = tokens.shape if batch.cu_seqlens is not None else batch.tokens.shape

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(tokens.shape).index_copy(0, batch.places, values).view(shape)

        return spread(logps), spread(entropies)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The model as it was before training, where adapters are trained."""
        with self.model.disable_adapter():
            yield

    def _check_settings(self) -> None:
        """Refuse models whose settings say that logits are more than the head's products."""
        config = self.language_model.config
        for part in (config, config.get_text_config()):
            for name, harmless in _AFTER_THE_HEAD.items():
                if getattr(part, name, None) not in harmless:
                    raise ConfigError(
                        f"{type(self.language_model).__name__} has {name}={getattr(part, name)}; expected a "
                        "model whose logits are the products of its output head, unscaled and without a cap"
                    )

    def _replace_head(self) -> None:
        """Put a TokenHead where the output head is."""
        model = self.language_model
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if isinstance(head, TokenHead):
            return
        if type(head) is not nn.Linear:
            what = "no output head" if head is None else f"an output head of type {type(head).__name__}"
            raise ConfigError(
                f"{type(model).__name__} has {what}; expected a causal language model with an nn.Linear "
                "(without an adapter on it)"
            )
        model.set_output_embeddings(TokenHead.from_linear(head))

    def _check_logits(self) -> None:
        """Compare the model's own logits of two tokens with the head's products."""
        model, training = self.language_model, self.training
        self.eval()
        head = model.get_output_embeddings()
        tokens = torch.arange(2, device=head.weight.device)[None] % head.out_features
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits
            products = head(model.base_model(input_ids=tokens, use_cache=False).last_hidden_state)
        self.train(training)
        if logits.shape != products.shape or not torch.allclose(
            logits.float(), products.float(), rtol=1e-2, atol=1e-2 * float(products.abs().max())
        ):
            raise ConfigError(
                f"the logits of {type(model).__name__} are not the products of its output head; expected a "
                "model that changes nothing after it"
            )


def frozen_copy(policy: PolicyModel) -> PolicyModel:
    """A copy of the policy that is never trained: the reference model."""
    reference = copy.deepcopy(policy)
    reference.requires_grad_(False)
    reference.eval()
    return reference
