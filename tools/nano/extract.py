"""From a short description to one line of JSON, keys as and in the order the schema line says."""

from __future__ import annotations

import json
import random

from tools.nano.document import Document
from tools.nano.grammar import is_held_out, pick, words
from tools.nano.world import (
    ANIMALS,
    CITIES,
    COLORS,
    DAYS,
    HE,
    HOBBIES,
    ITEMS,
    JOBS,
    MONTHS,
    PLACES,
    SHE,
    capitalized,
    city,
    last_name,
    made_up_word,
)  # fmt: skip

Record = dict[str, object]

INSTRUCTIONS = (
    "Extract the {kind} as JSON with the keys {keys}.",
    "Write the {kind} as JSON. Keys: {keys}.",
    "Turn the text into JSON with these keys in this order: {keys}.",
    "Keys: {keys}",
)
_TYPES = {"age": "integer", "quantity": "integer", "price": "integer", "guests": "integer"}


def _person(rng: random.Random) -> tuple[Record, str, str]:
    she = rng.random() < 0.5
    first = capitalized(made_up_word(rng)) if rng.random() < 0.12 else pick(rng, SHE if she else HE)
    last = last_name(rng)
    sub, pos = ("She", "Her") if she else ("He", "His")
    full: Record = {
        "name": f"{first} {last}",
        "age": rng.randint(18, 89),
        "city": city(rng),
        "job": pick(rng, JOBS),
        "hobby": pick(rng, HOBBIES),
        "pet": pick(rng, ANIMALS),
        "email": f"{first.lower()}.{last.lower()}@{pick(rng, _HOSTS)}",
    }
    age, town, job, hobby = full["age"], full["city"], full["job"], full["hobby"]
    opening, told = pick(
        rng,
        (
            (f"{full['name']} is a {age} year old {job} from {town}.", {"age", "city", "job"}),
            (f"{full['name']}, {age}, lives in {town} and works as a {job}.",
             {"age", "city", "job"}),
            (f"Meet {full['name']}, a {job} who is {age} years old.", {"age", "job"}),
            (f"{full['name']} moved to {town} at the age of {age}.", {"age", "city"}),
            (f"In {town} everybody knows {full['name']} the {job}.", {"city", "job"}),
        ),
    )  # fmt: skip
    extras = [
        ("hobby", pick(rng, (f"{sub} likes {hobby}.", f"{pos} hobby is {hobby}.",
                             f"{sub} spends every {pick(rng, DAYS)} on {hobby}."))),
        ("pet", pick(rng, (f"{sub} has a {full['pet']}.", f"{pos} pet is a {full['pet']}."))),
        ("email", pick(rng, (f"Write to {full['email']}.", f"{pos} email is {full['email']}."))),
    ]  # fmt: skip
    if "age" not in told:
        extras.append(("age", f"{sub} is {age} years old."))
    if "job" not in told:
        extras.append(("job", f"{sub} works as a {job}."))
    if "city" not in told:
        extras.append(("city", f"{sub} lives in {town}."))
    return _tell(rng, full, "name", opening, told, extras), "person", str(full["name"])


def _order(rng: random.Random) -> tuple[Record, str, str]:
    customer = f"{pick(rng, SHE + HE)} {last_name(rng)}"
    full: Record = {
        "customer": customer,
        "item": pick(rng, ITEMS),
        "quantity": rng.randint(2, 99),
        "color": pick(rng, COLORS),
        "price": rng.randint(2, 400),
        "city": city(rng),
        "day": pick(rng, DAYS),
    }
    item, count, color, town = full["item"], full["quantity"], full["color"], full["city"]
    opening, told = pick(
        rng,
        (
            (f"{customer} ordered {count} {color} {item}.", {"item", "quantity", "color"}),
            (f"Please send {count} {item} to {customer} in {town}.", {"item", "quantity", "city"}),
            (f"New order from {customer}: {count} {color} {item}, ship to {town}.",
             {"item", "quantity", "color", "city"}),
            (f"{customer} from {town} wants to buy {count} {item}.", {"item", "quantity", "city"}),
        ),
    )  # fmt: skip
    extras = [
        ("price", pick(rng, (f"The price is {full['price']} euros.",
                             f"The total comes to {full['price']} euros."))),
        ("day", pick(rng, (f"Delivery is on {full['day']}.", f"It must arrive by {full['day']}."))),
    ]  # fmt: skip
    if "color" not in told:
        extras.append(("color", f"They should be {color}."))
    if "city" not in told:
        extras.append(("city", f"The parcel goes to {town}."))
    return _tell(rng, full, "customer", opening, told, extras), "order", f"{customer} {item}"


