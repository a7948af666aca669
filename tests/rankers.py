"""Small rankers and data sets for the tests: made here in seconds, nothing is downloaded."""

import json
from pathlib import Path

TOPICS = ["sea", "dog", "tree", "car", "moon", "bread", "clock", "river", "king", "stone"]


def rows(num_rows, start=0):
    """Prompts whose answers' lengths follow from their words: stories are long, numbers short."""
    made = []
    for i in range(start, start + num_rows):
        topic, is_story = TOPICS[i % len(TOPICS)], i % 3 == 0
        prompt = f"Write a story about the {topic} number {i}" if is_story else f"Name {topic} {i}"
        length = 200 + i % 7 if is_story else 5 + i % 3
        made.append({"task_id": i, "prompt": prompt, "answer_content": "", "answer_length": length})
    return made


def write_data(folder: Path, num_train=240, num_val=60):
    """train_data.json and val_data.json in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train_data.json").write_text(json.dumps(rows(num_train)))
    (folder / "val_data.json").write_text(json.dumps(rows(num_val, start=num_train)))
    return folder


def write_pairs(folder: Path):
    """Pair files of the same prompts, in PARS's format, beside the data."""
    for name in ("train", "val"):
        data = json.loads((folder / f"{name}_data.json").read_text())
        pairs = []
        for i, a in enumerate(data):
            b = data[(i * 7 + 1) % len(data)]
            if abs(a["answer_length"] - b["answer_length"]) > 0.2 * 207:
                label = int(a["answer_length"] > b["answer_length"])
                pairs.append({"prompt_A": a["prompt"], "prompt_B": b["prompt"], "label": label})
        path = folder / f"{name}_pairs_length_diff_0.2.json"
        path.write_text(json.dumps(pairs, indent=2))
    return folder


def tiny_encoder(folder: Path):
    """A two-layer BERT with random weights and no dropout, as a Hugging Face model folder."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "write", "a", "story", "about", "the", "name"]
    words += ["number", *TOPICS, *map(str, range(400))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    return folder


def other_model(folder: Path, config):
    """A tiny model of another kind, with the tokenizer of the tiny encoder."""
    from transformers import AutoModel, AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_encoder(folder / "bert")).save_pretrained(folder / "other")
    AutoModel.from_config(config).save_pretrained(folder / "other")
    return str(folder / "other")


def lite_ranker(folder: Path, seed=0, reads_notes=False):
    """An untrained lite ranker over the words of `rows`, exported."""
    import torch

    from pars.learn.training.export import export_ranker
    from pars.learn.training.models import LiteModel

    torch.manual_seed(seed)
    model = LiteModel.untrained([row["prompt"] for row in rows(60)], 32)
    model.network.round_tables()
    export_ranker(model, folder, model_name="lite", reads_notes=reads_notes)
    return folder
