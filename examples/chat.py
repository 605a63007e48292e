"""A chat of several turns: every reply follows from the model's own earlier replies.

Each turn sends the new message only; what was said before is already with the runtime.
"""

from __future__ import annotations

from typing import Any

from heldout import held_out, runtime, share

import radixrt as rt


@rt.function
def chat(s, facts, questions):
    s += rt.system(facts)
    for turn, question in enumerate(questions):
        s += rt.user(question)
        s += rt.assistant(rt.gen(f"reply {turn}", max_tokens=64, temperature=0))
    return [s[f"reply {turn}"] for turn in range(len(questions))]


def evaluate(backend: rt.Backend, count: int = 20) -> tuple[float, list[Any]]:
    """Return the share of replies that contain what they have to, and the chats' states."""
    conversations = held_out("chat", count)
    batch, expected = [], []
    for conversation in conversations:
        said = conversation["messages"]
        facts = "".join(message["content"] for message in said if message["role"] == "system")
        questions = [message["content"] for message in said if message["role"] == "user"]
        batch.append({"facts": facts, "questions": questions})
        expected += conversation["must"]
    states = chat.run_batch(batch, backend=backend)
    replies = [reply for state in states for reply in state.ret_value]
    found = [must.lower() in reply.lower() for must, reply in zip(expected, replies, strict=True)]
    return share(found), states


if __name__ == "__main__":
    with runtime(__doc__) as backend:
        accuracy, states = evaluate(backend)
        for message in states[0].messages():
            print(f"{message['role']:>9}: {message['content']}")
        print(f"\nfacts right in {accuracy:.3f} of the replies")

        state = chat.run("Facts:\nTom works as a pilot.", ["What does Tom do?"], backend=backend)
        state += rt.user("My name is Eva.")  # a finished program can be continued
        state += rt.assistant(rt.gen("hello", max_tokens=64, temperature=0))
        print(f"\n{state.text()}")
