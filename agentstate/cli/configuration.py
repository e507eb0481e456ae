"""``agentstate config check`` and ``config explain``: what the settings are, and whether they hold."""

import asyncio
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentstate.cli.connection import AsJson
from agentstate.cli.exits import CONFIG, UNAVAILABLE
from agentstate.cli.output import console, print_json, safe, table
from agentstate.errors import ConfigError, StateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentstate.config import Effective
    from agentstate.config.check import Handler, Report

__all__ = ["app"]

app = typer.Typer(help="Check and explain the configuration.", no_args_is_help=True)

ConfigPath = Annotated[Path | None, typer.Option("--path", "--config", help="The configuration file.")]
Module = Annotated[
    str | None, typer.Option("--module", help="Import this module and take its handlers, with their arguments.")
]


@app.command()
def check(
    *,
    connect: Annotated[bool, typer.Option("--connect", help="Open and ping each storage.")] = False,
    path: ConfigPath = None,
    handlers: Annotated[str | None, typer.Option(help="The names of all handlers: a,b,c.")] = None,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Check the configuration: errors, and what the practices advise."""
    from agentstate import config
    from agentstate.config.check import Handler, check
    from agentstate.storage import registry

    configuration = config.configure(path)
    known = [Handler((name.strip(),), {}) for name in handlers.split(",")] if handlers else []
    known += _handlers_of(module) if module else []
    report = check(configuration, registry, known if handlers or module else None)
    storages = asyncio.run(_connect(report.effective)) if connect else []
    name = configuration.document.name if configuration.document else None
    (_print_check_json if as_json else _print_check)(name, report, storages)
    if any(one.level == "error" for one in report.findings):
        raise typer.Exit(CONFIG)
    if any(error for _, error in storages):
        raise typer.Exit(UNAVAILABLE)


@app.command()
def explain(
    *,
    handler: Annotated[str | None, typer.Argument(help="A handler's name; without it, what all share.")] = None,
    path: ConfigPath = None,
    module: Module = None,
    as_json: AsJson = False,
) -> None:
    """Print each setting of a handler and where it comes from."""
    from agentstate import config
    from agentstate.config.check import Handler
    from agentstate.storage import registry

    configuration = config.configure(path)
    one = Handler((handler,) if handler else (), {})
    if handler and module:
        one = next((known for known in _handlers_of(module) if handler in known.names), one)
    effective = configuration.effective(one.names, one.given, backends=registry)
    if as_json:
        rows = [{"key": row.key, "value": row.value, "source": row.source} for row in effective.explain]
        print_json({"handler": handler, "settings": rows})
        return
    table(("SETTING", "VALUE", "FROM"), [(row.key, row.value, row.source) for row in effective.explain])
    names = [name for block in configuration.blocks() for name in block.names]
    if handler and not one.given and handler not in names:
        known = f" Those that have: {', '.join(names)}." if names else ""
        console(stderr=True).print(f"No block of its own for {safe(handler)!r}.{safe(known)}")


def _handlers_of(name: str) -> "list[Handler]":
    """Import a module from the working directory or the installed ones, and return its handlers."""
    from agentstate.config.check import Handler
    from agentstate.decorator import StatefulHandler

    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise ConfigError(f"--module {name}: can't be imported: {type(error).__name__}: {error}.") from error
    places = [module, *(one for one in vars(module).values() if isinstance(one, type) and one.__module__ == name)]
    values: list[Any] = [one for place in places for one in vars(place).values()]
    functions = [one.__func__ if type(one) in (staticmethod, classmethod) else one for one in values]
    found = {id(one): one for one in functions if isinstance(one, StatefulHandler)}
    return [Handler(tuple(one.binding.names), one.binding.given) for one in found.values()]


async def _connect(effective: "Sequence[Effective]") -> list[tuple[str, StateError | None]]:
    """Open and ping each distinct storage; return where it is, and its error."""
    from agentstate.storage import registry

    results: list[tuple[str, StateError | None]] = []
    for one in {each.store: each for each in effective}.values():
        storage = registry.create(one.settings.backend, one.settings.options)
        try:
            await storage.open()
            await storage.ping()
            results.append((storage.location, None))
        except StateError as error:
            results.append((storage.location, error))
        finally:
            await storage.close()
    return results


def _print_check(name: str | None, report: "Report", storages: "Sequence[tuple[str, StateError | None]]") -> None:
    screen = console()
    for one in report.findings:
        screen.print(safe(f"{one.level}: {one.message}"))
    for location, error in storages:
        screen.print(safe(f"{'error' if error else 'ok'}: {location}{f': {error}' if error else ' answers.'}"))
    errors = sum(one.level == "error" for one in report.findings)
    source = name or "no configuration file"
    screen.print(f"{safe(source)}: {f'{errors} error(s).' if errors else 'no errors.'}")


def _print_check_json(name: str | None, report: "Report", storages: "Sequence[tuple[str, StateError | None]]") -> None:
    connections: list[dict[str, Any]] = [
        {"location": location, "ok": error is None, "error": str(error) if error else None}
        for location, error in storages
    ]
    errors = sum(one.level == "error" for one in report.findings)
    print_json(
        {
            "file": name,
            "ok": not errors and all(one["ok"] for one in connections),
            "errors": errors,
            "findings": [one._asdict() for one in report.findings],
            "storages": connections,
            "count": len(report.findings),
        }
    )
