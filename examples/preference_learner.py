"""Learning preferences: each user's own, kept over sessions, typed on the way out.

python examples/preference_learner.py
"""

import asyncio

from pydantic import BaseModel

from agentstate import Conversation, aclose, message_text, stateful_user

TOPICS = {"python": "programming", "train": "travelling", "bread": "baking"}


class Preferences(BaseModel):
    """What is known about a user."""

    interests: list[str] = []
    tone: str = "friendly"


@stateful_user(owner=lambda task: task["user"])
async def learning_assistant(task, conversation: Conversation):
    """Learns interests and tone from what a user says, and uses them."""
    text = message_text(task).lower()
    preferences = await conversation.get("preferences", Preferences(), as_type=Preferences)
    for word, interest in TOPICS.items():
        if word in text and interest not in preferences.interests:
            preferences.interests.append(interest)
    if "short" in text:
        preferences.tone = "short"
    await conversation.set("preferences", preferences.model_dump())
    if preferences.tone == "short":
        return f"Noted: {', '.join(preferences.interests) or 'nothing'}."
    return f"I see you are interested in {' and '.join(preferences.interests) or 'many things'}. How can I help?"


async def main():
    """Two users, who don't share anything."""
    for user, text in (
        ("ada", "I write Python on the train."),
        ("bob", "How do I bake bread?"),
        ("ada", "Please keep it short."),
        ("bob", "Thank you!"),
    ):
        print(f"{user}: {text}\n  -> {await learning_assistant({'user': user, 'text': text})}")
    await aclose()


if __name__ == "__main__":
    asyncio.run(main())
