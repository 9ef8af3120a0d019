"""Lines as a terminal would show them."""

from dmi_node.control.printed import Printed


def took(text: Printed, data: bytes, start: int | None = None, now: float = 0.0) -> list[str]:
    return list(text.take(text.offset if start is None else start, data, now))


def test_lines_end_where_they_end_and_the_last_one_at_the_end() -> None:
    text = Printed()
    assert took(text, b"one\ntw") == ["one"]
    assert took(text, b"o\nthree") == ["two"]
    assert list(text.end()) == ["three"]
    assert list(text.end()) == []


def test_what_is_written_over_is_not_shown() -> None:
    text = Printed()
    assert took(text, b"\rimages 1/3\rimages 2/3") == []
    assert took(text, b"\rimages 3/3\ndone\r\n\n") == ["images 3/3", "done", ""]


def test_a_line_that_stands_is_shown_once_as_it_is() -> None:
    text = Printed()
    assert took(text, b"\r1/2", now=10.0) == []
    assert list(text.standing(10.5)) == []
    assert list(text.standing(11.5)) == ["1/2"]
    assert list(text.standing(20.0)) == []
    assert took(text, b"\r2/2", now=30.0) == []
    assert list(text.standing(31.5)) == ["2/2"]
    assert took(text, b"\nnext\n", now=40.0) == ["next"], "it was shown already"


def test_bytes_that_are_no_text_are_shown_somehow() -> None:
    text = Printed()
    assert took(text, b"caf\xe9 \xff\n") == ["caf� �"]


def test_what_was_given_up_is_told() -> None:
    text = Printed()
    assert took(text, b"begin\nhalf") == ["begin"]
    assert took(text, b"end\n", start=2_000_010) == ["half", "[2.0 MB are left out here]", "end"]


def test_a_line_without_an_end_has_a_bound() -> None:
    text = Printed()
    assert [len(line) for line in took(text, b"x" * 70_000)] == [70_000]
