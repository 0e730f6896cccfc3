from __future__ import annotations

import trio
from kubernetes.client import ApiClient
from trio.testing import MockClock

from controller.writing import Writer


async def test_no_more_calls_go_out_than_are_allowed_a_second(autojump_clock: MockClock) -> None:
    with ApiClient() as api:
        writer = Writer(api, 10)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(writer._in_turn)
        assert round(trio.current_time() - began, 3) == 0.5
        await trio.sleep(100)
        began = trio.current_time()
        await writer._in_turn()
        assert trio.current_time() == began, "who was idle does not wait"
