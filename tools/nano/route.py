"""Routing: which of the departments or tools listed in the prompt a request belongs to."""

from __future__ import annotations

import random

from tools.nano.document import Document
from tools.nano.grammar import Grammar, pick
from tools.nano.world import (
    CITIES,
    CODE_WORDS,
    COLORS,
    DAYS,
    FOODS,
    ITEMS,
    MONTHS,
    PLACES,
    capitalized,
    made_up_word,
)

# name → (descriptions, requests)
DEPARTMENTS: dict[str, tuple[str, str]] = {
    "billing": (
        "invoices, payments and refunds|everything about money and invoices|charges and refunds",
        "{hi}I was charged twice for my {thing}.|{hi}my invoice from {day} shows the wrong amount.|"
        "{hi}please refund the payment for the {thing}.|{hi}why is my bill higher in {month}?|"
        "{hi}the {color} {thing} was paid, but you sent another invoice.|"
        "{hi}which credit card did you charge on {day}?",
    ),
    "shipping": (
        "parcels, delivery and tracking|deliveries and lost parcels|where a parcel is",
        "{hi}my parcel with the {thing} has not arrived.|{hi}where is the package sent to {city}?|"
        "{hi}can you deliver the {thing} on {day} instead?|"
        "{hi}the courier left my {color} {thing} at the wrong house.|"
        "{hi}how long does delivery to {city} take?|"
        "{hi}the tracking number stopped updating on {day}.",
    ),
    "support": (
        "technical problems and broken devices|help when something does not work|"
        "errors, crashes and repairs",
        "{hi}the {color} {thing} does not turn on any more.|"
        "{hi}the app crashes whenever I open it on {day}.|"
        "{hi}I get an error when I connect the {thing}.|{hi}the screen of my {thing} stays black.|"
        "{hi}how do I reset the {thing} after it froze?|{hi}the update broke my {color} {thing}.",
    ),
    "sales": (
        "prices, offers and new purchases|buying and price offers|quotes and discounts",
        "{hi}how much does the {color} {thing} cost?|{hi}do you offer a discount for 20 {items}?|"
        "{hi}I would like to buy a {thing} before {day}.|{hi}please send a quote for {items}.|"
        "{hi}is the {color} {thing} still for sale?|{hi}which {thing} would you recommend to buy?",
    ),
    "account": (
        "passwords, login and user data|login and profile settings|access to an account",
        "{hi}I forgot my password on {day}.|{hi}I cannot log in from {city}.|"
        "{hi}please change the email address of my profile.|"
        "{hi}my user name is locked since {day}.|"
        "{hi}how do I delete my profile?|{hi}I moved to {city} and must update my address data.",
    ),
    "jobs": (
        "applications and careers|people who want to work here|hiring and interviews",
        "{hi}do you have open positions in {city}?|{hi}I sent my application on {day}.|"
        "{hi}when is my job interview in {city}?|{hi}I would like to work for you from {month}.|"
        "{hi}here is my resume for the vacancy in {city}.|{hi}do you hire students in {month}?",
    ),
    "press": (
        "journalists and interviews with the media|newspapers and television|media questions",
        "{hi}I write an article about you for a newspaper in {city}.|"
        "{hi}our magazine needs a photo of the {color} {thing}.|"
        "{hi}can our television crew film at your {place} on {day}?|"
        "{hi}a reporter from {city} asks for a statement.|"
        "{hi}please comment on the story we publish on {day}.",
    ),
    "kitchen": (
        "meals, menus and allergies|food orders and recipes|dishes and guests' diets",
        "{hi}is there {food} on the menu on {day}?|{hi}can the chef cook {food} without nuts?|"
        "{hi}one guest from {city} is allergic to eggs.|"
        "{hi}we want two plates of {food} in our room.|"
        "{hi}the {food} was cold, please make another dish.",
    ),
    "reception": (
        "rooms, bookings and check-in|guests who arrive or leave|booking a room",
        "{hi}I would like to book a double room for {day}.|{hi}can we check out later on {day}?|"
        "{hi}we arrive from {city} after midnight, is check-in open?|"
        "{hi}please change my reservation from {month} to {month2}.|"
        "{hi}the key card of our room does not open the door.",
    ),
    "cleaning": (
        "towels, laundry and dirty rooms|tidying and laundry|anything that must be cleaned",
        "{hi}there is dust under the bed since {day}.|{hi}please bring fresh towels before {day}.|"
        "{hi}someone spilled {food} on the carpet.|{hi}the bathroom near the {place} is dirty.|"
        "{hi}can you wash my {color} shirts by {day}?",
    ),
    "legal": (
        "contracts and law|contracts, courts and privacy|lawyers' questions",
        "{hi}our lawyer in {city} has a question about the contract.|"
        "{hi}I want to sue because of the {color} {thing}.|"
        "{hi}please sign the agreement before {day}.|{hi}which privacy law applies in {city}?|"
        "{hi}the court in {city} asks for documents.",
    ),
    "garden": (
        "plants, trees and lawns|flowers and hedges|everything that grows",
        "{hi}the {color} roses need water before {day}.|"
        "{hi}a tree fell onto the lawn by the {place}.|"
        "{hi}who trims the hedge behind the {place}?|"
        "{hi}we want to plant {color} tulips in {month}.|"
        "{hi}weeds grow between the flowers near the {place}.",
    ),
}
TOOLS: dict[str, tuple[str, str]] = {
    "calculator": (
        "sums, products and other arithmetic|works out numbers|computes an expression",
        "what is {n} times {n}?|add {n} and {n}.|how much is {n} minus {n}?|divide {n} by {n}.|"
        "what is {n} percent of {n}?|multiply {n} {items} by {n}.",
    ),
    "weather": (
        "forecasts for a place and a day|rain, sun and temperature|"
        "tells how warm or wet it will be",
        "will it rain in {city} on {day}?|how warm is it in {city}?|"
        "do I need an umbrella in {city}?|"
        "is there snow near {city} in {month}?|how windy will {day} be in {city}?",
    ),
    "calendar": (
        "appointments and dates|adds and shows meetings|what is planned on which day",
        "put a meeting with the dentist on {day}.|what is planned for {day}?|"
        "move my appointment from {day} to {day2}.|am I free on {day} in {month}?|"
        "schedule a call with the {place} for {day}.",
    ),
    "music": (
        "plays songs and albums|songs, artists and playlists|plays something to listen to",
        "play some jazz from {city}.|turn up the volume of this song.|skip to the next song.|"
        "play my {color} album from {month}.|I want to listen to a piano concert.",
    ),
    "translator": (
        "translates between languages|words and sentences in other languages|foreign languages",
        "how do you say {color} in Spanish?|translate {food} into German.|"
        "what does this French word for {items} mean?|"
        "translate this letter from {city} into English.|say good morning in Japanese.",
    ),
    "timer": (
        "counts down minutes|alarms and countdowns|rings after some time",
        "wake me up in {n} minutes.|set a countdown of {n} seconds for the {food}.|"
        "remind me in {n} minutes to stir the {food}.|ring when {n} minutes are over.|"
        "stop the alarm for the {food}.",
    ),
    "maps": (
        "routes and distances|the way from one place to another|streets and directions",
        "how do I get from {city} to {city}?|show the shortest way to the {place}.|"
        "how far is the {place} from the {place2}?|navigate to the {place} in {city}.|"
        "which road leads to {city}?",
    ),
    "mail": (
        "writes and reads letters and mails|sends messages|the inbox",
        "send a message to the {place} that I am late.|read my new mails from {day}.|"
        "reply to the letter from {city}.|forward the note about {items} to my boss.|"
        "write to the {place} that {day} suits me.",
    ),
    "shop": (
        "puts things on the shopping list|orders goods and groceries|buys things online",
        "put {items} on the shopping list.|order {n} {color} {items}.|"
        "we are out of {items}, get some more.|buy {food} and {items} for {day}.|"
        "add {n} {items} to my basket.",
    ),
    "lights": (
        "lamps in the house|switches lamps on and off|brightness of the rooms",
        "switch off the lamps in the hall.|make the bedroom brighter.|"
        "dim the {color} lamp in the kitchen.|turn the lamps {color} on {day}.|"
        "it is too dark in the cellar.",
    ),
}
REQUESTS = Grammar(
    {
        "city": CITIES, "color": COLORS, "food": FOODS, "items": ITEMS, "month": MONTHS,
        "month2": MONTHS, "place": PLACES, "place2": PLACES, "day": DAYS, "day2": DAYS,
        "hi": ["", "", "", "hello, ", "hi, ", "good morning, ", "dear team, ", "excuse me, "],
        "thing": "phone|kettle|lamp|laptop|camera|printer|radio|watch|headset|toaster|"
        "heater|tablet",
        "n": [str(n) for n in range(2, 100)],
        "now": ["", "", "", "hey, ", "ok, ", "quick, ", "tell me, ", "next, ", "one more thing, "],
        **{name: requests for name, (_, requests) in DEPARTMENTS.items()},
        **{
            name: ["{now}" + text for text in requests.split("|")]
            for name, (_, requests) in TOOLS.items()
        },
    }
)  # fmt: skip
DESCRIPTIONS = {name: text.split("|") for name, (text, _) in (DEPARTMENTS | TOOLS).items()}
HEADERS = {
    "Department": (
        "Departments:\n{list}\n\n",
        "Route each request to one of these departments.\n{list}\n\n",
        "Which department should answer the request?\n{list}\n\n",
    ),
    "Tool": (
        "Tools:\n{list}\n\n",
        "Choose the tool that can handle the request.\n{list}\n\n",
        "Which tool fits the request?\n{list}\n\n",
    ),
}


