"""The matrix doesn't need what other tests need: it runs in an environment of its own, too."""

from __future__ import annotations

import os

import pytest

from agentstate.storage import registry

os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"


@pytest.fixture
async def memory():
    """A fresh memory storage."""
    made = registry.create("memory", {})
    yield made
    await made.close()
