"""Write lit_pref/tasks/files/instructions.jsonl: prompts whose instructions can be checked.

    python scripts/make_instructions.py

Every topic meets every style once, and the arguments are chosen by counting: the file is the same
each time. A test compares it with what this script would write.
"""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "lit_pref" / "tasks" / "files" / "instructions.jsonl"

# (what is asked, words that an answer may well hold, words that it can do without)
TOPICS = [
    ("Explain why the sky looks blue.", ["light", "air"], ["the atmosphere", "scatter"]),
    ("Describe how to boil an egg.", ["water", "minutes"], ["then", "pot"]),
    ("Give advice to somebody who starts a new job.", ["colleagues", "questions"], ["you", "work"]),
    ("Write about a walk in the rain.", ["umbrella", "street"], ["wet", "cold"]),
    ("Explain what a library is for.", ["books", "quiet"], ["read", "people"]),
    ("Suggest things to do on a long train journey.", ["window", "music"], ["book", "sleep"]),
    ("Describe your idea of a good breakfast.", ["bread", "fruit"], ["coffee", "healthy"]),
    ("Explain how plants get their food.", ["sunlight", "leaves"], ["photosynthesis", "energy"]),
    ("Give reasons to learn a second language.", ["travel", "friends"], ["job", "culture"]),
    ("Describe a market on a Saturday morning.", ["tomatoes", "voices"], ["people", "busy"]),
    ("Explain to a child why we sleep.", ["rest", "dreams"], ["brain", "tired"]),
    ("Write about an old bicycle.", ["wheels", "rust"], ["ride", "red"]),
    ("Say how to keep a small kitchen tidy.", ["shelf", "dishes"], ["clean", "space"]),
    ("Describe the sea to somebody who never saw it.", ["waves", "salt"], ["water", "blue"]),
    ("Explain what a bridge must withstand.", ["wind", "weight"], ["strong", "steel"]),
    ("Give tips for a phone call with a stranger.", ["name", "listen"], ["polite", "please"]),
    ("Write about the first snow of the year.", ["morning", "quiet"], ["white", "cold"]),
    ("Explain how a candle burns.", ["wax", "flame"], ["heat", "oxygen"]),
    ("Suggest a plan for a rainy Sunday.", ["soup", "cards"], ["movie", "home"]),
    ("Describe what a good teacher does.", ["patience", "examples"], ["students", "learn"]),
    ("Explain why bread rises.", ["yeast", "gas"], ["dough", "oven"]),
    ("Write about a lost key.", ["door", "pocket"], ["found", "search"]),
    ("Give advice on saving water at home.", ["shower", "tap"], ["save", "bathroom"]),
    ("Describe a city at night.", ["lights", "windows"], ["dark", "cars"]),
]  # fmt: skip


def styles(n: int, required: list[str], forbidden: list[str]) -> list[tuple[str, list[dict]]]:
    """Instructions and their checks; ``n`` counts and chooses the numbers."""
    few, some = 15 + 5 * (n % 4), 2 + n % 3
    quoted = " and ".join(f'"{w}"' for w in required)
    without = " or ".join(f'"{w}"' for w in forbidden)
    limit = {"kind": "max_words", "count": few}
    return [
        (f"Use at most {few} words.", [limit]),
        (
            f"Use the words {quoted}, and at most {few + 20} words.",
            [{"kind": "require", "words": required}, {"kind": "max_words", "count": few + 20}],
        ),
        (
            f"Do not use the words {without}. Use no comma.",
            [{"kind": "forbid", "words": forbidden}, {"kind": "no_commas"}],
        ),
        (f"Answer with exactly {some} bullet points.", [{"kind": "bullets", "count": some}]),
        (
            f"Answer with exactly {some} bullet points and at most {few + 15} words in all.",
            [{"kind": "bullets", "count": some}, {"kind": "max_words", "count": few + 15}],
        ),
        (
            'Answer with a JSON object with the keys "title" and "text" and nothing else.',
            [{"kind": "json", "keys": ["title", "text"]}],
        ),
        (
            f"Write in lower case letters only, at most {few} words.",
            [{"kind": "lowercase"}, limit],
        ),
        (
            f'Use the word "{required[0]}", but not the word "{forbidden[0]}".',
            [
                {"kind": "require", "words": required[:1]},
                {"kind": "forbid", "words": forbidden[:1]},
            ],
        ),
        (
            'Begin with "In short:" and end with "That is all."',
            [
                {"kind": "starts_with", "text": "In short:"},
                {"kind": "ends_with", "text": "That is all."},
            ],
        ),
        (
            f"WRITE IN CAPITAL LETTERS ONLY, AT MOST {few} WORDS.",
            [{"kind": "uppercase"}, limit],
        ),
        (
            f"Write two paragraphs with an empty line between them, at least {few} words in all.",
            [{"kind": "paragraphs", "count": 2}, {"kind": "min_words", "count": few}],
        ),
    ]  # fmt: skip


def rows() -> list[dict]:
    """All prompts with their checks."""
    return [
        {"prompt": f"{topic} {instruction}", "checks": checks}
        for n, (topic, required, forbidden) in enumerate(TOPICS)
        for instruction, checks in styles(n, required, forbidden)
    ]


def text() -> str:
    """The whole file."""
    return "".join(json.dumps(row) + "\n" for row in rows())


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"{FILE}: {len(rows())} prompts")
