"""Which parameters are injected, and where they land among the caller's."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentstate
from agentstate import Conversation, ConversationContext, SyncConversation, stateful
from agentstate.annotations import evaluated
from agentstate.errors import HandlerSignatureError
from agentstate.injection import plan

if TYPE_CHECKING:
    from elsewhere import Conversation as Unknown
    from elsewhere import states

Renamed = Conversation


class Other:
    """Somebody else's class of the same name."""

    class Conversation: ...


def roles(func, inject=True):
    return plan(func, inject).roles


async def by_name(task, context, context_id): ...
async def by_name_with_none(task, context=None, context_id=None): ...
async def by_name_keyword(task, *, context, context_id): ...
async def by_name_any(task, context: Any, context_id: Any): ...
async def only_context(task, context): ...
async def only_id(task, context_id: str): ...
async def typed(task: dict, context: ConversationContext, context_id: str) -> str: ...
async def bound(task, chat: Conversation): ...
async def dotted(task, chat: agentstate.Conversation): ...
async def renamed(task, chat: Renamed): ...
async def quoted(task, chat: "Conversation"): ...  # noqa: UP037 - that form
async def optional(task, chat: Optional[Conversation] = None): ...  # noqa: UP045 - that form
async def union(task, chat: Conversation | None = None): ...
async def union_first(task, chat: None | Conversation = None): ...  # noqa: RUF036 - that order
async def annotated(task, chat: Annotated[Conversation, "ours"]): ...
async def annotated_optional(task, chat: Annotated[Conversation | None, "ours"] = None): ...
async def both(task, context: ConversationContext, chat: Conversation): ...
async def given_id(context_id: str, chat: Conversation): ...
async def bare_id(context_id, chat: Conversation): ...
def blocking(task, chat: SyncConversation): ...


