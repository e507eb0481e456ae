"""Which state a host's task means: finding the id in whatever object the host passes.

Everything is duck-typed and nothing is imported: A2A tasks and messages (pydantic and
protobuf), request contexts, mappings and objects of one's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from agentstate.codec.exact import kind_of
from agentstate.errors import ContextIdError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["CONTEXT_NAMES", "CONVERSATION_NAMES", "SESSION_NAMES", "context_id_of", "field_of", "plain_id"]

CONTEXT_NAMES: Final = ("context_id", "contextId", "session_id", "thread_id", "conversation_id")
"""Where the id of a conversation is looked for, in this order."""
CONVERSATION_NAMES: Final = ("conversation_id", "context_id", "contextId")
"""The order of ``stateful_conversation``."""
SESSION_NAMES: Final = ("session_id", "sessionId")
"""The order of ``stateful_session``, which doesn't fall back on the task's own id."""


def context_id_of(
    task: Any, names: Sequence[str] = CONTEXT_NAMES, *, own_id: bool = True
) -> tuple[str | None, list[str]]:
    """Return the id that ``task`` carries and the place where it was, else ``None`` and all places.

    Each name is looked for in the task's metadata, in its message's metadata, in the task and
    in its message; then, if ``own_id``, the task's own id counts. Empty text counts as absent,
    as protobuf has it. Whole numbers and UUIDs become text.

    Raises:
        ContextIdError: something else stands where an id should be, as a list or a dict.
    """
    if kind_of(task) is dict and "metadata" not in task and "message" not in task:  # one place, as most dicts have
        name, value = next(((name, task[name]) for name in names if task.get(name)), ("", None))
        if type(value) is str:
            return value, [name]
    metadata, message = field_of(task, "metadata"), field_of(task, "message")
    places = [("", task)] if metadata is None else [("metadata.", metadata), ("", task)]
    if message is not None:
        places[-1:-1] = [("message.metadata.", field_of(message, "metadata"))]
        places.append(("message.", message))
    for name in names:
        for label, place in places:
            value = field_of(place, name)
            if value is not None and (found := _id(label, name, value)) is not None:
                return found, [label + name]
    own = list(_own_ids(task, message)) if own_id else []
    for name, value in own:
        if (found := _id("", name, value)) is not None:
            return found, [name]
    everywhere = ("metadata.", *(label for label, _ in places if label != "metadata."))
    return None, [*(label + name for name in names for label in everywhere), *(name for name, _ in own)]


def field_of(value: Any, name: str) -> Any:
    """Return a key of a mapping or an attribute of an object, ``None`` if it has neither."""
    if kind_of(value) is dict:
        return value.get(name)
    if _is_mapping(value) and name in value:
        return value[name]
    return getattr(value, name, None)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _own_ids(task: Any, message: Any) -> Iterator[tuple[str, Any]]:
    role = field_of(task, "role")
    if role is None or callable(role):  # a message's own id is another one each time
        yield "id", field_of(task, "id")
    for label, place in (("", task), ("message.", message)):
        for name in ("task_id", "taskId"):
            yield label + name, None if place is None else field_of(place, name)


def _id(label: str, name: str, value: Any) -> str | None:
    if type(value) is str:
        return value or None
    if value is None or callable(value):
        return None
    found = plain_id(value)
    if isinstance(found, str):
        return str.__str__(found) or None
    raise ContextIdError(
        f"{label}{name} of the task is a {type(value).__name__}, not an id.", remedy="Pass text there, or use key=."
    )


def plain_id(value: Any) -> Any:
    """Return whole numbers and UUIDs as text, and anything else as it is."""
    whole = type(value) is int or (type(value) is float and value.is_integer())  # a protobuf Struct has floats only
    if whole:
        return str(int(value))
    return str(value) if type(value).__name__ == "UUID" else value
