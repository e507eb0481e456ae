"""What another system wrote at our address: found before a state is begun anew beside it.

AgentUp kept one JSON document for each context: a file ``<storage_dir>/<context id>.json``, or on
Valkey a string ``<key_prefix><context id>``. Such records lie beside ours and never among them, so
a state that was not carried over looks absent here, and a handler would forget without a word.
Whoever is about to begin a state therefore looks for its record, once for each state and store;
states that are there cost nothing, and neither do places where AgentUp can't have written.

Records are only read here; importing them is the importer's work (`agentstate.compat.agentup`).
It notes what it has imported as what, so that a state that was cleared afterwards isn't taken for
one that was forgotten. Cancelling a look loses nothing: it only reads.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, runtime_checkable

from agentstate import codec
from agentstate.errors import UnsupportedError
from agentstate.scope import StateScope
from agentstate.storage.protocol import Wants

if TYPE_CHECKING:
    from agentstate.storage.protocol import Storage

__all__ = ["IMPORTED", "Legacy", "LegacyPlace", "imported_as", "is_record", "legacy_of"]

IMPORTED: Final = StateScope.custom("agentup-imported")
"""Which records were imported, and as which state: variables named by AgentUp's ids."""

CHECKED: Final = 10_000
FIELDS: Final = frozenset({"context_id", "created_at", "updated_at", "history"})
NOTHING: Final = Wants((), (), (), 0)


@runtime_checkable
class LegacyPlace(Protocol):
    """A storage at a place where AgentUp may have written, too."""

    @property
    def legacy_url(self) -> str | None:
        """The URL that names this place to ``import-agentup``; ``None`` when AgentUp never wrote there."""
        ...

    async def legacy_record(self, context_id: str) -> bytes | None:
        """Return what lies where AgentUp kept a context, as it is."""
        ...


def legacy_of(storage: Storage) -> Legacy | None:
    """Return what looks for AgentUp's records beside a storage's states; ``None`` when there can't be any."""
    if isinstance(storage, LegacyPlace) and storage.legacy_url is not None:
        return Legacy(storage, storage, storage.legacy_url)
    return None


class Legacy:
    """AgentUp's records at a storage's place."""

    def __init__(self, storage: Storage, place: LegacyPlace, url: str) -> None:
        """Look nothing up yet."""
        self._storage = storage
        self._place = place
        self._url = url
        self._checked: OrderedDict[StateScope, None] = OrderedDict()

    async def refuse(self, scope: StateScope) -> None:
        """Raise if a state isn't there because AgentUp's record of it was not imported.

        Raises:
            UnsupportedError: such a record lies at the state's address; names the command that imports it.
        """
        if scope in self._checked:
            return
        names = _names(scope)
        found = await asyncio.gather(*map(self._place.legacy_record, names))
        for context_id, data in zip(names, found, strict=True):
            if data is not None and is_record(data, context_id) and await self._is_missed(scope, context_id):
                raise self._refusal(scope, context_id)
        self._checked[scope] = None
        if len(self._checked) > CHECKED:
            self._checked.popitem(last=False)

    async def _is_missed(self, scope: StateScope, context_id: str) -> bool:
        if (await self._storage.read(scope, NOTHING)).birth:
            return False
        place = await imported_as(self._storage, context_id)
        # AgentUp knew no tenants: a record that was imported for one is no other's.
        return place is None or (not scope.tenant and not place.startswith("@") and place != scope.text)

    def _refusal(self, scope: StateScope, context_id: str) -> UnsupportedError:
        options = ["--tenant", scope.tenant] if scope.tenant else []
        if context_id != scope.id:
            options.append("--siblings")
        command = shlex.join(["agentstate", "import-agentup", "--url", self._url, *options])
        return UnsupportedError(
            f"AgentUp's own record of {context_id!r} lies at {self._storage.location} and was not imported.",
            scope=scope,
            remedy=f"Import what lies there, once: {command}",
        )


def _names(scope: StateScope) -> tuple[str, ...]:
    """Return the ids under which AgentUp may have kept a state.

    Plain handlers' ids were taken as they were; their siblings' began with what is a kind of scope here.
    """
    if scope.kind == "conversation":
        return scope.id, f"conversation:{scope.id}"
    return (f"{scope.kind}:{scope.id}",) if scope.kind in ("session", "user") else ()


def is_record(data: bytes, context_id: str | None = None) -> bool:
    """Whether this looks like what AgentUp wrote, of this context if one is named."""
    try:
        found = json.loads(data)
    except ValueError:
        return False
    if not isinstance(found, dict):
        return False
    fields = cast("dict[str, Any]", found)
    return fields.keys() >= FIELDS and context_id in (None, fields["context_id"])


async def imported_as(storage: Storage, context_id: str) -> str | None:
    """Return the scope, as text, that a record was imported as."""
    at = ("variables", context_id)
    noted = (await storage.read(IMPORTED, Wants((), (at,), (), 0))).entries.get(at)
    return None if noted is None else str(codec.decode(cast("bytes", noted.value)))