@pytest.mark.parametrize(
    ("func", "expected"),
    [
        (by_name, {"context": "context", "context_id": "context_id"}),
        (by_name_with_none, {"context": "context", "context_id": "context_id"}),
        (by_name_keyword, {"context": "context", "context_id": "context_id"}),
        (by_name_any, {"context": "context", "context_id": "context_id"}),
        (only_context, {"context": "context"}),
        (only_id, {"context_id": "context_id"}),
        (typed, {"context": "context", "context_id": "context_id"}),
        *[
            (one, {"chat": "conversation"})
            for one in (bound, dotted, renamed, quoted, optional, union, union_first, annotated, annotated_optional)
        ],
        (both, {"context": "context", "chat": "conversation"}),
        (given_id, {"chat": "conversation"}),
        (bare_id, {"context_id": "context_id", "chat": "conversation"}),
        (blocking, {"chat": "conversation"}),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_is_injected(func, expected):
    """Parameters are known by their annotation, however it is written, or by their name."""
    assert roles(func) == expected


@pytest.mark.parametrize(
    "written",
    [
        *("Conversation", "agentstate.Conversation", "unknown.place.Conversation", "'Conversation'"),
        *("Conversation | None", "None | Conversation", "Optional[Conversation]", "typing.Optional[st.Conversation]"),
        *("Annotated[Conversation, Missing()]", "Annotated[Conversation | None, 1, 2]", "Optional['Conversation']"),
    ],
)
def test_names_that_only_type_checkers_know(written):
    """An annotation that can't be evaluated is judged by the name of the class in it."""
    scope: dict[str, Any] = {}
    exec(f"from __future__ import annotations\nasync def handler(task, chat: {written}): ...", scope)
    assert roles(scope["handler"]) == {"chat": "conversation"}


async def theirs_by_name(context: int, task): ...
async def theirs_unknown(context: Context, task): ...  # noqa: F821 - that is the point
async def theirs_default(task, context=7): ...
async def theirs_annotated_default(task, chat: Conversation = 7): ...
async def theirs_same_name(task, chat: Other.Conversation): ...
async def theirs_union(task, chat: Conversation | str): ...
async def theirs_old_union(task, chat: Union[Conversation, str]): ...  # noqa: UP007 - that form
async def theirs_number(task, context_id: int): ...
async def theirs_list(task, chats: list[Conversation]): ...
async def theirs_broken(task, chat: "Conversation["): ...  # noqa: F722 - that is the point
async def theirs_variadic(task, *context, **context_id): ...
async def theirs_call(task, chat: Conversation()): ...


@pytest.mark.parametrize(
    "func",
    [
        *(theirs_by_name, theirs_unknown, theirs_default, theirs_annotated_default, theirs_same_name, theirs_union),
        *(theirs_old_union, theirs_number, theirs_list, theirs_broken, theirs_variadic, theirs_call),
    ],
    ids=lambda one: one.__name__,
)
def test_what_is_somebody_elses(func):
    """Parameters with another annotation or a default of their own belong to others."""
    with pytest.raises(HandlerSignatureError):
        plan(func)


def test_renamed_parameters():
    """``inject=`` maps roles to parameters, and nothing else is injected then."""

    async def handler(context, state, sid): ...

    assert roles(handler, {"context": "state", "context_id": "sid"}) == {"state": "context", "sid": "context_id"}
    for wrong in ({"context": "missing"}, {"ctx": "state"}):
        with pytest.raises(HandlerSignatureError, match="names no parameter of handler"):
            plan(handler, wrong)
    assert plan(handler, inject=False).roles == {}


async def none_of_it(task): ...
async def defaults(task, n=1, *rest, flag): ...
async def has_id(task, context: Other): ...
async def places_only(task=None, /): ...


class Agent:
    def method(self, task): ...


@pytest.mark.parametrize(
    ("func", "line"),
    [
        (none_of_it, "async def none_of_it(task, context, context_id):"),
        (defaults, "async def defaults(task, context, context_id, n=1, *rest, flag):"),
        (has_id, "async def has_id(task, context, context_id):"),
        (places_only, "async def places_only(context, context_id, task=None, /):"),
        (Agent.method, "def method(self, task, context, context_id):"),
        (functools.partial(none_of_it), "async def none_of_it(task, context, context_id):"),
    ],
)
def test_a_handler_without_them_is_shown_the_line_to_change(func, line):
    """The error names the place and shows the line as it should be."""
    with pytest.raises(HandlerSignatureError) as caught:
        plan(func)
    assert f"{__file__}:" in str(caught.value)
    if func is not has_id:
        assert line in caught.value.remedy


@pytest.mark.parametrize("word", ["async def", "def"])
def test_asynchronous_and_synchronous_states_are_not_mixed_up(word):
    """Who would get what can't be awaited, or what must be, is told the right annotation."""
    wrong, right = ("SyncConversation", "Conversation") if word != "def" else ("Conversation", "SyncConversation")
    scope: dict[str, Any] = {}
    exec(f"from agentstate import {wrong}\n{word} handler(task, chat: {wrong}): ...", scope)
    with pytest.raises(HandlerSignatureError, match=f"Write chat: {right}") as caught:
        plan(scope["handler"])
    assert "handler" in str(caught.value)


async def resolved(a: int, b: list[str], c: Unknown, d: states.One, chat: Conversation) -> None: ...


def test_what_others_see():
    """Annotations as text are resolved one by one; what can't be stays text, and the function stays as it is."""
    made = plan(resolved)
    assert str(made.signature) == "(a: int, b: list[str], c: 'Unknown', d: 'states.One') -> None"
    assert made.annotations == {"a": int, "b": list[str], "c": "Unknown", "d": "states.One", "return": None}
    assert list(inspect.signature(resolved).parameters) == ["a", "b", "c", "d", "chat"]


def test_return_annotations():
    """``None`` stays ``None``, not its type, as web frameworks want it."""
    assert evaluated(resolved, "None") is None
    assert evaluated(resolved, "int | None") == int | None


# -- where they land ---------------------------------------------------------------------------

GIVEN = {"context": "<context>", "context_id": "<id>", "conversation": "<conversation>"}


def call(func, *args, **kwargs):
    """Call a function as its stateful handler would."""
    args, kwargs = plan(func, required=False).arguments(args, kwargs, GIVEN, bound=False)
    return func(*args, **kwargs)


PARAMETERS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=3)


@st.composite
def functions(draw):
    """A function that returns its arguments, with injected parameters anywhere."""
    names = iter("abcdefghi")
    optional = False
    groups: list[list[str]] = []
    for _ in range(2):
        groups.append([])
        for injected, starts_optional in draw(PARAMETERS):
            optional = optional or starts_optional
            groups[-1].append(written(next(names), injected, optional))
    named = [written(next(names), *one) for one in draw(PARAMETERS)]
    only, either = groups
    rest = draw(st.booleans())
    more = ["**more"] if draw(st.booleans()) else []
    star = ["*rest"] if rest else ["*"] if named else []
    parts = [*only, *(["/"] if only else []), *either, *star, *named, *more]
    scope: dict[str, Any] = {"Conversation": Conversation}
    exec(f"async def func({', '.join(parts)}):\n    return locals()", scope)
    return scope["func"]


def written(name, injected, optional):
    """Return a parameter as it stands in a definition."""
    hint, default = (": Conversation", "None") if injected else ("", f"'default {name}'")
    return f"{name}{hint}" + (f" = {default}" if optional else "")


@given(functions(), st.data())
def test_any_signature_any_call(func, data):
    """Whatever the order and kinds of parameters, each argument lands where a call of the visible signature puts it."""
    made = plan(func, required=False)
    parameters = made.signature.parameters.values()
    by_place = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    only = sum(one.kind is one.POSITIONAL_ONLY for one in by_place)
    cut = data.draw(st.integers(only, len(by_place)))
    kinds = {one.kind for one in parameters}
    args = [f"value {one.name}" for one in by_place[:cut]]
    if inspect.Parameter.VAR_POSITIONAL in kinds and cut == len(by_place):
        args += data.draw(st.lists(st.just("one more"), max_size=2))
    kwargs = {
        one.name: f"value {one.name}"
        for one in parameters
        if one in by_place[cut:] or one.kind is one.KEYWORD_ONLY
        if one.default is one.empty or data.draw(st.booleans())
    }
    if inspect.Parameter.VAR_KEYWORD in kinds:
        kwargs["other"] = "one more"
    expected = made.signature.bind(*args, **kwargs)
    expected.apply_defaults()
    got = _returned(call(func, *args, **kwargs))
    assert {name: value for name, value in got.items() if name not in made.roles} == expected.arguments
    assert {name: got[name] for name in made.roles} == dict.fromkeys(made.roles, "<conversation>")


def _returned(coroutine):
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    return stopped.value.value


def places(context, context_id, task, flag=False):
    return context, context_id, task, flag


def trailing(task, context, context_id, flag=False):
    return task, context, context_id, flag


def three(task, context, context_id):
    return task, context, context_id


def test_wrong_calls_are_type_errors():
    """A missing argument, one too many by name, or one given twice is what it is without us."""
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'task'"):
        call(places)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        call(places, "task", nonsense=1)
    with pytest.raises(TypeError, match="multiple values for argument 'task'"):
        call(places, "task", task="task")
    with pytest.raises(TypeError, match="multiple values for argument 'task'"):
        call(trailing, "task", task="task")


CONTEXT = ConversationContext("memory://")


@pytest.mark.parametrize(
    ("func", "args", "kwargs", "expected"),
    [
        (three, ("event", "theirs"), {}, ("event", "theirs", "<id>")),
        (trailing, ("event", "theirs", "id"), {}, ("event", "theirs", "id", False)),
        (trailing, ("event", "theirs", "id", True), {}, ("event", "theirs", "id", True)),
        (trailing, ("event",), {"context": "theirs"}, ("event", "theirs", "<id>", False)),
        (trailing, ("event",), {"context": None, "context_id": None}, ("event", "<context>", "<id>", False)),
        (trailing, ("event", True), {}, ("event", "<context>", "<id>", True)),
        (trailing, ("event", CONTEXT), {}, ("event", CONTEXT, "<id>", False)),
        (places, ("theirs", "id", "task"), {}, ("theirs", "id", "task", False)),
        (places, (CONTEXT, "id", "task"), {}, (CONTEXT, "id", "task", False)),
        (places, (), {"task": "task", "context": "theirs"}, ("theirs", "<id>", "task", False)),
    ],
)
def test_what_the_caller_passes_is_left_alone(func, args, kwargs, expected):
    """By name, by position when there are more arguments than visible ones, or when it is one of ours."""
    assert call(func, *args, **kwargs) == expected


def test_an_id_that_the_handler_does_not_take():
    """``context_id=`` names the state for every handler, and reaches those that take it."""

    def without(task, conversation: SyncConversation):
        return task, conversation

    def variadic(task, conversation: SyncConversation, **more):
        return more

    assert call(without, "task", context_id="c-1") == ("task", "<conversation>")
    assert call(variadic, "task", context_id="c-1") == {"context_id": "c-1"}
    assert call(trailing, "task", context_id="c-1") == ("task", "<context>", "c-1", False)


# -- functions of the handler's arguments ------------------------------------------------------


def handler_of(task, text, context, context_id, flag="default"): ...


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda task: task, "T"),
        (lambda t: t, "T"),
        (lambda text: text, "X"),
        (lambda text, task: (text, task), ("X", "T")),
        (lambda one, two: (one, two), ("T", "X")),
        (lambda task, sep="/": (task, sep), ("T", "/")),
        (lambda flag: flag, "default"),
        (lambda task, /: task, "T"),
        (lambda *, text: text, "X"),
        (lambda: "constant", "constant"),
    ],
)
@pytest.mark.parametrize(
    ("args", "kwargs"), [(("T", "X"), {}), (("T",), {"text": "X"}), ((), {"text": "X", "task": "T"})]
)
def test_functions_get_what_they_name(ask, expected, args, kwargs):
    """``key=``, ``owner=`` and ``once=`` get the arguments they name, whichever way the caller passed them."""
    assert plan(handler_of).asking(ask)(*args, **kwargs) == expected


def test_functions_of_everything():
    """One that takes any arguments gets them as they were passed; one without a signature too."""
    made = plan(handler_of)
    assert made.asking(lambda *args, **kwargs: (args, kwargs))("T", text="X") == (("T",), {"text": "X"})
    assert made.asking(max)("T", "X") == "X"


def test_methods_are_asked_without_self(memory):
    """The functions never see ``self``."""
    seen = []

    class Room:
        @stateful(storage=memory, key=lambda first, **_: seen.append(first) or "c-1")
        def enter(self, task, context, context_id):
            return task

        @stateful(storage=memory, key=lambda first: seen.append(first) or "c-1")
        def leave(me, task, context, context_id):  # noqa: N805 - any name will do
            return task

    for handler in (Room().enter, Room().leave, functools.partial(Room.leave, Room()), Room().enter):
        assert handler("T") == "T"
    assert seen == ["T"] * 4
