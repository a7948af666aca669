"""Training: what is learnt, what is written, what is continued."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from pars.errors import DataError, ParsError, RankerError
from pars.learn.training.config import (
    LITE_DEFAULTS,
    PRESETS,
    TrainConfig,
    check_effect,
    with_epochs,
    with_preset,
)
from pars.learn.training.models import load_encoder, load_weights
from pars.learn.training.train import train
from pars.ranking.ranker import Ranker
from pars.request.conversation import with_note

from rankers import other_model, rows, tiny_encoder, write_data, write_pairs

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(tiny_encoder(tmp_path_factory.mktemp("bert")))


def data_files(folder):
    return {"train_data": folder / "train_data.json", "val_data": folder / "val_data.json"}


def pair_files(folder):
    return {
        "train_file": folder / "train_pairs_length_diff_0.2.json",
        "val_file": folder / "val_pairs_length_diff_0.2.json",
    }


def lite_config(data, output_dir, **changes):
    settings = {**LITE_DEFAULTS, "batch_size": 32, "num_epochs": 3, "threshold": 0.2}
    files = data_files(data)
    return TrainConfig(model="lite", output_dir=output_dir, **{**files, **settings, **changes})


def encoder_config(data, bert, output_dir, **changes):
    settings = {"batch_size": 32, "num_epochs": 2, "learning_rate": 1e-3, "max_length": 16}
    return TrainConfig(output_dir=output_dir, model_name=bert, **{**data, **settings, **changes})


def state(path):
    return torch.load(path, weights_only=True)


def assert_equal_states(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=tolerance, rtol=0, msg=name)


def test_lite_learns_that_stories_are_long(data, tmp_path):
    """On prompts it never saw, all pairs that differ enough come out right."""
    metrics = train(lite_config(data, tmp_path))

    assert metrics["best_val_accuracy"] > 0.95
    ranker = Ranker.load(tmp_path / "ranker")
    story, name = ranker.score(["Write a story about the moon number 999", "Name clock 999"])
    assert story > name
    assert not ranker.info.reads_notes
    assert ranker.info.expected_tokens[0] < 10 < 190 < ranker.info.expected_tokens[-1]


def test_a_ranker_of_conversations_reads_how_long_the_answers_before_were(tmp_path):
    """Answers here are as long as the one before, whatever is asked; single prompts teach none."""
    for name, num_rows in (("train", 240), ("val", 60)):
        made = []
        for number in range(num_rows):
            length = 400 if number * 7 % 3 else 4000
            prompt = with_note(f"Go on {number % 9}", [length])
            made.append({"prompt": prompt, "answer_length": length / 4 + number % 5})
        (tmp_path / f"{name}_data.json").write_text(json.dumps(made))

    metrics = train(lite_config(tmp_path, tmp_path / "run"))

    ranker = Ranker.load(tmp_path / "run/ranker")
    short, long, bare = ranker.score(
        [with_note("Go on 1", [400]), with_note("Go on 1", [4000]), "Go on 1"]
    )
    assert metrics["best_val_accuracy"] > 0.95
    assert ranker.info.reads_notes
    assert long > short
    assert bare not in (short, long)


def test_an_encoder_learns_from_pairs_and_from_lengths(data, bert, tmp_path):
    """Both ways in reach the same order; the pair file costs more encodings for it."""
    by_pairs = train(encoder_config(pair_files(data), bert, tmp_path / "pairs", num_epochs=4))
    by_lengths = train(encoder_config(data_files(data), bert, tmp_path / "lengths", num_epochs=4))

    assert by_pairs["best_val_accuracy"] > 0.95
    assert by_lengths["best_val_accuracy"] > 0.95
    assert by_pairs["tau_b"]["value"] > 0.5  # val_data.json was found beside the pair file


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_encoder_learns_in_either_precision(data, bert, tmp_path, precision):
    """Also where a CPU only emulates bfloat16; the weights themselves stay float32."""
    metrics = train(
        encoder_config(data_files(data), bert, tmp_path, num_epochs=4, precision=precision)
    )

    assert metrics["best_val_accuracy"] > 0.95
    assert {tensor.dtype for tensor in state(tmp_path / "best_model.pt").values()} == {
        torch.float32
    }


def test_everything_is_written_with_pars_names(data, bert, tmp_path):
    """State dicts with PARS's names, its metrics and ours, a picture and a ranker folder."""
    train(encoder_config(pair_files(data), bert, tmp_path))

    names = state(tmp_path / "best_model.pt").keys()
    assert {"fc.weight", "fc.bias", "encoder.embeddings.word_embeddings.weight"} <= names
    assert all(name.startswith(("encoder.", "fc.")) for name in names)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {
        "train_file", "val_file", "model_name", "batch_size", "num_epochs", "learning_rate",
        "margin", "max_length", "best_val_accuracy", "history",
    } <= metrics.keys()  # fmt: skip
    assert {"epoch", "train_loss", "val_loss", "val_accuracy"} <= metrics["history"][0].keys()
    assert {"tau_b", "seconds", "prompts_per_second"} <= metrics.keys()
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    # The 8-bit graph is there where it orders the held-out prompts as float32 does.
    assert {f.name for f in (tmp_path / "ranker").iterdir()} - {"model_int8.onnx"} == {
        "model.onnx", "tokenizer.json", "ranker.json",
    }  # fmt: skip


