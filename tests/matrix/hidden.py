"""What each framework must make of each kind of handler: a schema without the injected parameters, and a turn."""

from __future__ import annotations

from contextlib import suppress

import pytest

from agentstate import ConversationContext
from agentstate.storage import registry

from .handlers import KINDS, ROOM, handlers


class HiddenParameters:
    """Inherited by one class per framework, which says how the framework sees and calls a handler."""

    def schema(self, handler):
        """Return the names of the parameters that the framework shows, and the description."""
        raise NotImplementedError

    async def call(self, handler, **arguments):
        """Call a handler through the framework and return its result; whatever goes wrong is an exception."""
        raise NotImplementedError

    @pytest.fixture
    async def storage(self, tmp_path):
        """A storage on disk."""
        made = registry.create("sqlite", {"url": f"sqlite:///{tmp_path}/state.db"})
        yield made
        await made.close()

    @pytest.fixture(params=KINDS)
    def handler(self, request, storage):
        """A handler of each kind: it takes an amount and adds it to a counter."""
        return handlers(storage)[request.param]

    def test_only_the_callers_parameters_are_shown(self, handler):
        """The schema has the caller's parameter alone, and the docstring is there."""
        assert self.schema(handler) == ({"amount"}, "Add to the counter.")

    async def test_a_call_is_a_turn(self, handler, storage):
        """What a call does in several steps is one commit on the storage."""
        assert await self.call(handler, amount=2) == 2
        assert await self.call(handler, amount=3) == 5
        state = await ConversationContext(storage).get(ROOM)
        assert (state.version, state.variables) == (2, {"n": 5})
        assert [one.content for one in state.history] == ["add 2", "add 3"]

    async def test_a_failed_call_leaves_nothing(self, handler, storage):
        """The handler's error reaches the framework, and its turn is rolled back."""
        with pytest.raises(Exception, match="less than nothing"):
            await self.call(handler, amount=-1)
        assert not await ConversationContext(storage).exists(ROOM)
        failures = await ConversationContext(storage).failed_turns(ROOM)
        assert [one["error"] for one in failures] == ["builtins.ValueError"]

    @pytest.mark.parametrize("name", ["conversation", "context", "context_id"])
    async def test_the_model_cannot_fill_them(self, handler, storage, name):
        """A value that a model makes up for a hidden parameter is refused or ignored; no other state is touched."""
        with suppress(Exception):
            await self.call(handler, amount=2, **{name: "elsewhere"})
        assert not await ConversationContext(storage).exists("elsewhere")
