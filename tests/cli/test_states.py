"""``agentstate ls``, ``show`` and ``cleanup`` on real storages."""

import asyncio
import json
import re
import sys

import pytest

from agentstate import codec
from agentstate.scope import StateScope
from agentstate.storage import registry
from agentstate.storage.protocol import LeaseRequest, Wants

HOUR = 3600.0


def test_ls(agentstate, writer, url):
    """All states with owner, version, age and size; filters narrow it down."""
    writer.put("conversation:a", owner="bob", name="Ann", messages=[("user", "hi"), ("assistant", "ho")])
    writer.put("conversation:ab", age=48 * HOUR)
    writer.put("user:bob", ttl=HOUR, x=1)
    document = agentstate("ls", "--url", url, "--json").json
    assert [one["scope"] for one in document["scopes"]] == ["conversation:a", "conversation:ab", "user:bob"]
    assert (document["count"], document["truncated"], document["cursor"]) == (3, False, None)
    first, _, last = document["scopes"]
    assert (first["owner"], first["version"], first["logs"]) == ("bob", 1, {"history": 2})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["updated_at"])
    assert first["expires_at"] is None
    assert last["expires_at"] > first["updated_at"]

    def ids(*args):
        return [one["scope"] for one in agentstate("ls", "--url", url, "--json", *args).json["scopes"]]

    assert ids("--kind", "user") == ["user:bob"]
    assert ids("--kind", "conversation", "--prefix", "ab") == ["conversation:ab"]
    assert ids("--user", "bob") == ["conversation:a"]
    assert ids("--updated-before", "24h") == ["conversation:ab"]
    assert ids("--updated-after", "1d") == ["conversation:a", "user:bob"]
    assert ids("--order", "updated")[0] == "conversation:ab"
    assert ids("--reverse")[0] == "user:bob"
    assert ids("--tenant", "acme") == []
    plain = agentstate("ls", "--url", url)
    assert plain.out.splitlines()[0].split() == ["STATE", "OWNER", "VERSION", "UPDATED", "EXPIRES", "SIZE", "MESSAGES"]
    assert plain.out.splitlines()[1].split()[:3] == ["conversation:a", "bob", "1"]


def test_ls_in_pages(agentstate, writer, url):
    """A limit says that there is more, and the cursor goes on."""
    for n in range(5):
        writer.put(f"conversation:{n}")
    page = agentstate("ls", "--url", url, "--limit", 2, "--json").json
    assert (page["count"], page["truncated"]) == (2, True)
    rest = agentstate("ls", "--url", url, "--limit", 10, "--cursor", page["cursor"], "--json").json
    assert [one["id"] for one in page["scopes"] + rest["scopes"]] == ["0", "1", "2", "3", "4"]
    assert "There are more: --limit, or --cursor" in agentstate("ls", "--url", url, "--limit", 2).err


def test_hostile_ids_do_not_reach_the_terminal(agentstate, writer, url):
    """Escape sequences and markup in ids and values are shown, not obeyed."""
    writer.put(StateScope.conversation("\x1b[31mred\x9b[bold]x[/bold]\n:smile:"), note="\x1b]0;title\x07")
    for result in (
        agentstate("ls", "--url", url),
        agentstate("show", "--url", url, "\x1b[31mred\x9b[bold]x[/bold]\n:smile:"),
    ):
        assert result.code == 0
        assert "\x1b" not in result.out
        assert "\x9b" not in result.out
        assert r"\x1b[31mred\x9b[bold]x[/bold]\n:smile:" in result.out


def test_long_ids_are_not_cut(agentstate, writer, url):
    """What goes through a pipe is whole."""
    writer.put(f"conversation:{'x' * 512}")
    assert "x" * 512 in agentstate("ls", "--url", url).out


def test_show(agentstate, writer, url):
    """Variables, metadata, last messages, owner, version, expiry; a bare id is a conversation's."""
    writer.put(
        "conversation:c-1",
        owner="bob",
        ttl=HOUR,
        name="Ann",
        when=(1, 2),
        counters=[("visits", 3)],
        messages=[("user", f"message {n}") for n in range(15)],
    )
    shown = agentstate("show", "c-1", "--url", url, "--json").json
    assert shown["scope"] == "conversation:c-1"
    assert (shown["owner"], shown["version"], shown["damaged"]) == ("bob", 1, [])
    assert shown["sections"] == {"variables": {"name": "Ann", "visits": 3, "when": [1, 2]}}
    assert [one["content"] for one in shown["messages"]] == [f"message {n}" for n in range(5, 15)]
    assert (shown["message_count"], shown["truncated"]) == (15, True)
    assert shown["expires_at"] > shown["updated_at"]
    few = agentstate("show", "conversation:c-1", "--messages", 2, "--url", url)
    assert few.code == 0
    assert "last 2 of 15 messages" in few.out
    assert "message 14" in few.out
    assert "message 12" not in few.out
    whole = agentstate("show", "c-1", "--messages", 100, "--url", url, "--json").json
    assert whole["truncated"] is False


def test_show_finds_any_scope(agentstate, writer, url):
    """By kind and id, in a tenant, and ids that look like scopes by their full address."""
    writer.put("user:7", who="user")
    writer.put("global", who="global")
    writer.put("@acme/user:7", who="acme")
    writer.put("conversation:user:7", who="conversation")
    writer.put("conversation:x:y", who="colon")
    for args, who in (
        (["user:7"], "user"),
        (["global"], "global"),
        (["@acme/user:7"], "acme"),
        (["user:7", "--tenant", "acme"], "acme"),
        (["conversation:user:7"], "conversation"),
        (["x:y"], "colon"),
    ):
        assert agentstate("show", *args, "--url", url, "--json").json["sections"] == {"variables": {"who": who}}


