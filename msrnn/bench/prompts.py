"""Twenty prompts of several kinds for measurements of decoding, written for this library."""

from typing import TYPE_CHECKING, NamedTuple

from ..cell.cell import Cell
from ..text.model_templates import open_template

if TYPE_CHECKING:
    import tokenizers


class Prompt(NamedTuple):
    """A text to continue.

    Attributes:
        kind: ``prose``, ``chat``, ``code``, ``list``, ``language`` (not English) or ``quote`` (the answer repeats a part of the
            prompt).
        name: unique name.
        text: the text.
        chat: True if ``text`` is a user message, which the chat template renders; False if it is continued directly.
    """

    kind: str
    name: str
    text: str
    chat: bool = True

    def encode(self, cell: Cell, tokenizer: "tokenizers.Tokenizer") -> list[int]:
        """Return the ids; a user message is rendered by the chat template of the model, if it has one."""
        text = self.text
        if self.chat and (template := open_template(cell.extra_files, tokenizer, cell.config)) is not None:
            text = template([{"role": "user", "content": text}], add_generation_prompt=True)
        return tokenizer.encode(text, add_special_tokens=False).ids


def ends_in_loop(tokens: list[int]) -> bool:
    """Return True if the second half of a text is periodic, with a period of at most a quarter of the text."""
    half = len(tokens) // 2
    return any(tokens[half:] == tokens[half - n : len(tokens) - n] for n in range(1, half // 2 + 1))


LEDGER = """Harbour office, Tuesday. The ferry Kittiwake left Stone Quay at 06:40 with forty-one passengers, two horses \
and the morning post. She met fog off Gull Point and lay at anchor for fifty minutes. At 08:15 the fog lifted and she went \
on to Marrow Island, where she landed her passengers at 08:55. One horse would not leave the ship and was brought back in \
the evening. The master asks that the bell on Gull Point be repaired before the winter, since it can no longer be heard \
in a north wind."""

LETTER = """Dear Ms Okafor,

thank you for the two crates of seed potatoes. They came on Friday, dry and whole, and were planted on Saturday in the long \
bed behind the school. The children measured the rows with a rope that has a knot at every foot. We will write again when \
the first leaves show, which by Mr Lund's reckoning should be in the third week of May.

With kind regards,
the fourth class"""

FUNCTION = '''def mean_of_readings(readings, low, high):
    """The mean of all readings between low and high; None if there are none."""
    total = 0.0
    count = 0
    for reading in readings:
        if low <= reading <= high:
            total += reading
            count += 1
    if count == 0:
        return None
    return total / count
'''

CLASS = '''class Stack:
    """A last-in, first-out stack."""

    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
'''

CONVERSIONS = """def celsius_to_fahrenheit(c):
    return c * 9 / 5 + 32


def fahrenheit_to_celsius(f):
    return (f - 32) * 5 / 9


def celsius_to_kelvin(c):
"""

LIGHTHOUSE = """The keeper of the lighthouse had not spoken to anyone for eleven days when the small boat came round the \
rocks. He put down his cup, wiped his hands on his coat, and"""

MARCHE = """Il était une fois, dans un petit village au bord de la mer, une vieille femme qui vendait du poisson au marché. \
Chaque matin, elle"""

PROMPTS = (
    Prompt("prose", "lighthouse", LIGHTHOUSE, chat=False),
    Prompt("prose", "river", "Describe in two paragraphs how a river begins in the hills and grows on its way to the sea."),
    Prompt("prose", "market", "Write about a market day in a small town a hundred years ago, as a visitor would have seen it."),
    Prompt("prose", "story", "Write a short story about a clockmaker who repairs a clock that runs backwards."),
    Prompt("chat", "bread", "My bread always comes out flat and heavy. What am I doing wrong, and how can I fix it?"),
    Prompt("chat", "moon", "Can you explain to a ten-year-old why the moon seems to change its shape?"),
    Prompt("chat", "train", "I missed the last train home and it is raining. What would you do in my place?"),
    Prompt("chat", "savings", "Is it better to pay off a loan early or to put the money into savings? Please give reasons."),
    Prompt("code", "stack", CLASS, chat=False),
    Prompt("code", "temperature", CONVERSIONS, chat=False),
    Prompt("code", "primes", "Write a Python function that returns all prime numbers below n, and show how it is used."),
    Prompt("code", "tests", f"Write unit tests for this function with Python's unittest:\n\n```python\n{FUNCTION}```"),
    Prompt("list", "planets", "List the planets of the solar system in order from the sun, each with one fact."),
    Prompt("list", "packing", "Make a packing list for a week of hiking in the mountains, one item per line with its purpose."),
    Prompt("list", "table", "Write a Markdown table with the columns Country, Capital and Language for ten countries."),
    Prompt("language", "marche", MARCHE, chat=False),
    Prompt("language", "receta", "Escribe una receta sencilla de sopa de verduras, con los ingredientes y los pasos."),
    Prompt("quote", "ledger", f"Repeat the following report word for word, changing nothing:\n\n{LEDGER}"),
    Prompt("quote", "letter", f"Copy this letter exactly, but change the name Okafor to Lindqvist:\n\n{LETTER}"),
    Prompt("quote", "rename", f"Here is a function:\n\n```python\n{FUNCTION}```\n\nRename it to mean_between, nothing else."),
)
