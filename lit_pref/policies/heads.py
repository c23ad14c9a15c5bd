"""Heads that read one number off a hidden state: scores of responses, values of tokens.

Shapes: ``H`` hidden, ``...`` any leading shape.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lit_pref.functional.rng import generator
from lit_pref.types import Policy, Refusal

__all__ = ["ScalarHead", "freeze_output_layer"]


class ScalarHead(nn.Module):
    r"""A linear map from a hidden state to a number.

    .. math:: s(h) = w \cdot h + b

    The bias starts at 0. The weight starts at exactly 0 (``zero``: every output is 0, and the
    first step moves the head alone), or is drawn from a normal distribution of mean 0 and standard
    deviation :math:`1/\sqrt{H+1}` (``normal``, arXiv 2009.01325, appendix B), by a generator of
    its own. Weights and arithmetic are float32, also under autocast and for models in half
    precision (float64 for models in float64).

    The width is known only once the model is loaded, so ``prepare`` makes the weights; giving
    ``hidden_size`` makes them at once.

    Args:
        hidden_size: H, or None to wait for ``prepare``.
        init: ``zero`` or ``normal``.
        bias: whether there is an offset. Sequence-classification models have none.
        seed: of the normal draw.
    """

    def __init__(
        self,
        hidden_size: int | None = None,
        *,
        init: Literal["zero", "normal"] = "zero",
        bias: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if init not in ("zero", "normal"):
            raise Refusal(f"init of a head must be zero or normal, got {init!r}")
        self.init, self.has_bias, self.seed = init, bool(bias), int(seed)
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if hidden_size is not None:
            self.prepare(hidden_size)

    def prepare(self, hidden_size: int, *, dtype: torch.dtype = torch.float32) -> ScalarHead:
        """Make the weights, on the CPU; does nothing the second time.

        Args:
            hidden_size: H.
            dtype: of the model; the head is never below float32.
        """
        if self.weight is not None:
            return self
        dtype = torch.promote_types(torch.float32, dtype)
        with torch.device("cpu"):  # whatever the default is: the generator draws there
            weight = torch.zeros(hidden_size)
            if self.init == "normal":
                draw = generator(self.seed, "scalar_head")
                weight = torch.randn(hidden_size, generator=draw) / math.sqrt(hidden_size + 1)
            self.weight = nn.Parameter(weight.to(dtype))
            if self.has_bias:
                self.bias = nn.Parameter(torch.zeros((), dtype=dtype))
        return self

    def forward(self, hidden: Tensor) -> Tensor:
        """Numbers, [...].

        Args:
            hidden: [..., H] hidden states, of any float type.
        """
        assert self.weight is not None, "prepare comes first"
        # A product and a sum, since autocast would turn a linear layer into half precision.
        out = (hidden.to(self.weight.dtype) * self.weight).sum(-1)
        return out if self.bias is None else out + self.bias


def freeze_output_layer(policy: Policy) -> None:
    """Take an output layer that no loss reads out of training, unless it is the embedding too.

    Otherwise weight decay would shrink it, and processes would wait for its gradient.
    """
    model = getattr(policy, "model", None)
    if model is None:
        return
    if not hasattr(model, "get_output_embeddings"):
        raise Refusal(
            f"a reward model scores the state after a response, which {type(model).__name__} does "
            "not have; use a language model (task=token_bandit, or task=text)"
        )
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        head.requires_grad_(False)
