"""A server that answers in any order and pieces, and does wrong now and then."""

from __future__ import annotations

import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from struct import pack

import pytest

from hostile_nbd import PATIENCE_SECONDS, SHORT_SECONDS
from scripted_nbd import (
    HAS_FLAGS,
    MULTI_CONN,
    READ,
    SEND_FLUSH,
    SIMPLE_MAGIC,
    SIZE,
    TYPE_HOLE,
    TYPE_NONE,
    WRITE,
    ClientGoneError,
    Connection,
    Request,
    ScriptedNbd,
)
from umappy.stores import NbdStore


class Chaos:
    """Keeps to the protocol in every way that it leaves open, and now and then (`evil`) does not, which ends a
    connection: pieces of replies in any order and between each other, as data or as holes."""

    def __init__(self, seed: int, evil: float) -> None:
        self.image = bytearray(SIZE)
        self._chance = random.Random(seed)
        self._evil = evil
        self._lock = threading.Lock()

    def talk(self, c: Connection) -> None:
        with self._lock:
            chance = random.Random(self._chance.random())
        c.negotiate(flags=HAS_FLAGS | SEND_FLUSH | MULTI_CONN)
        pending: list[tuple[Request, list[tuple[int, int]]]] = []
        while True:
            # Requests wait for each other now and then, so that there is something to mix.
            while c.is_asked(0 if pending and chance.random() < 0.7 else 0.01 if pending else 1):
                pending.append(self._take(c.receive_request(), chance))
            if not pending:
                continue
            if chance.random() < self._evil:
                self._harm(c, chance)
            place = chance.randrange(len(pending))
            if self._answer(c, *pending[place], chance):
                pending.pop(place)

    def _take(self, r: Request, chance: random.Random) -> tuple[Request, list[tuple[int, int]]]:
        """A request and the pieces that its reply will have."""
        if r.kind == WRITE:
            self.image[r.offset : r.offset + r.length] = r.data
        if r.kind != READ:
            return r, []
        cuts = sorted({0, r.length, *(chance.randrange(r.length) for _ in range(chance.choice([0, 0, 1, 5])))})
        pieces = list(itertools.pairwise(cuts))
        chance.shuffle(pieces)
        return r, pieces

    def _answer(self, c: Connection, r: Request, pieces: list[tuple[int, int]], chance: random.Random) -> bool:
        """Sends one more piece; whether it was the last."""
        if r.kind != READ:
            c.send_simple(r)
            return True
        start, end = pieces.pop()
        done = not pieces and chance.random() < 0.5
        content = bytes(self.image[r.offset + start : r.offset + end])
        if any(content):
            c.send_data(r, start, content, done=done)
        else:
            c.send_chunk(r, TYPE_HOLE, pack(">QI", r.offset + start, end - start), done=done)
        if not pieces and not done:
            c.send_chunk(r, TYPE_NONE, b"", done=True)
        return not pieces

    def _harm(self, c: Connection, chance: random.Random) -> None:
        c.send(chance.choice([b"", chance.randbytes(40), pack(">IIQ", SIMPLE_MAGIC, 0, chance.getrandbits(64))]))
        raise ClientGoneError


@pytest.mark.stress
@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("evil", [0, 0.003])
def test_replies_in_any_order_and_pieces_give_every_reader_its_bytes(
    connections: int, evil: float, stress_seconds: float
) -> None:
    threads, block = 4, 8192
    chaos = Chaos(seed := random.getrandbits(32), evil)
    end = time.monotonic() + stress_seconds

    def work(store: NbdStore, number: int) -> int:
        """Every fourth block is this thread's own."""
        chance = random.Random(seed + number)
        oracle = {place: bytes(block) for place in range(number, SIZE // block, threads)}
        turns = 0
        while time.monotonic() < end:
            place = chance.choice(list(oracle))
            if chance.random() < 0.3:
                oracle[place] = chance.randbytes(block) if chance.random() < 0.7 else bytes(block)
                store.write(place * block, oracle[place])
            elif chance.random() < 0.03:
                store.flush()
            else:
                start = chance.randrange(block)
                buffer = bytearray(chance.randint(1, block - start))
                store.read_into(place * block + start, buffer)
                assert buffer == oracle[place][start : start + len(buffer)], f"seed {seed}, thread {number}"
            turns += 1
        return turns

    with (
        ScriptedNbd(chaos.talk) as server,
        NbdStore(
            server.uri, "r+", connections=connections, timeout_seconds=SHORT_SECONDS, retry_seconds=PATIENCE_SECONDS
        ) as store,
        ThreadPoolExecutor(threads) as pool,
    ):
        turns = sum(pool.map(work, [store] * threads, range(threads)))
        assert turns > 4
        assert evil or store.info().reconnects == 0, f"seed {seed}"
