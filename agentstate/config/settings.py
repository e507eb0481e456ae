"""The settings of one handler, after all layers are merged. Everything has its default here."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic looks it up
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field

__all__ = ["HandlerSettings"]

_CENTURY: Final = 100 * 365.25 * 86400


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("yes and no are no numbers")  # noqa: TRY004 - pydantic turns only ValueError into its report
    return value


Seconds = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=_CENTURY, allow_inf_nan=False)]
Lifetime = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=_CENTURY, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]


class HandlerSettings(BaseModel, extra="forbid", frozen=True):
    """What a handler runs with.

    Attributes:
        backend: the storage's name, as in ``sqlite``.
        options: the storage's options (``url``, ``key_prefix``, …), as `registry.create` takes them.
        enabled: whether `apply_state` gives this handler state.
        ttl: seconds a state lives; ``None``: for ever.
        ttl_mode: ``sliding`` counts from the last commit, ``fixed`` from the first.
        turns: how callers of one state meet: one at a time, refused, checked at commit, or read only.
        wait: seconds a caller waits for its turn.
        turn_timeout: seconds a turn may run; ``None``: no limit.
        max_waiting: callers that may wait for one state.
        idle: seconds a stream may go unread before its turn ends; ``None``: no limit.
        history: messages read on entering.
        commit: at the end of the turn, or at each call.
        on_error: what stays of a failed turn.
        on_cancel: what stays of a stream that ends early; ``auto`` commits once a chunk was handed out.
        on_unavailable: whether a handler runs without state when the storage can't be reached.
        autosave: whether values that were changed but not set are stored, instead of an error.
        on_end: what becomes of a state that `StateManager.end` ends: ``keep``, ``delete`` or
            ``expire:SECONDS``; ``None``: what is usual for its kind of scope.
    """

    backend: str
    options: Mapping[str, Any] = Field(default_factory=dict[str, Any], repr=False)  # may hold passwords
    enabled: bool = True
    ttl: Lifetime | None = None
    ttl_mode: Literal["fixed", "sliding"] = "sliding"
    turns: Literal["queue", "reject", "optimistic", "read"] = "queue"
    wait: Seconds = 60.0
    turn_timeout: Lifetime | None = 600.0
    max_waiting: Count = 100
    idle: Lifetime | None = 60.0
    history: Count = 10
    commit: Literal["turn", "immediate"] = "turn"
    on_error: Literal["rollback", "keep_input", "commit"] = "rollback"
    on_cancel: Literal["auto", "commit", "rollback"] = "auto"
    on_unavailable: Literal["raise", "run_without"] = "raise"
    autosave: bool = False
    on_end: Annotated[str, Field(pattern=r"^(keep|delete|expire:[1-9]\d{0,9})$")] | None = None


SETTINGS: Final = frozenset(HandlerSettings.model_fields) - {"backend", "options"}
