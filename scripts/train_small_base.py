"""Train the small LLaMA-architecture base that the quickstart, the tests and the benchmarks use.

One command, from open biomedical text only (OpenStax and MedQuAD, both CC BY 4.0; never MTSamples,
which is what the base is adapted to):

    python scripts/train_small_base.py --data DATA_FOLDER --out assets/small-base

Stops by time (``--minutes``) or after one pass, writes safetensors in bf16 and a model card, and
goes on from its last checkpoint when it is killed. Needs torch, transformers, tokenizers and
safetensors; the learning rate follows the *share of the budget* used, so that a run stopped by the
clock is still annealed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 8192
CONTEXT_TOKENS = 512
BATCH_WINDOWS = 4  # 4 x 512 = 2,048 tokens a step
PEAK_LEARNING_RATE = 3e-3
WARMUP_SHARE = 0.02
SEED = 1234


def documents(data: Path) -> Iterator[str]:
    """Whole textbook modules, glossary entries, and question-answer pairs, each exact text once."""
    seen: set[bytes] = set()
    for text in (*textbooks(data), *questions(data)):
        key = hashlib.sha256(text.encode()).digest()
        if len(text) > 40 and key not in seen:
            seen.add(key)
            yield text


def textbooks(data: Path) -> Iterator[str]:
    for folder in ("openstax_anatomy_physiology_2e", "openstax_nursing"):
        modules: dict[str, list[str]] = {}
        for row in rows(data / folder / "passages.jsonl"):
            modules.setdefault(row["module"], []).append(row["text"].strip())
        yield from ("\n\n".join(paragraphs) for paragraphs in modules.values())
        for row in rows(data / folder / "glossary.jsonl"):
            yield f"{row['term']}: {row['meaning']}"


def questions(data: Path) -> Iterator[str]:
    for row in rows(data / "medquad" / "medquad_qa_with_answers.jsonl"):
        answer = "\n".join(line.strip() for line in row["answer"].splitlines() if line.strip())
        yield f"{row['question'].strip()}\n{answer}"


def rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that no clinical character is ever unknown; separate bos, eos and pad, so
    that pad never hides eos."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=2048,
    )


def stream(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """All documents one after another, each between bos and eos."""
    pieces = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return np.concatenate([np.array([bos, *ids, eos], dtype=np.int32) for ids in pieces])


def windows(tokens: np.ndarray, order: np.random.Generator) -> np.ndarray:
    """(windows, CONTEXT_TOKENS), shuffled once."""
    count = len(tokens) // CONTEXT_TOKENS
    cut = tokens[: count * CONTEXT_TOKENS].reshape(count, CONTEXT_TOKENS)
    return cut[order.permutation(count)]


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=2048, tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def learning_rate(used: float) -> float:
    """Linear warm-up, then a cosine to a tenth; ``used`` is the share of the budget spent."""
    if used < WARMUP_SHARE:
        return PEAK_LEARNING_RATE * used / WARMUP_SHARE
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (used - WARMUP_SHARE) / (1 - WARMUP_SHARE))))
    return PEAK_LEARNING_RATE * (0.05 + 0.95 * cosine)


def mean_loss(model: LlamaForCausalLM, held_out: np.ndarray) -> float:
    model.eval()
    with torch.inference_mode():
        losses = [
            model(input_ids=batch, labels=batch).loss.item()
            for batch in torch.from_numpy(held_out).long().split(BATCH_WINDOWS)
        ]
    model.train()
    return float(np.mean(losses))


def fit(
    model: LlamaForCausalLM,
    train: np.ndarray,
    held_out: np.ndarray,
    minutes: float,
    passes: float,
    state: Path,
) -> dict[str, float]:
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    step, spent, total = 0, 0.0, int(passes * len(train)) // BATCH_WINDOWS
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        step, spent = saved["step"], saved["spent"]
        print(f"going on at step {step}", flush=True)
    begun = time.monotonic() - spent
    while (
        step < total and (used := max(step / total, (time.monotonic() - begun) / 60 / minutes)) < 1
    ):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(used)
        at = np.arange(step * BATCH_WINDOWS, (step + 1) * BATCH_WINDOWS) % len(train)
        batch = torch.from_numpy(train[at]).long()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        if step % 50 == 0:
            spent = time.monotonic() - begun
            speed = step * BATCH_WINDOWS * CONTEXT_TOKENS / spent
            print(
                (
                    f"step {step}/{total} loss {loss.item():.3f} lr {learning_rate(used):.1e} "
                    f"{speed:.0f} tokens/s {spent / 60:.1f} min"
                ),
                flush=True,
            )
        if step % 200 == 0:
            keep(
                {
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step,
                    "spent": time.monotonic() - begun,
                },
                state,
            )
    spent = time.monotonic() - begun
    return {
        "steps": step,
        "tokens": step * BATCH_WINDOWS * CONTEXT_TOKENS,
        "minutes": spent / 60,
        "held_out_loss": mean_loss(model, held_out),
    }


def keep(saved: dict[str, object], state: Path) -> None:
    torch.save(saved, state.with_suffix(".new"))
    state.with_suffix(".new").replace(state)


CARD = """---
license: cc-by-4.0
library_name: transformers
pipeline_tag: text-generation
language: en
---

# clinpeft small base

A LLaMA-architecture language model of {parameters:,} parameters, made so that the quickstart, the tests and the benchmarks of clinpeft run on
a real, trained base instead of random weights. It is **not** a clinical model, is no good at conversation, and must not be used for care.

| | |
|---|---|
| architecture | LlamaForCausalLM, 6 layers, width 256, 4 heads, feed-forward 688, untied embeddings |
| tokenizer | byte-level BPE, {vocabulary:,} entries, separate `<s>`, `</s>`, `<pad>`; trained on the same text |
| books | OpenStax Anatomy and Physiology 2e; Pharmacology, Nutrition, Population Health for Nurses (OpenStax, Rice University) |
| questions and answers | MedQuAD (Ben Abacha and Demner-Fushman, BMC Bioinformatics 2019, 20:511) |
| licence of the data | CC BY 4.0; the weights are given under the same licence, with attribution to both |
| text | {documents:,} documents, {corpus_tokens:,} tokens; 2 % of the documents held out |
| trained on | {tokens:,} tokens ({steps:,} steps of {batch_tokens:,}) in {minutes:.0f} minutes, fp32, {hardware} |
| held-out loss | {held_out_loss:.4f} nats a token (perplexity {perplexity:.2f}) over {held_out_tokens:,} tokens |
| seed | {seed} |
| command | `python scripts/train_small_base.py --data DATA --out {out} --minutes {budget:g} --passes {passes:g}` |
| stored as | safetensors, bfloat16 |
"""


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--minutes", type=float, default=60)
    arguments.add_argument("--passes", type=float, default=1.0)
    chosen = arguments.parse_args()
    order = np.random.default_rng(SEED)
    texts = list(documents(chosen.data))
    order.shuffle(texts)
    held = len(texts) // 50
    tokenizer = train_tokenizer(texts[held:])
    train, held_out = (
        windows(stream(texts[held:], tokenizer), order),
        windows(stream(texts[:held], tokenizer), order),
    )
    model = new_model(tokenizer)
    state = chosen.out.with_suffix(".state")
    state.parent.mkdir(parents=True, exist_ok=True)
    print(
        (
            f"{len(texts)} documents, {train.size} training tokens, {model.num_parameters()} "
            "parameters"
        ),
        flush=True,
    )
    result = fit(model, train, held_out, chosen.minutes, chosen.passes, state)
    model.to(torch.bfloat16).save_pretrained(chosen.out)
    tokenizer.save_pretrained(chosen.out)
    card = CARD.format(
        parameters=model.num_parameters(), vocabulary=VOCABULARY, documents=len(texts), corpus_tokens=train.size + held_out.size,
        batch_tokens=BATCH_WINDOWS * CONTEXT_TOKENS, hardware=f"{os.cpu_count()} cores of {platform.machine()}", held_out_tokens=held_out.size,
        perplexity=math.exp(result["held_out_loss"]), seed=SEED, out=chosen.out, budget=chosen.minutes, passes=chosen.passes, **result,
    )  # fmt: skip
    (chosen.out / "README.md").write_text(card, encoding="utf-8")
    state.unlink(missing_ok=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
