"""One handler for each turn mode, called ten times at once on one state.

python examples/turn_modes.py
"""

import asyncio
from collections import Counter

from agentstate import aclose, stateful
from agentstate.errors import ConflictError, TurnInProgressError


async def count(task, context, context_id):
    """Read, think, write: what loses updates wherever nobody takes turns."""
    before = await context.get_variable(context_id, "count", 0)
    await asyncio.sleep(0.01)
    await context.set_variable(context_id, "count", before + 1)
    return "counted"


@stateful(turns="queue")
async def queue(task, context, context_id):
    """One at a time, in order. All ten are served."""
    return await count(task, context, context_id)


@stateful(turns="reject")
async def reject(task, context, context_id):
    """One; the others are told to come again."""
    return await count(task, context, context_id)


@stateful(turns="optimistic")
async def optimistic(task, context, context_id):
    """All at once; those that were overtaken are told at their commit."""
    return await count(task, context, context_id)


@stateful(turns="read")
async def read(task, context, context_id):
    """A snapshot, without a turn."""
    return f"saw {await context.get_variable(context_id, 'count', 0)}"


async def outcome(handler):
    """Call a handler and return what became of it."""
    try:
        return await handler({"context_id": f"turns-{handler.__name__}"})
    except (ConflictError, TurnInProgressError) as error:
        return type(error).__name__


async def main():
    """Call each handler ten times at once."""
    for handler in (queue, reject, optimistic, read):
        outcomes = Counter(await asyncio.gather(*(outcome(handler) for _ in range(10))))
        print(f"{handler.__name__:10}", ", ".join(f"{number} x {what}" for what, number in outcomes.items()))
    await aclose()


if __name__ == "__main__":
    asyncio.run(main())