def test_the_same_seed_gives_the_same_ranker(data, tmp_path):
    """Weight by weight."""
    train(lite_config(data, tmp_path / "one"))
    train(lite_config(data, tmp_path / "other"))

    assert_equal_states(
        state(tmp_path / "one/last_model.pt"), state(tmp_path / "other/last_model.pt")
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_continues_as_if_it_had_not_stopped(tmp_path, signum):
    """Ctrl-C in mid-epoch: the resumed run ends in the very weights of one that ran on."""
    folder = write_data(tmp_path / "data", num_train=6000, num_val=60)
    arguments = [
        sys.executable, "-m", "pars", "train", "--model", "lite", "--num-epochs", "2",
        "--batch-size", "16", "--train-data", str(folder / "train_data.json"),
        "--val-data", str(folder / "val_data.json"), "--output-dir",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stopped = subprocess.Popen(
        [*arguments, str(tmp_path / "stopped")], stderr=subprocess.PIPE, env=environment
    )
    seen = b""
    while b"Epoch 1: " not in seen:  # the first epoch is over, the second has begun
        seen += os.read(stopped.stderr.fileno(), 4096)
        assert stopped.poll() is None, seen
    stopped.send_signal(signum)
    _, rest = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, seen + rest
    assert b"--resume-from" in rest

    subprocess.run(
        [*arguments, str(tmp_path / "stopped"), "--resume-from", str(tmp_path / "stopped")],
        check=True, env=environment,
    )  # fmt: skip
    subprocess.run([*arguments, str(tmp_path / "whole")], check=True, env=environment)

    assert_equal_states(
        state(tmp_path / "stopped/last_model.pt"), state(tmp_path / "whole/last_model.pt")
    )


def test_two_processes_give_the_result_of_one(data, bert, tmp_path):
    """torchrun with two CPU processes ends in the weights of one with the same global batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Float32: bfloat16 rounds a sum of two halves far more coarsely than it asks for here.
    options = ["--model-name", bert, "--num-epochs", "1", "--max-length", "16"]
    options += ["--precision", "float32"]
    for name, path in data_files(data).items():
        options += ["--" + name.replace("_", "-"), str(path)]
    alone = [sys.executable, "-m", "pars", "train", *options]
    together = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", str(port), "-m", "pars", "train", *options,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    subprocess.run([*alone, "--output-dir", str(tmp_path / "1")], check=True, env=environment)
    subprocess.run([*together, "--output-dir", str(tmp_path / "2")], check=True, env=environment)

    assert_equal_states(
        state(tmp_path / "1/last_model.pt"), state(tmp_path / "2/last_model.pt"), tolerance=1e-5
    )


def test_training_can_start_from_a_checkpoints_weights(data, bert, tmp_path):
    """PARS's --resume-from takes a .pt: its weights are the start, not the random ones."""
    first = train(encoder_config(data_files(data), bert, tmp_path / "first", num_epochs=4))

    second = train(
        encoder_config(
            data_files(data), bert, tmp_path / "second", num_epochs=1, learning_rate=1e-9,
            resume_from=tmp_path / "first/best_model.pt",
        )
    )  # fmt: skip

    assert second["best_val_accuracy"] == pytest.approx(first["best_val_accuracy"], abs=0.01)


def test_a_training_is_not_continued_with_other_options(data, tmp_path):
    """The option that differs is named."""
    train(lite_config(data, tmp_path))

    with pytest.raises(ParsError, match=r"--seed 42, not 43"):
        train(lite_config(data, tmp_path, seed=43, resume_from=tmp_path))


def test_resuming_from_nothing_is_an_error(data, tmp_path):
    """The missing file is named."""
    with pytest.raises(ParsError, match=r"training_state\.pt is missing"):
        train(lite_config(data, tmp_path / "out", resume_from=tmp_path / "empty"))


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: name.replace("encoder.", "encoder._orig_mod.", 1),
        lambda name: f"module.{name}".replace("encoder.", "encoder.module.", 1),
    ],
)
@pytest.mark.parametrize("wrap", [dict, lambda state: {"epoch": 3, "model_state_dict": state}])
def test_weights_of_wrapped_models_are_loaded(bert, tmp_path, renamed, wrap):
    """DataParallel, DDP and torch.compile, around the model or its encoder, change names only."""
    model = load_encoder(bert, 16)
    state = {renamed(name): it + 1 for name, it in model.network.state_dict().items()}
    expected = {name: it + 1 for name, it in model.network.state_dict().items()}
    torch.save(wrap(state), tmp_path / "wrapped.pt")

    load_weights(model.network, tmp_path / "wrapped.pt")

    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_pickled_code_in_a_checkpoint_is_not_run(data, bert, tmp_path):
    """A .pt that would write a file when unpickled is refused, and the file is not written."""

    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'exploded'}",))

    torch.save({"fc.bias": Bomb()}, tmp_path / "bomb.pt")

    with pytest.raises(RankerError, match=r"bomb\.pt"):
        train(
            encoder_config(
                data_files(data), bert, tmp_path / "out", resume_from=tmp_path / "bomb.pt"
            )
        )
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("threshold", 1.5, "--threshold must be between 0 and 1, not 1.5"),
        ("batch_size", 0, "--batch-size must be at least 1, not 0"),
        ("learning_rate", 0.0, "--learning-rate must be above 0"),
        ("objective", "listwise", "--objective must be one of pairwise-margin, .*, not listwise"),
        ("pooling", "first", "--pooling must be one of auto, mean, cls, last, not first"),
    ],
)
def test_a_wrong_option_is_named(data, tmp_path, option, value, says):
    """With what would be right."""
    with pytest.raises(ParsError, match=says):
        lite_config(data, tmp_path, **{option: value})


