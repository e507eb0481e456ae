"""The row of a state in a SQLite state file: made, rewritten, buried."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from agentstate.storage.protocol import JOURNAL_COUNT
from agentstate.storage.sqlite.rows import State, load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.scope import StateScope
    from agentstate.storage.sqlite.schema import Row, Statements

__all__ = [
    "bury",
    "expiring_before",
    "forget_failures",
    "insert",
    "prolong",
    "remove_label",
    "save_expiry",
    "save_heads",
]

TOMBSTONE_SECONDS: Final = 7 * 24 * 3600.0

INSERT: Final = (
    "INSERT INTO scopes(number, tenant, kind, id, version, commit_id, birth, updated, expires, entry_bytes, heads, "
    "crc, created, owner, parent, labels, lineage) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
SAVE_HEADS: Final = (
    "UPDATE scopes SET version = ?, commit_id = ?, updated = ?, entry_bytes = ?, heads = ?, crc = ? WHERE number = ?"
)
BURY: Final = (
    "INSERT INTO tombstones(tenant, kind, id, version, commit_id, until) VALUES(?, ?, ?, ?, ?, ?) "
    "ON CONFLICT DO UPDATE SET version = excluded.version, commit_id = excluded.commit_id, until = excluded.until "
    "RETURNING number"
)


def insert(connection: Statements, state: State) -> None:
    """Write the row of a new state."""
    scope, heads = state.scope, state.pack_heads()
    row = (
        *(state.number, scope.tenant, scope.kind, scope.id),
        *(*state.stamp, state.birth, state.updated),
        *(state.expires, state.entry_bytes, heads, state.crc(heads), state.created),
        *(state.owner, state.parent, state.pack_labels(), os.urandom(16)),
    )
    connection.execute(INSERT, row)


def save_heads(connection: Statements, state: State) -> None:
    """Rewrite what nearly every commit changes of a state's row."""
    connection.execute(SAVE_HEADS, heads_row(state))


def heads_row(state: State) -> Row:
    """Return the values of `SAVE_HEADS`."""
    heads = state.pack_heads()
    return (*state.stamp, state.updated, state.entry_bytes, heads, state.crc(heads), state.number)


def bury(connection: Statements, state: State, now: float, *, dropped: bool) -> None:
    """Remove a state. A tombstone keeps its version and its place in the feed; ``dropped`` tells the feed."""
    scope, number = state.scope, state.number
    row = (scope.tenant, scope.kind, scope.id, *state.stamp, now + TOMBSTONE_SECONDS)
    ((tombstone,),) = connection.execute(BURY, row).fetchall()
    connection.execute("DELETE FROM entries WHERE scope = ?", (number,))
    connection.execute("DELETE FROM once WHERE scope = ?", (number,))
    for log in state.logs.values():
        connection.execute("DELETE FROM items WHERE key >= ? AND key <= ?", (log.key(log.first), log.key(log.head)))
        connection.execute("DELETE FROM logs WHERE number = ?", (log.number,))
    for name, value in state.labels.items():
        remove_label(connection, state, name, value)
    connection.execute("DELETE FROM removed WHERE place IN (SELECT place FROM journal WHERE scope = ?)", (number,))
    connection.execute(
        "UPDATE journal SET scope = ?, record = NULL, ranges = NULL, removed = 0 WHERE scope = ?", (-tombstone, number)
    )
    connection.execute(
        "DELETE FROM journal WHERE scope = ? AND version <= ?", (-tombstone, state.stamp.version - JOURNAL_COUNT)
    )
    connection.execute("DELETE FROM scopes WHERE number = ?", (number,))
    if dropped:
        forget_failures(connection, scope)
        # A record without a commit of its own: the feed shows it as a drop.
        drop = (-tombstone, state.stamp.version, now)
        connection.execute("INSERT INTO journal(scope, version, at) VALUES(?, ?, ?)", drop)


def forget_failures(connection: Statements, scope: StateScope) -> None:
    """Remove what failed turns of a state left."""
    connection.execute("DELETE FROM failures WHERE address = ?", (scope.text,))


def expiring_before(connection: Statements, scopes: Sequence[StateScope], until: float) -> list[StateScope]:
    """Return those of the scopes whose state expires before a time."""
    sql = "SELECT 1 FROM scopes WHERE tenant = ? AND kind = ? AND id = ? AND expires < ?"
    return [at for at in scopes if connection.execute(sql, (at.tenant, at.kind, at.id, until)).fetchone() is not None]


def prolong(connection: Statements, scope: StateScope, until: float) -> None:
    """Push the expiry of a state that has one, never back."""
    state = load(connection, scope)
    if state is not None and state.expires is not None and state.expires < until:
        state.expires = until
        save_heads(connection, state)
        save_expiry(connection, state)


def save_expiry(connection: Statements, state: State) -> None:
    """Write when a state expires; only when it changed, since an index hangs on it."""
    connection.execute("UPDATE scopes SET expires = ? WHERE number = ?", (state.expires, state.number))


def remove_label(connection: Statements, state: State, name: str, value: str) -> None:
    """Take a state out of the index of a label."""
    scope = state.scope
    sql = "DELETE FROM labels WHERE tenant = ? AND name = ? AND value = ? AND kind = ? AND id = ?"
    connection.execute(sql, (scope.tenant, name, value, scope.kind, scope.id))
