"""What a handler gets to see: messages and the state of a conversation.

Both are light and read-only, usable by attribute and as a mapping. Neither can be changed
without anybody noticing: a message hands out copies of its parts, a state hands out the
values that its turn watches.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NoReturn, TypeVar, overload

from agentstate import codec
from agentstate.codec.exact import kind_of
from agentstate.errors import DamagedStateError, UnsupportedValueError
from agentstate.randomness import random_bits
from agentstate.scope import check_id

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ConversationState", "FailedMessage", "Message", "new_id", "utc_now_iso"]

T = TypeVar("T")

_REQUIRED: Final = ("id", "role", "content", "timestamp", "metadata")
_required_of: Final = itemgetter(*_REQUIRED)
_ROLES: Final = {"agent": "assistant"}
_SHOWN: Final = 60


class _View(Mapping[str, Any]):
    """Read-only fields, by key and (`_Field`) by attribute."""

    __slots__ = ("_data",)
    _data: dict[str, Any]

    def field(self, name: str) -> Any:
        """Return a field, ``None`` if it isn't there."""
        return self[name] if name in self._data else None

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


class _Field(Generic[T]):
    """A key of a view as an attribute; ``None`` where the view hasn't got it."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type[_View], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, view: None, owner: type[_View]) -> _Field[T]: ...
    @overload
    def __get__(self, view: _View, owner: type[_View]) -> T: ...
    def __get__(self, view: _View | None, owner: type[_View]) -> _Field[T] | T:
        if view is None:
            return self
        value: Any = view._data.get(self.name)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - histories are long
        found: T = value if kind_of(value) is str else view.field(self.name)
        return found

    def __set__(self, view: _View, value: object) -> NoReturn:
        raise AttributeError(f"{self.name} of a {type(view).__name__} can't be set")


class Message(_View):
    """One message of a conversation.

    As a mapping it has ``id``, ``role``, ``content``, ``timestamp`` and ``metadata``, and
    ``tool_calls``, ``tool_call_id`` and ``name`` where they were given; so ``dict(message)`` is
    JSON-able when its metadata is. Messages are equal when these are, wherever they lie.
    Make one with `Message.new`.
    """

    __slots__ = ("_position", "_seq")

    failed: ClassVar[bool] = False
    """Whether a turn that failed had added it; see `FailedMessage`."""

    id = _Field[str]("The host's id, or a random one.")
    role = _Field[str]("Who speaks: ``user``, ``assistant``, ``tool``, ``system`` or another.")
    content = _Field[str | list[Any]]("Text, or a list of parts.")
    timestamp = _Field[str]("When it was added: ISO 8601 in UTC, ``2026-01-31T12:00:00.000000+00:00``.")
    metadata = _Field[dict[str, Any]]("The caller's own fields.")
    tool_calls = _Field[list[Any] | None]("What the assistant wants called.")
    tool_call_id = _Field[str | None]("Which call this message answers.")
    name = _Field[str | None]("Who speaks, beside the role.")

    def __init__(self, data: dict[str, Any], seq: int, position: int) -> None:
        """Take over checked fields; for the library's own use."""
        self._data = data
        self._seq = seq
        self._position = position

    @classmethod
    def new(
        cls,
        role: str,
        content: str | list[Any] | None,
        *,
        id: str | None = None,  # noqa: A002
        metadata: Mapping[str, Any] | None = None,
        timestamp: str | datetime | float | None = None,
        tool_calls: Sequence[Any] | None = None,
        tool_call_id: str | None = None,
        name: str | None = None,
        now: float | None = None,
    ) -> Message:
        """Return a message that isn't stored yet.

        Args:
            role: ``user``, ``assistant`` (``agent`` is the same), ``tool``, ``system``, …
            content: text, or a list of parts; ``None`` only beside ``tool_calls``.
            id: the host's id; a random one unless given.
            metadata: your own.
            timestamp: ISO 8601 text with an offset, an aware datetime, or seconds since the epoch.
            tool_calls: what the assistant wants called.
            tool_call_id: which call a tool message answers.
            name: who speaks, beside the role.
            now: seconds since the epoch, for a message without ``timestamp``.

        Raises:
            UnsupportedValueError: a field has a wrong type, is empty, or would not come back the same.
            ContextIdError: the id can't be one.
        """
        if id is not None:
            check_id(id, "message")
        data: dict[str, Any] = {
            "id": new_id() if id is None else str.__str__(id),
            "role": _ROLES.get(role, role) if type(role) is str and role else _role(role),
            "content": content if type(content) is str else _content(content, beside_calls=bool(tool_calls)),
            "timestamp": utc_now_iso(now) if timestamp is None and now is not None else _iso(timestamp, now),
            "metadata": {} if metadata is None else dict(metadata),
        }
        if tool_calls is not None:
            data["tool_calls"] = list(tool_calls)
        if tool_call_id is not None:
            data["tool_call_id"] = _text("tool_call_id", tool_call_id)
        if name is not None:
            data["name"] = _text("name", name)
        if metadata or tool_calls is not None or type(content) is not str:
            data = _own(data)  # what can change is not the caller's any more
        return cls(data, 0, 0)

    @classmethod
    def from_json(cls, data: Any, seq: int = 0, position: int = 0) -> Message:
        """Return the message that was stored as ``data``, which it takes over.

        Raises:
            DamagedStateError: it is no message.
        """
        return cls.many_from_json((data,), (seq,), (position,))[0]

    @classmethod
    def many_from_json(cls, many: Sequence[Any], seqs: Sequence[int], positions: Sequence[int]) -> list[Message]:
        """Return what `from_json` does for each."""
        try:
            list(map(_required_of, many))
        except (KeyError, TypeError):
            raise _no_message(many, positions) from None
        return list(map(cls, many, seqs, positions))

    def stored(self) -> tuple[str, bytes]:
        """Return the id, and the fields as they are stored.

        Raises:
            UnsupportedValueError: one would not come back the same.
        """
        data = self._data
        plain = len(data) == len(_REQUIRED) and not data["metadata"] and type(data["content"]) is str
        return data["id"], codec.encode(data, exact=plain)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as they are stored, in a dict of their own."""
        return dict(self)

    def at(self, seq: int, position: int) -> Message:
        """Return the same message as it lies at a place of the log."""
        return Message(self._data, seq, position)

    def changed(self, *, content: str | list[Any], metadata: Mapping[str, Any] | None = None) -> Message:
        """Return this message with other content, and other metadata if given.

        Raises:
            UnsupportedValueError: they would not come back the same.
        """
        data = dict(self._data)
        data["content"] = _content(content, beside_calls="tool_calls" in data)
        if metadata is not None:
            data["metadata"] = dict(metadata)
        return Message(_own(data), self._seq, self._position)

    @property
    def seq(self) -> int:
        """Its number in the log, never used for another; 0 until it is stored."""
        return self._seq

    @property
    def position(self) -> int:
        """Its place in the log, 1 for the first; 0 until it is added."""
        return self._position

    def __getitem__(self, key: str) -> Any:
        return _own(self._data[key])

    def __hash__(self) -> int:
        return hash(self._data["id"])

    def __repr__(self) -> str:
        content = self._data["content"]
        short = repr(content) if len(content) <= _SHOWN else f"{content[:_SHOWN]!r}…"
        return f"Message(role={self.role!r}, content={short}, id={self.id!r}, position={self._position})"


class FailedMessage(Message):
    """A message that a failed turn had added: shown by ``include_failed``, and no part of the history.

    To try it again, add it again: it keeps its id.
    """

    __slots__ = ("_error",)

    failed = True

    def __init__(self, data: dict[str, Any], error: str) -> None:
        """Take over the fields, and the name of what the turn failed with."""
        super().__init__(data, 0, 0)
        self._error = error

    @property
    def error(self) -> str:
        """What its turn failed with, as ``builtins.ValueError``."""
        return self._error


class ConversationState(_View):
    """A whole conversation as it was at one version, by attribute and by key.

    It is a view to read from. Its dicts and its history raise when they are changed; a value
    inside that is changed and not set raises `UnsavedChangeError` at the commit of its turn.
    """

    __slots__ = ()

    context_id = _Field[str]("The id of the conversation.")
    user_id = _Field[str | None]("Whose it is; ``None`` when nobody's.")
    created_at = _Field[datetime]("When its first commit was, aware, in UTC.")
    updated_at = _Field[datetime]("When its last commit was, aware, in UTC.")
    version = _Field[int]("How many commits it had; 0 before the first.")
    metadata = _Field[dict[str, Any]]("All metadata.")
    variables = _Field[dict[str, Any]]("All variables.")
    history = _Field[tuple[Message, ...]]("All messages, oldest first.")

    def __init__(
        self,
        *,
        context_id: str,
        user_id: str | None,
        created_at: float,
        updated_at: float,
        version: int,
        metadata: Mapping[str, Any],
        variables: Mapping[str, Any],
        history: Sequence[Message],
    ) -> None:
        """Hold the parts of a state; times are seconds since the epoch."""
        self._data = {
            "context_id": context_id,
            "user_id": user_id,
            "created_at": datetime.fromtimestamp(created_at, UTC),
            "updated_at": datetime.fromtimestamp(updated_at, UTC),
            "version": version,
            "metadata": _Fixed(metadata),
            "variables": _Fixed(variables),
            "history": tuple(history),
        }

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self._data[key])} {key}" for key in ("variables", "metadata", "history"))
        return f"ConversationState({self.context_id!r}, user_id={self.user_id!r}, version={self.version}, {counts})"


class _Fixed(dict[str, Any]):
    """A dict (so that it stays JSON-able) that can't be changed; its copies can."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


