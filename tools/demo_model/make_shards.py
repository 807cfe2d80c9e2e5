"""Generate and tokenize the shards of generated text on all cores; run beside train.py.

python make_shards.py --data DIR --tokenizer tok8k.json --cache DIR --shards 40
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from data import make_shard


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--tokenizer", type=Path, required=True)
    p.add_argument("--cache", type=Path, required=True)
    p.add_argument("--shards", type=int, default=40)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    a = p.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    os.nice(10)  # what train.py compiles meanwhile comes first
    a.cache.mkdir(parents=True, exist_ok=True)
    make = partial(make_shard, a.data, a.tokenizer, a.cache, a.seed)
    with ProcessPoolExecutor(a.jobs) as pool:
        list(pool.map(make, range(a.shards)))


if __name__ == "__main__":
    main()
