"""A cell as a model of the lm-evaluation-harness (EleutherAI, ``lm-eval`` 0.4.13): any of its tasks under any operator.

What it gives is what the harness's own ``hf`` model gives: texts are cut in the same places and begin with the same marks. A
context that several continuations share (the choices of a question) is read once, and each of them branches from its state.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ..cell.cell import Cell
from ..decoding.generate import stream
from ..errors import Error
from ..reductions.contract import Reduction
from .passkey import padded
from .teacher_forcing import forced

if TYPE_CHECKING:
    import tokenizers

Request = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation as text, and as ids."""


class HarnessLM(TemplateLM):
    """A cell, its tokenizer and an operator, as ``lm_eval.simple_evaluate(model=…)`` takes it.

    Args:
        cell, tokenizer: the model.
        reduction: as ``cell.initial_state`` takes it.
        batch_size: contexts side by side.
        max_length: tokens of a text at most, its beginning is cut off; None is the length the model was made for.

    Raises:
        Error: no mark to begin a text with, settings that make no sense.
    """

    def __init__(
        self,
        cell: Cell,
        tokenizer: "tokenizers.Tokenizer",
        reduction: Reduction | str | None = None,
        batch_size: int = 1,
        max_length: int | None = None,
    ):
        super().__init__()
        cell.initial_state(1, reduction)  # what it refuses, it refuses now
        config = cell.config
        marks = [*(() if config.bos_token_id is None else (config.bos_token_id,)), *config.eos_token_ids]
        if not marks:
            raise Error("the model has no token that begins or ends a text; the harness needs one")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise Error(f"batch_size is {batch_size!r}; expected a whole number of at least 1")
        self.cell, self.tokenizer, self.reduction = cell, tokenizer, reduction
        self.batch_size, self.max_length = int(batch_size), max_length or config.length
        self._marks = marks

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return next(iter(self.cell.config.eos_token_ids), self._marks[0])

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self._marks[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
        """Ids; the tokenizer's own mark first, unless the text begins with it or ``add_special_tokens`` is False."""
        if add_special_tokens is None:
            mark = self.tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not (mark and string.startswith(mark))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens).ids

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **more: Any
    ) -> list[tuple[float, bool]]:
        """For each request the log-likelihood of the continuation, and whether greedy decoding would have written it."""
        most, by_context = self.max_length, dict[tuple[int, ...], list[tuple[int, list[int]]]]()
        for i, (_text, context, continuation) in enumerate(requests):
            ids = tuple(context[max(0, len(context) + len(continuation) - most - 1) :])
            by_context.setdefault(ids, []).append((i, continuation))
        found, device = dict[int, tuple[float, bool]](), self.cell.device
        longest_first = sorted(by_context, key=len, reverse=True)
        with tqdm(total=len(requests), desc="reading", disable=disable_tqdm) as bar:
            for start in range(0, len(longest_first), self.batch_size):
                contexts = longest_first[start : start + self.batch_size]
                rows = [(b, i, said) for b, context in enumerate(contexts) for i, said in by_context[context]]
                lengths = torch.tensor([len(context) for context in contexts], device=device)
                state = self.cell.initial_state(len(contexts), self.reduction)
                logits, state = self.cell(padded(contexts).to(device), state, lengths=lengths, last_only=True)
                of = torch.tensor([b for b, _, _ in rows], device=device)
                read = forced(self.cell, logits[of], padded([said for _, _, said in rows]).to(device), state.select(of))
                for (_, i, said), nll, likeliest in zip(rows, *read, strict=True):
                    found[i] = (-float(nll[: len(said)].double().sum()), bool(likeliest[: len(said)].all()))
                bar.update(len(rows))
        return [found[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows of ``max_length`` tokens."""
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1)
            pieces: list[Request] = [(("", ""), *make_disjoint_window(window)) for window in windows]
            totals.append(sum(value for value, _ in self._loglikelihood_tokens(pieces, disable_tqdm)))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Each context continued up to one of its stop texts, which is left out."""
        return [self._continued(*request.args) for request in tqdm(requests, desc="writing", disable=disable_tqdm)]

    def _continued(self, context: str, settings: dict[str, Any]) -> str:
        wanted = normalize_gen_kwargs(settings, 256)
        count, stops = wanted["max_gen_toks"], [stop for stop in wanted["until"] if stop]
        if count >= self.max_length:
            raise Error(f"{count} tokens are to be written; the model was made for {self.max_length} with the prompt")
        ids = self.tok_encode(context)[count - self.max_length :]
        device = self.cell.device
        drawn: dict[str, Any] = {}
        if wanted["do_sample"]:
            generator = torch.Generator(device).manual_seed(torch.initial_seed())  # the harness seeds torch
            drawn = {"do_sample": True, "temperature": wanted["temperature"] or 1.0, "generator": generator}
            drawn |= {name: settings[name] for name in ("top_k", "top_p") if settings.get(name) is not None}
        new = stream(
            self.cell,
            torch.tensor([ids], device=device),
            self.cell.initial_state(1, self.reduction),
            max_new_tokens=count,
            eos_token_id=self.cell.config.eos_token_ids,
            **drawn,
        )
        written, text = list[int](), ""
        for token, _ in new:
            written.append(int(token))
            text = self.tokenizer.decode(written)
            if any(stop in text for stop in stops):
                break
        return min((text.split(stop)[0] for stop in stops), key=len, default=text)
