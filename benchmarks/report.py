"""What was measured, as a table for people, in the terminal and in Markdown."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(slots=True)
class Section:
    """One table. The last column may be ``ok`` or ``missed``: is the gate kept?"""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def add(self, *row: str) -> None:
        """Add a row."""
        self.rows.append(row)

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in self.rows:
            style = "red" if "missed" in row else None
            table.add_row(*row, style=style)
        console.print(table)

    def markdown(self) -> str:
        """Return it for a page."""
        line = "|".join(["---", *["--:" for _ in self.columns[1:]]])
        rows = [f"| {' | '.join(row)} |" for row in [self.columns, *self.rows]]
        return "\n".join([f"### {self.title}", "", rows[0], f"|{line}|", *rows[1:], ""])


def kept(good: bool) -> str:
    """Say whether a gate is kept."""
    return "ok" if good else "missed"


def machine(directory: Path) -> str:
    """Return what the figures depend on."""
    model = next(
        (line.partition(": ")[2] for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores of {model.strip()}, {platform.system()} "
        f"{platform.release().partition('-')[0]}, {platform.python_implementation()} {platform.python_version()}; "
        f"one fsync takes {_sync_cost(directory):.0f} µs here, a pass of a million empty loops {_loop_cost():.0f} ms"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _sync_cost(directory: Path) -> float:
    file = os.open(directory / "sync", os.O_CREAT | os.O_WRONLY, 0o600)
    times: list[float] = []
    for _ in range(100):
        os.write(file, b"x" * 300)
        begun = time.perf_counter()
        os.fdatasync(file)
        times.append(time.perf_counter() - begun)
    os.close(file)
    return median(times) * 1e6


def _loop_cost() -> float:
    begun = time.perf_counter()
    for _ in range(1_000_000):
        pass
    return (time.perf_counter() - begun) * 1e3


def write(page: Path, sections: Sequence[Section], heading: str) -> None:
    """Replace what stands between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = "\n".join([heading, "", *(section.markdown() for section in sections)])
    page.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")
