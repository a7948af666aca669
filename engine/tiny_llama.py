"""
Make a Llama that answers at once and means nothing: python engine/tiny_llama.py FOLDER

2 layers with random weights from a fixed seed (1 M parameters), and a byte-level tokenizer of one
token per byte, with a chat template: enough for vLLM to serve completions, chat and streams.
It writes printable ASCII and never ends by itself: an answer is `max_tokens` long, and each token
of a stream is a piece of text of its own. With --width and --layers a step costs more, as where a
benchmark wants the model to take the time, and not the HTTP server around it.
"""

import argparse

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

CHAT_TEMPLATE = """\
{%- for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor -%}
{%- if add_generation_prompt %}<s>assistant: {% endif -%}"""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token 0 begins a text, token 1 ends it, the other 256 are the bytes."""
    letters = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


def random_llama(
    vocab_size: int, spoken: list[int], *, width: int, num_layers: int
) -> LlamaForCausalLM:
    """A Llama that of its tokens utters only `spoken`; `width` is a multiple of 128."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=width // 64,  # heads of 64: vLLM's CPU kernels have that size
        num_key_value_heads=width // 128,
        max_position_embeddings=65536,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    head = model.get_output_embeddings().weight.data
    loud = torch.zeros(vocab_size, 1)
    loud[spoken] = 50.0  # the best of the spoken logits is then some 40, all others are 0
    head.mul_(loud)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folder")
    # Small enough that a step costs vLLM's own time.
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    disable_progress_bar()
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(options.folder)
    printable = [tokenizer.convert_tokens_to_ids(chr(code)) for code in range(33, 127)]
    size = {"width": options.width, "num_layers": options.layers}
    random_llama(len(tokenizer), printable, **size).save_pretrained(options.folder)


if __name__ == "__main__":
    main()
