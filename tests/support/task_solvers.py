"""Solvers that read only the prompt of a retrieval task, written without the generators."""

import re
from collections import Counter


def solve(prompt: str) -> list[str]:
    """Return the answers to a prompt; the kind of the task is found from its last question."""
    if asked := re.search(r"What is the special magic number for (\S+) in the text above\?", prompt):
        return re.findall(rf"One of the special magic numbers for {re.escape(asked[1])} is: (\d+)\.", prompt)
    last = re.split(r"\n\n\n+", prompt)[-1]  # a solved example comes before it
    if asked := re.search(r"assigned the value (\d+) in the text", last):
        found, before = {asked[1]}, -1
        while len(found) > before:
            before = len(found)
            found |= {name for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", last) if source in found}
        return sorted(found - {asked[1]})
    body = last.split("\n\n")[1]
    if asked := re.search(r"What are the (\d+) most common words", last):
        return _most_frequent(re.findall(r"\d+\. (\w+)", body), int(asked[1]))
    asked = re.search(r"What are the (\d+) most frequent coded words", last)
    assert asked
    return _most_frequent([word for word in body.split() if word != "..."], int(asked[1]))


def _most_frequent(words: list[str], n: int) -> list[str]:
    counts = Counter(words).most_common()
    assert counts[n - 1][1] > counts[n][1], "the answer is not unique"
    return [word for word, _ in counts[:n]]
