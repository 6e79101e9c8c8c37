"""A base of two small layers with random weights and a tokenizer of bytes: what a machine can be tried with when it has no other."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
import transformers

from clinpeft.models.load import silence_transformers as quiet

TOY_SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
TOY_MODEL_WIDTH = 64


def write_toy_model(folder: Path, seed: int = 0) -> Path:
    """Write it; the same seed gives the same weights, and the global generators stay as they were.

    Args:
        folder: a new folder.
        seed: of the weights.
    """
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate((*TOY_SPECIAL_TOKENS, *letters))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    names = dict(zip(("bos_token", "eos_token", "pad_token"), TOY_SPECIAL_TOKENS, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(
        str(folder)
    )
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=TOY_MODEL_WIDTH,
        intermediate_size=2 * TOY_MODEL_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder
