import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umappy.sizes import SIZE_MAX, UNITS, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1KiB", 1024),
        ("256MiB", 256 * 1024**2),
        ("4GiB", 4 * 1024**3),
        ("8TiB", 8 * 1024**4),
        ("1kB", 1000),
        ("2MB", 2 * 10**6),
        ("3GB", 3 * 10**9),
        ("1TB", 10**12),
        ("1.5GiB", 1536 * 1024**2),
        ("0.1kB", 100),
        (" 64 KiB ", 65536),
    ],
)
def test_parse_size_text_gives_bytes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("number", [0, 1, 4096, SIZE_MAX, np.int64(7), np.uint32(7)])
def test_parse_size_integer_gives_int(number: int) -> None:
    assert parse_size(number) == int(number)
    assert type(parse_size(number)) is int


@pytest.mark.parametrize(
    ("text", "binary", "decimal"),
    [
        ("4K", "4KiB", "4kB"),
        ("4k", "4KiB", "4kB"),
        ("4KB", "4KiB", "4kB"),
        ("4M", "4MiB", "4MB"),
        ("4mb", "4MiB", "4MB"),
        ("1.5G", "1.5GiB", "1.5GB"),
        ("4gib", "4GiB", "4GB"),
        ("4T", "4TiB", "4TB"),
    ],
)
def test_parse_size_ambiguous_unit_names_both_spellings(text: str, binary: str, decimal: str) -> None:
    with pytest.raises(ValueError, match=rf"^memory is '{text}': write '{binary}' .* or '{decimal}' "):
        parse_size(text, "memory")


@pytest.mark.parametrize("text", ["", "GiB", "4 GiB of it", "-1", "-4GiB", "1e9", "0x10", "1_000", "4PiB", "nan", "٤"])
def test_parse_size_text_that_is_no_size_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"^size is '"):
        parse_size(text)


def test_parse_size_fraction_of_a_byte_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r"'1.0001kB': that is 1000.1 bytes"):
        parse_size("1.0001kB")


@pytest.mark.parametrize("number", [-1, SIZE_MAX + 1, "8388608TiB"])
def test_parse_size_out_of_range_raises_value_error(number: int | str) -> None:
    with pytest.raises(ValueError, match=r"less than 2\*\*63"):
        parse_size(number)


@pytest.mark.parametrize("value", [True, 1.5, None, b"4GiB", [4]])
def test_parse_size_other_type_raises_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="wants bytes as an int or a str"):
        parse_size(value)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (256 << 20, "256 MiB"),
        (10**9, "953.7 MiB"),
        (8 << 40, "8 TiB"),
        (1 << 52, "4096 TiB"),
    ],
)
def test_format_size_gives_at_most_one_decimal(count: int, text: str) -> None:
    assert format_size(count) == text


def test_format_size_below_zero_raises_value_error() -> None:
    with pytest.raises(ValueError, match="count is -1"):
        format_size(-1)


@given(st.integers(0, SIZE_MAX // 2))
def test_format_size_any_count_is_near_what_it_says(count: int) -> None:
    number, unit = format_size(count).split()
    assert abs(float(number) * UNITS[unit] - count) <= 0.05 * UNITS[unit] + count * 1e-12


@given(st.integers(0, 1023), st.sampled_from([1, 1 << 10, 1 << 20, 1 << 30, 1 << 40]))
def test_format_size_round_count_reads_back(number: int, factor: int) -> None:
    assert parse_size(format_size(number * factor)) == number * factor
