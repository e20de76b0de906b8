"""Servers that do the handshake wrong, or never: opening fails in time, with words that say why."""

from __future__ import annotations

from struct import pack

import pytest

from hostile_nbd import GO_INFO, Script, open_store, refuse_tls, refuse_to_open
from scripted_nbd import (
    HAS_FLAGS,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    OPT_ABORT,
    OPT_GO,
    OPT_STARTTLS,
    READ_ONLY,
    REP_ACK,
    REP_ERR_POLICY,
    REP_ERR_TLS_REQD,
    REP_ERR_UNKNOWN,
    REP_INFO,
    REPLY_MAGIC,
    Connection,
    ScriptedNbd,
)
from umappy.errors import StoreNotFoundError, StorePermissionError, StoreTimeoutError


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no NBD server"),
        (b"\0" * 18, "no NBD server"),
        (b"NBDMAGIC" + pack(">Q", 0x00420281861253) + b"\0" * 140, "no NBD server"),  # the old style
        (b"NBDMAGICIHAVEOPT" + pack(">H", 0), "old dialect"),
        (b"NBDMAG", "closed the connection"),
        (b"", "closed the connection"),
    ],
)
def test_open_of_what_greets_otherwise_is_refused(greeting: bytes, said: str) -> None:
    refuse_to_open(lambda c: c.send(greeting), said)


def answer_go(*answers: tuple[int, bytes]) -> Script:
    def talk(c: Connection) -> None:
        c.greet()
        option = c.wait_for_option(OPT_GO)
        for kind, data in answers:
            c.answer(option, kind, data)
        c.stay_silent()

    return talk


def send_to_go(data: bytes) -> Script:
    def talk(c: Connection) -> None:
        c.greet()
        c.wait_for_option(OPT_GO)
        c.send(data)
        c.stay_silent()

    return talk


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (answer_go((REP_ACK, b"")), "did not tell its size"),
        (answer_go((REP_INFO, b"")), "0 bytes"),
        (answer_go((REP_INFO, b"\0")), "1 bytes"),
        (answer_go((REP_INFO, GO_INFO[:-1])), "11 bytes"),
        (answer_go((REP_INFO, GO_INFO + b"\0")), "13 bytes"),
        (answer_go((REP_INFO, pack(">HQH", INFO_EXPORT, 1 << 63, HAS_FLAGS)), (REP_ACK, b"")), str(1 << 63)),
        (answer_go((REP_INFO, pack(">HQH", INFO_EXPORT, (1 << 64) - 1, 1)), (REP_ACK, b"")), str((1 << 64) - 1)),
        (answer_go((REP_INFO, pack(">HII", INFO_BLOCK_SIZE, 1, 2))), "10 bytes"),
        (answer_go((77, b"")), "0x4d"),
        (answer_go((0x80001234, b"because")), "because"),
        (send_to_go(pack(">QIII", REPLY_MAGIC + 1, OPT_GO, REP_ACK, 0)), "begins with"),
        (send_to_go(pack(">QIII", REPLY_MAGIC, OPT_STARTTLS, REP_ACK, 0)), "for option 5"),
        (send_to_go(pack(">QIII", REPLY_MAGIC, OPT_GO, REP_INFO, 0xFFFFFFFF)), "4294967295 bytes"),
        (send_to_go(pack(">QIII", REPLY_MAGIC, OPT_GO, REP_INFO, 1 << 20) + b"x"), "1048576 bytes"),
        (answer_go(*[(REP_INFO, pack(">H", 9))] * 100000), "more than"),
    ],
)
def test_open_with_an_answer_that_makes_no_sense_is_refused(script: Script, said: str) -> None:
    refuse_to_open(script, said)


@pytest.mark.parametrize(
    "blocks", [(0, 4096, 1 << 20), (3, 4096, 1 << 20), (512, 1000, 1 << 20), (512, 256, 1 << 20), (4096, 4096, 512)]
)
def test_open_with_block_sizes_that_make_no_sense_is_refused(blocks: tuple[int, int, int]) -> None:
    refuse_to_open(lambda c: c.negotiate(blocks=blocks), "block sizes make no sense")