@pytest.mark.parametrize(
    ("option", "value", "way_in", "says"),
    [
        ("model_name", "roberta", "data", "--model-name has no effect without --model encoder"),
        ("margin", 2.0, "data", "--margin has no effect without --objective pairwise-m"),
        ("threshold", 0.3, "pairs", "--threshold has no effect without --train-data"),
        ("label_temperature", 1.0, "pairs", "--label-temperature has no effect without --train-d"),
    ],
)
def test_an_option_without_effect_is_refused(data, tmp_path, option, value, way_in, says):
    """Whoever gives it expects one."""
    files = data_files(data) if way_in == "data" else pair_files(data)
    options = LITE_DEFAULTS | files | {option: value}
    config = TrainConfig(model="lite", output_dir=tmp_path, **options)

    with pytest.raises(ParsError, match=says):
        check_effect({option}, config)
    check_effect({"seed"}, config)


def test_a_preset_is_a_model_with_its_defaults_and_options_go_first(data, tmp_path):
    """`small` brings a MiniLM and two epochs; a given option replaces the preset's."""
    files = {"output_dir": tmp_path, **data_files(data)}

    small = TrainConfig(**with_preset("small", None, {**files, "num_epochs": 3}))

    assert (small.model, small.objective, small.num_epochs) == (
        "encoder",
        "pairwise-logistic",
        3,
    )
    assert small.model_name.endswith("all-MiniLM-L6-v2")
    assert with_preset("base", None, files) == {"model": "encoder", **files}
    for name in PRESETS:
        assert TrainConfig(**with_preset(name, None, files))


