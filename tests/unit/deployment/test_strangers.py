"""Places for connections whose callers are unknown."""

import asyncio

import pytest

from deployment import strangers
from deployment.strangers import Address, Strangers


@pytest.fixture(autouse=True)
def _two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "MOST", 2)
    monkeypatch.setattr(strangers, "GRACE", 0.05)


def address(number: int) -> Address:
    return ("192.0.2.1", number)


async def full(closed: list[int]) -> Strangers:
    """Both places are taken, by connections 1 and 2."""
    table = Strangers()
    for number in (1, 2):
        await table.place()
        table.add(address(number), lambda number=number: closed.append(number))
    return table


def test_the_oldest_leaves_after_its_grace() -> None:
    closed: list[int] = []

    async def flood() -> None:
        table = await full(closed)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(table.place(), strangers.GRACE / 5)
        assert closed == []
        await table.place()
        assert closed == [1] and len(table) == 1

    asyncio.run(flood())


@pytest.mark.parametrize("leaves", [1, 2])
def test_a_place_is_free_at_once_when_a_stranger_is_recognised_or_leaves(leaves: int) -> None:
    closed: list[int] = []

    async def visit() -> None:
        table = await full(closed)
        waiting = asyncio.create_task(table.place())
        await asyncio.sleep(0)
        table.recognise(address(leaves))
        await asyncio.wait_for(waiting, strangers.GRACE / 2)
        assert closed == [] and len(table) == 1

    asyncio.run(visit())


def test_the_last_function_given_closes_a_connection() -> None:
    closed: list[int] = []

    async def change() -> None:
        table = await full(closed)
        table.close_with(address(1), lambda: closed.append(10))
        table.close_with(address(9), lambda: closed.append(9))  # has left before
        await table.place()
        assert closed == [10]

    asyncio.run(change())
