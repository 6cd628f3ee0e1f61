"""The worker process of ``llama_cpp.py``. It runs in an environment with llama-cpp-python and without msrnn.

The first line of standard input is a JSON object with the arguments of ``main``. Every further line is a number of steps. Each
line is answered with the length of the cache, the size of the vocabulary and the most probable next token.
"""

import json
import os
import sys


def main(path: str, ids: list[int], threads: int) -> None:
    """Read ``ids``, then make as many steps at this length as each line of standard input requests."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps the prints of libraries apart from the answers
    import llama_cpp
    import numpy

    context = -(-(len(ids) + 1) // 256) * 256
    model = llama_cpp.Llama(path, n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    vocab_size = model.n_vocab()

    def answer() -> None:
        logits = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), shape=(vocab_size,))
        print(json.dumps([model.n_tokens, vocab_size, int(logits.argmax())]), file=answers, flush=True)

    model.eval(ids)
    answer()
    position = 0
    for line in sys.stdin:
        for _ in range(int(line)):
            model.eval([ids[position % len(ids)]])  # also removes what is in the cache beyond ``n_tokens``
            model.n_tokens -= 1
            position += 1
        answer()


main(**json.loads(sys.stdin.readline()))
