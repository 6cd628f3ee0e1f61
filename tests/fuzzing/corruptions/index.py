"""Damages of the index of shards."""

import json
from pathlib import Path
from random import Random

from .registry import SECRET, damage


@damage("index")
def wrong_index(random: Random, path: Path) -> bool:
    index = json.loads(path.read_bytes())
    shard_of = index["weight_map"]
    name = random.choice(sorted(shard_of))
    shards = sorted(set(shard_of.values()))
    wrong = [f"../{SECRET}", str(path.parent.with_name(SECRET)), "nothing.safetensors", f"./{shard_of[name]}", "config.json"]
    wrong += [
        f"../source/{shard_of[name]}",
        "",
        ".",
        shard_of[name].upper(),
        *(shard for shard in shards if shard != shard_of[name]),
    ]
    change = random.randrange(5)
    if change == 0:
        shard_of[name] = random.choice(wrong)
    elif change == 1:
        del shard_of[name]
    elif change == 2:
        shard_of[f"../../{name}"] = shard_of.pop(name)
    elif change == 3:
        shard_of["invented.weight"] = random.choice([*wrong, *shards])
    else:
        index["weight_map"] = {k: v for k, v in shard_of.items() if v != shard_of[name]}  # a shard that is not in the index
    path.write_text(json.dumps(index))
    return True