def _refuse_change(*_: object, **__: object) -> NoReturn:
    raise TypeError("This is a view of the stored state. Call set_variable() or set_metadata(), or change a copy.")


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(_Fixed, _name, _refuse_change)


def new_id() -> str:
    """Return a random id: 96 bits as 24 hexadecimal digits."""
    return f"{random_bits(96):024x}"


def utc_now_iso(now: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC, ``2026-01-31T12:00:00.000000+00:00``."""
    seconds, microseconds = divmod(round(now * 1_000_000), 1_000_000)
    return f"{_second(seconds)}.{microseconds:06d}+00:00"


@functools.lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    """Return ISO 8601 up to the second; most messages come in the same one as the last."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def _own(value: Any) -> Any:
    """Return ``value``, or a copy of it if it can be changed."""
    return codec.decode(codec.encode(value)) if codec.is_mutable(value) else value


def _role(role: object) -> str:
    if not isinstance(role, str) or not role:
        raise _refusal("role", role, "Pass 'user', 'assistant', 'tool' or 'system'.")
    plain = str.__str__(role)  # hosts have enums of text, whose str() is another
    return _ROLES.get(plain, plain)


def _content(content: object, *, beside_calls: bool) -> object:
    if content is None and beside_calls:
        return ""
    if not isinstance(content, (str, list)):
        raise _refusal("content", content, "Pass text or a list of parts: str(...), json.dumps(...) or [part].")
    return content  # pyright: ignore[reportUnknownVariableType]


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _refusal(key, value, "Pass text.")
    return value


def _iso(timestamp: object, now: float | None) -> str:
    if timestamp is None:
        return utc_now_iso(time.time() if now is None else now)
    try:
        if isinstance(timestamp, (int, float)):
            return utc_now_iso(timestamp)
        moment = datetime.fromisoformat(timestamp) if isinstance(timestamp, str) else timestamp
        if isinstance(moment, datetime) and moment.utcoffset() is not None:
            return moment.astimezone(UTC).isoformat(timespec="microseconds")
    except (OSError, OverflowError, ValueError):
        pass
    raise _refusal("timestamp", timestamp, "Pass '2026-01-31T12:00:00+00:00', datetime.now(UTC) or seconds.")


def _no_message(many: Sequence[Any], positions: Sequence[int]) -> DamagedStateError:
    missing = [[name for name in _REQUIRED if type(data) is not dict or name not in data] for data in many]
    position, names = next((at, names) for at, names in zip(positions, missing, strict=True) if names)
    return DamagedStateError(
        f"Item {position} of a history is no message: it has no {', '.join(names)}.",
        remedy="Restore it from a backup, or truncate the history there.",
    )


def _refusal(key: str, value: object, remedy: str) -> UnsupportedValueError:
    what = "empty text" if value == "" else f"this {type(value).__name__}"
    return UnsupportedValueError(f"A message can't have {what} as its {key}.", path=f"$.{key}", remedy=remedy)
