"""What Lightning says that is about other loops than ours."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet_lightning"]

_ABOUT_OTHERS = (
    ".*LeafSpec",  # its own use of what torch deprecates, in every loop
    ".*in eval mode at the start of training",  # every training step sets the mode itself
)


def quiet_lightning() -> None:
    """Keep Lightning's notes, and warnings that do not apply here, out of the log."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _ABOUT_OTHERS:
        warnings.filterwarnings("ignore", message=message)
