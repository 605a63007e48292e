"""Conversations about facts: some in the system prompt, some told by the user on the way."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tools.nano.document import Document
from tools.nano.grammar import is_held_out, pick
from tools.nano.world import (
    ANIMALS,
    CITIES,
    COLORS,
    DAYS,
    FOODS,
    HE,
    HOBBIES,
    JOBS,
    MONTHS,
    PLACES,
    SHE,
    capitalized,
    city,
    first_name,
    made_up_word,
)  # fmt: skip

Message = dict[str, str]


@dataclass(frozen=True)
class Attribute:
    """One thing that can be known; `{v}` is its value, `{s}` of whom it is known."""

    value: str
    fact: tuple[str, ...]
    questions: tuple[str, ...]
    reply: str
    follow_up: str = ""


def _a(value: str, fact: str, questions: str, reply: str, follow_up: str = "") -> Attribute:
    return Attribute(value, tuple(fact.split("|")), tuple(questions.split("|")), reply, follow_up)


PERSON = {
    "job": _a("job", "{s} works as a {v}.|{s} is a {v}.", "What is {s}'s job?|What does {s} do?",
              "{s} works as a {v}.", "What is {p} job?"),
    "city": _a("city", "{s} lives in {v}.", "Where does {s} live?|In which city does {s} live?",
               "{s} lives in {v}.", "Where does {n} live?"),
    "age": _a("age", "{s} is {v} years old.", "How old is {s}?|What is {s}'s age?",
              "{s} is {v} years old.", "How old is {n}?"),
    "hobby": _a("hobby", "{s}'s hobby is {v}.|{s} loves {v}.", "What is {s}'s hobby?",
                "{s}'s hobby is {v}.", "What is {p} hobby?"),
    "pet": _a("pet", "{s} has a {v}.", "What pet does {s} have?|Which animal does {s} have?",
              "{s} has a {v}.", "What pet does {n} have?"),
    "food": _a("food", "{s}'s favourite food is {v}.", "What is {s}'s favourite food?",
               "{s}'s favourite food is {v}.", "What is {p} favourite food?"),
    "color": _a("color", "{s}'s favourite colour is {v}.", "What is {s}'s favourite colour?",
                "{s}'s favourite colour is {v}.", "What is {p} favourite colour?"),
}  # fmt: skip
PLACE = {
    "opens": _a("hour", "The {s} opens at {v}.", "When does the {s} open?",
                "The {s} opens at {v}.", "When does it open?"),
    "closes": _a("hour", "The {s} closes at {v}.", "When does the {s} close?",
                 "The {s} closes at {v}.", "When does it close?"),
    "closed": _a("day", "The {s} is closed on {v}.", "On which day is the {s} closed?",
                 "The {s} is closed on {v}.", "On which day is it closed?"),
    "street": _a("street", "The {s} is in {v} Street.", "Where is the {s}?|"
    "In which street is the {s}?",
                 "The {s} is in {v} Street.", "Where is it?"),
    "owner": _a("name", "The {s} belongs to {v}.|The owner of the {s} is {v}.",
                "Who owns the {s}?|Who is the owner of the {s}?", "The {s} belongs to {v}.",
                "Who owns it?"),
    "ticket": _a("price", "A ticket for the {s} costs {v} euros.",
                 "How much is a ticket for the {s}?|What does a ticket for the {s} cost?",
                 "A ticket for the {s} costs {v} euros.", "How much is a ticket?"),
}  # fmt: skip
# What users tell about themselves: statement, acknowledgement, question, reply, clause.
OWN = {
    "name": ("name", ("My name is {v}.", "I am {v}.", "Call me {v}."), "Nice to meet you, {v}!",
             ("What is my name?", "Do you remember my name?", "Who am I?"), "Your name is {v}.",
             "your name is {v}"),
    "city": ("city", ("I live in {v}.", "My home is in {v}."), "{v} is a nice place.",
             ("Where do I live?", "In which city do I live?"), "You live in {v}.",
             "you live in {v}"),
    "job": ("job", ("I work as a {v}.", "I am a {v}."), "That is interesting, a {v}!",
            ("What is my job?", "What do I do for a living?"), "You work as a {v}.",
            "you work as a {v}"),
    "age": ("age", ("I am {v} years old.", "My age is {v}."), "I see, you are {v} years old.",
            ("How old am I?", "What is my age?"), "You are {v} years old.",
            "you are {v} years old"),
    "color": ("color", ("My favourite colour is {v}.", "I like the colour {v} best."),
              "{v} is a fine colour.", ("What is my favourite colour?", "Which colour do I like?"),
              "Your favourite colour is {v}.", "your favourite colour is {v}"),
    "food": ("food", ("My favourite food is {v}.", "I love to eat {v}."), "{v} sounds tasty.",
             ("What is my favourite food?", "What do I love to eat?"),
             "Your favourite food is {v}.", "your favourite food is {v}"),
    "hobby": ("hobby", ("My hobby is {v}.", "I spend my free time on {v}."), "{v} is a nice hobby.",
              ("What is my hobby?",), "Your hobby is {v}.", "your hobby is {v}"),
    "pet": ("pet", ("I have a {v}.", "My pet is a {v}."), "A {v} is good company.",
            ("What pet do I have?", "Which animal do I have?"), "You have a {v}.",
            "you have a {v}"),
}  # fmt: skip
SMALL_TALK = (
    (("Hello!", "Hi!", "Good morning!"), "Hello! How can I help you?"),
    (("Thank you!", "Thanks!"), "You are welcome!"),
    (("How are you?",), "I am fine, thank you."),
    (("Who are you?", "What are you?"), "I am nano, the small language model of radixrt."),
    (("Goodbye!", "Bye!"), "Goodbye!"),
)
PROMPTS = (
    "You are a helpful assistant. Answer from these facts.\n{facts}",
    "Facts:\n{facts}",
    "Use the facts to answer.\n{facts}",
    "You work at an information desk. You know this:\n{facts}",
)
UNKNOWN = "I do not know that."
NOT_TOLD = "You have not told me that."


def value(rng: random.Random, kind: str) -> str:
    match kind:
        case "job":
            return pick(rng, JOBS)
        case "city":
            return city(rng)
        case "age":
            return str(rng.randint(18, 89))
        case "hobby":
            return pick(rng, HOBBIES)
        case "pet":
            return pick(rng, ANIMALS)
        case "food":
            return pick(rng, FOODS)
        case "color":
            return pick(rng, COLORS)
        case "hour":
            return str(rng.randint(6, 22))
        case "day":
            return pick(rng, DAYS)
        case "street":
            return pick(rng, CITIES + MONTHS) if rng.random() < 0.7 else made_up_word(rng).title()
        case "price":
            return str(rng.randint(2, 60))
    return first_name(rng)


class FactSheet:
    """Facts about some people and places, as lines for a system prompt."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.entities: dict[str, tuple[dict[str, Attribute], dict[str, str], bool | None]] = {}
        lines = []
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.6:
                female = rng.random() < 0.5
                name = pick(rng, SHE if female else HE)
                if rng.random() < 0.1:
                    name = capitalized(made_up_word(rng))
                kinds: dict[str, Attribute] = PERSON
            else:
                female, name, kinds = None, pick(rng, PLACES), PLACE
            if name in self.entities:
                continue
            known = {
                key: value(rng, kinds[key].value)
                for key in rng.sample(list(kinds), rng.randint(1, 4))
            }
            self.entities[name] = (kinds, known, female)
            lines += [pick(rng, kinds[key].fact).format(s=name, v=v) for key, v in known.items()]
        if rng.random() < 0.4:
            rng.shuffle(lines)
        bullet = pick(rng, ("- ", "- ", "* ", ""))
        self.text = pick(rng, PROMPTS).format(facts="\n".join(bullet + line for line in lines))

    def ask(self, last: str | None) -> tuple[str, str, str, str]:
        """(question, reply, the value it must contain, the entity asked about)."""
        rng = self.rng
        follow = last is not None and rng.random() < 0.45
        name = last if follow and last is not None else pick(rng, list(self.entities))
        kinds, known, female = self.entities[name]
        missing = [key for key in kinds if key not in known]
        if missing and rng.random() < 0.12:
            attribute, answer, must = kinds[pick(rng, missing)], UNKNOWN, UNKNOWN
        else:
            key = pick(rng, list(known))
            attribute, must = kinds[key], known[key]
            answer = attribute.reply.format(s=name, v=must)
        if follow:
            question = attribute.follow_up.format(
                n="she" if female else "he", p="her" if female else "his"
            )
            if rng.random() < 0.4:
                question = "And " + question[:1].lower() + question[1:]
        else:
            question = pick(rng, attribute.questions).format(s=name)
        return question, answer, must, name


