"""Draw small talk for the embedded model: greetings, thanks, and questions about itself, each with one answer.

Used by `tools/tiny_documents.py`.
"""

from __future__ import annotations

from random import Random

WORDINGS: dict[str, list[str]] = {
    "greeting": ["Hi", "Hello", "Hey", "Hi there", "Hello there", "Good morning", "Good evening"],
    "health": ["How are you?", "How are you doing?", "How do you feel?", "How is it going?", "Are you well?"],
    "thanks": ["Thank you", "Thanks", "Thank you very much", "Thanks a lot", "Good", "Very good", "Great"],
    "farewell": ["Bye", "Goodbye", "Bye bye", "Good night", "See you", "See you soon"],
    "abilities": [
        "What can you do?",
        "What do you do?",
        "What do you know?",
        "What can I ask?",
        "What can I ask you?",
        "How can you help me?",
        "Can you help me?",
        "Help",
    ],
    "self": ["Who are you?", "What are you?", "What is your name?", "Tell me about you.", "Are you a model?"],
}
TOPICS = list(WORDINGS)
ANSWERS = {
    "greeting": "Hello! Tell me a story and ask me about it.",
    "health": "I am well, thank you.",
    "thanks": "You are welcome!",
    "farewell": "Goodbye!",
    "abilities": "I can tell a story. Tell me a story, and I can answer questions about it.",
    "self": "I am tiny, a small model. I know short stories.",
    "story": "I see. Ask me about it.",  # to a story without a question
}
STORY_REQUESTS = ["Tell me a story.", "Tell me a story about {name}.", "Can you tell me a story?", "Tell a story."]


def wording(rng: Random, topic: str) -> str:
    """One wording of a topic, as people type it: in lower case, with a greeting before, with other punctuation."""
    text = rng.choice(WORDINGS[topic])
    if topic != "greeting" and rng.random() < 0.15:
        text = f"{rng.choice(('Hi', 'Hello'))}{rng.choice(('!', ',', '.'))} {text}"
    if not text.endswith(("?", ".")):
        text += rng.choice(("", "!", ".")) if topic != "abilities" else rng.choice(("", "!", "?"))
    elif rng.random() < 0.15:
        text = text[:-1]
    return text.lower() if rng.random() < 0.25 else text


def story_request(rng: Random, name: str) -> str:
    """One wording of the wish for a story, about `name` or about anybody."""
    return rng.choice(STORY_REQUESTS).format(name=name)
