"""Random numbers that an application's ``random.seed()`` and a fork can't make repeat."""

from __future__ import annotations

import os
from random import Random
from typing import Final

__all__ = ["random_bits"]

_dice: Final = Random()  # noqa: S311 - ids and nonces are no secrets
os.register_at_fork(after_in_child=_dice.seed)

random_bits: Final = _dice.getrandbits
"""Return a random integer of so many bits."""
