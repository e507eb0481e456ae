"""What the three storage scripts try, on whatever storage they are given."""

import asyncio

from agentstate import ConversationContext, stateful

CALLERS = 20


async def check_storage(url):
    """Try all operations on a storage, print each, and return whether all of them worked."""
    results = []
    async with ConversationContext(url) as context:
        await context.clear_context("check")
        for check in (check_variables, check_history, check_metadata, check_concurrency, check_errors):
            try:
                await check(context, url)
            except AssertionError as error:
                results.append(f"FAILED  {check.__name__.removeprefix('check_')}: {error}")
            else:
                results.append(f"ok      {check.__name__.removeprefix('check_')}")
        print(*results, f"in {context.storage.location}", sep="\n")
    return all(line.startswith("ok") for line in results)


async def check_variables(context, url):
    await context.set_variable("check", "preferences", {"theme": "dark", "languages": ["en", "pt"]})
    assert await context.get_variable("check", "preferences") == {"theme": "dark", "languages": ["en", "pt"]}
    assert await context.get_variable("check", "absent", "default") == "default"
    assert await context.delete_variable("check", "preferences")


async def check_history(context, url):
    await context.add_to_history("check", "user", "Hello!")
    await context.add_to_history("check", "assistant", "Hi there!")
    assert [message["role"] for message in await context.get_history("check")] == ["user", "assistant"]
    assert [message["content"] for message in await context.get_history("check", limit=1)] == ["Hi there!"]


async def check_metadata(context, url):
    await context.set_metadata("check", "channel", "web")
    assert await context.get_metadata("check", "channel") == "web"


async def check_concurrency(context, url):
    handler = stateful(url=url)(count)
    await asyncio.gather(*(handler({"context_id": "check"}) for _ in range(CALLERS)))
    assert await context.get_variable("check", "count") == CALLERS, "a concurrent write was lost"


async def count(task, context, context_id):
    before = await context.get_variable(context_id, "count", 0)
    await asyncio.sleep(0)
    await context.set_variable(context_id, "count", before + 1)


async def check_errors(context, url):
    version = (await context.get("check")).version
    handler = stateful(url=url)(fail)
    try:
        await handler({"context_id": "check"})
    except RuntimeError:
        pass
    else:
        raise AssertionError("the handler's error was swallowed")
    assert (await context.get("check")).version == version, "a failed turn left something"


async def fail(task, context, context_id):
    await context.set_variable(context_id, "half", "done")
    raise RuntimeError("on purpose")
