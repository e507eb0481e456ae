"""How handlers look to type checkers before and after ``@stateful``. Only type checkers load this.

A handler's shape is recognised by the names of its injected parameters, so that one without
annotations is understood as well. A handler of another shape can be called with anything.
Names: ``obj`` is a method's ``self`` or ``cls``, ``first`` whatever the caller passes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, Self, TypeVar, overload

from agentstate.context import ConversationContext
from agentstate.conversation import Conversation
from agentstate.synchronous import SyncConversation, SyncConversationContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Method", "Stateful", "TaskHandler"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S")
C = TypeVar("C", bound=Conversation | SyncConversation)
X = TypeVar("X", bound=ConversationContext | SyncConversationContext)
R_co = TypeVar("R_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)
S_contra = TypeVar("S_contra", contravariant=True)
C_contra = TypeVar("C_contra", bound=Conversation | SyncConversation, contravariant=True)
X_contra = TypeVar("X_contra", bound=ConversationContext | SyncConversationContext, contravariant=True)


class _Conversation(Protocol[C_contra, P, R_co]):
    def __call__(self, conversation: C_contra, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _TaskConversation(Protocol[T_contra, C_contra, P, R_co]):
    def __call__(self, task: T_contra, conversation: C_contra, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _FirstConversation(Protocol[T_contra, C_contra, P, R_co]):
    def __call__(self, first: T_contra, /, conversation: C_contra, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _ObjTaskConversation(Protocol[S_contra, T_contra, C_contra, P, R_co]):
    def __call__(
        self, obj: S_contra, /, task: T_contra, conversation: C_contra, *args: P.args, **kwargs: P.kwargs
    ) -> R_co: ...


class _ObjFirstConversation(Protocol[S_contra, T_contra, C_contra, P, R_co]):
    def __call__(
        self, obj: S_contra, first: T_contra, /, conversation: C_contra, *args: P.args, **kwargs: P.kwargs
    ) -> R_co: ...


class _Context(Protocol[X_contra, P, R_co]):
    def __call__(self, context: X_contra, context_id: str, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _TaskContext(Protocol[T_contra, X_contra, P, R_co]):
    def __call__(
        self, task: T_contra, context: X_contra, context_id: str, *args: P.args, **kwargs: P.kwargs
    ) -> R_co: ...


class _FirstContext(Protocol[T_contra, X_contra, P, R_co]):
    def __call__(
        self, first: T_contra, /, context: X_contra, context_id: str, *args: P.args, **kwargs: P.kwargs
    ) -> R_co: ...


class _ObjTaskContext(Protocol[S_contra, T_contra, X_contra, P, R_co]):
    def __call__(
        self, obj: S_contra, /, task: T_contra, context: X_contra, context_id: str, *args: P.args, **kwargs: P.kwargs
    ) -> R_co: ...


class _ObjFirstContext(Protocol[S_contra, T_contra, X_contra, P, R_co]):
    def __call__(
        self, obj: S_contra, first: T_contra, /, context: X_contra, context_id: str, *args: P.args, **kwargs: P.kwargs
    ) -> R_co: ...


class TaskHandler(Protocol[T_contra, P, R_co]):
    """A handler whose first argument may be named: ``await handler(task=…)``."""

    def __call__(self, task: T_contra, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the handler in a turn."""
        ...


class Method(Protocol[S_contra, T_contra, P, R_co]):
    """A method that becomes a `TaskHandler` when it is taken from its object."""

    def __call__(self, obj: S_contra, /, task: T_contra, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the handler in a turn."""
        ...

    @overload
    def __get__(self: Method[type[S], T, P, R], instance: None, owner: type[S], /) -> TaskHandler[T, P, R]: ...
    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[Any], /) -> TaskHandler[T_contra, P, R_co]: ...


class Stateful(Protocol):
    """``stateful`` and its siblings: decorators, with or without settings."""

    @overload
    def __call__(self, func: _Conversation[C, P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, func: _TaskConversation[T, C, P, R], /) -> TaskHandler[T, P, R]: ...
    @overload
    def __call__(self, func: _Context[X, P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, func: _TaskContext[T, X, P, R], /) -> TaskHandler[T, P, R]: ...
    @overload
    def __call__(self, func: _FirstConversation[T, C, P, R], /) -> Callable[Concatenate[T, P], R]: ...
    @overload
    def __call__(self, func: _FirstContext[T, X, P, R], /) -> Callable[Concatenate[T, P], R]: ...
    @overload
    def __call__(self, func: _ObjTaskConversation[S, T, C, P, R], /) -> Method[S, T, P, R]: ...
    @overload
    def __call__(self, func: _ObjTaskContext[S, T, X, P, R], /) -> Method[S, T, P, R]: ...
    @overload
    def __call__(self, func: _ObjFirstConversation[S, T, C, P, R], /) -> Callable[Concatenate[S, T, P], R]: ...
    @overload
    def __call__(self, func: _ObjFirstContext[S, T, X, P, R], /) -> Callable[Concatenate[S, T, P], R]: ...
    @overload
    def __call__(self, func: Callable[..., R], /) -> Callable[..., R]: ...
    @overload
    def __call__(
        self,
        *,
        storage: Any = ...,
        url: str = ...,
        key_prefix: str = ...,
        ttl: float | None = ...,
        ttl_mode: Literal["fixed", "sliding"] = ...,
        storage_dir: str = ...,
        name: str = ...,
        key: Callable[..., str] | str = ...,
        owner: Callable[..., str | None] | str = ...,
        once: Callable[..., str | None] = ...,
        inject: bool | Mapping[str, str] = ...,
        reads: Iterable[str] = ...,
        turns: Literal["queue", "reject", "optimistic", "read"] = ...,
        wait: float = ...,
        max_waiting: int = ...,
        turn_timeout: float | None = ...,
        history: int = ...,
        commit: Literal["turn", "immediate"] = ...,
        on_error: Literal["rollback", "keep_input", "commit"] = ...,
        on_cancel: Literal["auto", "commit", "rollback"] = ...,
        on_unavailable: Literal["raise", "run_without"] = ...,
        idle: float | None = ...,
        autosave: bool = ...,
        **options: Any,
    ) -> Stateful: ...
