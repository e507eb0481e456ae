"""The agent's skill: a plain handler. It knows no protocol, no server and no database."""

import asyncio
import re

from agentstate import message_text, stateful

STEPS = ["find a flat", "book a flight", "ship the boxes", "register at the town hall"]


@stateful
async def assistant(task, context, context_id):
    text = message_text(task)
    await context.add_to_history(context_id, "user", text)
    reply = await answer(text, context, context_id)
    await context.add_to_history(context_id, "assistant", reply)
    return reply


async def answer(text, context, context_id):
    if found := re.search(r"my name is (\w+)", text, re.IGNORECASE):
        await context.set_variable(context_id, "name", found[1])
        return f"Nice to meet you, {found[1]}."
    if found := re.search(r"I like (.+?)\.?$", text):
        likes = await context.get_variable(context_id, "preferences", [])
        await context.set_variable(context_id, "preferences", [*likes, found[1]])
        return f"Noted: you like {found[1]}."
    if found := re.match(r"start: (.+)", text, re.IGNORECASE):
        await context.set_variable(context_id, "current_task", {"name": found[1], "steps": STEPS, "done": 0})
        return f"Started to {found[1]}. First: {STEPS[0]}."
    if text.lower().startswith("next step"):
        return await next_step(context, context_id, slowly="slowly" in text)
    return await summary(context, context_id)


async def next_step(context, context_id, *, slowly):
    task = await context.get_variable(context_id, "current_task")
    if task is None or task["done"] == len(task["steps"]):
        return "There is nothing to do. Say 'start: ...'."
    step = task["steps"][task["done"]]
    await context.set_variable(context_id, "current_task", {**task, "done": task["done"] + 1})
    print(f"working: {step}", flush=True)
    await asyncio.sleep(60 if slowly else 0.1)  # a model call, a tool, a form to fill in …
    return f"Done: {step}. That was step {task['done'] + 1} of {len(task['steps'])}."


async def summary(context, context_id):
    name = await context.get_variable(context_id, "name", "somebody I don't know")
    likes = await context.get_variable(context_id, "preferences", [])
    task = await context.get_variable(context_id, "current_task")
    history = await context.get_history(context_id)
    running = f"{task['name']}, {task['done']} of {len(task['steps'])} steps done" if task else "nothing"
    return (
        f"You are {name}. You like {' and '.join(likes) or 'nothing yet'}. Running: {running}. "
        f"Of our {len(history)} messages the first was: {history[0]['content']!r}"
    )
