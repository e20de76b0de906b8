"""A server that forgets, hangs and disconnects on command, and stores of it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from forgetful_nbd import ForgetfulServer
from nbd_loss import RETRY, SIZE, TIMEOUT, OpenStore
from umappy.stores.nbd import NbdStore


@pytest.fixture
def server() -> Iterator[ForgetfulServer]:
    with ForgetfulServer(SIZE) as server:
        yield server


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    with ExitStack() as stack:

        def open_store(server: ForgetfulServer, mode: str = "r+", **options: Any) -> NbdStore:
            options = {"timeout_seconds": TIMEOUT, "retry_seconds": RETRY} | options
            return stack.enter_context(NbdStore(server.uri, mode, **options))

        yield open_store


@pytest.fixture
def store(server: ForgetfulServer, open_store: OpenStore) -> NbdStore:
    return open_store(server)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool
