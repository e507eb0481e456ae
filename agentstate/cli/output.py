"""What commands print: tables for people, stable JSON for programs, nothing that a terminal would obey.

Ids and values are data that anybody may have stored, so control characters are shown escaped.
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from rich.console import Console

__all__ = ["console", "counting", "iso", "print_json", "progressing", "safe", "size", "table"]

WIDE: Final = 100_000


def safe(text: str) -> str:
    """Return the text with everything unprintable escaped."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def iso(seconds: float | None) -> str | None:
    """Return a moment as ISO 8601 in UTC, to the second."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(count: int) -> str:
    """Return a number of bytes as people write it."""
    from rich.filesize import decimal

    return decimal(count)


def console(*, stderr: bool = False) -> Console:
    """Return a console; one that isn't a terminal is as wide as it takes, so that nothing is cut."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else WIDE)


@contextmanager
def counting(what: str) -> Generator[Callable[[int], None]]:
    """Count on the terminal while inside; yields what adds to the count. Elsewhere nothing is shown."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    screen = console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}: {task.completed}"), TimeElapsedColumn()
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda more: bar.advance(task, more)


@contextmanager
def progressing(what: str, total: int) -> Generator[Callable[[int], None]]:
    """Show a bar on the terminal while inside; yields what moves it on. Elsewhere nothing is shown."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under headings; no line for headings that are all empty."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(headings))
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    for row in rows:
        grid.add_row(*(Text("-" if one is None else safe(str(one))) for one in row))
    screen = console()
    with screen.capture() as captured:
        screen.print(grid)
    for line in captured.get().splitlines():
        sys.stdout.write(f"{line.rstrip()}\n")


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document. ASCII only, so that it survives every pipe and terminal."""
    sys.stdout.write(json.dumps(_jsonable(document), indent=2) + "\n")


def _jsonable(value: Any) -> Any:
    """Return the value in JSON types; what JSON lacks becomes text (bytes: base64)."""
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return {str(key): _jsonable(one) for key, one in items}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_jsonable(one) for one in cast("Iterable[object]", value)]
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, (bytes, bytearray)):
        return b64encode(value).decode()
    return value.isoformat() if isinstance(value, (date, time)) else str(value)
