"""From merged layers to settings that hold: types are checked, paths are absolute, sources are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

from pydantic import BaseModel, SecretStr, ValidationError

from agentstate.config.settings import SETTINGS, HandlerSettings
from agentstate.config.urls import anchor, is_secret, mask
from agentstate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from agentstate.config.layers import Backends, Merged
    from agentstate.config.values import Value

__all__ = ["Effective", "Setting", "settle"]

HIDDEN: Final = "***"
PATHS: Final = frozenset({"storage_dir", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
DIRECTORIES: Final = {"storage_dir": "conversation_states"}


class Setting(NamedTuple):
    """One effective setting, as it may be shown: passwords are masked."""

    key: str
    value: object
    source: str


class Effective(NamedTuple):
    """What a handler runs with, and why.

    Attributes:
        explain: each setting with its source: ``decorator``, ``agent_config.yaml:12 state.ttl``,
            ``environment AGENTSTATE_URL``, ``default``, …
        store: equal for settings that mean the same storage.
    """

    settings: HandlerSettings
    explain: tuple[Setting, ...]
    store: Hashable


def settle(merged: Merged, backends: Backends) -> tuple[Effective | None, list[ConfigError]]:
    """Return the effective settings, or the errors that stand in their way."""
    if merged.faults:
        return None, merged.faults
    name = str(merged.backend.value)
    options, faults = (None, []) if merged.own_storage else _options(merged, backends.options_of(name))
    typed = {key: getattr(options, key) for key in options.model_fields_set} if options else {}
    plain = {key: value.value for key, value in merged.settings.items()}
    try:
        settings = HandlerSettings.model_validate({**plain, "backend": name, "options": typed})
    except ValidationError as error:
        return None, faults + explained(error, merged.settings, merged.backend.origin.where)
    if faults:
        return None, faults
    return Effective(settings, tuple(_explain(merged, settings, options)), (name, options)), []


def _options(merged: Merged, model: type[BaseModel]) -> tuple[BaseModel | None, list[ConfigError]]:
    given = {key: _anchored(key, value.value, value.origin.base, model) for key, value in merged.options.items()}
    if "url" not in given:
        given = {**_default_paths(model), **given}
    try:
        return model.model_validate(given), []
    except ValidationError as error:
        return None, explained(error, merged.options, merged.backend.origin.where)
    except ConfigError as error:  # what a backend itself says of its url
        place = merged.options.get("url", merged.backend).origin.where
        return None, [ConfigError(f"{place}: {error}")]


def explained(error: ValidationError, values: Mapping[str, Value], where: str) -> list[ConfigError]:
    """Return one error per wrong value that says where it stands; secrets are not shown."""
    found: dict[str, ConfigError] = {}
    for one in error.errors(include_url=False, include_context=False):
        key = str(one["loc"][0]) if one["loc"] else ""
        problem = one["msg"].removeprefix("Value error, ").replace("Input should", "should")
        if key in values:
            shown = "" if is_secret(key) else f" (it is {shown_value(key, values[key].value)!r})"
            message = f"{values[key].origin.where}: {problem}{shown}."
        else:
            message = f"{where}: {key}: {problem}." if key else f"{where}: {problem}."
        found.setdefault(key, ConfigError(message))
    return list(found.values())


def shown_value(key: str, value: object) -> object:
    """Return the value as it may be shown."""
    if value is not None and (is_secret(key) or isinstance(value, SecretStr)):
        return HIDDEN
    return mask(value) if isinstance(value, str) and "://" in value else value


def _default_paths(model: type[BaseModel]) -> dict[str, object]:
    """Return the defaults that are relative paths, counted from here, so that naming a default changes nothing."""
    here = Path.cwd()
    defaults = {key: field.default or DIRECTORIES.get(key) for key, field in model.model_fields.items()}
    texts = {key: str(value) for key, value in defaults.items() if isinstance(value, (str, Path))}
    anchored = {key: _anchored(key, text, here, model) for key, text in texts.items()}
    return {key: value for key, value in anchored.items() if value != texts[key]}


def _anchored(key: str, value: object, base: Path, model: type[BaseModel]) -> object:
    """Return the value with a relative path counted from ``base``."""
    if not isinstance(value, str) or not value:
        return value
    if key == "url":
        return anchor(value, base)
    annotation = model.model_fields[key].annotation
    if key in PATHS or annotation is Path or Path in get_args(annotation):
        return os.path.abspath(base / value)  # noqa: PTH100 - resolve() would follow links
    return value


def _explain(merged: Merged, settings: HandlerSettings, options: BaseModel | None) -> list[Setting]:
    rows = [Setting("backend", settings.backend, merged.backend.origin.source)]
    for model, values, keys in (
        (options, merged.options, type(options).model_fields if options else ()),
        (settings, merged.settings, [key for key in HandlerSettings.model_fields if key in SETTINGS]),
    ):
        for key in keys:
            value = getattr(model, key)
            rows.append(Setting(key, shown_value(key, value), _source(key, values, model)))
    return rows


def _source(key: str, values: Mapping[str, Value], model: BaseModel | None) -> str:
    """Return where a setting comes from; what the backend took out of its url comes from there."""
    if key not in values and "url" in values and model and key in model.model_fields_set:
        key = "url"
    return values[key].origin.source if key in values else "default"
