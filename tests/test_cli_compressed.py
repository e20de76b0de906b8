"""The commands for compressed files: pack, cat, verify, info."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

import umappy
from umappy.__main__ import main
from umappy.stores import ZstdStore
from umappy.stores.testing import read
from zst_files import decode_by_tool, make_data, make_frames, read_by_pyzstd

SIZE = 3_000_001
DATA = make_data(SIZE)
UMAPPY = (sys.executable, "-m", "umappy")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def run_process(*arguments: object, data: bytes | None = None, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [*UMAPPY, *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, timeout=60, check=False, **options)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def packed(plain: Path, tmp_path: Path) -> Path:
    path = tmp_path / "x.zst"
    assert run("pack", plain, path, "--quiet") == 0
    return path


def test_pack_of_a_plain_file_is_what_zstd_decodes(packed: Path, plain: Path) -> None:
    assert decode_by_tool(packed) == DATA
    assert plain.read_bytes() == DATA
    with ZstdStore(packed) as store:
        assert store.packed


def test_pack_of_a_written_file_gives_what_it_holds_now(packed: Path, tmp_path: Path) -> None:
    with ZstdStore(packed, "r+") as store:
        store.write(1_000_000, b"new" * 1000)
        store.flush()
    wanted = bytearray(DATA)
    wanted[1_000_000:1_003_000] = b"new" * 1000
    assert decode_by_tool(packed) == DATA
    assert run("pack", packed, tmp_path / "y.zst") == 0
    assert decode_by_tool(tmp_path / "y.zst") == wanted


def test_pack_in_place_frees_what_is_dead(packed: Path) -> None:
    with ZstdStore(packed, "r+") as store:
        store.write(0, bytes(SIZE))
        store.flush()
    before = packed.stat().st_size
    assert run("pack", packed, packed) == 0
    assert packed.stat().st_size < before // 10
    assert decode_by_tool(packed) == bytes(SIZE)


def test_pack_in_place_while_somebody_writes_is_refused(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ZstdStore(packed, "r+") as store:
        assert run("pack", packed, packed) == 1
        assert "somebody else" in capsys.readouterr().err
        store.write(0, b"still here")
        store.flush()
    with ZstdStore(packed) as store:
        assert read(store, 0, 10) == b"still here"


@pytest.mark.parametrize("kind", ["frames", "one frame", "without sizes", "long window"])
def test_pack_of_a_file_of_others_gives_their_image(tmp_path: Path, kind: str) -> None:
    source, target = tmp_path / "x.zst", tmp_path / "y.zst"
    if kind == "long window":
        parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, write_content_size=False)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        source.write_bytes(compressor.compress(DATA) + compressor.flush())
    else:
        size = SIZE if kind == "one frame" else 70_000
        source.write_bytes(b"".join(make_frames(DATA, size, write_content_size=kind != "without sizes")))
    assert run("pack", source, target) == 0
    assert decode_by_tool(target) == DATA
    with ZstdStore(target) as store:
        assert store.foreign is None


def test_pack_takes_level_and_page_size(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.zst"
    assert run("pack", plain, target, "--level", "-5", "--page-size", "4KiB") == 0
    with ZstdStore(target) as store:
        assert store.page_size == 4096
        assert store.info().level == -5
    again = tmp_path / "y.zst"
    assert run("pack", target, again) == 0
    with ZstdStore(again) as store:
        assert store.page_size == 4096
        assert store.info().level == -5
        assert read(store) == DATA


def test_pack_with_a_dictionary_keeps_it(plain: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_bytes(
        zstandard.train_dictionary(8192, [DATA[at : at + 3000] for at in range(0, SIZE, 3000)]).as_bytes()
    )
    target, again = tmp_path / "x.zst", tmp_path / "y.zst"
    assert run("pack", plain, target, "--dictionary", words, "--page-size", "4KiB") == 0
    assert decode_by_tool(target, "-D", str(words)) == DATA
    assert run("pack", target, again) == 0
    for path in (target, again):
        with ZstdStore(path) as store:
            assert store.read_dictionary() == words.read_bytes()
            assert read(store) == DATA


def test_pack_with_another_dictionary_puts_it_in_the_place_of_the_first(packed: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    for content in (DATA[:5000], DATA[5000:20_000]):
        words.write_bytes(content)
        assert run("pack", packed, packed, "--dictionary", words) == 0
        with ZstdStore(packed) as store:
            assert store.read_dictionary() == content
            assert read(store) == DATA


def test_pack_from_a_pipe_to_a_pipe_is_a_seekable_file(tmp_path: Path) -> None:
    done = run_process("pack", "-", "-", data=DATA)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "x.zst"
    path.write_bytes(done.stdout)
    assert decode_by_tool(path) == DATA
    assert read_by_pyzstd(path, [(1_234_567, 100)]) == [DATA[1_234_567:1_234_667]]


def test_pack_from_a_pipe_that_trickles_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.zst"
    command = [*UMAPPY, "pack", "-", str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for at in range(0, 100_000, 7001):
            process.stdin.write(DATA[at : min(at + 7001, 100_000)])
            process.stdin.flush()
        process.stdin.close()
        assert process.wait(60) == 0
    assert decode_by_tool(target) == DATA[:100_000]


def test_pack_of_compressed_bytes_from_a_pipe_is_refused(tmp_path: Path) -> None:
    done = run_process("pack", "-", tmp_path / "x.zst", data=zstandard.compress(DATA))
    assert done.returncode == 1
    assert b"is compressed" in done.stderr
    assert os.listdir(tmp_path) == []


def test_pack_of_nothing_is_an_empty_image(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert run("pack", tmp_path / "x", tmp_path / "x.zst") == 0
    assert decode_by_tool(tmp_path / "x.zst") == b""


def test_pack_does_not_replace_unless_told(
    packed: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain.write_bytes(b"other")
    assert run("pack", plain, packed) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert decode_by_tool(packed) == DATA
    assert run("pack", plain, packed, "--overwrite") == 0
    assert decode_by_tool(packed) == b"other"


def test_pack_of_a_plain_file_onto_itself_is_refused(plain: Path) -> None:
    assert run("pack", plain, plain) == 2
    assert plain.read_bytes() == DATA


def test_pack_of_a_damaged_file_leaves_no_result(packed: Path, tmp_path: Path) -> None:
    damage(packed)
    assert run("pack", packed, tmp_path / "y.zst", "--level", "5") == 1
    assert not (tmp_path / "y.zst").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"), [("--level", "0", "level is 0"), ("--page-size", "5000", "page_size is '5000'")]
)
def test_pack_with_a_wrong_option_names_it(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, words: str
) -> None:
    assert run("pack", plain, tmp_path / "x.zst", option, value) == 1
    assert words in capsys.readouterr().err


def test_pack_of_a_large_pipe_keeps_to_little_memory(tmp_path: Path) -> None:
    """Against a pipe of next to nothing: what differs is what the data took."""

    def measure(megabytes: int) -> int:
        code = f"import os; [os.write(1, os.urandom(1 << 20)) for _ in range({megabytes})]"
        source = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        target = subprocess.Popen([*UMAPPY, "pack", "-", str(tmp_path / f"{megabytes}.zst")], stdin=source.stdout)
        source.stdout.close()
        _, status, usage = os.wait4(target.pid, 0)
        target.returncode = os.waitstatus_to_exitcode(status)
        assert target.returncode == 0
        assert source.wait(60) == 0
        return usage.ru_maxrss << 10

    assert measure(300) - measure(1) < 60 << 20


def test_cat_gives_the_image_of_now(packed: Path) -> None:
    with ZstdStore(packed, "r+") as store:
        store.write(5, b"new")
        store.flush()
    done = run_process("cat", packed)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == DATA[:5] + b"new" + DATA[8:]


def test_cat_of_a_file_of_others_gives_its_image(tmp_path: Path) -> None:
    path = tmp_path / "x.zst"
    path.write_bytes(zstandard.compress(DATA * 7))
    assert run_process("cat", path).stdout == DATA * 7


def test_cat_into_a_pipe_that_closes_ends(packed: Path) -> None:
    command = f"{sys.executable} -m umappy cat {packed} | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert done.stdout == DATA[:10]
    assert b"Traceback" not in done.stderr


def test_cat_of_a_damaged_file_fails(packed: Path) -> None:
    damage(packed)
    done = run_process("cat", packed)
    assert done.returncode == 1
    assert str(packed).encode() in done.stderr


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_verify_of_a_whole_file_says_so(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", packed) == 0
    assert "whole" in capsys.readouterr().out
    assert run("verify", packed, "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_verify_of_a_damaged_file_names_the_page(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(packed)
    assert run("verify", packed) == 1
    lines = capsys.readouterr().out.splitlines()
    with ZstdStore(packed) as store:
        page = store.verify()[0][0]
    assert lines[0].startswith(f"page {page} (bytes {page * 65536} to {(page + 1) * 65536}):")
    assert lines[-1].endswith("1 damaged")


def test_verify_of_a_file_of_others_names_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.zst"
    path.write_bytes(b"".join(make_frames(DATA, 65_536, write_checksum=True)))
    assert run("verify", path) == 0
    damage(path)
    assert run("verify", path) == 1
    assert "does not decode" in capsys.readouterr().out


def test_verify_of_no_zstd_file_fails(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", plain) == 1
    assert "no zstd file" in capsys.readouterr().err


def test_info_tells_whether_it_is_packed_and_how_to(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", packed) == 0
    assert "Packed" in capsys.readouterr().out
    with ZstdStore(packed, "r+") as store:
        store.write(0, b"new")
        store.flush()
    assert run("info", packed) == 0
    out = capsys.readouterr().out
    assert f"umappy pack {packed} {packed}" in out
    assert f"({SIZE})" in out


def test_info_of_a_file_of_others_tells_what_to_expect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.zst"
    path.write_bytes(zstandard.compress(DATA))
    assert run("info", path) == 0
    out = capsys.readouterr().out
    assert "another program" in out
    assert "umappy pack" in out


def test_packed_npy_is_loaded_for_writing(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(10_000))
    assert run("pack", tmp_path / "x.npy", tmp_path / "x.npy.zst") == 0
    with umappy.Pager("6MiB", fillers=2, evictors=1) as pager:
        array = umappy.load(tmp_path / "x.npy.zst", "r+", pager=pager)
        array += 1
        assert (array == np.arange(1, 10_001)).all()
        del array