def test_few_prompts_are_seen_more_often(data, tmp_path):
    """6,000 rows are seen in all, in 3 epochs at least and 12 at most; a given number stands."""
    lite = lite_config(data, tmp_path, num_epochs=0)

    assert [with_epochs(lite, n).num_epochs for n in (100, 1_000, 40_000)] == [12, 6, 3]
    assert with_epochs(lite_config(data, tmp_path, num_epochs=5), 100).num_epochs == 5


def test_without_a_preset_the_model_chooses():
    """`--model lite` is the preset lite, and an encoder is PARS's, which is base."""
    assert with_preset(None, "lite", {}) == with_preset("lite", None, {})
    assert with_preset(None, None, {}) == with_preset("base", "encoder", {})


def test_a_preset_of_another_model_is_refused():
    """Whoever gives both expects both."""
    with pytest.raises(ParsError, match="--preset small is --model encoder, not lite"):
        with_preset("small", "lite", {})


def test_a_threshold_that_no_pair_passes_is_named(data, tmp_path):
    """Lengths 10 and 11 differ by a share of 1/11."""
    close = [{**row, "answer_length": 10 + row["task_id"] % 2} for row in rows(20)]
    (tmp_path / "train_data.json").write_text(json.dumps(close))
    files = data_files(data) | {"train_data": tmp_path / "train_data.json"}

    with pytest.raises(ParsError, match=r"train_data\.json: .*--threshold 0\.2: lower it"):
        train(lite_config(data, tmp_path / "out", **files))


def test_one_way_in_must_be_chosen(data, tmp_path):
    """Neither pair files nor data, or both, is an error that says which options there are."""
    with pytest.raises(ParsError, match="--train-file and --val-file"):
        TrainConfig(output_dir=tmp_path)
    with pytest.raises(ParsError, match="two ways in"):
        TrainConfig(output_dir=tmp_path, **data_files(data), **pair_files(data))


def test_equal_lengths_cannot_be_learnt_from(data, tmp_path):
    """The file is named."""
    same = [{**row, "answer_length": 7} for row in rows(20)]
    (tmp_path / "train_data.json").write_text(json.dumps(same))

    with pytest.raises(DataError, match=r"train_data\.json: all answers have one length"):
        train(lite_config(data, tmp_path / "out", train_data=tmp_path / "train_data.json"))


def test_an_unknown_model_is_named(data, tmp_path):
    """Neither a folder nor a Hub model that can be had: the error says so and what to give."""
    with pytest.raises(DataError, match="model no/such-model: cannot be had from the Hub"):
        train(encoder_config(data_files(data), "no/such-model", tmp_path))


def test_a_prompt_longer_than_the_model_reads_is_not_asked_for(data, bert, tmp_path):
    """The tiny BERT has 64 positions, so 128 tokens are refused before training, by name."""
    with pytest.raises(RankerError, match=r"--max-length 128: .* reads at most 64 tokens"):
        train(encoder_config(data_files(data), bert, tmp_path, max_length=128))


def test_exported_scores_are_torch_scores(data, bert, tmp_path):
    """A checkpoint scores the same from .pt and from the folder `pars export` makes, to 1e-4."""
    from pars.learn.training.checkpoint import CheckpointRanker
    from pars.learn.training.export import export_checkpoint

    train(encoder_config(data_files(data), bert, tmp_path / "run"))
    checkpoint = tmp_path / "run/best_model.pt"
    prompts = [row["prompt"] for row in rows(100)]

    info = export_checkpoint(
        checkpoint, bert, tmp_path / "ranker", max_length=16, val_data=data / "val_data.json"
    )

    exported = Ranker.load(tmp_path / "ranker").score(prompts)
    direct = CheckpointRanker.load(checkpoint, bert, 16).score(prompts)
    np.testing.assert_allclose(exported, direct, atol=1e-4)
    assert info.tau_b["value"] > 0.5


