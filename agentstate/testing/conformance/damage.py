"""Stored bytes that are not what was written: said, or decoded the same, never made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from agentstate.errors import DamagedStateError, NewerFormatError, StateError
from agentstate.storage.protocol import Append, Increment, Put
from agentstate.testing.conformance.case import A, B, StorageCase, commit, offered, picture, put, read

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentstate.storage.protocol import Storage
    from agentstate.testing.clock import FakeClock
    from agentstate.testing.conformance.case import Damage, MakeNewer

SEEDS = 10


class DamageTests(StorageCase):
    """Damaged and newer records, where the backend's test class offers to make them."""

    @pytest.mark.parametrize("seed", range(SEEDS))
    @pytest.mark.parametrize("how", ["flip", "cut"])
    async def test_damaged(
        self,
        storage: Storage,
        clock: FakeClock,
        another: Callable[..., Awaitable[Storage]],
        damage: Damage | None,
        how: Literal["flip", "cut"],
        seed: int,
    ) -> None:
        """A damaged state raises `DamagedStateError` or comes back as it was; other states are untouched."""
        offered(damage, "damage")
        assert damage is not None
        shown = await _filled(storage)
        neighbour = await picture(storage, B)
        await storage.close()
        done = damage(A, how, seed)
        again = await another(clock)
        await _says_or_same(again, shown, done)
        assert await picture(again, B) == neighbour
        await commit(again, B, puts=[Put("variables", "k", b"goes on")])

    @pytest.mark.parametrize("seed", range(3))
    async def test_damage_isnt_written_over(
        self,
        storage: Storage,
        clock: FakeClock,
        another: Callable[..., Awaitable[Storage]],
        damage: Damage | None,
        seed: int,
    ) -> None:
        """A commit to a damaged state is refused, or builds on what really was there."""
        offered(damage, "damage")
        assert damage is not None
        shown = await _filled(storage)
        await storage.close()
        done = damage(A, "flip", seed)
        again = await another(clock)
        try:
            await commit(again, puts=[Put("variables", "new", b"!")])
            found = await read(again)
        except DamagedStateError:
            return
        assert {at: entry.value for at, entry in found.entries.items() if at != ("variables", "new")} == {
            at: entry.value for at, entry in shown["entries"].items()
        }, done

    async def test_newer(
        self,
        storage: Storage,
        clock: FakeClock,
        another: Callable[..., Awaitable[Storage]],
        make_newer: MakeNewer | None,
    ) -> None:
        """What a newer release wrote is refused, for reading and for writing, and left as it is."""
        offered(make_newer, "make_newer")
        assert make_newer is not None
        await put(storage, k=b"1")
        await storage.close()
        make_newer(A)
        for call in (read, commit):
            with pytest.raises(NewerFormatError):
                await call(await another(clock), A)


async def _filled(storage: Storage) -> dict[str, Any]:
    for number in range(6):
        await commit(
            storage,
            puts=[Put("variables", f"k{number}", b"value %d " % number * 20)],
            increments=[Increment("variables", "n", number)],
            appends=[Append("history", f"m-{number}", b"item %d " % number * 20, unique=True)],
            owner="ada",
            record=b"record %d" % number,
        )
    await put(storage, B, k=b"neighbour")
    return await picture(storage)


async def _says_or_same(storage: Storage, shown: dict[str, Any], done: str) -> None:
    try:
        found = await picture(storage)
    except DamagedStateError:
        return
    except StateError as error:
        raise AssertionError(f"{done}: {error!r} instead of DamagedStateError") from error
    assert found == shown, f"{done}: another state came back, without an error"
