"""A base model of two small random layers and a byte tokenizer, for machines without a model."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
import transformers

from clinpeft.models.load import silence_transformers

TOY_SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
TOY_MODEL_WIDTH = 64


def write_toy_model(folder: Path, seed: int = 0) -> Path:
    """Write a toy Llama model; the same seed gives the same weights.

    The global generators of torch do not change.

    Args:
        folder: a new folder.
        seed: of the weights.

    Returns:
        The folder.
    """
    # one token per byte, so that every text can be encoded without a training of the tokenizer
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*TOY_SPECIAL_TOKENS, *letters))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    # no space is added in front, so that decoding returns the text
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    names = dict(zip(("bos_token", "eos_token", "pad_token"), TOY_SPECIAL_TOKENS, strict=True))
    fast_tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast_tokenizer.save_pretrained(str(folder))
    # 4 heads of width 16
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=TOY_MODEL_WIDTH,
        intermediate_size=2 * TOY_MODEL_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        # positions in TOY_SPECIAL_TOKENS
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    with silence_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder
