"""Which conversation a request is for: what ``key=`` says, a header, or a cookie of the server's own.

Ids never come from the URL, which ends up in logs, histories and referrers. An id that comes
in a header is the client's claim: whose state it may open is decided by the principal. An id in
a session cookie was made here, and one that wasn't, or has ended, is not taken over.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any, Final

from agentstate.errors import ConfigError, ContextIdError, ContextNotFoundError
from agentstate.middleware.request import Chosen
from agentstate.scope import StateScope, check_id
from agentstate.storage.protocol import Wants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agentstate.binding import Bound
    from agentstate.middleware.request import Chooser

    Scope = Mapping[str, Any]

ID_BYTES: Final = 24
"""Random bytes in an id that is made here: 192 bits."""

HEADERS: Final = ("x-context-id", "x-session-id")

_MADE_HERE: Final = re.compile(r"[\w-]{32}", re.ASCII)
_TOKEN: Final = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
_NOTHING: Final = Wants((), (), (), 0)


def said(key: Callable[[Mapping[str, Any]], str] | None, headers: Sequence[str]) -> Callable[[Scope], Chooser]:
    """Return what takes the id that ``key`` says, or without it the first of the headers that is sent."""
    names = tuple(headers)

    def chooser(scope: Scope) -> Chooser:
        async def choose(bound: Bound, principal: str | None) -> Chosen:
            del bound, principal
            found = key(scope) if key is not None else _in_headers(scope, names)
            check_id(found, "conversation")
            return Chosen(found)

        return choose

    return chooser


def _in_headers(scope: Scope, names: Sequence[str]) -> str:
    for name in names:
        values = set(_header_values(scope, name))
        if len(values) > 1:
            raise ContextIdError(f"The request has {len(values)} different {name} headers.", remedy="Send one.")
        for value in values:
            return _text(value, name)
    raise ContextIdError(
        f"The request names no conversation: it has no header {' or '.join(names)}.",
        remedy="Send one, or say where the id is with key=, or let the server make it: cookie='session'.",
    )


class SessionCookie:
    """Makes ids, and keeps them in a cookie that scripts and other sites can't use."""

    def __init__(self, name: str, *, secure: bool = True) -> None:
        """Use a cookie of this name; ``secure=False`` lets it travel over plain HTTP, for development.

        Raises:
            ConfigError: it can't be a cookie's name.
        """
        if not _TOKEN.fullmatch(name):
            raise ConfigError(f"{name!r} can't be the name of a cookie.", remedy="Use letters, digits, '-' and '_'.")
        self.name = name
        self.secure = secure

    def chooser(self, scope: Scope) -> Chooser:
        """Return what finds the id of a request."""

        async def choose(bound: Bound, principal: str | None) -> Chosen:
            sent = self._sent(scope)
            if sent is not None and await _is_known(bound, sent, principal):
                return Chosen(sent)
            return Chosen(secrets.token_urlsafe(ID_BYTES), made=True)

        return choose

    def _sent(self, scope: Scope) -> str | None:
        for header in _header_values(scope, "cookie"):
            for pair in header.decode("latin-1").split(";"):
                name, _, value = pair.strip().partition("=")
                if name == self.name and _MADE_HERE.fullmatch(value):
                    return value
        return None

    def header(self, session_id: str) -> tuple[bytes, bytes]:
        """Return the header that gives the client its id."""
        secure = "; Secure" if self.secure else ""
        return b"set-cookie", f"{self.name}={session_id}; Path=/; HttpOnly; SameSite=Lax{secure}".encode()


async def _is_known(bound: Bound, session_id: str, principal: str | None) -> bool:
    """Whether there is such a state for this caller."""
    try:
        snapshot = await bound.store.read(StateScope.conversation(session_id), _NOTHING, principal=principal)
    except ContextNotFoundError:
        return False
    return snapshot.birth != 0


def _header_values(scope: Scope, name: str) -> Iterator[bytes]:
    wanted = name.lower().encode("latin-1")
    return (value for key, value in scope.get("headers", ()) if key.lower() == wanted)


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ContextIdError(f"The header {name} isn't UTF-8.", remedy="Send the id as UTF-8.") from None
