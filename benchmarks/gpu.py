"""Training, generation and scoring on a GPU: correctness first, then throughput as a share of
what the device's own matrix multiplication reaches. Fits one ten-minute call.

    make bench-gpu                                   # on a machine with CUDA
    python benchmarks/gpu.py --device cpu --tiny     # the same path, small, anywhere
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from rows import Row, record, row

from finetune.data import batches_of
from finetune.generate import Sampling, generate
from finetune.loop import LoopConfig, train
from finetune.model import (
    ModelConfig,
    best_precision,
    label_log_probs,
    new_model,
    num_parameters,
    training_flops,
)
from finetune.packing import pack_stream
from finetune.pretrain import next_token_objective
from finetune.tokenizer import TokenizerConfig, train_bpe

SCRIPT = "gpu.py"
SHAPES = {
    "0.1B": ModelConfig(hidden_size=768, num_layers=12, num_heads=12, intermediate_size=2048,
                        max_length=2048),
    "1B": ModelConfig(hidden_size=2048, num_layers=16, num_heads=16, intermediate_size=5632,
                      max_length=2048),
}  # fmt: skip
TINY = {"tiny": ModelConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128,
                            max_length=256)}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="seconds on a CPU; records no row")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --tiny runs the same path", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    limit = matmul_flops(device, 512 if options.tiny else 8192)
    print(f"{_name(device)}: matrix multiplication reaches {limit / 1e12:.2f} TFLOP/s")
    rows: list[Row] = []
    for name, shape in (TINY if options.tiny else SHAPES).items():
        rows += bench(name, shape, device, limit, options.tiny)
    if not options.tiny:
        record(rows)
    return 0


def bench(
    name: str, shape: ModelConfig, device: torch.device, limit: float, tiny: bool
) -> list[Row]:
    tokenizer = train_bpe(
        iter([f"word{i} and more" for i in range(2000)]), TokenizerConfig(vocab_size=2048)
    )
    length = shape.max_length if tiny else 2048
    check(shape, tokenizer, device)
    model = new_model(shape, tokenizer, seed=0)
    print(f"{name}: {num_parameters(model):,} parameters")
    generator = torch.Generator().manual_seed(0)
    documents = torch.randint(64, 2000, (32, length * 2), generator=generator).tolist()
    rows = pack_stream(documents, length, pad_id=2)
    micro = 2 if tiny else 8
    steps = 4 if tiny else 12
    config = LoopConfig(device=device.type, warmup_steps=2, checkpoint_every=1000)
    with tempfile.TemporaryDirectory() as folder:
        result = train(name, model, next_token_objective, batches_of(rows, micro, micro, 0), steps,
                       config, Path(folder))  # fmt: skip
    per_s = statistics.median(m["tokens_per_s"] for m in result.metrics[2:])
    per_token = training_flops(model, rows.ids_BT.numel(), rows.num_attended) / rows.ids_BT.numel()
    reached = per_s * per_token
    model.eval()
    batch = 8 if tiny else 256
    prompts = [[70 + i % 100] * 32 for i in range(batch)]
    new_tokens = 16 if tiny else 128
    with best_precision(device).autocast():
        seconds = timed(device, lambda: generate(model, prompts, Sampling(new_tokens), 1))
        scored = rows.rows(range(micro)).to(device)
        with torch.no_grad():
            scoring = timed(device, lambda: label_log_probs(model, scored))
    machine, peer = _name(device), ("matmul limit", torch.__version__)
    forward = per_token / 3
    return [
        row("pretrain", SCRIPT, peer, reached / 1e12, limit / 1e12, f"TFLOP/s {name}", machine=machine),
        row("generate", SCRIPT, peer, batch * new_tokens / seconds * forward / 1e12, limit / 1e12,
            f"TFLOP/s {name} batch {batch}", machine=machine),
        row("evaluate", SCRIPT, peer, micro * length / scoring * forward / 1e12, limit / 1e12,
            f"TFLOP/s {name}", machine=machine),
    ]  # fmt: skip


def check(shape: ModelConfig, tokenizer: object, device: torch.device) -> None:
    """The device's log-probs are the CPU's, and generation's are the trainer's."""
    small = ModelConfig(
        hidden_size=128, num_layers=2, num_heads=4, intermediate_size=256, max_length=256
    )
    model = new_model(small, tokenizer, seed=1).eval()
    rows = pack_stream([list(range(70, 170)), list(range(90, 240))], 256, pad_id=2)
    with torch.no_grad():
        expected = label_log_probs(model, rows)
        found = label_log_probs(model.to(device), rows.to(device)).cpu()
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
        completion = generate(model, [[70, 71, 72]], Sampling(20), 0)[0]
        ids = torch.tensor([[70, 71, 72, *completion.ids]], device=device)
        log_probs = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        trainer = log_probs[0, 2:-1].gather(1, ids[0, 3:, None])[:, 0].cpu()
    torch.testing.assert_close(trainer, torch.tensor(completion.log_probs), atol=2e-4, rtol=1e-4)
    print(f"correct on {device.type}: log-probs as on the CPU, generation's as the trainer's")


def matmul_flops(device: torch.device, size: int) -> float:
    """FLOP/s of a square multiplication in the precision that training uses."""
    dtype = best_precision(device).autocast_dtype or torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / timed(device, lambda: a @ b)


def timed(device: torch.device, work: Callable[[], object], runs: int = 5) -> float:
    """Median seconds of one run, after one that is not counted."""
    seconds = []
    for number in range(runs + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:
            seconds.append(time.perf_counter() - started)
    assert all(math.isfinite(s) for s in seconds)
    return statistics.median(seconds)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    sys.exit(main())
