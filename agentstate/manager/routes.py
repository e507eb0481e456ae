"""Where the states of each kind lie: which store, for how long, and how they end.

A route is found at the first use of its kind and kept until the configuration is read anew or the
stores are closed. Any thread may ask; two that ask at once find the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agentstate import config
from agentstate.config.spelling import nearest
from agentstate.errors import ConfigError
from agentstate.scope import KINDS, check_id
from agentstate.state.settings import TurnSettings
from agentstate.state.store import Store
from agentstate.stores import epoch, store_for, wrap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentstate.storage.protocol import Storage

__all__ = ["SHARED", "Route", "Routes"]

SHARED: Final = frozenset({"global", "team", "agent"})
"""Kinds whose states belong to all principals of a tenant."""

WEEK: Final = "expire:604800"
ENDINGS: Final = {"workflow": WEEK, "step": WEEK, "session": WEEK, "team": WEEK}
ALIASES: Final = {"guild": "team"}


class Route(NamedTuple):
    """Where the states of one kind lie, and how they live.

    Attributes:
        on_end: what becomes of a state that has ended: ``keep``, ``delete`` or ``expire:SECONDS``.
    """

    store: Store
    settings: TurnSettings
    on_end: str


class Routes:
    """The routes of one manager, whose data it is, and who asks."""

    def __init__(
        self,
        storage: Storage | Store | str | None,
        storages: Mapping[str, Storage | Store | str] | None,
        *,
        tenant: str,
        principal: str | None,
        max_value_bytes: int | None,
    ) -> None:
        """See `StateManager`."""
        self.tenant: Final = check_id(tenant, "tenant") if tenant else ""
        self.principal: Final = check_id(principal, "principal") if principal is not None else None
        self.max_value_bytes: Final = max_value_bytes
        self._places = _places(storage, storages)
        self.routes: dict[str, Route] = {}
        self._configuration: config.Configuration | None = None
        self._epoch = -1

    def of(self, kind: str) -> Route:
        """Return the route of a kind.

        Raises:
            ConfigError: a setting is wrong.
        """
        if self._epoch != epoch() or self._configuration is not config.current():
            self._epoch, self._configuration, self.routes = epoch(), config.current(), {}
        route = self.routes.get(kind)
        if route is None:
            route = self.routes[kind] = self._find(kind)
        return route

    def owner_of(self, kind: str) -> str | None:
        """Return whose a state of this kind must be: nobody's in particular when it is shared by its nature."""
        return None if self.principal is None or kind in SHARED else self.principal

    def acting_for(self, principal: str | None) -> Routes:
        """Return the same routes for somebody else who asks."""
        other = Routes(None, None, tenant=self.tenant, principal=principal, max_value_bytes=self.max_value_bytes)
        other._places = self._places
        return other

    def stores(self) -> list[Store]:
        """Return the stores of all kinds, each once."""
        return list({id(store): store for store in (self.of(kind).store for kind in KINDS)}.values())

    def used(self) -> list[Store]:
        """Return the stores that were asked for so far, each once."""
        return list({id(route.store): route.store for route in self.routes.values()}.values())

    def _find(self, kind: str) -> Route:
        from agentstate.storage import registry

        place = self._places.get(kind, self._places.get("*"))
        given: dict[str, Any] = {}
        if isinstance(place, str):
            given = {"url" if "://" in place else "storage": place}
        elif place is not None:
            given = {"storage": place.storage if isinstance(place, Store) else place}
        effective = config.current().effective((), given, backends=registry, source="StateManager", kind=kind)
        if isinstance(place, Store):
            store = place
        else:
            store = store_for(effective) if place is None or isinstance(place, str) else wrap(place)
        settings = effective.settings
        turn = TurnSettings(
            ttl=settings.ttl, ttl_mode=settings.ttl_mode, wait=settings.wait, max_waiting=settings.max_waiting
        )
        return Route(store, turn, settings.on_end or ENDINGS.get(kind, "keep"))


def _places(
    storage: Storage | Store | str | None, storages: Mapping[str, Storage | Store | str] | None
) -> dict[str, Storage | Store | str]:
    places = {ALIASES.get(kind, kind): place for kind, place in (storages or {}).items()}
    for kind in places:
        if kind != "*" and kind not in KINDS:
            raise ConfigError(
                f"storages: there is no kind of scope {kind!r}.", remedy=nearest(kind, [*KINDS, *ALIASES, "*"])
            )
    if storage is not None:
        if "*" in places:
            raise ConfigError("storage= and storages['*'] both say where all the rest lies.", remedy="Keep one.")
        places["*"] = storage
    return places
