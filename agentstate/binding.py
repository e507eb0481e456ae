"""What a handler runs on: its settings and its store, found at its first call.

Decorating opens nothing and reads nothing. The answer is kept until the configuration is
read anew, or the stores are closed.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from agentstate.state.settings import TurnSettings
from agentstate.stores import epoch, store_for, wrap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentstate.config import Configuration, Effective
    from agentstate.state.store import Store


@cache
def _configuration() -> Callable[[], Configuration]:
    """Return what returns the configuration in force; an import in `Binding.resolve` would cost each call as much."""
    from agentstate import config

    return config.current


class Bound(NamedTuple):
    """A handler's settings and store."""

    store: Store
    settings: TurnSettings
    run_without: bool


class Binding:
    """Finds the settings of one handler.

    Attributes:
        names: the names the handler may have in the configuration, the likeliest first.
        given: the decorator's arguments.
    """

    def __init__(self, names: Sequence[str], given: Mapping[str, Any], reads: tuple[str, ...] = ()) -> None:
        """Keep what the decorator was told."""
        self.names = list(names)
        self.given = dict(given)
        self.reads = reads
        self._bound: Bound | None = None
        self._configuration: Configuration | None = None
        self._epoch = -1

    def effective(self) -> Effective:
        """Return the effective settings, and where each came from.

        Raises:
            ConfigError: one is wrong.
        """
        from agentstate import config
        from agentstate.storage import registry

        return config.current().effective(self.names, self.given, backends=registry)

    def resolve(self) -> Bound:
        """Return what the handler runs on."""
        bound, configuration = self._bound, _configuration()()
        if bound is None or self._configuration is not configuration or self._epoch != epoch():
            self._configuration, self._epoch = configuration, epoch()
            bound = self._bound = self._find()
        return bound

    def _find(self) -> Bound:
        effective = self.effective()
        own = self.given.get("storage")
        store = store_for(effective) if own is None or isinstance(own, str) else wrap(own)
        settings = effective.settings
        turn = TurnSettings(
            turns=settings.turns,
            wait=settings.wait,
            max_waiting=settings.max_waiting,
            turn_timeout=math.inf if settings.turn_timeout is None else settings.turn_timeout,
            history=settings.history,
            commit=settings.commit,
            on_error=settings.on_error,
            autosave=settings.autosave,
            ttl=settings.ttl,
            ttl_mode=settings.ttl_mode,
            idle=math.inf if settings.idle is None else settings.idle,
            on_cancel=settings.on_cancel,
            reads=self.reads,
        )
        return Bound(store, turn, settings.on_unavailable == "run_without")

    def forget(self) -> None:
        """Look the settings up again at the next call."""
        self._bound = None
