"""Checks of what the loss method of an objective returned. ``N`` losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["checked_losses", "losses_and_metrics"]


def checked_losses(returned: Any, count: int, *, method: str, per: str) -> Tensor:
    """The losses as they are.

    Args:
        returned: what the method returned.
        count: how many losses it should be.
        method: class and method, for the message.
        per: what one loss is of: pair, response, token.

    Raises:
        ValueError: not a tensor [N].
    """
    if isinstance(returned, Tensor) and returned.shape == (count,):
        return returned
    got = f"shape {list(returned.shape)}" if isinstance(returned, Tensor) else type(returned)
    raise ValueError(
        f"{method} must return one loss per {per}, here a tensor of shape [{count}]; got "
        f"{got if isinstance(got, str) else got.__name__}. Take no mean or sum over them: that is "
        "done for the whole batch"
    )


def losses_and_metrics(
    returned: Any, count: int, *, method: str, per: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and what to log; see ``checked_losses``.

    Raises:
        ValueError: not a tensor [N] and a dict.
    """
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
        raise ValueError(
            f"{method} must return two things, the losses (one per {per}) and a dict of tensors to "
            f"log, which may be empty: return losses, {{}}; got {type(returned).__name__}"
        )
    return checked_losses(returned[0], count, method=method, per=per), returned[1]
