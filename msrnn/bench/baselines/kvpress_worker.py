"""The worker process of ``kvpress.py``. It runs in an environment with kvpress and without msrnn.

The first line of standard input is a JSON object with the arguments of ``main``. Every further line is a number of tokens to
decode. Each line is answered with the length of the cache.
"""

import json
import os
import sys
from typing import Any

import torch


def main(folder: str, ids: list[int], size: int, dtype: str, device: str, threads: int) -> None:
    """Read ``ids`` in one dense forward pass, then decode as many tokens as each line of standard input requests."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps the prints of libraries apart from the answers
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
                token, position_ids = text[:, position % len(ids), None], torch.tensor([[position]], device=device)
                model(token, past_key_values=cache, position_ids=position_ids)
                position += 1
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            print(cache.get_seq_length(), file=answers, flush=True)


main(**json.loads(sys.stdin.readline()))
