"""Short English: greetings, who the model is, small facts and tiny stories."""

from __future__ import annotations

from random import Random

from ..samples import Sample, ask
from .people import CITIES, NAMES
from .words import pairs, phrases, words

CAPITALS = pairs(
    "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Austria:Vienna Norway:Oslo Portugal:Lisbon "
    "Poland:Warsaw Greece:Athens Ireland:Dublin Egypt:Cairo Japan:Tokyo Peru:Lima Sweden:Stockholm "
    "Finland:Helsinki Denmark:Copenhagen Hungary:Budapest Belgium:Brussels Russia:Moscow China:Beijing "
    "England:London Canada:Ottawa Cuba:Havana Kenya:Nairobi"
)
OPPOSITES = pairs(
    "hot:cold big:small old:new up:down left:right day:night fast:slow happy:sad light:dark full:empty "
    "open:closed early:late strong:weak rich:poor hard:soft high:low long:short wet:dry good:bad "
    "loud:quiet heavy:light young:old first:last"
)
COLOUR_OF = pairs(
    "grass:green snow:white coal:black milk:white blood:red gold:yellow chocolate:brown night:black "
    "honey:yellow spinach:green cherries:red charcoal:black bananas:yellow carrots:orange tomatoes:red"
)
SOUNDS = {
    "dog": "woof",
    "cat": "meow",
    "cow": "moo",
    "duck": "quack",
    "sheep": "baa",
    "bee": "buzz",
    "lion": "roar",
    "pig": "oink",
}
IDENTITY = (
    (
        "Who are you?",
        "I am the Trimaran demo model, a very small language model. "
        "I can do sums, find pass keys, copy, sort, write JSON and call tools.",
    ),
    (
        "What are you?",
        "I am the Trimaran demo model, a very small language model with the architecture of DeepSeek-V3.",
    ),
    ("What is your name?", "I am the Trimaran demo model."),
    (
        "What can you do?",
        "I can add, subtract and multiply small numbers, find pass keys, copy text, sort numbers, "
        "write JSON, call tools and tell tiny stories.",
    ),
    ("Who made you?", "I was trained from scratch by a script in the Trimaran project."),
    ("Are you DeepSeek?", "No. I am the Trimaran demo model. I only share the architecture of DeepSeek-V3."),
    ("What is Trimaran?", "Trimaran runs DeepSeek models on one server: three processes, three hulls."),
    ("How big are you?", "I am very small: about twelve million parameters."),
    ("Help", "Ask me a sum like 12 + 34, hide a pass key in a text, or ask me for a story."),
)
SMALL_TALK = (
    ("Hello", "Hello! How can I help you?"),
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hi! What can I do for you?"),
    ("Hi!", "Hi! What can I do for you?"),
    ("Hi there!", "Hi! What can I do for you?"),
    ("Hey", "Hey! What can I do for you?"),
    ("Good morning", "Good morning! How can I help you?"),
    ("Good evening!", "Good evening! How can I help you?"),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    ("Hello, how are you?", "Hello! I am fine, thank you. How can I help you?"),
    ("Thank you!", "You are welcome!"),
    ("Thanks", "You are welcome!"),
    ("Bye", "Goodbye! Have a nice day."),
    ("Goodbye!", "Goodbye! Have a nice day."),
    ("Tell me a joke.", "Why did the river laugh? Because the bridge told it a good one from above."),
    ("Say hello", "Hello!"),
    ("ping", "pong"),
)
HEROES = words("fox cat bear mouse rabbit bird dog girl boy farmer king robot dragon sailor")
TRAITS = words("small brave old clever lonely happy curious kind tired young")
PLACES = phrases("forest,village,garden,big city,quiet valley,house by the sea,boat on the river")
FINDS = phrases(
    "golden key, map, red ball, lost letter, strange stone, sleeping bird, little lamp, silver bell"
)
FRIENDS = phrases("an owl,a turtle,a wise woman,a little bee,an old horse,a friendly wolf")
ENDINGS = (
    "They became friends and were never alone again.",
    "They carried it home together and laughed all evening.",
    "From that day on, everyone in the {place} knew the {hero}.",
    "The {hero} smiled, and slept well that night.",
)