def test_open_of_an_export_that_is_not_there_tells_so() -> None:
    error = refuse_to_open(answer_go((REP_ERR_UNKNOWN, b"no such disk")), "no such disk", StoreNotFoundError)
    assert error.op == "open"


def test_open_of_a_server_that_wants_tls_names_the_scheme() -> None:
    refuse_to_open(answer_go((REP_ERR_TLS_REQD, b"")), "nbds", StorePermissionError)


def test_open_words_of_the_server_are_not_passed_on_where_they_could_fool_a_terminal() -> None:
    error = refuse_to_open(answer_go((REP_ERR_POLICY, b"\x1b[2Jgo away")), "policy")
    assert "\x1b" not in str(error)


def test_open_for_writing_of_a_read_only_export_is_refused() -> None:
    with (
        ScriptedNbd(lambda c: c.negotiate(flags=HAS_FLAGS | READ_ONLY)) as server,
        pytest.raises(StorePermissionError, match="read-only"),
    ):
        open_store(server, "r+")


def test_open_without_tls_of_nbds_is_refused_and_nothing_more_is_said() -> None:
    def talk(c: Connection) -> None:
        c.greet()
        c.answer(c.receive_option(), REP_ERR_POLICY)
        while True:
            c.receive_option()

    connections = refuse_tls(talk, "nothing is sent without it")
    assert len(connections) >= 1
    for connection in connections:
        said = [option.number for option in connection.options if option.number != OPT_ABORT]
        assert said == [OPT_STARTTLS]


def test_open_with_tls_that_never_begins_ends_in_time() -> None:
    def talk(c: Connection) -> None:
        c.greet()
        c.answer(c.receive_option(), REP_ACK)
        c.stay_silent()

    refuse_tls(talk, "TLS", StoreTimeoutError)


def test_open_bytes_before_the_tls_handshake_are_not_taken_for_answers() -> None:
    """Who stands between may put plain answers behind the acknowledgement."""

    def talk(c: Connection) -> None:
        c.greet()
        option = c.receive_option()
        ack = pack(">QIII", REPLY_MAGIC, OPT_STARTTLS, REP_ACK, 0)
        go = pack(">QIII", REPLY_MAGIC, OPT_GO, REP_INFO, len(GO_INFO)) + GO_INFO
        assert option.number == OPT_STARTTLS
        c.send(ack + go + pack(">QIII", REPLY_MAGIC, OPT_GO, REP_ACK, 0))
        c.stay_silent()

    refuse_tls(talk, "TLS")


def test_open_of_a_silent_server_ends_in_time() -> None:
    refuse_to_open(Connection.stay_silent, "says nothing", StoreTimeoutError)


def test_open_of_a_server_that_drips_ends_in_time() -> None:
    """Each byte comes soon enough; all of them would take a minute."""

    def talk(c: Connection) -> None:
        c.greet()
        option = c.wait_for_option(OPT_GO)
        for _ in range(1000):
            c.drip(pack(">QIII", REPLY_MAGIC, option.number, REP_INFO, 2) + pack(">H", 9), seconds=0.02)

    refuse_to_open(talk, "says nothing", StoreTimeoutError)


def test_open_of_a_server_that_ends_anywhere_in_the_handshake_is_refused() -> None:
    sent = 0

    def count(c: Connection) -> None:
        nonlocal sent
        c.limit = 1 << 20
        c.negotiate(blocks=(1, 4096, 1 << 20))
        sent = (1 << 20) - c.limit
        c.stay_silent()

    with ScriptedNbd(count) as server:
        open_store(server).close()
    assert sent > 100

    for end in range(sent):

        def talk(c: Connection, end: int = end) -> None:
            c.limit = end
            c.negotiate(blocks=(1, 4096, 1 << 20))

        refuse_to_open(talk, "closed the connection")
