"""The peers of near_duplicates.py, run by their own interpreters: NAME FOLDER WORK WORKERS.

FOLDER holds the documents as JSON lines, WORK is empty; clusters.json in it gets the numbers of the
documents of each cluster, ascending. Both as their own examples run them.
"""

import json
import os
import pickle
import struct
import sys
from collections import defaultdict
from pathlib import Path


def datatrove(source: Path, work: Path, workers: int) -> dict[int, list[int]]:
    """The stages of examples/minhash_deduplication.py up to the list of what is to be removed, which
    is where ours ends, too: the fourth one writes the documents anew."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader

    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    parts = [str(work / name) for name in ("signatures", "buckets", "clusters")]
    signatures, buckets, clusters = parts
    reader = JsonlReader(str(source))
    bands = config.num_buckets
    stages = [
        (workers, [reader, MinhashDedupSignature(signatures, config=config)]),
        (bands, [MinhashDedupBuckets(signatures, buckets, config=config)]),
        (1, [MinhashDedupCluster(buckets, clusters, config=config, save_cluster_id=True)]),
    ]
    for number, (tasks, pipeline) in enumerate(stages):
        LocalPipelineExecutor(
            pipeline=pipeline,
            tasks=tasks,
            workers=min(workers, tasks),
            logging_dir=str(work / f"log-{number}"),
        ).run()
    found: dict[int, list[int]] = defaultdict(list)
    base = 0
    for file, path in enumerate(sorted(source.iterdir())):
        listed = Path(clusters) / f"{file:06d}.clusters"
        data = listed.read_bytes() if listed.exists() else b""
        for document, cluster in struct.iter_unpack("<II", data):
            found[cluster].append(base + document)
        base += sum(1 for _ in path.open())
    return found


def text_dedup(source: Path, work: Path, workers: int) -> dict[int, list[int]]:
    os.environ |= {"HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1"}
    os.environ["POLARS_MAX_THREADS"] = str(workers)
    from text_dedup.config.base import load_config_from_toml
    from text_dedup.minhash import main

    files = [str(path) for path in sorted(source.iterdir())]
    settings = work / "config.toml"
    settings.write_text(
        f"""
[input]
input_type = "local_files"
file_type = "json"
read_arguments = {{ path = "json", split = "train", data_files = {json.dumps(files)} }}
[algorithm]
algorithm_name = "minhash"
text_column = "text"
num_perm = 112
bands = 14
rows = 8
ngram_size = 5
threshold = 0.8
num_proc = {workers}
[output]
output_dir = "{work}/kept"
save_clusters = true
[debug]
"""
    )
    config = load_config_from_toml(settings)
    main(config)
    found: dict[int, list[int]] = defaultdict(list)
    clusters = pickle.loads((work / "kept" / "clusters.pickle").read_bytes())
    for document, cluster in clusters.items():
        found[cluster].append(document)
    return found


if __name__ == "__main__":
    name, source, work, workers = sys.argv[1:]
    run = {"datatrove": datatrove, "text-dedup": text_dedup}[name]
    clusters = run(Path(source), Path(work), int(workers))
    members = [sorted(found) for found in clusters.values() if len(found) > 1]
    (Path(work) / "clusters.json").write_text(json.dumps(members))