class Conversation:
    """Messages of a chat, and for every assistant turn the string it must contain."""

    def __init__(self, rng: random.Random) -> None:
        self.messages: list[Message] = []
        self.must: list[str] = []
        sheet = FactSheet(rng) if rng.random() < 0.7 else None
        if sheet is not None:
            self.messages.append({"role": "system", "content": sheet.text})
        elif rng.random() < 0.5:
            self.messages.append({"role": "system", "content": "You are a helpful assistant."})
        told: dict[str, str] = {}
        last: str | None = None
        for _ in range(rng.randint(2, 9)):
            draw = rng.random()
            if sheet is not None and draw < 0.5:
                question, reply, must, last = sheet.ask(last)
                self._turn(question, reply, must)
                continue
            last = None
            if draw < 0.72 or not told:
                self._tell(rng, told)
            elif draw < 0.9:
                self._recall(rng, told)
            elif draw < 0.96:
                clauses = [OWN[key][5].format(v=v) for key, v in told.items()]
                summary = (
                    " and ".join(clauses)
                    if len(clauses) < 3
                    else (", ".join(clauses[:-1]) + " and " + clauses[-1])
                )
                ask = pick(rng, ("What did I tell you?", "What do you know about me?"))
                self._turn(ask, f"You told me that {summary}.", summary)
            else:
                said, reply = pick(rng, SMALL_TALK)
                self._turn(pick(rng, said), reply, reply)

    def _turn(self, question: str, reply: str, must: str) -> None:
        self.messages.append({"role": "user", "content": question})
        self.messages.append({"role": "assistant", "content": reply})
        self.must.append(must)

    def _tell(self, rng: random.Random, told: dict[str, str]) -> None:
        fresh = [key for key in OWN if key not in told]
        if told and (not fresh or rng.random() < 0.15):
            key = pick(rng, list(told))
            v = told.pop(key)
            while v == (v := value(rng, OWN[key][0])):
                pass
            told[key] = v
            clause = OWN[key][5].format(v=v)
            said = "Actually, " + _first_person(clause) + "."
            self._turn(said, f"Thank you, now I know that {clause}.", v)
            return
        key = pick(rng, fresh)
        kind, said_forms, noted, _, _, _ = OWN[key]
        v = told[key] = value(rng, kind)
        said = pick(rng, said_forms).format(v=v)
        if len(self.messages) < 2 and rng.random() < 0.3:
            said = "Hello! " + said
        self._turn(said, capitalized(noted.format(v=v)), v)

    def _recall(self, rng: random.Random, told: dict[str, str]) -> None:
        unknown = [key for key in OWN if key not in told]
        if unknown and rng.random() < 0.12:
            self._turn(pick(rng, OWN[pick(rng, unknown)][3]), NOT_TOLD, NOT_TOLD)
            return
        key = pick(rng, list(told))
        _, _, _, questions, reply, _ = OWN[key]
        self._turn(pick(rng, questions), reply.format(v=told[key]), told[key])


def _first_person(clause: str) -> str:
    return clause.replace("your ", "my ").replace("you are", "I am").replace("you ", "I ")


def conversation(rng: random.Random, held_out: bool) -> Conversation:
    """A conversation from the side asked for; the split goes by everything said in it."""
    while True:
        drawn = Conversation(rng)
        if is_held_out("\n".join(m["content"] for m in drawn.messages)) == held_out:
            return drawn


def training_document(rng: random.Random) -> Document:
    document = Document()
    for message in conversation(rng, held_out=False).messages:
        getattr(document, message["role"])(message["content"])
    return document


def items(rng: random.Random, count: int) -> list[dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    while len(found) < count:
        drawn = conversation(rng, held_out=True)
        key = "\n".join(m["content"] for m in drawn.messages)
        found[key] = {"messages": drawn.messages, "must": drawn.must}
    return list(found.values())
