"""What the lines of the feed add up to: which scopes there are, and when to sweep which.

In memory only. Not thread-safe: the feed's lock guards it.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

import orjson

from agentstate.scope import StateScope
from agentstate.storage.file.codec import decode_info, encode_image, encode_info
from agentstate.storage.file.lines import seal
from agentstate.storage.index import ScopeIndex

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentstate.storage.file.held import FeedEntry
    from agentstate.storage.file.lines import Json
    from agentstate.storage.file.scope import ScopeFiles

__all__ = ["Directory", "Known", "announcement", "farewell"]


class Known(NamedTuple):
    """What was last said of a scope's files: their last line, the log's size, when to sweep."""

    n: int
    size: int
    due: float | None


def announcement(files: ScopeFiles, entries: Sequence[FeedEntry], *, n: int, end: int) -> bytes:
    """Return the line with what the feed says of a scope as it stands, and of these commits.

    Args:
        files: the scope's.
        entries: the commits.
        n: the number of its log's last line.
        end: where that line ends.
    """
    held = files.held
    assert held is not None
    state = None if held.image.stamp is None else encode_image(held.image)
    return _line(files.address, Known(n, end, held.due), entries, state)


def farewell(scope: StateScope) -> bytes:
    """Return the line with what the feed says of a scope that has no files any more."""
    return _line(scope.text, Known(0, 0, None), [], None)


def _line(address: str, known: Known, items: Sequence[FeedEntry], state: Json | None) -> bytes:
    n, size, due = known
    body = {"scope": address, "n": n, "size": size, "due": due, "items": items, "state": state}
    return seal(orjson.dumps(body))[0]


class Directory:
    """All scopes of a store, as far as its feed was read."""

    def __init__(self) -> None:
        """Begin empty."""
        self.index = ScopeIndex()
        self.known: dict[StateScope, Known] = {}
        self._queue: list[tuple[float, str]] = []
        self._queued: dict[str, float] = {}

    def take(self, line: Json) -> None:
        """Note what one line of the feed says."""
        scope = StateScope.parse(line["scope"])
        if line["n"] == 0:
            self.known.pop(scope, None)
        else:
            self.known[scope] = Known(line["n"], line["size"], line["due"])
        if line["state"] is None:
            self.index.discard(scope)
        else:
            self.index.put(decode_info(scope, line["state"]))
        if line["due"] is not None:
            self._queue_up(line["scope"], line["due"])

    def lines(self) -> Iterator[bytes]:
        """Return lines that add up to this, without commits."""
        infos = {info.scope: info for info in self.index.infos()}
        for scope, known in self.known.items():
            info = infos.get(scope)
            yield _line(scope.text, known, [], None if info is None else encode_info(info))

    # -- sweeping --------------------------------------------------------------------------

    def _queue_up(self, text: str, due: float) -> None:
        # One place in the queue for each scope: a later time is looked up when the earlier has come.
        queued = self._queued.get(text)
        if queued is None or due < queued:
            self._queued[text] = due
            heappush(self._queue, (due, text))

    def next_due(self, now: float) -> StateScope | None:
        """Return, and take out, a scope in which something has expired."""
        while self._queue and self._queue[0][0] <= now:
            queued, text = heappop(self._queue)
            if self._queued.get(text) != queued:
                continue
            del self._queued[text]
            scope = StateScope.parse(text)
            known = self.known.get(scope)
            if known is None or known.due is None:
                continue
            if known.due <= now:
                return scope
            self._queue_up(text, known.due)
        return None

    def put_back(self, scope: StateScope) -> None:
        """Put a scope back in which something has expired still."""
        known = self.known.get(scope)
        if known is not None and known.due is not None:
            self._queue_up(scope.text, known.due)
