"""One API server for all tests here, emptied before each: to start one takes longer than most of them."""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from controller.local.kube import ApiServer, running_api_server
from tests.controller.cluster import Cluster


@pytest.fixture(scope="session")
def shared_api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    started: queue.Queue[ApiServer | BaseException] = queue.Queue()
    over = threading.Event()

    async def serve() -> None:
        async with running_api_server(tmp_path_factory.mktemp("kube") / "server") as server:
            started.put(server)
            await trio.to_thread.run_sync(over.wait)

    def run() -> None:
        try:
            trio.run(serve)
        except BaseException as error:  # noqa: BLE001 - told to who waits
            started.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    found = started.get(timeout=90)
    if isinstance(found, BaseException):
        raise found
    yield found
    over.set()
    thread.join()


@pytest.fixture
async def cluster(shared_api_server: ApiServer) -> AsyncIterator[Cluster]:
    with shared_api_server.client as api:
        found = Cluster(shared_api_server, api)
        await found.prepare()
        yield found
