"""Addresses of states.

A scope is a kind and its id(s), inside a tenant. Its text form is meant for people and
for keys at rest, and `StateScope.parse` is its exact inverse for every id: ids are data,
kept byte for byte, whatever they hold.
"""

from __future__ import annotations

import zlib
from typing import ClassVar, NamedTuple
from urllib.parse import quote, unquote

from agentstate.errors import ContextIdError

__all__ = ["KINDS", "MAX_ID_BYTES", "ScopeKind", "StateScope", "check_id", "check_key"]

MAX_ID_BYTES = 512
KINDS = ("global", "team", "agent", "workflow", "step", "session", "conversation", "user", "custom")


class ScopeKind(str):
    """A kind of scope without an id, as in ``StateScope.AGENT``: for whoever knows which one is meant."""

    __slots__ = ()


class _Address(NamedTuple):
    kind: str
    ids: tuple[str, ...] = ()
    tenant: str = ""


class StateScope(_Address):
    """The address of one state.

    Use the constructors (``StateScope.conversation("c-1")``, ``StateScope.GLOBAL``, …): they
    check the ids. Scopes are values: equal, hashable, ordered. ``StateScope.AGENT`` and the other
    constants are kinds: a bound state (`StateManager.bind`) knows the id.
    """

    __slots__ = ()

    GLOBAL: ClassVar[StateScope]
    TEAM: ClassVar[ScopeKind] = ScopeKind("team")
    GUILD: ClassVar[ScopeKind] = TEAM
    AGENT: ClassVar[ScopeKind] = ScopeKind("agent")
    WORKFLOW: ClassVar[ScopeKind] = ScopeKind("workflow")
    STEP: ClassVar[ScopeKind] = ScopeKind("step")
    SESSION: ClassVar[ScopeKind] = ScopeKind("session")
    CONVERSATION: ClassVar[ScopeKind] = ScopeKind("conversation")
    USER: ClassVar[ScopeKind] = ScopeKind("user")
    CUSTOM: ClassVar[ScopeKind] = ScopeKind("custom")

    @classmethod
    def make(cls, kind: str, *ids: str, tenant: str = "") -> StateScope:
        """Return the scope of any kind.

        Raises:
            ContextIdError: the kind is unknown, or an id is empty, too long or not text.
        """
        if kind not in KINDS:
            raise ContextIdError(f"Unknown scope kind {kind!r}.", remedy=f"Use one of: {', '.join(KINDS)}.")
        wanted = 0 if kind == "global" else 2 if kind == "step" else 1
        if len(ids) != wanted:
            raise ContextIdError(f"A {kind} scope takes {wanted} id(s), not {len(ids)}.")
        ids = tuple(check_id(one, kind) for one in ids)
        if tenant:
            tenant = check_id(tenant, "tenant")
        return cls(kind, ids, tenant)

    @classmethod
    def conversation(cls, id: str, *, tenant: str = "") -> StateScope:  # noqa: A002
        """Return the scope of one conversation."""
        return cls("conversation", (check_id(id, "conversation"),), tenant)

    @classmethod
    def user(cls, id: str, *, tenant: str = "") -> StateScope:  # noqa: A002
        """Return the scope of one user."""
        return cls.make("user", id, tenant=tenant)

    @classmethod
    def session(cls, id: str, *, tenant: str = "") -> StateScope:  # noqa: A002
        """Return the scope of one session."""
        return cls.make("session", id, tenant=tenant)

    @classmethod
    def agent(cls, id: str, *, tenant: str = "") -> StateScope:  # noqa: A002
        """Return the scope of one agent."""
        return cls.make("agent", id, tenant=tenant)

    @classmethod
    def team(cls, id: str, *, tenant: str = "") -> StateScope:  # noqa: A002
        """Return the scope of one team."""
        return cls.make("team", id, tenant=tenant)

    @classmethod
    def guild(cls, id: str, *, tenant: str = "") -> StateScope:  # noqa: A002
        """Return the scope of one team, under its other name."""
        return cls.make("team", id, tenant=tenant)

    @classmethod
    def workflow(cls, id: str, *, tenant: str = "") -> StateScope:  # noqa: A002
        """Return the scope of one workflow."""
        return cls.make("workflow", id, tenant=tenant)

    @classmethod
    def step(cls, workflow_id: str, step_name: str, *, tenant: str = "") -> StateScope:
        """Return the scope of one step of a workflow."""
        return cls.make("step", workflow_id, step_name, tenant=tenant)

    @classmethod
    def custom(cls, namespace: str, *, tenant: str = "") -> StateScope:
        """Return a scope of your own."""
        return cls.make("custom", namespace, tenant=tenant)

    @property
    def id(self) -> str:
        """The id as text, ``""`` for the global scope; a step's is ``workflow/step``."""
        if self.kind == "step":
            return f"{_escape(self.ids[0])}/{self.ids[1]}"
        return self.ids[0] if self.ids else ""

    @property
    def text(self) -> str:
        """The address as text: ``agent:gpt-4``, ``step:wf/validate``, ``@acme/user:7``."""
        body = self.kind if self.kind == "global" else f"{self.kind}:{self.id}"
        return f"@{quote(self.tenant, safe='')}/{body}" if self.tenant else body

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> StateScope:
        """Return the scope whose ``text`` this is.

        Raises:
            ContextIdError: the text is no scope's.
        """
        tenant, body = "", text
        if text.startswith("@"):
            encoded, slash, body = text[1:].partition("/")
            tenant = unquote(encoded, errors="strict")
            if not slash or not tenant or quote(tenant, safe="") != encoded:
                raise ContextIdError(f"{text!r} is no scope.", remedy="A tenant is written '@tenant/kind:id'.")
        if body == "global":
            return cls.make("global", tenant=tenant)
        kind, colon, rest = body.partition(":")
        if not colon:
            raise ContextIdError(f"{text!r} is no scope.", remedy="A scope is written 'kind:id', as in 'user:7'.")
        if kind != "step":
            return cls.make(kind, rest, tenant=tenant)
        first, slash, second = rest.partition("/")
        if not slash or _escape(_unescape(first)) != first:
            raise ContextIdError(f"{text!r} is no step.", remedy="A step is written 'step:workflow/name'.")
        return cls.make("step", _unescape(first), second, tenant=tenant)

    def partition(self, count: int) -> int:
        """Return in which of ``count`` partitions this state lives (a hash of its address)."""
        return zlib.crc32(self.text.encode()) % count if count > 1 else 0


