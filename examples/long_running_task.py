"""A long task that survives being interrupted: pause it, kill it, run the script again.

python examples/long_running_task.py            # goes on where it was, three steps at a time
python examples/long_running_task.py --reset
"""

import asyncio
import sys
import uuid
from datetime import UTC, datetime

from agentstate import Conversation, aclose, message_text, stateful

STEPS = [f"chapter {number}" for number in range(1, 8)]


@stateful
async def task_manager(task, conversation: Conversation):
    """Starts, advances, pauses and resumes one task for each conversation."""
    command = message_text(task)
    current = await conversation.get("current_task")
    if command == "start" or current is None:
        started_at = datetime.now(UTC)
        current = {"id": uuid.uuid4(), "steps": STEPS, "current_step": 0, "status": "in_progress", "at": started_at}
    elif command in ("pause", "resume"):
        current = {**current, "status": "paused" if command == "pause" else "in_progress"}
    elif command == "next step" and current["status"] == "in_progress":
        done = current["current_step"] + 1
        current = {**current, "current_step": done, "status": "completed" if done == len(STEPS) else "in_progress"}
    await conversation.set("current_task", current)
    return current


@stateful(turns="read")
async def progress(task, conversation: Conversation):
    """Looks without waiting for a turn that may be running."""
    current = await conversation.get("current_task", {"current_step": 0, "status": "not started"})
    return f"{current['current_step']} of {len(STEPS)} done, {current['status']}"


async def main(*, reset):
    """Do three steps, and pause."""
    here = {"context_id": "book"}
    if reset:
        await task_manager({**here, "text": "start"})
    print("at the start:", await progress(here))
    await task_manager({**here, "text": "resume"})
    for _ in range(3):
        current = await task_manager({**here, "text": "next step"})
        print(" ", current["current_step"], current["status"])
        if current["status"] == "completed":
            break
    else:
        await task_manager({**here, "text": "pause"})
    print("at the end:", await progress(here))
    await aclose()


if __name__ == "__main__":
    asyncio.run(main(reset="--reset" in sys.argv))
