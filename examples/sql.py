"""Questions to SQL under a grammar that is made from the table: no other query can be written."""

import sqlite3

from heldout import runtime, share

import radixrt as rt

PEOPLE = [
    ("Ada", "pilot", "Rome", "chess", "cat"),
    ("Ben", "baker", "Oslo", "sailing", "dog"),
    ("Eva", "pilot", "Lima", "sailing", "dog"),
    ("Leo", "baker", "Lima", "chess", "dog"),
]
QUESTIONS = [
    ("Who works as a pilot and lives in Rome?", ["job", "city"], ["Ada"]),
    ("We look for a baker from Oslo.", ["job", "city"], ["Ben"]),
    ("Someone from Lima who has a dog.", ["city", "pet"], ["Eva", "Leo"]),
    ("Someone who likes chess and has a dog.", ["hobby", "pet"], ["Leo"]),
    ("Who works as a pilot and likes sailing?", ["job", "hobby"], ["Eva"]),
]


def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE people (name, job, city, hobby, pet)")
    connection.executemany("INSERT INTO people VALUES (?, ?, ?, ?, ?)", PEOPLE)
    return connection


def grammar(columns: list[str]) -> str:
    """Return a Lark grammar of the queries for values that these columns have."""
    rules = []
    for column in columns:
        found = database().execute(f"SELECT DISTINCT {column} FROM people")
        rules.append(f"{column}: " + " | ".join(f'"\\"{value}\\""' for (value,) in found))
    wanted = ' " AND " '.join(f'"\\"{column}\\" = " {column}' for column in columns)
    rules.append(f'start: " SELECT name FROM people WHERE " {wanted} " ORDER BY name;"')
    return "\n".join(rules)


@rt.function
def ask(s, question, columns):
    s += f"Extract the person as JSON with the keys {', '.join(columns)}.\nText: {question}\nJSON:"
    s += rt.gen("query", grammar=grammar(columns), max_tokens=60, temperature=0)
    return [name for (name,) in database().execute(s["query"])]


def evaluate(backend: rt.Backend) -> tuple[float, list[rt.ProgramState]]:
    states = ask.run_batch([row[:2] for row in QUESTIONS], backend=backend)
    right = [s.ret_value == names for s, (*_, names) in zip(states, QUESTIONS, strict=True)]
    return share(right), states


if __name__ == "__main__":
    with runtime(__doc__) as backend:
        accuracy, states = evaluate(backend)
        for (question, *_), state in zip(QUESTIONS, states, strict=True):
            print(f"{question}\n {state['query']}\n  {', '.join(state.ret_value)}")
        print(f"{accuracy:.3f} of {len(states)} questions are answered right")
