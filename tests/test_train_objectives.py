"""The objectives of a training: what each costs, by hand, and that each learns; and poolings."""

import json
import math

import numpy as np
import pytest
import torch

from pars.errors import ParsError, RankerError
from pars.learn.training.config import LITE_DEFAULTS, OBJECTIVES, POOLINGS, TrainConfig
from pars.learn.training.export import export_checkpoint
from pars.learn.training.models import load_encoder
from pars.learn.training.networks import Readout
from pars.learn.training.objectives import (
    LogScale,
    Targets,
    class_edges,
    classes,
    listmle,
    log_t,
    pairwise_logistic,
    pairwise_margin,
    pointwise,
    quantiles,
)
from pars.learn.training.train import train
from pars.learn.training.warm_start import warm_start
from pars.ranking.ranker import Ranker

from rankers import other_model, rows, tiny_encoder, write_data, write_pairs

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(write_data(tmp_path_factory.mktemp("data")))


def targets(logs=(), longer=(), shorter=(), certainty=None, cut=None):
    """Targets of a batch, as tensors."""
    sure = torch.ones(len(longer)) if certainty is None else torch.tensor(certainty)
    cut = torch.zeros(len(logs), dtype=torch.bool) if cut is None else torch.tensor(cut)
    return Targets(torch.tensor(longer), torch.tensor(shorter), sure, torch.tensor(logs), cut)


def options(data, folder, **changes):
    files = {"train_data": data / "train_data.json", "val_data": data / "val_data.json"}
    return {"output_dir": folder, **files, "batch_size": 32, **changes}


def column(*values):
    return torch.tensor(values)[:, None]


def test_margin_loss_of_three_pairs_worked_out_by_hand():
    """Gaps 2, 0.5 and -1 at margin 1 cost 0, 0.5 and 2: the mean is 2.5 / 3."""
    outputs = column(3.0, 1.0, 0.0, 1.0, 0.5, 1.0)

    loss = pairwise_margin(1.0)(outputs, targets(longer=[0, 1, 2], shorter=[3, 4, 5]))

    assert loss.item() == pytest.approx(2.5 / 3)


def test_logistic_loss_of_an_uncertain_pair_is_least_at_its_certainty():
    """At certainty 3/4 the best gap is log 3, and the loss there the entropy of 3/4, 0.5623."""
    pair = targets(longer=[0], shorter=[1], certainty=[0.75])

    losses = [pairwise_logistic(column(gap, 0.0), pair) for gap in (0.5, math.log(3), 2.0)]

    assert losses[1].item() == pytest.approx(0.5623, abs=1e-4)
    assert losses[1] < min(losses[0], losses[2])


def test_squared_error_asks_an_answer_that_was_cut_short_for_no_less():
    """Errors of 1 and 3; the second answer was cut at 2, so that 5 may be right and costs 0."""
    outputs = column(0.0, 5.0)

    assert pointwise(outputs, targets([1.0, 2.0])).item() == pytest.approx((1 + 9) / 2)
    assert pointwise(outputs, targets([1.0, 2.0], cut=[False, True])).item() == 0.5


def test_listmle_of_equal_scores_is_the_logarithm_of_the_number_of_orders():
    """Three equal scores: each of 3! orders is as likely, so log 6 over three places."""
    loss = listmle(column(0.0, 0.0, 0.0), targets([3.0, 1.0, 2.0]))

    assert loss.item() == pytest.approx(math.log(6) / 3)


def test_listmle_is_least_in_the_order_of_the_lengths():
    """The longest answer must have the highest score, wherever it stands in the batch."""
    lengths = targets([1.0, 3.0, 2.0])

    assert listmle(column(1.0, 3.0, 2.0), lengths) < listmle(column(3.0, 1.0, 2.0), lengths)


def test_ten_classes_are_tenths_and_the_score_is_the_expected_one():
    """Of 0..99 the edges lie at each tenth; sure of class 7, the score is 7 and the loss 0."""
    edges = class_edges(torch.arange(100.0))
    sure = torch.full((1, 10), -100.0)
    sure[0, 7] = 0.0

    assert edges.numpy() == pytest.approx(np.arange(1, 10) * 9.9)
    assert classes(edges)(sure, targets([75.0])).item() == pytest.approx(0.0, abs=1e-6)
    assert Readout(10, None).score(sure).item() == pytest.approx(7.0)
    # Cut short at class 3, an answer may well be of class 7; a whole one of class 3 may not.
    assert classes(edges)(sure, targets([35.0], cut=[True])).item() == pytest.approx(0, abs=1e-6)
    assert classes(edges)(sure, targets([35.0])).item() == pytest.approx(100.0)


def test_log_t_of_a_hit_is_the_logarithm_of_its_spread_and_outliers_cost_little():
    """A miss of ten spreads costs 2.5 log(1 + 100 / 4) = 8.1; a normal's would cost 50."""
    of_one = math.log(math.e - 1)  # whose softplus is 1
    hit = torch.tensor([[0.0, of_one]])
    spread = 1.05

    assert log_t(hit, targets([0.0])).item() == pytest.approx(math.log(spread), abs=1e-5)
    miss = log_t(hit, targets([10 * spread])).item() - math.log(spread)
    assert miss == pytest.approx(2.5 * math.log(26), abs=1e-4)


def test_pinball_loss_of_the_median_is_half_the_miss():
    """Quantile 0.9 costs 0.9 a unit below the answer and 0.1 above; summed over nine, 4.5."""
    below, above = torch.zeros(1, 9), torch.full((1, 9), 2.0)

    assert quantiles(below, targets([1.0])).item() == pytest.approx(4.5 / 9)
    assert quantiles(above, targets([1.0])).item() == pytest.approx(4.5 / 9)
    assert quantiles(above, targets([1.0], cut=[True])).item() == 0.0


