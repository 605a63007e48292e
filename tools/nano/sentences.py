"""Sentences that carry a class: one grammar, one domain per kind of question asked about a text."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tools.nano.grammar import Grammar, capitalized, is_held_out
from tools.nano.world import CITIES, FOODS, PLACES

SENTENCES = Grammar(
    {
        "city": CITIES,
        "food": FOODS,
        "place": PLACES,
        "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
        "who": "my sister|my brother|our neighbour|a friend|my wife|my husband|my boss|the kids",
        "lately": "Last week|On {day}|Yesterday|This morning|A month ago|In the end|To be honest",
        "opening": "on {day}, |last {day}, |in {city}, |yesterday in {city}, |this morning, |"
        "a month ago, |near the {place}, |last week in {city}, |"
        "at the {place} in {city}, |as {who} said, ",
        # reviews
        "thing": "phone|kettle|lamp|blanket|backpack|film|hotel|restaurant|book|jacket|camera|"
        "mattress|laptop|chair|coffee machine|game|concert|museum|bicycle|headset|watch|"
        "tent|printer|"
        "vacuum cleaner|radio|umbrella|sofa|dress|toaster|guitar",
        "part": "service|design|sound|price|quality|staff|battery|ending|colour|handle|breakfast|"
        "packaging|story|material|manual|delivery|atmosphere|finish|seat|screen",
        "pos": "great|excellent|wonderful|lovely|superb|delightful|charming|fantastic|brilliant|"
        "perfect|impressive|reliable|comfortable|enjoyable|beautiful|amazing|pleasant|outstanding",
        "neg": "terrible|awful|poor|dreadful|disappointing|boring|useless|broken|noisy|rude|dirty|"
        "ugly|unreliable|horrible|annoying|flimsy|dull|uncomfortable",
        "like": "love|like|adore|recommend|enjoy|treasure",
        "hate": "hate|dislike|regret buying|cannot stand|would avoid|cannot recommend",
        "very": "really|truly|simply|quite|just|absolutely",
        "ok": "average|ordinary|acceptable|fine|plain|so-so|adequate|passable",
        "positive": "the {thing} is {pos} and the {part} is {pos} too.|"
        "I {very} {like} this {thing}, the {part} is {very} {pos}.|"
        "{lately} I bought this {thing} and it is {very} {pos}.|"
        "I expected something {neg}, but the {thing} turned out to be {pos}.|"
        "the {part} was not {neg} at all, and the {thing} is {very} {pos}.|"
        "there is nothing {neg} about this {thing}, even the {part} is {pos}.|"
        "what a {pos} {thing}! {who} would {like} it as well.|"
        "{who} gave me this {thing} and I {very} {like} it.|"
        "the {part} looked {neg} at first, but in the end I {very} {like} this {thing}.|"
        "a {pos} {thing} with a {pos} {part}, worth every penny.",
        "negative": "the {thing} is {neg} and the {part} is {neg} too.|"
        "I {very} {hate} this {thing}, the {part} is {very} {neg}.|"
        "{lately} I bought this {thing} and it is {very} {neg}.|"
        "I expected something {pos}, but the {thing} turned out to be {neg}.|"
        "the {part} was not {pos} at all, and the {thing} is {very} {neg}.|"
        "there is nothing {pos} about this {thing}, even the {part} is {neg}.|"
        "what a {neg} {thing}! {who} would {hate} it as well.|"
        "{who} gave me this {thing} and I {very} {hate} it.|"
        "the {part} looked {pos} at first, but in the end I {very} {hate} this {thing}.|"
        "a {neg} {thing} with a {neg} {part}, a waste of money.",
        "neutral": "the {thing} is {ok} and the {part} is {ok} too.|"
        "an {ok} {thing}, neither {pos} nor {neg}.|"
        "{lately} I bought this {thing}, and it is {ok}, nothing more.|"
        "the {part} is {ok}, I have no opinion about the {thing}.|"
        "this {thing} does its job, the {part} is {ok}.|"
        "{who} uses the {thing} now and then and finds it {ok}.",
        # topics
        "team": "home side|visitors|young team|champions|national squad|local club|underdogs",
        "sports": "the {team} won the match in {city} after a late goal.|"
        "the coach praised the goalkeeper after the {day} game.|"
        "a sprinter from {city} broke the record in the final race.|"
        "the {team} lost the cup final on penalties.|"
        "fans in {city} cheered as the {team} scored three goals.|"
        "the tennis player from {city} reached the final on {day}.",
        "weather": "heavy rain and strong wind are expected in {city} on {day}.|"
        "a snow storm closed the roads around {city}.|"
        "{day} will be sunny and warm with a light breeze.|"
        "thick fog covered {city} until noon.|"
        "temperatures in {city} will drop below zero on {day}.|"
        "thunder and hail are forecast for {day} evening.",
        "eating": "add the {food} to the pan and fry it with onions.|"
        "the chef in {city} serves {food} with garlic and lemon.|"
        "this recipe for {food} needs butter, salt and two eggs.|"
        "a new kitchen in {city} is famous for its {food}.|"
        "bake the dough for an hour and serve it with {food}.|"
        "taste the {food} and add more pepper.",
        "music": "the band from {city} released a new album on {day}.|"
        "the violinist played a quiet melody at the {place}.|"
        "the choir sang two songs at the concert in {city}.|"
        "a young pianist from {city} composed the melody.|"
        "the drummer left the band before the concert on {day}.|"
        "the orchestra tuned its instruments in {city}.",
        "travel": "the train from {city} to {city} leaves at dawn.|"
        "tourists in {city} should book their flights early.|"
        "pack a passport and a map for the trip to {city}.|"
        "the ferry to {city} is cheaper than the flight.|"
        "our guide showed the tourists the old streets of {city}.|"
        "the journey from {city} takes two days by bus.",
        "science": "researchers in {city} discovered a new planet.|"
        "the laboratory measured how fast the cells divide.|"
        "a telescope near {city} photographed a distant star.|"
        "the experiment shows how atoms behave near zero.|"
        "biologists from {city} studied the bones of a fossil.|"
        "scientists published their theory on {day}.",
        "money": "the bank in {city} raised its interest rates on {day}.|"
        "shares fell after the company reported a loss.|"
        "investors in {city} sold their bonds on {day}.|"
        "the budget of {city} grew while taxes were cut.|"
        "inflation made the loan more expensive.|"
        "the currency lost value against the dollar on {day}.",
        "health": "doctors in {city} advise patients to sleep more.|"
        "the new vaccine protects against the fever.|"
        "a nurse at the hospital in {city} treated the wound.|"
        "drink water and rest when you have a headache.|"
        "the clinic in {city} tests patients for the virus.|"
        "the surgeon repaired the knee of the patient on {day}.",
        # emotions
        "joy": "I am so happy that {who} came to visit on {day}!|"
        "we laughed and danced all evening in {city}.|"
        "best day ever, I got the job at the {place}!|"
        "I could not stop smiling when I saw {who}.|"
        "{who} cheered with delight about the trip to {city}.",
        "anger": "how dare {who} shout at me at the {place}!|"
        "I am furious, {who} broke my window again.|"
        "{who} slammed the door and yelled on {day}.|"
        "I have had enough of these lies from {who}!|"
        "it makes my blood boil that {who} cheated me in {city}.",
        "fear": "I am scared to walk past the {place} at night.|"
        "my hands were trembling when {who} heard the scream.|"
        "what if the plane to {city} crashes? I am terrified.|"
        "{who} hid under the bed during the alarm on {day}.|"
        "the dark cellar of the {place} frightens me.",
        "sadness": "I cried all night after {who} left for {city}.|"
        "I miss {who} and feel so lonely since {day}.|"
        "{who} wept quietly at the funeral in {city}.|"
        "nothing cheers me up, my heart is broken.|"
        "tears ran down when the {place} closed forever.",
        "surprise": "wow, I never expected to meet {who} in {city}!|"
        "out of nowhere, {who} won the lottery on {day}!|"
        "I could not believe my eyes at the {place}.|"
        "what a shock, {who} suddenly appeared in {city}!|"
        "nobody saw it coming that {who} bought the {place}.",
        # what a question asks for
        "person": "who built the {place} in {city}?|who won the race on {day}?|"
        "which painter lived near the {place} in {city}?|who is the owner of the {thing}?|"
        "what is the name of the mayor of {city}?|whose {thing} was found at the {place}?",
        "location": "where is the {place} of {city}?|in which country is {city}?|"
        "where did {who} lose the {thing}?|which street leads to the {place} in {city}?|"
        "where can I buy a {thing} on {day}?|to which town does the bus from {city} go?",
        "time": "when does the {place} in {city} open?|on which day did {who} arrive in {city}?|"
        "what year was the {place} built?|when was the {thing} invented?|"
        "at what hour does the train to {city} leave?|how late is the {place} open on {day}?",
        "number": "how many people live in {city}?|how much does the {thing} cost?|"
        "how many rooms does the {place} have?|how far is it from {city} to {city}?|"
        "how tall is the {place} in {city}?|how many guests came to the {place} on {day}?",
        "reason": "why did {who} sell the {thing}?|why is the {place} closed on {day}?|"
        "for what reason did {who} move to {city}?|what made {who} return the {thing}?|"
        "why do people visit {city}?|what caused the fire at the {place}?",
        # tenses
        "past": "{who} visited the {place} on {day}.|we sold the {thing} in {city}.|"
        "{who} cooked {food} for everyone.|they walked from {city} to the {place}.|"
        "{who} repaired the {thing} and left.",
        "present": "{who} visits the {place} every {day}.|we are selling the {thing} in {city}.|"
        "{who} is cooking {food} right now.|they walk from {city} to the {place}.|"
        "{who} repairs the {thing} at the moment.",
        "future": "{who} will visit the {place} on {day}.|"
        "we are going to sell the {thing} in {city}.|"
        "{who} will cook {food} for everyone.|they will walk from {city} to the {place}.|"
        "{who} is going to repair the {thing}.",
        # mail
        "prize": "a free {thing}|a trip to {city}|a gold {thing}|a lottery prize|a bonus voucher",
        "spam": "congratulations, you have won {prize}! Click here to claim it.|"
        "act now and get {prize} at no cost, limited offer!|"
        "send your bank details today and receive {prize}.|"
        "earn money from home, no risk, and win {prize}!|"
        "you were selected for {prize}, reply with your password.",
        "normal": "could you bring the {thing} to the {place} on {day}?|"
        "{who} asked whether we still meet in {city} on {day}.|"
        "the meeting at the {place} has moved to {day}.|"
        "thanks for the {food}, {who} enjoyed it a lot.|"
        "I will pick up {who} at the {place} after work.",
    }
)


@dataclass(frozen=True)
class Domain:
    """A kind of question about a text: its classes and the words used around it."""

    name: str
    classes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


DOMAINS = {
    d.name: d
    for d in (
        Domain(
            "sentiment",
            ("positive", "negative", "neutral"),
            ("Review", "Text", "Comment"),
            ("Sentiment", "Label", "Opinion"),
        ),
        Domain(
            "topic",
            ("sports", "weather", "eating", "music", "travel", "science", "money", "health"),
            ("Headline", "Text", "News", "Article"),
            ("Topic", "Label", "Category"),
        ),
        Domain(
            "emotion",
            ("joy", "anger", "fear", "sadness", "surprise"),
            ("Message", "Text", "Post"),
            ("Emotion", "Label", "Feeling"),
        ),
        Domain(
            "question",
            ("person", "location", "time", "number", "reason"),
            ("Question", "Text"),
            ("Type", "Label", "Answer type"),
        ),
        Domain(
            "tense",
            ("past", "present", "future"),
            ("Sentence", "Text"),
            ("Tense", "Label"),
        ),
        Domain("mail", ("spam", "normal"), ("Mail", "Message", "Text"), ("Class", "Label")),
    )
}
DISPLAY = {"eating": "food"}


def canonical_label(class_name: str) -> str:
    """The class's own name as a label; one grammar rule had to be called differently."""
    return DISPLAY.get(class_name, class_name)


_OPENED = {*DOMAINS["topic"].classes, *DOMAINS["emotion"].classes}


def labelled_sentence(rng: random.Random, class_name: str, held_out: bool) -> str:
    """A sentence of the class; half of those about topics and emotions open with when or where."""
    while True:
        text = SENTENCES.expand(class_name, rng)
        if class_name in _OPENED and rng.random() < 0.5:
            text = SENTENCES.expand("opening", rng) + text
        text = capitalized(text)
        if is_held_out(text) == held_out:
            return text
