import pytest

from cocoon.sql import named_statements


def test_statements_are_found_by_name_with_their_comments() -> None:
    text = "-- What this file is.\n\n-- name: first\n-- Why.\nSELECT 1;\n\n-- name: second_one \r\nSELECT 2\n"

    assert named_statements(text) == {"first": "-- Why.\nSELECT 1;", "second_one": "SELECT 2"}


def test_an_empty_file_has_none() -> None:
    assert named_statements("") == {}


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1;\n-- name: a\nSELECT 2",
        "-- name: a\n\n-- name: b\nSELECT 1",
        "-- name: a\n-- only a comment\n-- name: b\nSELECT 1",
        "-- name: a\nSELECT 1\n-- name: a\nSELECT 2",
        "-- name: a\nSELECT 1\n-- name: Second\nSELECT 2",
        "-- name: a\nSELECT 1\n--name: b\nSELECT 2",
        "-- name: a\nSELECT 1\n-- Name: b\nSELECT 2",
        "-- name: a\nSELECT 1\n  -- name: b\nSELECT 2",
        "-- name: a b\nSELECT 1",
        "-- name: \nSELECT 1",
        "-- name: a",
    ],
)
def test_a_file_that_says_something_else_than_it_seems_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        named_statements(text)