def test_exporting_into_a_folder_with_other_things_is_refused(data, bert, tmp_path):
    """The training's own folder holds checkpoints: an export there would cost them."""
    from pars.learn.training.export import export_checkpoint

    train(encoder_config(data_files(data), bert, tmp_path, num_epochs=1))
    before = sorted(file.name for file in tmp_path.iterdir())

    with pytest.raises(ParsError, match="holds more than a ranker"):
        export_checkpoint(tmp_path / "best_model.pt", bert, tmp_path, max_length=16)

    assert sorted(file.name for file in tmp_path.iterdir()) == before


def test_a_training_can_go_on_in_another_folder(data, tmp_path):
    """The best epoch so far comes along, so a finished training is finished again there."""
    first = train(lite_config(data, tmp_path / "first"))

    second = train(lite_config(data, tmp_path / "second", resume_from=tmp_path / "first"))

    assert second["history"] == first["history"]
    assert (tmp_path / "second/ranker/model.onnx").is_file()


def test_changed_data_is_another_training(tmp_path):
    """The same path with other rows is not continued, and the option is named."""
    folder = write_data(tmp_path / "data")
    train(lite_config(folder, tmp_path / "run"))
    write_data(folder, num_train=200)

    with pytest.raises(ParsError, match="--train-data"):
        train(lite_config(folder, tmp_path / "run", resume_from=tmp_path / "run"))


def test_half_an_emoji_is_a_word_like_any_other(tmp_path):
    """A lone surrogate that stands in many prompts is learned, written and read back."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, start, count in (("train", 0, 240), ("val", 240, 60)):
        made = [{**row, "prompt": row["prompt"] + " \ud83d"} for row in rows(count, start)]
        (folder / f"{name}_data.json").write_text(json.dumps(made))

    metrics = train(lite_config(folder, tmp_path / "run", num_epochs=1))

    ranker = Ranker.load(tmp_path / "run/ranker")
    assert metrics is not None
    assert ranker.score(["the sea \ud83d"])[0] != ranker.score(["the sea ?"])[0]


def test_lite_weights_are_not_put_on_other_words(data, tmp_path):
    """A lite checkpoint belongs to its training's words."""
    train(lite_config(data, tmp_path / "run"))
    other = write_data(tmp_path / "other")
    poems = (other / "train_data.json").read_text().replace("story", "poem")
    (other / "train_data.json").write_text(poems)

    with pytest.raises(ParsError, match="fits only the words it was trained on"):
        train(lite_config(other, tmp_path / "out", resume_from=tmp_path / "run/best_model.pt"))


def test_a_failed_export_leaves_the_old_folder(data, bert, tmp_path):
    """A checkpoint of another model does not cost the ranker that stood there."""
    from pars.learn.training.export import export_checkpoint

    train(lite_config(data, tmp_path))
    before = (tmp_path / "ranker/model.onnx").read_bytes()

    with pytest.raises(RankerError, match=r"best_model\.pt"):
        export_checkpoint(tmp_path / "best_model.pt", bert, tmp_path / "ranker", max_length=16)

    assert (tmp_path / "ranker/model.onnx").read_bytes() == before


def test_an_encoder_with_a_decoder_is_refused_before_the_training(tmp_path):
    """No vector of it is one of the whole prompt alone."""
    from transformers import T5Config

    small = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 99}
    t5 = other_model(tmp_path / "t5", T5Config(**small))
    with pytest.raises(RankerError, match="t5 is an encoder with a decoder"):
        load_encoder(t5, 16)


def test_of_robertas_positions_two_are_its_paddings(tmp_path):
    """Of 34 positions 32 can be read, and a longer --max-length is refused with that number."""
    from transformers import RobertaConfig

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = RobertaConfig(
        **small, intermediate_size=8, vocab_size=99, max_position_embeddings=34, pad_token_id=1
    )
    roberta = other_model(tmp_path, config)

    assert load_encoder(roberta, 32).max_length == 32
    with pytest.raises(RankerError, match="reads at most 32 tokens"):
        load_encoder(roberta, 33)
