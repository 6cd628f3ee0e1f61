"""kvpress' side of a comparison, run by a Python that has it; nothing of msrnn is needed here. See ``press.py``.

Reads the ids given, then for every line of standard input, a number, decodes as many tokens and answers with the length of its
cache.
"""

import json
import os
import sys
from typing import Any

import torch


def main(folder: str, ids: list[int], size: int, dtype: str, device: str, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(threads)
    import kvpress
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.AutoModelForCausalLM
    model = model.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").to(device).eval()
    press = kvpress.DecodingPress(kvpress.TOVAPress(), compression_interval=1, target_size=size)
    text, cache = torch.tensor([ids], device=device), transformers.DynamicCache()
    with torch.no_grad(), press(model):
        model(text, past_key_values=cache, logits_to_keep=1)
        position = len(ids)
        print(cache.get_seq_length(), file=answers, flush=True)
        for line in sys.stdin:
            for _ in range(int(line)):
                token, place = text[:, position % len(ids), None], torch.tensor([[position]], device=device)
                model(token, past_key_values=cache, position_ids=place)
                position += 1
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            print(cache.get_seq_length(), file=answers, flush=True)


main(**json.loads(sys.argv[1]))
