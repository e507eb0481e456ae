"""The user's text in whatever a host passes to a handler.

Everything is duck-typed and nothing is imported, so that one handler serves A2A 0.x and 1.x,
chat formats and plain dicts alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentstate.ids import field_of

__all__ = ["message_text"]

_OTHERS: Final = frozenset({"agent", "assistant", "model", "ai", "system", "developer", "tool", "function"})
_SPEAKERS: Final = frozenset({"human", *_OTHERS})
_A2A_AGENT: Final = 2
_DEPTH: Final = 3


def message_text(task: Any) -> str:
    """Return the user's text in ``task``, ``""`` when there is none.

    The first of these that there is: the text itself; ``get_user_input()``; the text parts of
    ``message``, or of the task if it is a message; the last message of the user in ``history``
    or ``messages``, or in the task if it is a list; a ``status`` message that isn't the
    agent's; ``input``, ``text`` or ``content``. Several text parts are joined by line breaks.

    Args:
        task: an A2A task, message or request context, a chat message or list of them, a
            mapping or object with such fields, or text.
    """
    return _of_task(task, _DEPTH)


def _of_task(task: Any, depth: int) -> str:
    if task is None or isinstance(task, str):
        return task or ""
    if _is_list(task):
        return _of_list(task)
    asked = _asked(task)
    if asked:
        return asked
    message = field_of(task, "message")
    found = _of_parts(field_of(task, "parts")) or _of_past(task) if message is None else _of_message(message)
    return found or _of_rest(task, depth)


def _asked(task: Any) -> str:
    if isinstance(task, Mapping):
        return ""
    ask = getattr(task, "get_user_input", None)
    text = ask() if callable(ask) else ""
    return text if isinstance(text, str) else ""


def _of_past(task: Any) -> str:
    for name in ("history", "messages"):
        messages = field_of(task, name)
        if _is_list(messages) and messages:
            last = _last_of_user(messages)
            if last is not None:
                return _of_message(last)
    message = field_of(field_of(task, "status"), "message")
    return "" if message is None or _is_other(message) else _of_message(message)


def _of_rest(task: Any, depth: int) -> str:
    for name in ("input", "params"):
        found = _of_task(field_of(task, name), depth - 1) if depth else ""
        if found:
            return found
    return _of_message(task)


def _of_message(message: Any) -> str:
    if isinstance(message, str):
        return message
    for name in ("parts", "text", "content"):
        value = field_of(message, name)
        found = value if isinstance(value, str) else _of_parts(value)
        if found:
            return found
    return ""


def _of_list(items: Sequence[Any]) -> str:
    if any(_speaker(item) is not None for item in items):
        return _of_message(_last_of_user(items))
    return _of_parts(items)


def _of_parts(parts: Any) -> str:
    if not _is_list(parts):
        return ""
    texts = [_of_part(part) for part in parts]
    return "\n".join(text for text in texts if text)


def _of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    for holder in (part, field_of(part, "root")):
        text = field_of(holder, "text")
        if isinstance(text, str) and text:
            return text
    return ""


def _last_of_user(messages: Sequence[Any]) -> Any:
    return next((message for message in reversed(messages) if not _is_other(message)), None)


def _is_other(message: Any) -> bool:
    return _speaker(message) in _OTHERS


def _speaker(message: Any) -> str | None:
    """Return who speaks, as lower-case text: from ``role``, or from ``type`` as LangChain has it."""
    role = field_of(message, "role")
    if type(role) is int:  # the enum of A2A 1.x
        return "agent" if role == _A2A_AGENT else "user"
    name = getattr(role, "value", role)
    if isinstance(name, str):
        return name.lower().removeprefix("role_")
    kind = field_of(message, "type")
    return kind if isinstance(kind, str) and kind in _SPEAKERS else None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
