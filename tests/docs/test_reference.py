"""docs/configuration.md against the models: every setting and option is there, with its default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentstate.config.settings import SETTINGS, HandlerSettings
from agentstate.storage import registry

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")


def table(heading):
    """Return name and default of each row of the first table below a heading."""
    section = PAGE.partition(f"\n{heading}\n")[2]
    section = re.split(r"\n##+ ", section, maxsplit=1)[0]
    return dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", section, re.MULTILINE))


def test_settings():
    """Each setting of a handler is documented with its default."""
    fields = HandlerSettings.model_fields
    assert table("## Settings of every handler") == {
        "backend": "sqlite",
        **{name: str(fields[name].default) for name in fields if name in SETTINGS},
    }


@pytest.mark.parametrize("backend", sorted(registry.BUILT_IN))
def test_options(backend):
    """Each option of a built-in backend is documented with its default."""
    fields = registry.options_of(backend).model_fields
    assert table(f"### {backend}") == {name: str(field.default) for name, field in fields.items()}