def request(rng: random.Random, name: str, held_out: bool) -> str:
    return REQUESTS.sentence_of(name, rng, held_out)


def menu(rng: random.Random, names: list[str], labels: list[str], described: bool) -> str:
    if not described:
        return "\n".join(f"- {label}" for label in labels)
    return "\n".join(
        f"- {label}: {pick(rng, DESCRIPTIONS[name])}"
        for name, label in zip(names, labels, strict=True)
    )


def choose(rng: random.Random) -> tuple[str, list[str], list[str], bool]:
    """("Department" or "Tool", topics, their labels in the prompt, whether they are described)."""
    role, pool = pick(rng, (("Department", DEPARTMENTS), ("Tool", TOOLS)))
    names = rng.sample(list(pool), rng.randint(3, 7))
    draw = rng.random()
    if draw < 0.55:
        return role, names, names, rng.random() < 0.7
    if draw < 0.85:
        return role, names, rng.sample(CODE_WORDS, len(names)), True
    words: list[str] = []
    while len(words) < len(names):
        word = made_up_word(rng)
        if word not in words:
            words.append(capitalized(word) if rng.random() < 0.3 else word)
    return role, names, words, True


def training_document(rng: random.Random) -> Document:
    role, names, labels, described = choose(rng)
    header = pick(rng, HEADERS[role]).format(list=menu(rng, names, labels, described))
    document = Document().filler(header)
    for _ in range(rng.randint(1, 8)):
        index = int(rng.random() * len(names))
        text = request(rng, names[index], held_out=False)
        document.filler(f"Request: {text}\n{role}:").label(f" {labels[index]}").filler("\n\n")
    return document


def chat_document(rng: random.Random) -> Document:
    role, names, labels, described = choose(rng)
    header = pick(rng, HEADERS[role]).format(list=menu(rng, names, labels, described)).strip()
    document = Document().system(f"{header}\nAnswer with the name of the {role.lower()}.")
    for _ in range(rng.randint(1, 5)):
        index = int(rng.random() * len(names))
        document.user(request(rng, names[index], held_out=False))
        document.assistant(labels[index], one_word=True)
    return document


def items(rng: random.Random, count: int) -> list[dict[str, object]]:
    """Half the items list departments, half tools; one in three gives them arbitrary names."""
    found: dict[str, dict[str, object]] = {}
    while len(found) < count:
        role, names, labels, _ = choose(rng)
        index = int(rng.random() * len(names))
        text = request(rng, names[index], held_out=True)
        header = HEADERS[role][1].format(list=menu(rng, names, labels, True))
        found[text] = {
            "role": role, "header": header, "options": labels, "request": text,
            "label": labels[index],
        }  # fmt: skip
    return list(found.values())


def prompt(item: dict[str, object]) -> str:
    return f"{item['header']}Request: {item['request']}\n{item['role']}:"
