"""Commands that docs show are commands that there are, with the options that they take."""

import pathlib
import re
from collections.abc import Iterator

import click

from cli.main import main

ROOT = pathlib.Path(__file__).parents[2]
WORD = re.compile(r"[a-z][a-z|-]*")


def pages() -> list[pathlib.Path]:
    return [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


def shown(text: str) -> Iterator[str]:
    """What stands in code: a line each of blocks, fenced or indented, and spans between backticks."""
    fenced = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    blocks = [*fenced.findall(text), *re.findall(r"(?:^ {4,}\S.*\n)+", text, re.MULTILINE)]
    for block in blocks:
        yield from block.replace("\\\n", " ").splitlines()
    for span in re.findall(r"`([^`]+)`", fenced.sub("", text)):
        yield " ".join(span.split())


def commands(line: str) -> list[str]:
    """What is said to `cocoon` in a line, without its comment."""
    found = re.search(r"(?:^|[\s(])(?:\.venv/bin/)?cocoon ([a-z].*)", line.split(" #", maxsplit=1)[0])
    return [] if found is None else found[1].split()


def mistakes(words: list[str]) -> Iterator[str]:
    """A group's word that is none of its commands, and options that none of the commands that are meant takes."""
    meant: list[click.Command] = [main]
    while words and WORD.fullmatch(words[0]) and all(isinstance(command, click.Group) for command in meant):
        name, context = words.pop(0), click.Context(main)
        found = [
            command.get_command(context, part)
            for command in meant
            if isinstance(command, click.Group)
            for part in name.split("|")
        ]
        if None in found:
            yield name
            return
        meant = [command for command in found if command is not None]
    taken = {option for command in meant for parameter in command.params for option in parameter.opts}
    said = {option for word in words for option in re.findall(r"^\[?(--[a-z-]+)", word)}
    yield from said - taken - {"--help"}


def test_every_command_that_docs_show_is_there_with_its_options() -> None:
    checked, wrong = 0, list[tuple[str, str, str]]()
    for page in pages():
        for line in shown(page.read_text()):
            if words := commands(line):
                checked += 1
                wrong += [(page.name, line.strip(), mistake) for mistake in mistakes(words)]

    assert wrong == []
    assert checked > 100
