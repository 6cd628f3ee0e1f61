"""A cell as a model of the lm-evaluation-harness (EleutherAI, ``lm-eval`` 0.4.13), for any of its tasks under any operator.

The results equal those of the harness's ``hf`` model: texts are truncated at the same places and start with the same special
tokens. A context that several continuations share (the choices of a question) is read once; all continuations start from its
state.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ..cell.cell import Cell
from ..decoding.generate import stream
from ..errors import Error
from ..reductions.contract import Reduction
from ..reporting.progress import progress_bar
from .teacher_forcing import pad_right, teacher_force

if TYPE_CHECKING:
    import tokenizers

Request = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation as text, context ids, continuation ids."""


class HarnessLM(TemplateLM):
    """A cell, its tokenizer and an operator, for ``lm_eval.simple_evaluate(model=…)``.

    Args:
        cell, tokenizer: the model.
        reduction: as for ``cell.initial_state``.
        batch_size: number of contexts per batch.
        max_length: maximum tokens of a text; longer texts lose their beginning. None is the context length of the model.

    Raises:
        Error: the model has no bos or eos token, or an argument is invalid.
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
        cell.initial_state(1, reduction)  # refuses an invalid operator before any work
        config = cell.config
        special = [*(() if config.bos_token_id is None else (config.bos_token_id,)), *config.eos_token_ids]
        if not special:
            raise Error("the model has no bos and no eos token; the harness needs one of them")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise Error(f"batch_size is {batch_size!r}; expected an int of at least 1")
        self.cell, self.tokenizer, self.reduction = cell, tokenizer, reduction
        self.batch_size, self.max_length = int(batch_size), max_length or config.context_length
        self._special = special

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a text."""
        return next(iter(self.cell.config.eos_token_ids), self._special[0])

    @property
    def prefix_token_id(self) -> int:
        """Id of the token before a text without context."""
        return self._special[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
        """Return token ids, with bos unless the text starts with it or ``add_special_tokens`` is False."""
        if add_special_tokens is None:
            prefix = self.tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not (prefix and string.startswith(prefix))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens).ids

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **more: Any
    ) -> list[tuple[float, bool]]:
        """Return for each request the log-likelihood of the continuation, and whether greedy decoding would generate it."""
        by_context = dict[tuple[int, ...], list[tuple[int, list[int]]]]()
        for i, (_text, context, continuation) in enumerate(requests):
            ids = tuple(context[max(0, len(context) + len(continuation) - self.max_length - 1) :])
            by_context.setdefault(ids, []).append((i, continuation))
        found, device = dict[int, tuple[float, bool]](), self.cell.device
        longest_first = sorted(by_context, key=len, reverse=True)
        with progress_bar(len(requests), "request", label="scoring", enabled=not disable_tqdm) as bar:
            for start in range(0, len(longest_first), self.batch_size):
                contexts = longest_first[start : start + self.batch_size]
                rows = [(b, i, new) for b, context in enumerate(contexts) for i, new in by_context[context]]
                lengths = torch.tensor([len(context) for context in contexts], device=device)
                state = self.cell.initial_state(len(contexts), self.reduction)
                logits, state = self.cell(pad_right(contexts).to(device), state, lengths=lengths, last_only=True)
                branches = torch.tensor([b for b, _, _ in rows], device=device)
                continuations = pad_right([new for _, _, new in rows]).to(device)
                scores = teacher_force(self.cell, logits[branches], continuations, state.select(branches))
                for (_, i, new), nll, is_argmax in zip(rows, *scores, strict=True):
                    found[i] = (-float(nll[: len(new)].cpu().double().sum()), bool(is_argmax[: len(new)].all()))
                bar.update(len(rows))
        return [found[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in windows of ``max_length`` tokens."""
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1)
            pieces: list[Request] = [(("", ""), *make_disjoint_window(window)) for window in windows]
            totals.append(sum(value for value, _ in self._loglikelihood_tokens(pieces, disable_tqdm)))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each context up to one of its stop strings, without the stop string."""
        results = []
        with progress_bar(len(requests), "request", label="generating", enabled=not disable_tqdm) as bar:
            for request in requests:
                results.append(self._continue(*request.args))
                bar.update()
        return results

    def _continue(self, context: str, settings: dict[str, Any]) -> str:
        wanted = normalize_gen_kwargs(settings, 256)
        count, stops = wanted["max_gen_toks"], [stop for stop in wanted["until"] if stop]
        if count >= self.max_length:
            raise Error(f"max_gen_toks is {count}; expected less than max_length, {self.max_length}")
        ids = self.tok_encode(context)[count - self.max_length :]
        device = self.cell.device
        sampling: dict[str, Any] = {}
        if wanted["do_sample"]:
            generator = torch.Generator(device).manual_seed(torch.initial_seed())  # the harness seeds torch
            sampling = {"do_sample": True, "temperature": wanted["temperature"] or 1.0, "generator": generator}
            sampling |= {name: settings[name] for name in ("top_k", "top_p") if settings.get(name) is not None}
        new = stream(
            self.cell,
            torch.tensor([ids], device=device),
            self.cell.initial_state(1, self.reduction),
            max_new_tokens=count,
            eos_token_id=self.cell.config.eos_token_ids,
            **sampling,
        )
        generated, text = list[int](), ""
        for token, _ in new:
            generated.append(int(token))
            text = self.tokenizer.decode(generated)
            if any(stop in text for stop in stops):
                break
        return min((text.split(stop)[0] for stop in stops), key=len, default=text)
