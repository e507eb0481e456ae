"""Ids are data: whatever they hold, they stay apart and come back byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agentstate.scope import StateScope
from agentstate.storage.protocol import Append, Check, Increment, OnceRecord, Put, ScopeQuery
from agentstate.testing.conformance.case import StorageCase, commit, put, read, value_of
from agentstate.testing.turns import EVERYTHING, take_turn

if TYPE_CHECKING:
    from agentstate.storage.protocol import Storage

HOSTILE = {
    "dots": "..",
    "climbing": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "backslash": "..\\..\\windows",
    "colons": "a:b::c:",
    "star": "*",
    "question": "?[a-z]?",
    "braces": "{hash}{tag}",
    "empty-braces": "{}",
    "percent": "%2e%2e%2f%00%25",
    "quotes": "'; DROP TABLE states; --\"",
    "like": "_%_",
    "newlines": "line\nline\r\nline",
    "control": "\x01\x1b[31m\x7f",
    "spaces": "  leading and trailing  ",
    "trailing-dot": "name.",
    "reserved": "CON",
    "hidden": ".gitignore",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "right-to-left": "\u202egnp.exe",
    "no-character": "\ufffe\uffff",
    "json": '{"kind": "global"}',
    "dollar": "${HOME} $(id) `id`",
    "long": "x" * 512,
    "long-unicode": "\u20ac" * 170,
    "tenant-like": "@acme/conversation:a",
}
TWINS = {
    "normal-forms": ("\u00e9", "e\u0301"),
    "case": ("Name", "name"),
    "sharp-s": ("stra\u00dfe", "strasse"),
    "dotless-i": ("I", "\u0131"),
    "spaces": ("a", "a "),
    "escapes": ("a/b", "a%2Fb"),
    "prefix": ("a", "a:"),
    "width": ("\uff21", "A"),
    "zero-width": ("a", "a\u200b"),
    "trailing-dots": ("a", "a."),
    "numbers": ("1", "01"),
    "long": ("x" * 511 + "a", "x" * 511 + "b"),
}
each_id = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
each_pair = pytest.mark.parametrize(("one", "other"), TWINS.values(), ids=TWINS.keys())


class HostileIdTests(StorageCase):
    """Hostile and confusable ids, in every place an id can stand."""

    @each_id
    async def test_as_scope(self, storage: Storage, text: str) -> None:
        """A state lives at any id, is listed by it, and is dropped alone."""
        scope, neighbour = StateScope.conversation(text), StateScope.conversation("neighbour")
        await put(storage, scope, k=b"1")
        await put(storage, neighbour, k=b"2")
        assert await value_of(storage, "k", scope) == b"1"
        page = await storage.scopes(ScopeQuery(kind="conversation", prefix=text))
        assert [info.scope for info in page.items] == [scope]
        assert await storage.drop(scope)
        assert (await read(storage, scope)).stamp is None
        assert await value_of(storage, "k", neighbour) == b"2"

    @each_id
    async def test_as_names_inside(self, storage: Storage, text: str) -> None:
        """Sections, keys, logs, item ids, owners, labels and idempotency keys are kept as they are."""
        scope = StateScope.step(text, text, tenant=text)
        done = await commit(
            storage,
            scope,
            commit_id=5,
            puts=[Put(text, text, b"1"), Put("variables", "plain", b"2")],
            increments=[Increment("counters", text, 3)],
            appends=[Append(text, text, b"4", unique=True)],
            owner=text,
            parent=text,
            labels={text: text},
            once=OnceRecord(text, text, 5, b"r"),
            record=b"r",
        )
        found = await storage.read(scope, EVERYTHING, once=text)
        assert {at: entry.value for at, entry in found.entries.items()} == {
            (text, text): b"1",
            ("variables", "plain"): b"2",
            ("counters", text): 3,
        }
        assert (found.owner, found.parent, dict(found.labels)) == (text, text, {text: text})
        assert found.once is not None
        assert (found.once.key, found.once.fingerprint) == (text, text)
        item = await storage.find_item(scope, text, text)
        assert item is not None
        assert (item.id, item.value) == (text, b"4")
        assert [key for key, _ in (await storage.scan(scope, text, prefix=text)).entries] == [text]
        checks = [
            Check("entry", text, done.stamp, text),
            Check("section", text, done.stamp),
            Check("log", text, done.stamp),
        ]
        await commit(storage, scope, checks=checks, deletes=[(text, text)])
        assert (text, text) not in (await read(storage, scope)).entries
        for query in (ScopeQuery(owner=text), ScopeQuery(label=(text, text)), ScopeQuery(order="updated")):
            page = await storage.scopes(query._replace(tenant=text))
            assert [info.scope for info in page.items] == [scope]

    @each_pair
    async def test_twins_as_scopes(self, storage: Storage, one: str, other: str) -> None:
        """Ids that look, fold or normalise alike are different states, with turns of their own."""
        first, second = StateScope.conversation(one), StateScope.conversation(other)
        await put(storage, first, k=b"1")
        await put(storage, second, k=b"2")
        assert (await value_of(storage, "k", first), await value_of(storage, "k", second)) == (b"1", b"2")
        assert (await take_turn(storage, first, "x")).lease is not None
        assert (await take_turn(storage, second, "x", patience=5)).lease is not None
        listed = {info.scope for info in (await storage.scopes(ScopeQuery())).items}
        assert listed == {first, second}

    @each_pair
    async def test_twins_as_names(self, storage: Storage, one: str, other: str) -> None:
        """Keys, sections, item ids and labels that look alike are different."""
        for text in (one, other):
            await commit(
                storage,
                puts=[Put("variables", text, text.encode()), Put(text, "k", text.encode())],
                appends=[Append("history", text, text.encode(), unique=True)],
            )
        found = await read(storage)
        assert {at: entry.value for at, entry in found.entries.items()} == {
            ("variables", one): one.encode(),
            ("variables", other): other.encode(),
            (one, "k"): one.encode(),
            (other, "k"): other.encode(),
        }
        assert found.logs["history"].head == 2
        for text in (one, other):
            item = await storage.find_item(found.scope, "history", text)
            assert item is not None
            assert item.value == text.encode()

    async def test_kinds_and_tenants_are_apart(self, storage: Storage) -> None:
        """The same text in another kind, another place of a step, or another tenant is another state."""
        scopes = [
            StateScope.conversation("a"),
            StateScope.session("a"),
            StateScope.custom("conversation:a"),
            StateScope.conversation("a", tenant="t"),
            StateScope.conversation("@t/conversation:a"),
            StateScope.step("a/b", "c"),
            StateScope.step("a", "b/c"),
            StateScope.step("a%2Fb", "c"),
            StateScope.workflow("a/b/c"),
            StateScope.GLOBAL,
            StateScope.make("global", tenant="t"),
            StateScope.custom("global"),
        ]
        for number, scope in enumerate(scopes):
            await put(storage, scope, k=b"%d" % number)
        assert [await value_of(storage, "k", scope) for scope in scopes] == [b"%d" % n for n in range(len(scopes))]
        for scope in scopes[::2]:
            assert await storage.drop(scope)
        assert [(await read(storage, scope)).stamp is None for scope in scopes] == [True, False] * 6