StateScope.GLOBAL = StateScope("global")


def check_id(value: object, what: str) -> str:
    """Return ``value`` as plain text, if it is an id: 1 to 512 bytes of UTF-8, no NUL.

    Raises:
        ContextIdError: it is none.
    """
    if type(value) is str and 0 < len(value) <= MAX_ID_BYTES and value.isascii() and "\0" not in value:
        return value  # as nearly all are
    if not isinstance(value, str):
        raise ContextIdError(f"The {what} id is {type(value).__name__}, not text.", remedy="Pass str(...).")
    if not value:
        raise ContextIdError(f"The {what} id is empty.", remedy="Pass the id of the conversation, user or session.")
    if "\0" in value:
        raise ContextIdError(f"The {what} id holds a NUL character.", remedy="Ids are any text but NUL.")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise ContextIdError(
            f"The {what} id holds an unpaired surrogate.", remedy="Ids are text that UTF-8 can express."
        ) from None
    if size > MAX_ID_BYTES:
        raise ContextIdError(
            f"The {what} id has {size} bytes, more than {MAX_ID_BYTES}.", remedy="Use a shorter id, or a digest of it."
        )
    # An Enum of text is another text to str() than to those who compare or store it.
    return value if type(value) is str else str.__str__(value)


def check_key(key: object) -> str:
    """Return ``key`` as plain text, if it can name an entry: 1 to 512 bytes of UTF-8, no NUL.

    Raises:
        ContextIdError: it can't.
    """
    try:
        return check_id(key, "key")
    except ContextIdError as error:
        raise ContextIdError(str(error).replace("The key id", "The key", 1)) from None


def _escape(part: str) -> str:
    return part.replace("%", "%25").replace("/", "%2F")


def _unescape(part: str) -> str:
    return part.replace("%2F", "/").replace("%25", "%")