def _event(rng: random.Random) -> tuple[Record, str, str]:
    kind = pick(rng, _EVENTS)
    title = f"{pick(rng, MONTHS + CITIES + _THEMES)} {kind}"
    full: Record = {
        "title": title,
        "place": pick(rng, PLACES),
        "city": city(rng),
        "date": f"{pick(rng, MONTHS)} {rng.randint(1, 28)}",
        "time": f"{rng.randint(8, 22)}:{pick(rng, ('00', '15', '30', '45'))}",
        "host": f"{pick(rng, SHE + HE)} {last_name(rng)}",
        "guests": rng.randint(5, 500),
    }
    place, town, date, time = full["place"], full["city"], full["date"], full["time"]
    opening, told = pick(
        rng,
        (
            (f"The {title} takes place on {date} at {time} in the {place} of {town}.",
             {"date", "time", "place", "city"}),
            (f"On {date} the {place} in {town} hosts the {title}.", {"date", "place", "city"}),
            (f"Join us for the {title} at the {place} on {date}, {time}.",
             {"date", "place", "time"}),
            (f"The {title} starts at {time} on {date}.", {"date", "time"}),
        ),
    )  # fmt: skip
    extras = [
        ("host", pick(rng, (f"{full['host']} is the host.", f"It is hosted by {full['host']}."))),
        ("guests", pick(rng, (f"{full['guests']} guests are expected.",
                              f"There is room for {full['guests']} guests."))),
    ]  # fmt: skip
    if "time" not in told:
        extras.append(("time", f"Doors open at {time}."))
    if "city" not in told:
        extras.append(("city", f"The city is {town}."))
    if "place" not in told:
        extras.append(("place", f"Come to the {place}."))
    return _tell(rng, full, "title", opening, told, extras), "event", f"{title} {date}"


_HOSTS = ("mail.com", "post.org", "example.net", "work.io")
_EVENTS = words("concert fair workshop lecture festival race auction exhibition dinner parade")
_THEMES = words("Spring Summer Winter Autumn Book Jazz Garden Chess Science Food Film Night")


def _tell(
    rng: random.Random,
    full: Record,
    main: str,
    opening: str,
    told: set[str],
    extras: list[tuple[str, str]],
) -> Record:
    """The record with its text under "_text"; what the text leaves out becomes None."""
    rng.shuffle(extras)
    kept = extras[: rng.randint(0, len(extras))]
    known = told | {main} | {key for key, _ in kept}
    record: Record = {key: value if key in known else None for key, value in full.items()}
    record["_text"] = " ".join([opening, *(sentence for _, sentence in kept)])
    return record


def example(rng: random.Random, held_out: bool) -> dict[str, object]:
    """{"kind", "keys", "text", "record"}; split by who or what is described."""
    while True:
        record, kind, key = pick(rng, (_person, _order, _event))(rng)
        if is_held_out(key) != held_out:
            continue
        text = record.pop("_text")
        known = [name for name, value in record.items() if value is not None]
        unknown = [name for name, value in record.items() if value is None]
        keys = rng.sample(known, rng.randint(min(2, len(known)), min(5, len(known))))
        if unknown and rng.random() < 0.15:
            keys.insert(rng.randint(0, len(keys)), pick(rng, unknown))
        return {"kind": kind, "keys": keys, "text": text, "record": {k: record[k] for k in keys}}


def schema_line(keys: list[str]) -> str:
    """The keys with their types, as a schema line shows them."""
    return "{" + ", ".join(f'"{key}": {_TYPES.get(key, "string")}' for key in keys) + "}"


def _instruction(rng: random.Random, drawn: dict[str, object]) -> str:
    keys = list(drawn["keys"])  # type: ignore[call-overload]
    if rng.random() < 0.35:
        return f"Schema: {schema_line(keys)}"
    return pick(rng, INSTRUCTIONS).format(kind=drawn["kind"], keys=", ".join(keys))


def training_document(rng: random.Random) -> Document:
    document = Document()
    for _ in range(rng.randint(1, 4)):
        drawn = example(rng, held_out=False)
        document.filler(f"{_instruction(rng, drawn)}\nText: {drawn['text']}\nJSON:")
        document.answer(f" {json.dumps(drawn['record'])}\n").filler("\n")
    return document


def chat_document(rng: random.Random) -> Document:
    document = Document()
    for _ in range(rng.randint(1, 3)):
        drawn = example(rng, held_out=False)
        instruction = _instruction(rng, drawn)
        if not document.pieces and rng.random() < 0.5:
            document.system(instruction).user(f"Text: {drawn['text']}")
            document.assistant(json.dumps(drawn["record"]))
            return document
        document.user(f"{instruction}\nText: {drawn['text']}")
        document.assistant(json.dumps(drawn["record"]))
    return document


def items(rng: random.Random, count: int) -> list[dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    while len(found) < count:
        drawn = example(rng, held_out=True)
        found[str(drawn["text"])] = drawn
    return list(found.values())


def prompt(item: dict[str, object]) -> str:
    keys = ", ".join(item["keys"])  # type: ignore[arg-type]
    return f"Extract the {item['kind']} as JSON with the keys {keys}.\nText: {item['text']}\nJSON:"
