"""Sums, differences and products of one- and two-digit numbers, worked out digit by digit."""

from __future__ import annotations

from random import Random

from ..samples import Sample, ask, is_held_out

SYMBOLS = {"add": ("+",), "sub": ("-",), "mul": ("*", "x", "×")}
WORDS = {"add": "plus", "sub": "minus", "mul": "times"}
PHRASES = (
    "What is {a} {s} {b}?",
    "What is {a} {w} {b}?",
    "What is {a}{s}{b}?",
    "{a}{s}{b}=",
    "{a} {s} {b} = ?",
    "{a} {s} {b}",
    "Compute {a} {w} {b}.",
    "Compute {a} {s} {b}.",
    "Calculate {a} {s} {b}.",
    "Calculate {a} {w} {b}",
    "How much is {a} {s} {b}?",
    "What's {a} {s} {b}?",
    "Please work out {a} {w} {b}.",
    "Solve {a} {s} {b}",
)
SUM_PHRASES = ("What is the sum of {a} and {b}?", "Add {a} and {b}.", "Add {b} to {a}.")
DIFFERENCE_PHRASES = ("Subtract {b} from {a}.", "What is the difference between {a} and {b}?")
PRODUCT_PHRASES = ("Multiply {a} by {b}.", "What is the product of {a} and {b}?")
EXTRA_PHRASES = {"add": SUM_PHRASES, "sub": DIFFERENCE_PHRASES, "mul": PRODUCT_PHRASES}
SUFFIXES = (
    "",
    "",
    "",
    " Answer with the number only.",
    " Reply with just the number.",
    " Give only the number.",
)
STORIES = {
    "add": "{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?",
    "sub": "{name} has {a} {thing} and gives away {b}. How many {thing} are left?",
    "mul": "There are {a} boxes with {b} {thing} each. How many {thing} are there?",
}
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Tom", "Mia", "Leo")
THINGS = ("apples", "books", "coins", "eggs", "pens", "stones")


def reason_add(a: int, b: int) -> str:
    """Digit by digit, from the right, with the carry."""
    if a < 10 and b < 10:
        return f"{a}+{b}={a + b}"
    ones = a % 10 + b % 10
    steps = f"{a}+{b}: ones {a % 10}+{b % 10}={ones}"
    tens, carry = a // 10 + b // 10, ones // 10
    return f"{steps}, tens {a // 10}+{b // 10}+{carry}={tens + carry}, so {a + b}"


def reason_sub(a: int, b: int) -> str:
    """Digit by digit with a borrow; a negative result is the swapped difference with a minus sign."""
    if a < b:
        return f"{a}-{b}: {a} is less than {b}, swap. {reason_sub(b, a)}, minus: {a - b}"
    if a < 10:
        return f"{a}-{b}={a - b}"
    borrow = int(a % 10 < b % 10)
    high = a % 10 + 10 * borrow
    ones = f"ones {high}-{b % 10}={high - b % 10}"
    return f"{a}-{b}: {ones}, tens {a // 10}-{b // 10}-{borrow}={a // 10 - b // 10 - borrow}, so {a - b}"


def _times_digit(a: int, d: int) -> str:
    """a × d for a two-digit a and one digit d."""
    ones = a % 10 * d
    tens = a // 10 * d
    carried = f"{tens}+{ones // 10}={tens + ones // 10}"
    return f"{a}*{d}: {a % 10}*{d}={ones}, {a // 10}*{d}={tens}, {carried}, so {a * d}"


def _sum_columns(p: int, q: int) -> str:
    """p + q, up to four digits, column by column from the right."""
    steps, carry = [], 0
    for place in range(max(len(str(p)), len(str(q)))):
        x, y = p // 10**place % 10, q // 10**place % 10
        total = x + y + carry
        steps.append(f"{x}+{y}+{carry}={total}")
        carry = total // 10
    return f"{p}+{q}: {', '.join(steps)}, so {p + q}"


