"""Writes data for docs/tasks.md into the current directory: dates, numbers and orders, each with a table for testing, a
JSON schema for orders, and Python's manual.

python examples/make_tasks.py [SIZE]        # SIZE rows of dates, of numbers and of orders; 3,000 by default
"""

import json
import random
import sys
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from pathlib import Path
from pydoc_data.topics import topics

TEST_ROWS = 300
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
ORDINALS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def date_pair(generator: random.Random) -> tuple[str, str]:
    day = date(1900, 1, 1) + timedelta(generator.randrange(50_000))
    number, month, year = day.day, MONTHS[day.month - 1], day.year
    ordinal = f"{number}{ORDINALS.get(number, 'th')}"
    text = generator.choice((
        f"{month} {number}, {year}", f"{number} {month} {year}", f"{month} {ordinal}, {year}",
        f"the {ordinal} of {month}, {year}", f"{month[:3]} {number} {year}", f"{number}. {day.month}. {year}",
        f"{day.month}/{number}/{year}", f"{year}/{day.month:02}/{number:02}", f"{number}-{month[:3]}-{year}",
    ))  # fmt: skip
    return text, day.isoformat()


def number_pair(generator: random.Random) -> tuple[str, str]:
    number = generator.randrange(10 ** generator.randint(1, 6))
    return f"{number:,}", spelled(number)


PEOPLE = ["Anna", "Ben", "Clara", "David", "Emma", "Finn", "Grace", "Henry", "Ida", "Jon", "りん", "Zoë"]
DISHES = ["soup", "rice", "curry", "salad", "ramen", "cake", "tea", "juice"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
ORDER_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "dish": {"enum": DISHES},
        "count": {"type": "integer", "minimum": 1, "maximum": 20},
        "day": {"enum": DAYS},
    },
    "required": ["name", "dish", "count", "day"],
    "additionalProperties": False,
}


def order_pair(generator: random.Random) -> tuple[str, str]:
    name, dish, day = map(generator.choice, (PEOPLE, DISHES, DAYS))
    count = generator.randint(1, 12)
    amount = generator.choice((str(count), UNITS[count]))
    text = generator.choice((
        f"{name} wants {amount} {dish} on {day}.", f"On {day}, {amount} times {dish} for {name}, please.",
        f"This is {name}. Could I have {amount} {dish} for {day}?", f"{day}: {dish} x {amount} ({name})",
        f"{name} orders {dish} for {day}, {amount} of them.", f"We need {dish}, {amount} portions, {day}. {name}",
    ))  # fmt: skip
    return text, json.dumps({"name": name, "dish": dish, "count": count, "day": day}, ensure_ascii=False)


def spelled(number: int) -> str:
    """Spell a number below a million.

    >>> spelled(12_345), spelled(900_070)
    ('twelve thousand three hundred forty-five', 'nine hundred thousand seventy')
    """
    if number >= 1000:
        return " ".join(
            [spelled(number // 1000), "thousand", *[spelled(number % 1000)] * bool(number % 1000)]
        )
    if number >= 100:
        return " ".join([UNITS[number // 100], "hundred", *[spelled(number % 100)] * bool(number % 100)])
    if number >= 20:
        return "-".join([TENS[number // 10 - 2], *[UNITS[number % 10]] * bool(number % 10)])
    return UNITS[number]


def write(name: str, rows: Iterable[tuple[str, str]]) -> None:
    lines = (f"{prompt}\t{answer}\n" for prompt, answer in (("question", "answer"), *rows))
    Path(name).write_text("".join(lines), "utf-8")


def write_pairs(name: str, make: Callable[[random.Random], tuple[str, str]], size: int) -> None:
    """Write `size` different pairs, and others to test the model."""
    generator, pairs = random.Random(1), dict[str, str]()
    while len(pairs) < size + TEST_ROWS:
        prompt, answer = make(generator)
        pairs[prompt] = answer
    rows = list(pairs.items())
    generator.shuffle(rows)
    write(f"{name}.tsv", rows[:size])
    write(f"{name}-test.tsv", rows[size:])


def write_manual() -> None:
    """Write the part of Python's manual that comes with Python: what help("if") prints, for instance."""
    Path("python-manual.txt").write_text("\n\n".join(topics.values()), "utf-8")


if __name__ == "__main__":
    rows_wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    write_pairs("dates", date_pair, rows_wanted)
    write_pairs("numbers", number_pair, rows_wanted)
    write_pairs("orders", order_pair, rows_wanted)
    Path("order.json").write_text(json.dumps(ORDER_SCHEMA, indent=2) + "\n", "utf-8")
    write_manual()