def test_log_lengths_are_in_standard_deviations_and_come_back():
    """Lengths e-1 and e^3-1 have logs 1 and 3: mean 2, deviation 1."""
    lengths = [math.e - 1, math.e**3 - 1]
    scale = LogScale.of(lengths)

    assert scale.logs(lengths).tolist() == pytest.approx([-1, 1])
    assert scale.lengths(scale.logs(lengths)).tolist() == pytest.approx(lengths, rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_lite_learns_by_every_objective(data, tmp_path, objective):
    """Stories are long; the folder's scores were compared with torch's, and say by what."""
    settings = LITE_DEFAULTS | {"num_epochs": 6, "threshold": 0.2, "objective": objective}
    metrics = train(TrainConfig(model="lite", **(options(data, tmp_path) | settings)))

    ranker = Ranker.load(tmp_path / "ranker")
    story, name = ranker.score(["Write a story about the moon number 999", "Name clock 999"])
    assert metrics["best_val_accuracy"] > 0.95
    assert metrics["objective"] == ranker.info.trained_on["objective"] == objective
    assert np.isfinite(metrics["history"][-1]["val_loss"])
    assert story > name


@pytest.mark.parametrize("objective", ["listmle", "classes", "log-t", "quantiles"])
def test_an_encoder_learns_by_every_objective(data, tmp_path, objective):
    """A checkpoint of several outputs is exported by the objective that it was trained with."""
    bert = str(tiny_encoder(tmp_path / "bert"))
    settings = {"num_epochs": 4, "learning_rate": 1e-3, "max_length": 16, "model_name": bert}
    config = TrainConfig(**options(data, tmp_path / "run", objective=objective, **settings))

    metrics = train(config)

    assert metrics["best_val_accuracy"] > 0.95
    checkpoint = tmp_path / "run/best_model.pt"
    export_checkpoint(checkpoint, bert, tmp_path / "new", max_length=16, objective=objective)
    prompts = [row["prompt"] for row in rows(20)]
    scores = [
        Ranker.load(folder, precision="float32").score(prompts)
        for folder in (tmp_path / "run/ranker", tmp_path / "new")
    ]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_lengths_cannot_be_learned_from_pairs(data, tmp_path):
    """A pair file says which is longer, not how long."""
    files = {f"{part}_file": data / f"{part}_pairs_length_diff_0.2.json" for part in ("train",)}
    files["val_file"] = data / "val_pairs_length_diff_0.2.json"

    with pytest.raises(ParsError, match="--objective listmle needs lengths: give --train-data"):
        TrainConfig(output_dir=tmp_path, objective="listmle", **files)


def test_a_ranker_that_tells_classes_is_not_learned_on(data, tmp_path):
    """`pars learn` starts from rankers with one output; the folder is named."""
    settings = LITE_DEFAULTS | {"num_epochs": 1, "objective": "classes"}
    train(TrainConfig(model="lite", **(options(data, tmp_path) | settings)))

    with pytest.raises(RankerError, match="only a ranker with one output"):
        warm_start(tmp_path / "ranker", ["Write a story about the sea"])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_encoder_learns_with_every_pooling(data, tmp_path, pooling):
    """The exported graph pools as torch does: its scores were compared, on a padded batch too."""
    bert = str(tiny_encoder(tmp_path / "bert"))
    settings = {"num_epochs": 4, "learning_rate": 1e-3, "max_length": 16, "model_name": bert}

    metrics = train(TrainConfig(**options(data, tmp_path / "run", pooling=pooling, **settings)))

    assert metrics["best_val_accuracy"] > 0.95
    assert metrics["pooling"] == pooling


@pytest.mark.parametrize(("pooling", "taken"), [("auto", "last"), ("mean", "mean")])
def test_a_decoder_learns_from_its_last_token_or_the_mean(data, tmp_path, pooling, taken):
    """GPT-2's shape; from the last token by default, also where prompts are padded."""
    from transformers import GPT2Config

    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 500}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    gpt2 = other_model(tmp_path, GPT2Config(**shape, **still))
    settings = {"num_epochs": 6, "learning_rate": 1e-3, "max_length": 16, "model_name": gpt2}

    metrics = train(TrainConfig(**options(data, tmp_path / "run", pooling=pooling, **settings)))

    assert load_encoder(gpt2, 16, pooling).network.pooling == taken
    assert metrics["best_val_accuracy"] > 0.95
    ranker = Ranker.load(tmp_path / "run/ranker")
    alone = ranker.score(["Name clock 9"])
    together = ranker.score(["Name clock 9", "Write a story about the moon number 3"])
    assert alone[0] == pytest.approx(together[0], abs=1e-3)


def test_a_decoders_first_token_is_refused(tmp_path):
    """It has seen nothing of the prompt."""
    from transformers import GPT2Config

    gpt2 = other_model(tmp_path, GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=99))

    with pytest.raises(RankerError, match=r"--pooling cls: .* is a decoder"):
        load_encoder(gpt2, 16, "cls")


def test_an_empty_prompt_of_a_decoder_has_an_end_token(tmp_path):
    """Its tokenizer adds nothing of its own, so the end token is put behind every prompt."""
    from transformers import AutoTokenizer, GPT2Config

    gpt2 = other_model(tmp_path, GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=999))
    path = tmp_path / "other/tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(gpt2)

    encoded = load_encoder(gpt2, 16).encode(["", "name clock"])

    assert [len(ids) for ids in encoded] == [1, 3]
    assert encoded[0] == encoded[1][-1:]
