"""The index of shards, which can lie."""

import json
from pathlib import Path
from random import Random

from .registry import SECRET, damage


@damage("index")
def index_lies(random: Random, path: Path) -> bool:
    index = json.loads(path.read_bytes())
    places = index["weight_map"]
    name = random.choice(sorted(places))
    shards = sorted(set(places.values()))
    wrong = [f"../{SECRET}", str(path.parent.with_name(SECRET)), "nothing.safetensors", f"./{places[name]}", "config.json"]
    wrong += [f"../source/{places[name]}", "", ".", places[name].upper(), *(shard for shard in shards if shard != places[name])]
    lie = random.randrange(5)
    if lie == 0:
        places[name] = random.choice(wrong)
    elif lie == 1:
        del places[name]
    elif lie == 2:
        places[f"../../{name}"] = places.pop(name)
    elif lie == 3:
        places["made.up.weight"] = random.choice([*wrong, *shards])
    else:
        index["weight_map"] = {k: v for k, v in places.items() if v != places[name]}  # a shard in no index
    path.write_text(json.dumps(index))
    return True
