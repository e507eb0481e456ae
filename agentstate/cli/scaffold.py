"""Writes a skill into an agent's project: its handler, its test and its block of the configuration.

Everything is checked before the first file is written, no file is ever replaced but the
configuration (at once, by renaming), and what was written is taken back when a later step fails.
"""

from __future__ import annotations

import json
import keyword
import os
import re
import shutil
import unicodedata
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from agentstate.cli.insertion import INDENT, Entry, with_entry
from agentstate.config.discovery import FILES, Configuration
from agentstate.config.document import Node, load
from agentstate.config.handlers import HOLDERS, state_section
from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

    from agentstate.config.document import Document

__all__ = ["Skill", "Written", "create", "template_root"]

TITLE: Final = "My Skill"
NAME: Final = "my_skill"
LONGEST: Final = 60


class Skill(NamedTuple):
    """What to create.

    Attributes:
        title: as people call it.
        name: of the handler, its module and its block of the configuration.
        backend: where its state is kept; ``None``: it has none.
    """

    title: str
    name: str
    backend: str | None

    @classmethod
    def titled(cls, title: str, backend: str | None = None) -> Skill:
        """Return a skill whose name follows from its title.

        Raises:
            ConfigError: the title gives no Python name, or can't stand in a file.
        """
        title = " ".join(title.split())
        if not title.isprintable() or any(one in title for one in '"\\') or len(title) > LONGEST:
            raise ConfigError(
                f"{title[:LONGEST]!r} is no name for a skill.",
                remedy=f"Use up to {LONGEST} characters, without quotes and backslashes.",
            )
        plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
        name = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("test_"):
            raise ConfigError(
                f"{title!r} gives no name for a Python module" + (f": {name!r} can't be one." if name else "."),
                remedy="Begin with a Latin letter, and not with 'test'; take no word that Python has a meaning for.",
            )
        return cls(title, name, backend)


class Written(NamedTuple):
    """What happened in the project; paths are relative to it."""

    new: list[Path]
    changed: list[Path]


def template_root() -> Traversable:
    """Return the folder of templates: of the installed package, or of the checkout."""
    packaged = files("agentstate") / "_templates"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "templates"


def create(skill: Skill, project: Path) -> Written:
    """Write a skill into a project.

    Raises:
        ConfigError: a file or a block of that name is there, the configuration can't be read or
            added to, or the directory can't be written to; nothing was changed.
    """
    variant = template_root() / "skill" / ("stateful" if skill.backend else "stateless")
    new: dict[Path, str] = {}
    for path, template in _python_files(variant):
        target = project / path.with_name(path.name.replace(NAME, skill.name))
        if not target.exists():
            new[target] = _filled(template, skill)
        elif target.name != "__init__.py":
            raise ConfigError(f"{target}: is there already.", remedy="Give the skill another name, or move the file.")
    changed: dict[Path, str] = {}
    if skill.backend:
        configuration, text = _configured(skill, skill.backend, project)
        (changed if configuration.exists() else new)[configuration] = text
    _write(new, changed)
    return Written([one.relative_to(project) for one in new], [one.relative_to(project) for one in changed])


def _python_files(folder: Traversable, path: Path = Path()) -> Iterator[tuple[Path, Traversable]]:
    for one in sorted(folder.iterdir(), key=lambda each: each.name):
        if one.is_dir():
            yield from _python_files(one, path / one.name)
        elif one.name.endswith(".py"):
            yield path / one.name, one


def _filled(template: Traversable, skill: Skill) -> str:
    names = {TITLE: skill.title, NAME: skill.name}
    return re.sub("|".join(names), lambda found: names[found[0]], template.read_text("utf-8"))


def _configured(skill: Skill, backend: str, project: Path) -> tuple[Path, str]:
    """Return the configuration file and its new text."""
    found = [project / name for name in FILES if (project / name).exists()]
    if len(found) > 1:
        names = " and ".join(one.name for one in found)
        raise ConfigError(f"{project}: {names} stand side by side.", remedy="Keep one of them.")
    path = found[0] if found else project / FILES[0]
    document = load(path) if found else None
    if document is not None:
        _refuse_taken(document, skill)
    state = [INDENT + line for line in _state_lines(backend, document)]
    entry = Entry("skill_id", skill.name, [f"name: {json.dumps(skill.title, ensure_ascii=False)}", "state:", *state])
    text = path.read_bytes().decode() if found else ""
    return path, with_entry(text, "skills", entry, path.name)


def _refuse_taken(document: Document, skill: Skill) -> None:
    for section in HOLDERS:
        node = (document.root.mapping or {}).get(section) or Node(0)
        named: list[tuple[str | None, Node]] = list((node.mapping or {}).items())
        named += [(child.text(key), child) for child in node.sequence for key in ("skill_id", "name")]
        for name, child in named:
            if name == skill.name:
                where = document.origin(child, section).where
                raise ConfigError(f"{where}: {name!r} is there already.", remedy="Give the skill another name.")


def _state_lines(backend: str, document: Document | None) -> list[str]:
    """Return the settings of a backend; where the section for all handlers has it, only its name."""
    from agentstate.storage import registry

    if document is not None and state_section(document):
        common = Configuration(document).effective(backends=registry).settings.backend
        if common == backend:
            return [f"backend: {backend}"]
    template = template_root() / "skill" / "state" / f"{backend}.yaml"
    return template.read_text("utf-8").splitlines() if template.is_file() else [f"backend: {backend}"]


def _write(new: dict[Path, str], changed: dict[Path, str]) -> None:
    """Write all files or none."""
    made: list[Path] = []
    path = Path()
    try:
        for path, text in new.items():
            made += _make_directory(path.parent)
            with path.open("x", encoding="utf-8", newline="") as file:
                made.append(path)
                file.write(text)
        for path, text in changed.items():
            _replace(path.resolve(), text)
    except BaseException as error:
        for one in reversed(made):
            with suppress(OSError):
                one.rmdir() if one.is_dir() else one.unlink()
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise ConfigError(f"{path}: can't be written: {reason}.", remedy="Check its directory.") from error
        raise


def _make_directory(directory: Path) -> list[Path]:
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        beside.write_text(text, encoding="utf-8", newline="")
        shutil.copymode(path, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
