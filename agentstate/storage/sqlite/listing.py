"""Listing the states of a SQLite state file: every order and filter walks an index of its own.

A page without a kind merges one walk for each kind, so that no index needs to exist twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agentstate.errors import StorageError
from agentstate.scope import KINDS, StateScope
from agentstate.storage.index import decode_cursor, encode_cursor
from agentstate.storage.protocol import ScopeInfo, ScopePage, ScopeQuery
from agentstate.storage.sqlite.reading import text_after
from agentstate.storage.sqlite.rows import COLUMNS, scope_of, unpack

if TYPE_CHECKING:
    from agentstate.storage.sqlite.schema import Connection

__all__ = ["page"]

CHOSEN: Final = ", ".join(f"s.{column}" for column in (*COLUMNS.split(", "), "id"))


def page(connection: Connection, query: ScopeQuery, now: float) -> ScopePage:
    """Return one page of states; expired ones are absent."""
    at = _position(query)
    found: list[ScopeInfo] = []
    for kind in sorted(KINDS, reverse=query.reverse):
        if query.kind is not None and kind != query.kind:
            continue
        if query.order == "id" and len(found) > query.limit:
            break
        walk = _Walk(query, kind, now)
        if at is None or walk.begin(*at):
            found += _infos(connection, walk)
    if query.order == "updated":
        found.sort(key=_by_update, reverse=query.reverse)
    items = tuple(found[: query.limit])
    return ScopePage(items, _cursor(items[-1], query) if len(found) > query.limit and items else None)


def _by_update(info: ScopeInfo) -> tuple[float, str]:
    return (info.updated_at, info.scope.text)


def _cursor(last: ScopeInfo, query: ScopeQuery) -> str:
    scope = last.scope
    return encode_cursor(_by_update(last) if query.order == "updated" else (scope.kind, scope.id))


def _position(query: ScopeQuery) -> tuple[float, str, str] | None:
    """Return where the page before ended: update time (0 when ordered by id), kind, id."""
    if query.cursor is None:
        return None
    first, second = decode_cursor(query.cursor)
    if query.order == "id" and isinstance(first, str):
        return (0.0, first, second)
    if query.order == "updated" and isinstance(first, float):
        scope = StateScope.parse(second)
        return (first, scope.kind, scope.id)
    raise StorageError(f"{query.cursor!r} is a cursor of another order.", remedy="Pass the cursor of the page before.")


def _infos(connection: Connection, walk: _Walk) -> list[ScopeInfo]:
    query = walk.query
    rows = connection.execute(walk.sql(), walk.values)
    return [unpack(scope_of(query.tenant, walk.kind, row[-1]), row[:-1]).info() for row in rows]


@dataclass(slots=True)
class _Walk:
    """The part of an index that one kind's share of a page comes from."""

    query: ScopeQuery
    kind: str
    now: float
    conditions: list[str] = field(default_factory=list[str])
    values: list[Any] = field(default_factory=list[Any])

    def _where(self, condition: str, *values: object) -> None:
        self.conditions.append(condition)
        self.values.extend(values)

    @property
    def _order(self) -> tuple[str, str]:
        """The columns that give the order: of the labels where they lead, else of the scopes."""
        table = "l" if self.query.label is not None else "s"
        return (f"{table}.updated", f"{table}.id")

    def begin(self, updated: float, kind: str, name: str) -> bool:
        """Go on behind a cursor. Return whether this kind still has a share."""
        behind = "<" if self.query.reverse else ">"
        time, scope_id = self._order
        passed = self.kind > kind if self.query.reverse else self.kind < kind
        if self.query.order == "id":
            if self.kind == kind:
                self._where(f"{scope_id} {behind} ?", name)
            return not passed
        if self.kind == kind:
            self._where(f"({time}, {scope_id}) {behind} (?, ?)", updated, name)
        else:
            self._where(f"{time} {behind}{'' if passed else '='} ?", updated)
        return True

    def sql(self) -> str:
        """Return the statement; its values are then in ``values``."""
        query = self.query
        time, scope_id = self._order
        if query.prefix:
            self._where(f"{scope_id} >= ?", query.prefix)
            if (after := text_after(query.prefix)) is not None:
                self._where(f"{scope_id} < ?", after)
        if query.updated_before is not None:
            self._where(f"{time} < ?", query.updated_before)
        if query.updated_after is not None:
            self._where(f"{time} > ?", query.updated_after)
        self._where("(s.expires IS NULL OR s.expires > ?)", self.now)
        source = self._source()
        down = " DESC" if query.reverse else ""
        order = f"{time}{down}, {scope_id}{down}" if query.order == "updated" else f"{scope_id}{down}"
        self.values.append(query.limit + 1)
        conditions = " AND ".join(self.conditions)
        return f"SELECT {CHOSEN} FROM {source} WHERE {conditions} ORDER BY {order} LIMIT ?"  # noqa: S608

    def _source(self) -> str:
        query = self.query
        updated = query.order == "updated"
        if query.label is not None:
            self._where(
                "l.tenant = ? AND l.name = ? AND l.value = ? AND l.kind = ?", query.tenant, *query.label, self.kind
            )
            if query.owner is not None:
                self._where("s.owner = ?", query.owner)
            index = " INDEXED BY labels_by_update" if updated else ""
            return f"labels l{index} CROSS JOIN scopes s ON s.number = l.scope"
        self._where("s.tenant = ? AND s.kind = ?", query.tenant, self.kind)
        if query.owner is not None:
            self._where("s.owner = ?", query.owner)
            return f"scopes s INDEXED BY scopes_by_owner{'_update' if updated else ''}"
        return f"scopes s INDEXED BY scopes_by_{'update' if updated else 'id'}"