def test_show_of_a_large_state(agentstate, writer, url):
    """All variables, also when they don't come with the first read."""
    writer.put("conversation:big", **{f"k{n:03}": "x" * 1000 for n in range(100)})
    shown = agentstate("show", "big", "--url", url, "--json").json
    assert len(shown["sections"]["variables"]) == 100
    assert shown["truncated"] is False


def test_show_of_what_cannot_be_read(agentstate, writer, url):
    """Damaged values are named, the rest is shown, and the code says data; unknown types are only named."""
    writer.put("conversation:c", good=1, raw=[("bad", b'{"open')])
    result = agentstate("show", "c", "--url", url, "--json")
    assert result.code == 65
    assert result.json["sections"]["variables"]["good"] == 1
    assert "no JSON" in result.json["sections"]["variables"]["bad"]["unreadable"]
    assert result.json["damaged"][0].startswith("variables 'bad': ")


def test_nothing_there(agentstate, place, directory):
    """A place where nothing was ever stored stays untouched."""
    for args in (["ls"], ["show", "x"], ["cleanup", "--older-than", "1h"]):
        result = agentstate(*args, "--url", place)
        assert result.code == 69
        assert re.fullmatch(
            r"agentstate: There is no state in .* yet\. Name another place by --url or --config\.\n", result.err
        )
    assert list(directory.iterdir()) == []


def test_show_of_an_absent_state(agentstate, writer, url):
    """One line that says where it was looked for."""
    writer.put("conversation:a")
    result = agentstate("show", "b", "--url", url)
    assert result.code == 65
    assert result.err.startswith("agentstate: There is no state conversation:b in ")


def test_cleanup(agentstate, writer, url):
    """Old conversations go, young ones and other kinds stay; a dry run only counts."""
    for n in range(120):
        writer.put(f"conversation:old-{n}", age=48 * HOUR)
    writer.put("conversation:young", age=HOUR)
    writer.put("user:old", age=48 * HOUR)
    dry = agentstate("cleanup", "--older-than", "24h", "--dry-run", "--url", url)
    assert dry.out == "120 would be dropped.\n"
    assert agentstate("ls", "--url", url, "--json").json["count"] == 100
    wet = agentstate("cleanup", "--older-than", "24h", "--url", url, "--json")
    assert wet.code == 0
    assert wet.json == {"dropped": 120, "kept": 0, "expired": 0, "dry_run": False}
    left = [one["scope"] for one in agentstate("ls", "--url", url, "--json").json["scopes"]]
    assert left == ["conversation:young", "user:old"]
    assert agentstate("cleanup", "--older-than", "1d", "--kind", "all", "--url", url).out == "1 dropped.\n"


def test_cleanup_keeps_what_is_in_use(writer, url):
    """A state whose turn somebody holds is left alone, by a process of its own."""
    writer.put("conversation:busy", age=48 * HOUR)
    writer.put("conversation:idle", age=48 * HOUR)
    storage = registry.create(registry.backend_for_url(url), {"url": url})

    async def hold():
        request = LeaseRequest(nonce=7, seconds=60.0, holder="a test")
        held = await storage.read(StateScope.conversation("busy"), Wants(), lease=request)
        assert held.lease
        command = (sys.executable, "-m", "agentstate.cli", "cleanup", "--older-than", "24h", "--url", url, "--json")
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        await storage.close()
        return json.loads(out)

    assert asyncio.run(hold()) == {"dropped": 1, "kept": 1, "expired": 0, "dry_run": False}


def test_cleanup_sweeps_what_expired(agentstate, writer, url):
    """States whose ttl has run out are gone from the listing already; their bytes go here."""
    writer.put("conversation:gone", age=48 * HOUR, ttl=HOUR)
    result = agentstate("cleanup", "--older-than", "7d", "--url", url, "--json")
    assert result.json == {"dropped": 0, "kept": 0, "expired": 1, "dry_run": False}


def test_cleanup_narrows(agentstate, writer, url):
    """By prefix and owner."""
    writer.put("conversation:a-1", age=48 * HOUR, owner="bob")
    writer.put("conversation:a-2", age=48 * HOUR)
    writer.put("conversation:b-1", age=48 * HOUR)
    assert agentstate("cleanup", "--older-than", "1h", "--user", "bob", "--url", url, "--json").json["dropped"] == 1
    assert agentstate("cleanup", "--older-than", "1h", "--prefix", "a", "--url", url, "--json").json["dropped"] == 1
    assert [one["id"] for one in agentstate("ls", "--url", url, "--json").json["scopes"]] == ["b-1"]


def test_the_configuration_names_the_storage(agentstate, writer, url, directory):
    """Without --url the file's storage is used; --config names another file."""
    writer.put("conversation:here")
    (directory / "agent_config.yaml").write_text(f"state: {json.dumps({'url': url})}\n")
    assert agentstate("ls", "--json").json["count"] == 1
    (directory / "other.yaml").write_text("state: {backend: memory}\n")
    assert agentstate("ls", "--config", "other.yaml", "--json").json["count"] == 0
    assert agentstate("ls", "--backend", "memory", "--json").json["count"] == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"\x00\xff", "AP8="), ({1: (2, 3)}, {"1": [2, 3]}), (float("nan"), "nan"), ({"é": "\x1b"}, {"é": "\x1b"})],
)
def test_json_of_any_value(agentstate, writer, url, value, expected):
    """What JSON lacks becomes text, and what is printed is ASCII."""
    writer.put("conversation:c", raw=[("v", codec.encode(value))])
    result = agentstate("show", "c", "--url", url, "--json")
    assert result.json["sections"]["variables"]["v"] == expected
    assert result.out.isascii()
