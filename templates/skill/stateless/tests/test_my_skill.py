"""My Skill answers."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, installed or not

from skills.my_skill import my_skill


def test_it_answers():
    """The answer is about the message."""
    assert asyncio.run(my_skill({"text": "hello"})) == "You said: hello"
