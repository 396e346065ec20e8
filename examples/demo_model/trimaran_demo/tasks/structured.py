"""JSON objects after a list of keys or a JSON schema."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from ..samples import Sample, ask
from .people import CITIES, COLOURS, JOBS, NAMES, PETS

CLAUSES = {
    "age": "is {} years old",
    "city": "lives in {}",
    "job": "works as a {}",
    "pet": "has a {}",
    "colour": "likes the colour {}",
}
CHOICES: dict[str, list[str]] = {"city": CITIES, "job": JOBS, "pet": PETS, "colour": COLOURS}
KEY_PHRASES = (
    "Return JSON with {keys} for: {text}",
    "Extract {keys} as JSON: {text}",
    "Give me a JSON object with the keys {keys}.\n{text}",
    "{text} Answer in JSON with {keys}.",
    "{text}\nReturn only JSON with {keys}.",
)
SCHEMA_PHRASES = (
    "Fill this JSON schema: {schema}\n{text}",
    "{text}\nAnswer with JSON that follows this schema: {schema}",
    "Schema: {schema}\nText: {text}\nReturn the JSON object.",
)


def _person(rng: Random) -> dict[str, Any]:
    keys = rng.sample(list(CLAUSES), rng.choice((1, 1, 2, 2, 3)))
    facts: dict[str, Any] = {"name": rng.choice(NAMES)}
    for key in keys:
        facts[key] = rng.randrange(1, 100) if key == "age" else rng.choice(CHOICES[key])
    return facts


def _describe(facts: dict[str, Any]) -> str:
    clauses = [CLAUSES[k].format(v) for k, v in facts.items() if k != "name"]
    body = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]
    return f"{facts['name']} {body}."


def _join(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + " and " + keys[-1]


def schema_of(keys: list[str]) -> str:
    """A JSON schema with the given required keys; an age is an integer, all else a string."""
    properties = {k: {"type": "integer" if k == "age" else "string"} for k in keys}
    return json.dumps({"type": "object", "properties": properties, "required": keys})


def to_json(rng: Random) -> Sample:
    """A sentence on a person, turned into a JSON object with the keys asked for, in their order."""
    facts = _person(rng)
    keys = list(facts)
    if rng.random() < 0.4:
        rng.shuffle(keys)
    if len(keys) > 2 and rng.random() < 0.4:
        keys.pop()
    pattern = rng.choice(SCHEMA_PHRASES if rng.random() < 0.35 else KEY_PHRASES)
    question = pattern.format(keys=_join(keys), schema=schema_of(keys), text=_describe(facts))
    reasoning = ", ".join(f"{k} is {facts[k]}" for k in keys) + "."
    answer = json.dumps({k: facts[k] for k in keys})
    return ask("json", question, reasoning, answer, f"json:{sorted(facts.items(), key=str)}")
