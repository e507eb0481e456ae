"""``agentstate copy``: from one URL to another."""

import asyncio

from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.protocol import Part, Put, Wants


def test_copy(agentstate, writer, url, directory):
    """Everything is copied, and said; again, and nothing is; then only what has changed."""
    writer.put("conversation:a", owner="bob", name="Ann", messages=[("user", "hi"), ("assistant", "ho")])
    writer.put("user:bob", x=1)
    target = f"sqlite:///{directory}/copy.db"
    done = agentstate("copy", url, target)
    assert (done.code, done.out) == (0, "2 copied with 2 log items.\n")
    assert agentstate("copy", url, target, "--json").json == {"copied": 0, "same": 2, "skipped": 0, "items": 0}
    before, after = (agentstate("show", "conversation:a", "--url", one, "--json").json for one in (url, target))
    for field in ("scope", "owner", "version", "created_at", "updated_at", "expires_at", "labels"):
        assert before[field] == after[field]
    assert (before["sections"], before["messages"]) == (after["sections"], after["messages"])
    writer.put("user:bob", x=2)
    assert agentstate("copy", url, target).out == "1 copied with 0 log items, 1 there already.\n"


def test_some(agentstate, writer, url, directory):
    """Filters choose."""
    writer.put("conversation:a", x=1)
    writer.put("conversation:b", owner="bob", x=1)
    writer.put("user:bob", x=1)
    target = f"file://{directory}/copies"
    assert agentstate("copy", url, target, "--kind", "conversation", "--prefix", "b").out.startswith("1 copied")
    assert agentstate("copy", url, target, "--user", "nobody").out.startswith("0 copied")


def test_in_the_way(agentstate, writer, url, directory):
    """A state of the target's own stops it in one line with a remedy; the options go on."""
    writer.put("conversation:a", x=1)
    target = f"sqlite:///{directory}/copy.db"

    async def occupy():
        storage = registry.create("sqlite", {"url": target})
        await storage.commit(
            [Part(scope=StateScope.conversation("a"), puts=[Put("variables", "own", b"1")])], commit_id=1
        )
        await storage.close()

    asyncio.run(occupy())
    refused = agentstate("copy", url, target)
    assert refused.code == 75
    assert len(refused.err.strip().splitlines()) <= 2
    assert "conversation:a" in refused.err
    assert "--on-existing" in refused.err
    assert agentstate("copy", url, target, "--on-existing", "skip").out == "0 copied with 0 log items, 1 skipped.\n"
    assert agentstate("copy", url, target, "--on-existing", "replace").code == 0

    async def look():
        storage = registry.create("sqlite", {"url": target})
        found = await storage.read(StateScope.conversation("a"), Wants())
        await storage.close()
        return list(found.entries)

    assert asyncio.run(look()) == [("variables", "x")]


def test_wrong(agentstate, writer, url, directory):
    """A source that isn't there, one and the same place, an unknown url: one line each, nothing is made."""
    writer.put("conversation:a", x=1)
    assert "Both are" in agentstate("copy", url, url).err
    absent = agentstate("copy", f"sqlite:///{directory}/absent.db", f"sqlite:///{directory}/new.db")
    assert absent.code == 69
    assert not (directory / "absent.db").exists()
    assert not (directory / "new.db").exists()
    assert "nonsense://" in agentstate("copy", url, "nonsense://x").err
