"""How turns run: the settings of one handler, as the state layer needs them."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["TurnSettings"]


class TurnSettings(NamedTuple):
    """What a handler's turns are like. Times are seconds.

    Attributes:
        turns: ``queue`` one at a time, ``reject`` at once when another runs, ``optimistic`` all run
            and conflicts are found at commit, ``read`` a snapshot without a turn.
        wait: how long to wait for the turn.
        max_waiting: how many callers of this process may wait for one state.
        turn_timeout: after this long the lease isn't renewed and the commit is refused.
        history: how many messages come with the first read.
        commit: ``turn`` once at the end, ``immediate`` after each operation.
        on_error: what a failed handler leaves: nothing (``rollback``), the user's messages
            (``keep_input``), or everything (``commit``).
        autosave: store mutable values that were changed and not set, instead of raising.
        ttl: lifetime of the state, ``None`` for ever.
        ttl_mode: ``sliding`` renews it with each commit, ``fixed`` counts from creation.
        idle: a stream not pulled for this long ends its turn.
        on_cancel: what a stream that ends early leaves: everything (``commit``), nothing
            (``rollback``), or everything once a chunk was handed out (``auto``).
        reads: variables that come with the first read even of a large state.
    """

    turns: Literal["queue", "reject", "optimistic", "read"] = "queue"
    wait: float = 60.0
    max_waiting: int = 100
    turn_timeout: float = 600.0
    history: int = 10
    commit: Literal["turn", "immediate"] = "turn"
    on_error: Literal["rollback", "keep_input", "commit"] = "rollback"
    autosave: bool = False
    ttl: float | None = None
    ttl_mode: Literal["sliding", "fixed"] = "sliding"
    idle: float = 60.0
    on_cancel: Literal["auto", "commit", "rollback"] = "auto"
    reads: tuple[str, ...] = ()
