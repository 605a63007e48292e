"""The words of nano's small world, and names made of random syllables."""

from __future__ import annotations

import random

from tools.nano.grammar import capitalized, pick, words

SHE = words(
    "Anna Maria Lena Sofia Clara Emma Julia Nora Eva Alice Ida Ruth Helen Grace Olga Vera "
    "Carmen Lucia Hanna Mina Rosa Sara Tina Zoe Amira Leila Priya Mei Yuki Fatima Ingrid Paula "
    "Diana Iris Joan Kate Laura Martha Nina Petra"
)
HE = words(
    "Tom Peter Paul Max Leo Felix Hugo Oscar David Jonas Karl Erik Ivan Marco Luis Diego Omar "
    "Ali Ravi Kenji Chen Samir Adam Ben Daniel Frank George Henry Jack Kevin Liam Martin Noah "
    "Otto Robert Simon Theo Victor Walter Yusuf"
)
LAST = words(
    "Berg Miller Stone Fischer Novak Rossi Silva Costa Meyer Larsen Hansen Weber Keller Moreno "
    "Ortiz Tanaka Sato Khan Patel Singh Brown Green Baker Cooper Turner Walker Young Hill Wood "
    "Reed Gray Fox Lane Marsh Frost Dale Banks Cole Drake Ellis Flynn Grant Hayes Irwin Jensen "
    "Klein Lopez Mason Nash Owens Price Quinn Ross Shaw Todd Unger Vogel West York Zeller"
)
CITIES = words(
    "Oslo Berlin Paris Madrid Lisbon Rome Vienna Prague Dublin London Helsinki Athens Cairo "
    "Lagos Nairobi Tokyo Osaka Seoul Delhi Mumbai Bangkok Hanoi Sydney Perth Boston Denver "
    "Chicago Seattle Toronto Montreal Lima Quito Bogota Santiago Havana Geneva Zurich Munich "
    "Hamburg Milan Turin Naples Porto Seville Bergen Malmo Riga Tallinn Warsaw Krakow Budapest "
    "Sofia Zagreb Dakar Accra"
)
JOBS = words(
    "nurse teacher baker pilot farmer lawyer dentist plumber painter carpenter chef librarian "
    "gardener journalist driver waiter tailor barber butcher florist mechanic pharmacist "
    "programmer photographer translator surgeon judge sailor singer dancer guard clerk cashier "
    "biologist chemist geologist historian editor designer potter"
)
ITEMS = words(
    "pens apples books chairs lamps cups plates boxes tickets stamps candles pencils notebooks "
    "shirts towels bottles baskets balls cards coins flowers oranges lemons cookies muffins "
    "eggs bricks tiles nails screws shells marbles stickers posters magnets keys spoons forks "
    "bowls pillows blankets umbrellas gloves scarves hats socks belts bags ropes buckets"
)
COLORS = words("red blue green yellow purple orange white black brown pink grey silver golden")
FOODS = words(
    "pizza soup rice pasta salad bread cheese curry sushi pancakes tacos noodles porridge stew "
    "lasagna dumplings waffles risotto falafel hummus"
)
ANIMALS = words("dog cat horse parrot rabbit hamster turtle goldfish pony goat duck lizard")
HOBBIES = words(
    "chess tennis painting hiking sailing knitting fishing gardening cycling swimming "
    "photography pottery running skating climbing reading cooking dancing singing juggling"
)
MONTHS = words(
    "January February March April May June July August September October November December"
)
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
PLACES = words(
    "library museum bakery pharmacy market station school theatre harbour stadium gallery "
    "bookshop cinema clinic garage cafe aquarium castle park bank"
)

# Label words without a meaning of their own, for classification that only the shots explain.
CODE_WORDS = words(
    "alpha beta gamma delta omega tango bravo foxtrot echo sierra lima kilo zulu north south "
    "east west circle square triangle star moon sun river stone cloud leaf fire ice sand gold "
    "iron copper wolf bear eagle tiger whale lion crow fox owl maple oak pine cedar rose lily "
    "apple plum cherry lemon mango red blue green yellow violet amber jade ruby pearl one two "
    "three four five foo bar baz qux left right up down yes no true false high low day night A "
    "B C D E F X Y Z K M P Q"
)

_ONSETS = words("b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pr sk st tr th sh ch")
_VOWELS = words("a e i o u a e i o ai ea oo ie")
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "k", "t", "nd", "rt", "x", "sh"]


def made_up_word(rng: random.Random, syllables: int = 2) -> str:
    return "".join(
        pick(rng, _ONSETS) + pick(rng, _VOWELS) + (pick(rng, _CODAS) if i == syllables - 1 else "")
        for i in range(syllables)
    )


def first_name(rng: random.Random, female: bool | None = None) -> str:
    if rng.random() < 0.12:
        return capitalized(made_up_word(rng))
    if female is None:
        female = rng.random() < 0.5
    return pick(rng, SHE if female else HE)


def last_name(rng: random.Random) -> str:
    return capitalized(made_up_word(rng)) if rng.random() < 0.2 else pick(rng, LAST)


def city(rng: random.Random) -> str:
    return capitalized(made_up_word(rng, 3)) if rng.random() < 0.1 else pick(rng, CITIES)
