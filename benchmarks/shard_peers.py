"""The peers of shard.py, run by their own interpreter: NAME FOLDER ROWS WORK.

FOLDER holds the documents as Parquet; shards of ROWS rows are written under WORK, all rows in one
global random order, zstd, and their names to WORK/shards.json. Both as their own guides do it.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

SEED = 1


def datasets(files: Sequence[str], rows: int, work: Path) -> list[str]:
    os.environ |= {"HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1"}
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    whole = load_dataset("parquet", data_files=list(files), split="train").shuffle(seed=SEED)
    number = -(-len(whole) // rows)
    names = [str(work / f"{index:05d}.parquet") for index in range(number)]
    for index, name in enumerate(names):
        part = whole.shard(num_shards=number, index=index, contiguous=True)
        part.to_parquet(name)
    return names


def polars(files: Sequence[str], rows: int, work: Path) -> list[str]:
    os.environ["POLARS_MAX_THREADS"] = "1"
    import polars

    whole = polars.read_parquet(list(files)).sample(fraction=1, shuffle=True, seed=SEED)
    names = []
    for index, part in enumerate(whole.iter_slices(rows)):
        names.append(str(work / f"{index:05d}.parquet"))
        part.write_parquet(names[-1], compression="zstd", compression_level=1)
    return names


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    name, folder, size, target = sys.argv[1:]
    Path(target).mkdir(parents=True)
    inputs = [str(path) for path in sorted(Path(folder).iterdir())]
    made = {"datasets": datasets, "polars": polars}[name](inputs, int(size), Path(target))
    (Path(target) / "shards.json").write_text(json.dumps(made))
