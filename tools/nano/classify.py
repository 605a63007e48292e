"""Few-shot classification: the shots name the labels, which may mean nothing by themselves."""

from __future__ import annotations

import random

from tools.nano.document import Document
from tools.nano.grammar import pick
from tools.nano.sentences import DOMAINS, Domain, canonical_label, labelled_sentence
from tools.nano.world import CODE_WORDS, made_up_word

INSTRUCTIONS = (
    "Classify each {input} by its {output}. The labels are {labels}.",
    "Decide the {output} of every {input}: {labels}.",
    "For each {input}, give the {output} ({labels}).",
    "{Output} is one of {labels}.",
)


def listing(words: list[str]) -> str:
    return " or ".join(words) if len(words) == 2 else ", ".join(words[:-1]) + " or " + words[-1]


def instruction(rng: random.Random, input_name: str, output_name: str, labels: list[str]) -> str:
    return pick(rng, INSTRUCTIONS).format(
        input=input_name.lower(),
        output=output_name.lower(),
        Output=output_name,
        labels=listing(labels),
    )


def choose_labels(rng: random.Random, classes: list[str]) -> tuple[list[str], bool]:
    """One label word per class, and whether the words are arbitrary."""
    draw = rng.random()
    if draw < 0.45:
        return [canonical_label(name) for name in classes], False
    if draw < 0.90:
        return rng.sample(CODE_WORDS, len(classes)), True
    words: list[str] = []
    while len(words) < len(classes):
        word = made_up_word(rng)
        if word not in words:
            words.append(word)
    return words, True


def choose_classes(rng: random.Random, domain: Domain) -> list[str]:
    if domain.name == "sentiment" and rng.random() < 0.6:
        return rng.sample(["positive", "negative"], 2)
    most = min(len(domain.classes), 5)
    return rng.sample(domain.classes, rng.randint(2, most))


def balanced(rng: random.Random, classes: list[str], count: int) -> list[int]:
    """Class indices in random order; half the time every class appears about equally often."""
    if rng.random() < 0.5:
        return [int(rng.random() * len(classes)) for _ in range(count)]
    order = [i % len(classes) for i in range(count)]
    rng.shuffle(order)
    return order


def training_document(rng: random.Random) -> Document:
    domain = pick(rng, list(DOMAINS.values()))
    if rng.random() < 0.25:
        domain = DOMAINS["sentiment"]
    classes = choose_classes(rng, domain)
    labels, arbitrary = choose_labels(rng, classes)
    input_name, output_name = (
        (pick(rng, domain.inputs), pick(rng, domain.outputs))
        if rng.random() < 0.8
        else pick(rng, [("Input", "Output"), ("Q", "A"), ("Text", "Class"), ("x", "y")])
    )
    gap = "\n\n" if rng.random() < 0.7 else "\n"
    document = Document()
    explained = rng.random() < (0.3 if arbitrary else 0.6)
    if explained:
        names = list(labels)
        rng.shuffle(names)
        document.filler(instruction(rng, input_name, output_name, names) + "\n\n")
    shots = rng.randint(1, 4) if explained and not arbitrary and rng.random() < 0.4 else 0
    shots = shots or (rng.randint(4, 26) if rng.random() < 0.8 else rng.randint(26, 50))
    seen: set[int] = set()
    for index in balanced(rng, classes, shots):
        text = labelled_sentence(rng, classes[index], held_out=False)
        document.filler(f"{input_name}: {text}\n{output_name}:")
        # Before the shots have shown a label, nobody can know an arbitrary one.
        known = index in seen or not arbitrary
        label = f" {labels[index]}"
        (document.label if known else document.filler)(label).filler(gap)
        seen.add(index)
    return document


def chat_document(rng: random.Random) -> Document:
    """The same question put to the assistant, with canonical labels named in the request."""
    domain = pick(rng, list(DOMAINS.values()))
    classes = choose_classes(rng, domain)
    labels = [canonical_label(name) for name in classes]
    input_name, output_name = pick(rng, domain.inputs), pick(rng, domain.outputs)
    ask = instruction(rng, input_name, output_name, labels)
    document = Document()
    in_system = rng.random() < 0.5
    if in_system:
        document.system(ask + " Answer with one word.")
    for _ in range(rng.randint(1, 6)):
        index = int(rng.random() * len(classes))
        text = labelled_sentence(rng, classes[index], held_out=False)
        document.user(f"{input_name}: {text}" if in_system else f"{ask}\n{input_name}: {text}")
        document.assistant(labels[index], one_word=True)
    return document


def shot(item: dict[str, str], input_name: str, output_name: str) -> str:
    return f"{input_name}: {item['text']}\n{output_name}: {item['label']}\n\n"


def items(
    rng: random.Random, domain: str, classes: list[str], count: int, held_out: bool
) -> list[dict[str, str]]:
    """`count` distinct labelled texts, as many of each class as of any other."""
    found: dict[str, str] = {}
    index = 0
    while len(found) < count:
        name = classes[index % len(classes)]
        text = labelled_sentence(rng, name, held_out)
        if text not in found:
            found[text] = canonical_label(name)
            index += 1
    rows = [{"domain": domain, "text": text, "label": label} for text, label in found.items()]
    rng.shuffle(rows)
    return rows