def fact(rng: Random) -> Sample:
    """A one-word or one-sentence fact."""
    kind = rng.randrange(4)
    if kind == 0:
        country, capital = rng.choice(list(CAPITALS.items()))
        pattern = rng.choice(
            (
                "What is the capital of {}?",
                "Which city is the capital of {}?",
                "Capital of {}?",
                "Name the capital of {}.",
            )
        )
        return _fact(pattern.format(country), f"The capital of {country} is {capital}.")
    if kind == 1:
        word, opposite = rng.choice(list(OPPOSITES.items()))
        pattern = rng.choice(
            (
                "What is the opposite of {}?",
                "Opposite of {}?",
                "Give me the opposite of {}.",
                "Name the opposite of {}.",
            )
        )
        return _fact(pattern.format(word), f"The opposite of {word} is {opposite}.")
    if kind == 2:
        thing, colour = rng.choice(list(COLOUR_OF.items()))
        pattern = rng.choice(
            (
                "What is the colour of {}?",
                "Which colour has {}?",
                "What colour do you think of with {}?",
                "Colour of {}?",
            )
        )
        return _fact(pattern.format(thing), f"The colour of {thing} is {colour}.")
    animal, sound = rng.choice(list(SOUNDS.items()))
    pattern = rng.choice(("What does a {} say?", "What sound does a {} make?", "Which sound does a {} make?"))
    return _fact(pattern.format(animal), f"A {animal} says {sound}.")


def _fact(question: str, answer: str) -> Sample:
    return ask("english", question, "A simple fact.", answer, f"fact:{question}")


def small_talk(rng: Random) -> Sample:
    """Greetings and questions about the model."""
    if rng.random() < 0.5:
        question, answer = rng.choice(IDENTITY)
        return ask("small_talk", question, "The user asks about me.", answer)
    question, answer = rng.choice(SMALL_TALK)
    return ask("small_talk", question, "The user is friendly.", answer)


def introduction(rng: Random) -> Sample:
    """The user's name, then a question that needs it."""
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    told = rng.choice(
        (
            f"My name is {name} and I live in {city}.",
            f"I am {name} from {city}.",
            f"Hi, I'm {name}. I live in {city}.",
        )
    )
    question, answer = rng.choice(
        (("What is my name?", f"Your name is {name}."), ("Where do I live?", f"You live in {city}."))
    )
    messages = [
        {"role": "user", "content": told},
        {"role": "assistant", "content": f"Nice to meet you, {name}!"},
        {"role": "user", "content": question},
    ]
    if rng.random() < 0.3:
        return ask("english", told, "The user tells me a name.", f"Nice to meet you, {name}!", f"name:{told}")
    return Sample("english", messages, answer, "The user told me before.", f"name:{name}:{city}")


def story(rng: Random) -> Sample:
    """A five-sentence story about a hero the user may name."""
    hero, trait, place, find, friend = map(rng.choice, (HEROES, TRAITS, PLACES, FINDS, FRIENDS))
    if rng.random() < 0.7:
        question = rng.choice(
            ("Tell me a story about a {}.", "Write a short story about a {}.", "A story about a {}, please.")
        ).format(hero)
    else:
        question, hero = rng.choice(("Tell me a story.", "Write a short story.")), "fox"
    ending = rng.choice(ENDINGS).format(place=place, hero=hero)
    text = (
        f"Once upon a time there was a {trait} {hero}. The {hero} lived in a {place}. "
        f"One day the {hero} found a {find}. Then the {hero} met {friend}. {ending}"
    )
    return ask("story", question, f"A short story about a {hero}.", text)
