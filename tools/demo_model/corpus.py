"""The three generated languages of the demo model: stories, sums, key-value recall.

Every text is produced here from a seeded `random.Random`; nothing is downloaded.
"""

import dataclasses
import random

ANSWER_END = "</s>"

# Two-letter codes used as keys and values of the recall task; each is one token.
CODE_FIRST = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CODE_SECOND = "ABCDEFGHIJKL"
CODES = [a + b for a in CODE_FIRST for b in CODE_SECOND]

SUM_LOW, SUM_HIGH = 10, 99
SUM_SPLIT_SEED = 20260
SUM_HELD_OUT_FRACTION = 0.1

NAMES = {
    "girl": ["Anna", "Mia", "Lucy", "Rosa", "Emma", "Nora", "Lily", "Ella"],
    "boy": ["Ben", "Tom", "Max", "Leo", "Sam", "Jack", "Finn", "Paul"],
}
PRONOUNS = {"girl": ("she", "her"), "boy": ("he", "his")}
ANIMALS = ["cat", "dog", "rabbit", "bird", "fox", "duck", "mouse", "frog"]
COLORS = ["red", "blue", "green", "yellow", "white", "black", "brown", "golden"]
THINGS = ["ball", "hat", "kite", "box", "book", "boat", "cup", "lamp", "bell", "drum"]
PLACES = ["park", "forest", "garden", "river", "school", "market", "beach", "farm"]
MOODS = ["happy", "sad", "tired", "brave", "quiet", "curious"]
WEATHER = ["sunny", "rainy", "windy", "cold", "warm"]
FOODS = ["bread", "soup", "cake", "apples", "milk", "honey"]


@dataclasses.dataclass(frozen=True)
class RecallCase:
    """One recall context: definitions in order, then the queried keys in order."""

    definitions: list  # of (key, value)
    queries: list  # of (key, value)

    def context(self):
        """The lines that define every pair."""
        return "".join(f"{key}={value}\n" for key, value in self.definitions)

    def prompt(self):
        """The text that a user gives to ask for the first queried key."""
        return self.context() + f"{self.queries[0][0]}?"


def make_recall(rng, definition_count, query_count):
    """Draws distinct keys with random values, and asks for keys among them, some more than once."""
    keys = rng.sample(CODES, definition_count)
    definitions = [(key, rng.choice(CODES)) for key in keys]
    queries = rng.choices(definitions, k=query_count)
    return RecallCase(definitions, queries)


def sum_text(a, b):
    """The plain form of one sum, most significant digit first."""
    return f"{a}+{b}={a + b}"


def split_sums():
    """All pairs of two-digit numbers, split once and for all into (train, held out)."""
    pairs = [(a, b) for a in range(SUM_LOW, SUM_HIGH + 1) for b in range(SUM_LOW, SUM_HIGH + 1)]
    random.Random(SUM_SPLIT_SEED).shuffle(pairs)
    held_out = round(len(pairs) * SUM_HELD_OUT_FRACTION)
    return sorted(pairs[held_out:]), sorted(pairs[:held_out])


def make_story(rng):
    """One short story; the same people, animal and thing return by name to its end."""
    kind = rng.choice(["girl", "boy"])
    she, her = PRONOUNS[kind]
    name = rng.choice(NAMES[kind])
    friend = rng.choice([n for n in NAMES["girl"] + NAMES["boy"] if n != name])
    animal, color, thing = rng.choice(ANIMALS), rng.choice(COLORS), rng.choice(THINGS)
    place, mood = rng.choice(PLACES), rng.choice(MOODS)
    weather, food = rng.choice(WEATHER), rng.choice(FOODS)
    opening = rng.choice(
        [
            f"Once there was a {kind} named {name}.",
            f"Once upon a time, a {kind} named {name} lived near the {place}.",
            f"One {weather} day, {name} went to the {place}.",
        ]
    )
    wish = rng.choice(
        [
            f"{name} had a {color} {thing}.",
            f"{name} loved {her} {color} {thing}.",
            f"{name} wanted to find a {color} {thing}.",
        ]
    )
    meeting = rng.choice(
        [
            f"At the {place}, {name} met a {mood} {animal}.",
            f"A {mood} {animal} came to {name} at the {place}.",
        ]
    )
    speech = rng.choice(
        [
            f'"Do you like my {thing}?" asked {name}. "Yes, it is very {color}," said the {animal}.',
            f'The {animal} said, "I want to eat some {food}." So {name} gave the {animal} some {food}.',
            f'"Will you be my friend?" asked the {animal}. "Yes," said {name}.',
        ]
    )
    turn = rng.choice(
        [
            f"Then {friend} came and they all played with the {thing}.",
            f"But the {thing} was gone. {friend} helped {name} to look for the {color} {thing}.",
            f"Then {name} and {friend} took the {animal} home.",
        ]
    )
    ending = rng.choice(
        [
            f"{name} and the {animal} were very happy.",
            f"At the end of the day, {she} thanked {friend} and went home with the {animal}.",
            f"That night, {name} and {friend} ate {food} with the {animal}.",
        ]
    )
    return " ".join([opening, wish, meeting, speech, turn, ending])
