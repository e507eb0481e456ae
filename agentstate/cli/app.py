"""All commands in one tree. A new group of them is one `add_typer` line here."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agentstate.cli import agentup, cleaning, configuration, copying, listing, showing, skill
from agentstate.cli.exits import guarded

__all__ = ["app"]


class Commands(TyperGroup):
    """A group whose errors are one line and an exit code, not a traceback."""

    def main(self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]
        """Run, and exit with the code; in a program of its own (``standalone_mode=False``) return it."""
        run = super().main
        code = guarded(lambda: run(args, standalone_mode=False, **extra))
        if standalone_mode:
            raise SystemExit(code)
        return code


app = typer.Typer(
    name="agentstate",
    cls=Commands,
    help="Look after the state of agents.",
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)
app.add_typer(configuration.app, name="config")
app.add_typer(skill.app, name="skill")
app.command("ls")(listing.ls)
app.command("show")(showing.show)
app.command("cleanup")(cleaning.cleanup)
app.command("copy")(copying.copy)
app.command("import-agentup")(agentup.import_)


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"agentstate {version('agentstate-suite')}")
        raise typer.Exit


@app.callback()
def about(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Look after the state of agents."""
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
