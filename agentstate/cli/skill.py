"""``agentstate skill``: new skills for an agent's project.

What a flag doesn't say is asked at a terminal; elsewhere, and with ``--yes``, it has its default.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agentstate.cli.output import console
from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from agentstate.cli.scaffold import Skill, Written

__all__ = ["app"]

EXTRAS = frozenset({"mongodb", "postgresql", "rocksdb", "valkey"})
"""Backends whose drivers are installed by an extra of the same name."""

DEFAULT: Final = "sqlite"

app = typer.Typer(help="New skills for an agent's project.")


@app.callback()
def about() -> None:
    """New skills for an agent's project."""


@app.command("create")
def create(
    *,
    name: Annotated[str | None, typer.Option(help="Skill name, as people call it.", show_default=False)] = None,
    state: Annotated[
        bool | None, typer.Option("--state/--no-state", help="Enable state management.", show_default="yes")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Storage backend: sqlite, file, valkey, memory, …", show_default=DEFAULT)
    ] = None,
    directory: Annotated[
        Path, typer.Option("--dir", help="The agent's project.", exists=True, file_okay=False, show_default="here")
    ] = Path(),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take the defaults.")] = False,
) -> None:
    """Write a skill: its handler, its test, and its block of the configuration."""
    from agentstate.cli import scaffold

    if backend and state is False:
        raise typer.BadParameter("a skill without state is kept nowhere.", param_hint="--backend")
    asked = sys.stdin.isatty() and not yes
    skill = _titled(name) if name is not None else _ask("Skill name", _titled) if asked else _missing()
    if state is None:
        state = True if backend or not asked else typer.confirm("Enable state management?", default=True)
    if state:
        choice = _known(backend) if backend else _ask("Storage backend", _known, DEFAULT) if asked else DEFAULT
        skill = skill._replace(backend=choice)
    _report(skill, scaffold.create(skill, directory))


def _missing() -> Any:
    raise typer.BadParameter("say how the skill is called: nobody can be asked here.", param_hint="--name")


def _ask(question: str, checked: Callable[[str], Any], default: str | None = None) -> Any:
    """Ask until the answer is right."""
    while True:
        try:
            return checked(typer.prompt(question, default=default))
        except ConfigError as error:
            typer.echo(str(error), err=True)


def _titled(title: str) -> "Skill":
    from agentstate.cli.scaffold import Skill

    return Skill.titled(title)


def _known(backend: str) -> str:
    from agentstate.storage import registry

    return registry.backend_named(backend)


def _report(skill: "Skill", written: "Written") -> None:
    from rich.text import Text

    screen = console()

    def say(*words: str, style: str = "") -> None:
        screen.print(Text(" ".join(words), style=style))

    for path in written.new:
        say("wrote   ", str(path), style="green")
    for path in written.changed:
        say("added to", str(path), style="green")
    say()
    say("Next steps", style="bold")
    if skill.backend in EXTRAS:
        say(f"  pip install 'agentstate-suite[{skill.backend}]'")
    say(f"  pytest tests/test_{skill.name}.py")
    if skill.backend:
        say(f"  agentstate config explain {skill.name}")
    say(f"  from skills.{skill.name} import {skill.name}   # where your agent starts; then")
    say(f'  reply = await dispatch("{skill.name}", task)   # from agentstate import dispatch')
