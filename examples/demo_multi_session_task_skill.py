"""A task over several sessions: begun on Monday, continued on Tuesday, by another process.

Each session is a process of its own, so between the two everything but the state is gone:
python examples/demo_multi_session_task_skill.py
"""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime

from agentstate import Conversation, aclose, message_text, stateful_user

STEPS = ["collect the receipts", "fill in the form", "send it"]


@stateful_user(owner=lambda task: task["user"])
async def task_manager(task, conversation: Conversation):
    """Starts a task and goes on with it. The state is the user's, whatever session he comes in."""
    text = message_text(task).lower()
    current = await conversation.get("current_task")
    if text == "start":
        started = {"steps": STEPS, "current_step": 0, "status": "in_progress", "started_in": task["session_id"]}
        await conversation.set("current_task", {**started, "started_at": datetime.now(UTC)})
        return f"Started. First step: {STEPS[0]}."
    if current is None:
        return "There is no task. Say 'start'."
    if text == "next":
        done = min(current["current_step"] + 1, len(STEPS))
        status = "completed" if done == len(STEPS) else "in_progress"
        await conversation.set("current_task", {**current, "current_step": done, "status": status})
        return "All done." if status == "completed" else f"Good. Next step: {STEPS[done]}."
    begun = current["started_in"]
    return f"The task begun on {begun}: {current['current_step']} of {len(STEPS)} steps done, {current['status']}."


async def session(name, messages):
    """Talk in one session."""
    for text in messages:
        reply = await task_manager({"user": "ada", "session_id": name, "text": text})
        print(f"[{name}] {text}: {reply}", flush=True)
    await aclose()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(session(sys.argv[1], sys.argv[2:]))
    else:
        for arguments in (["monday", "start", "next"], ["tuesday", "status", "next", "next", "status"]):
            subprocess.run([sys.executable, __file__, *arguments], check=True)