def reason_mul(a: int, b: int) -> str:
    """One-digit products, then their sum; the longer number is written first."""
    if a < b and a < 10:
        a, b = b, a
    if a < 10:
        return f"{a}*{b}={a * b}"
    if b < 10:
        return _times_digit(a, b)
    plan = f"{a}*{b}={a}*{b % 10}+{a}*{b // 10}0"  # says early on that two products follow
    low, high = _times_digit(a, b % 10), _times_digit(a, b // 10)
    return f"{plan}. {low}. {high}. {_sum_columns(a * (b % 10), a * (b // 10) * 10)}"


REASONS = {"add": reason_add, "sub": reason_sub, "mul": reason_mul}


def result(op: str, a: int, b: int) -> int:
    """The exact value of the problem."""
    return {"add": a + b, "sub": a - b, "mul": a * b}[op]


def problem_key(op: str, a: int, b: int) -> str:
    """The held-out key, blind to order. One-digit facts are never held out: all else is built on them."""
    if a < 10 and b < 10:
        return ""
    low, high = sorted((a, b))
    return f"{op}:{low}:{high}"


def phrase(rng: Random, op: str, a: int, b: int) -> str:
    """One of the ways to ask for a op b."""
    if min(a, b) > 1 and (op != "sub" or a >= b) and rng.random() < 0.06:
        return STORIES[op].format(name=rng.choice(NAMES), a=a, b=b, thing=rng.choice(THINGS))
    if (op != "sub" or a >= b) and rng.random() < 0.12:
        return rng.choice(EXTRA_PHRASES[op]).format(a=a, b=b)
    text = rng.choice(PHRASES).format(a=a, b=b, s=rng.choice(SYMBOLS[op]), w=WORDS[op])
    return text + rng.choice(SUFFIXES)


def _operand(rng: Random) -> int:
    return rng.randrange(10) if rng.random() < 0.2 else rng.randrange(10, 100)


def _build(rng: Random, task: str, op: str, a: int, b: int) -> Sample:
    return ask(task, phrase(rng, op, a, b), REASONS[op](a, b), str(result(op, a, b)), problem_key(op, a, b))


def arithmetic(rng: Random) -> Sample:
    """Sums and differences of 1-2-digit numbers, products with a one-digit factor."""
    op = rng.choice(("add", "add", "sub", "sub", "mul"))
    a, b = _operand(rng), _operand(rng)
    if op == "sub" and a < b and rng.random() < 0.6:
        a, b = b, a
    if op == "mul":
        b = rng.randrange(10)
        a, b = (a, b) if rng.random() < 0.6 else (b, a)
    return _build(rng, "arithmetic", op, a, b)


def long_multiplication(rng: Random) -> Sample:
    """Products of two two-digit numbers."""
    while True:
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        # The partial products are one-digit problems: a held-out one must not be shown on the way.
        if not any(is_held_out(problem_key("mul", a, digit)) for digit in (b // 10, b % 10)):
            return _build(rng, "long_multiplication", "mul", a, b)


def _digit_fact(rng: Random) -> tuple[str, int]:
    """One step as the chains of thought above take it, and its value."""
    x, y, carry = rng.randrange(10), rng.randrange(10), rng.randrange(2)
    kind = rng.randrange(6)
    if kind == 0:
        return f"{x}+{y}", x + y
    if kind == 1:
        return f"{x}+{y}+{carry}", x + y + carry
    if kind == 2:
        high = x if x >= y else x + 10
        return f"{high}-{y}", high - y
    if kind == 3:
        high = rng.randrange(10)
        y = rng.randrange(high + 1 - carry * (high > 0))
        carry *= high > 0
        return f"{high}-{y}-{carry}", high - y - carry
    if kind == 4:
        return f"{x}*{y}", x * y
    tens = rng.randrange(10) * x
    return f"{tens}+{y}", tens + y


def drill(rng: Random) -> Sample:
    """A list of one-digit steps: the densest way to learn the tables."""
    facts = [_digit_fact(rng) for _ in range(rng.randrange(4, 11))]
    question = rng.choice(("Work out: {}", "Compute {}", "Drill: {}", "Solve these: {}"))
    steps = ", ".join(f"{text}={value}" for text, value in facts)
    answer = ", ".join(str(value) for _, value in facts)
    return ask("drill", question.format(", ".join(text for text, _ in facts)), steps, answer)
