import torch

from finetune.generate import Sampling, generate, stream
from finetune.model import label_log_probs
from finetune.packing import Segment, pad_right

PROMPTS = [[70, 71, 72], [80, 81, 82, 83, 84, 85, 86], [90]]


def _greedy_without_cache(model, prompt: list[int], number: int) -> list[int]:
    ids = list(prompt)
    for _ in range(number):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def test_greedy_in_a_batch_with_a_cache_is_greedy_one_by_one_without(model) -> None:
    found = generate(model, PROMPTS, Sampling(12, temperature=0), torch.Generator())
    for prompt, completion in zip(PROMPTS, found, strict=True):
        assert list(completion.ids) == _greedy_without_cache(model, prompt, 12)
        assert not completion.finished


def test_streaming_gives_the_tokens_of_generate_without_the_stop(model) -> None:
    whole = generate(model, PROMPTS[:1], Sampling(12), torch.Generator().manual_seed(5))[0]
    stop = whole.ids[6]
    cut = whole.ids.index(stop)
    sampling = Sampling(12, stop_ids=(stop,))
    stopped = generate(model, PROMPTS[:1], sampling, torch.Generator().manual_seed(5))[0]
    assert stopped.finished
    assert stopped.ids == whole.ids[: cut + 1]
    pieces = stream(model, PROMPTS[0], sampling, torch.Generator().manual_seed(5))
    assert tuple(pieces) == whole.ids[:cut]


def test_the_samplers_log_probs_are_the_trainers(model) -> None:
    found = generate(
        model, PROMPTS, Sampling(10, temperature=0.7), torch.Generator().manual_seed(1)
    )
    for prompt, completion in zip(PROMPTS, found, strict=True):
        supervised = (*(False for _ in prompt), *(True for _ in completion.ids))
        batch = pad_right([Segment((*prompt, *completion.ids), supervised)], 2)
        trainer = label_log_probs(model, batch)[0]
        torch.testing.assert_close(
            trainer[trainer != 0], torch.tensor(completion.log_probs), atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_samples_follow_the_models_distribution(model) -> None:
    probabilities = model(input_ids=torch.tensor([[70]]), use_cache=False).logits[0, -1].softmax(0)
    found = generate(model, [[70]] * 20_000, Sampling(1), torch.Generator().manual_seed(2))
    counts = torch.bincount(torch.tensor([c.ids[0] for c in found]), minlength=len(probabilities))
    expected = probabilities * 20_000
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    degrees = len(probabilities) - 1
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5
