"""A ranker folder and its scores."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pars.errors import RankerError
from pars.learn.training.encoder_graph import int8_graph
from pars.ranking.ranker import INT8_FILE, Ranker, bundled_ranker, tokenizable
from pars.ranking.ranker_info import RankerInfo

from rankers import lite_ranker, tiny_encoder

pytestmark = pytest.mark.torch

ODD_PROMPTS = ["", " ", "\ud800", "\x00", "😀" * 5, "a" * 1_000_000, "word " * 200_000]


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    return lite_ranker(tmp_path_factory.mktemp("lite") / "ranker")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from pars.learn.training.export import export_ranker
    from pars.learn.training.models import load_encoder

    folder = tmp_path_factory.mktemp("encoder")
    model = load_encoder(str(tiny_encoder(folder / "bert")), 16)
    export_ranker(model, folder / "ranker", model_name="tiny")
    return folder / "ranker"


@pytest.fixture(params=["lite", "encoder"])
def folder(request):
    return request.getfixturevalue(request.param)


def test_a_prompt_scores_the_same_alone_and_in_company(folder):
    """Sorting, passes and padding do not show: 150 prompts of all lengths, each also alone."""
    ranker = Ranker.load(folder)
    prompts = [f"Write {'a story ' * (i % 40)} about the sea {i}" for i in range(150)]

    together = ranker.score(prompts)

    alone = np.concatenate([ranker.score([prompt]) for prompt in prompts])
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["lite", "encoder"])
def test_only_a_ranker_that_was_trained_with_notes_is_shown_them(kind, tmp_path):
    """Of two with the same weights one scores a noted message as the bare one, one does not."""
    import torch

    from pars.learn.training.export import export_ranker
    from pars.learn.training.models import LiteModel, load_encoder

    if kind == "lite":
        model = LiteModel.untrained(["write a b", "write a b"], 32)
        torch.nn.init.ones_(model.network.direct.weight)
        model.network.round_tables()
    else:
        model = load_encoder(str(tiny_encoder(tmp_path / "bert")), 16)
    prompts = ["write a", "→3 1024 768\nwrite a"]
    bare, noted = {}, {}
    for reads_notes in (False, True):
        folder = tmp_path / str(reads_notes)
        export_ranker(model, folder, model_name=kind, reads_notes=reads_notes)
        bare[reads_notes], noted[reads_notes] = Ranker.load(folder).score(prompts)

    assert bare[False] == bare[True] == noted[False]
    assert noted[True] != pytest.approx(bare[True], abs=1e-5)


def test_a_lite_ranker_of_the_first_format_scores_as_it_did(tmp_path):
    """
    Its tokenizer file names neither last words nor features, of which it has five.

    What learns on from it reads all features, and at first scores as it did.
    """
    import torch

    from pars.learn.training.export import export_ranker
    from pars.learn.training.models import LiteModel
    from pars.learn.training.networks import LiteRanker
    from pars.learn.training.warm_start import warm_start
    from pars.request.words import NUM_FEATURES, WordTokenizer

    torch.manual_seed(0)
    words = WordTokenizer(["write", "a"], num_hash_buckets=4, max_length=8, num_features=5)
    model = LiteModel(LiteRanker(words.num_ids, num_features=5), words)
    model.network.round_tables()
    export_ranker(model, tmp_path / "ranker", model_name="lite")
    for file, later in (("tokenizer.json", ["num_last", "num_features"]), ("ranker.json", [])):
        fields = json.loads((tmp_path / "ranker" / file).read_text())
        kept = {name: value for name, value in fields.items() if name not in later}
        changed = kept | ({"format_version": 1} if "format_version" in kept else {})
        (tmp_path / "ranker" / file).write_text(json.dumps(changed))
    prompts = ["write a poem", "a " * 50, "Is it 42?"]
    with torch.no_grad():
        scores = model.network(**model.collate(model.encode(prompts), torch.device("cpu"))).numpy()

    np.testing.assert_allclose(Ranker.load(tmp_path / "ranker").score(prompts), scores, atol=1e-5)
    warm = warm_start(tmp_path / "ranker", prompts)
    warm.network.eval()
    with torch.no_grad():
        again = warm.network(**warm.collate(warm.encode(prompts), torch.device("cpu"))).numpy()
    np.testing.assert_allclose(again, scores, atol=1e-5)
    assert warm.tokenizer.num_features == NUM_FEATURES


def test_words_begin_where_english_has_them():
    """A known word starts with its vector of the package, a made-up one with a random one."""
    from pars.learn.training.models import LiteModel
    from pars.ranking.word_vectors import word_vectors

    start = word_vectors()
    model = LiteModel.untrained(["essay essay frobnicate frobnicate"], 32)

    table = model.network.embedding.weight.detach().numpy()
    essay = start.vectors[start.words.index("essay")]
    np.testing.assert_array_equal(table[model.tokenizer.id_of("essay")], essay)
    assert "frobnicate" not in start.words
    assert 0.05 < table[model.tokenizer.id_of("frobnicate")].std() < 0.2
    assert 0.05 < start.vectors.std() < 0.2


def test_word_vectors_are_kept_to_a_part_in_127(tmp_path):
    """8 bits, each direction on its own scale: 1 and 100 are both kept to half a step."""
    from pars.ranking.word_vectors import WordVectors

    vectors = np.array([[1.0, 100.0], [-0.3, 30.0]], dtype=np.float32)
    WordVectors(("a", "b"), vectors).write(tmp_path / "vectors.npz")

    again = WordVectors.read(tmp_path / "vectors.npz")

    assert again.words == ("a", "b")
    np.testing.assert_array_less(np.abs(again.vectors - vectors), [[0.5 / 127, 50 / 127]] * 2)


def test_an_8_bit_graph_is_kept_where_it_orders_as_float32_does(encoder, tmp_path):
    """Its agreement with float32 on held-out prompts is said, and 0.99 decides."""
    from pars.learn.training.export import export_ranker
    from pars.learn.training.models import load_encoder

    prompts = [f"write {'a story about ' * (i % 9)} the sea" for i in range(40)]
    model = load_encoder(str(tiny_encoder(tmp_path / "bert")), 16)

    info = export_ranker(model, tmp_path / "ranker", model_name="tiny", held_out=prompts)

    assert -1 <= info.int8_tau_b <= 1
    assert (tmp_path / "ranker" / INT8_FILE).exists() == (info.int8_tau_b >= 0.99)
    assert Ranker.load(tmp_path / "ranker", precision="float32").precision == "float32"
    assert RankerInfo.read(encoder).int8_tau_b is None  # there were no prompts to try it on


def test_a_machine_takes_the_faster_graph(encoder, tmp_path):
    """Given two, `auto` takes one of them; the other must be asked for by name."""
    for file in encoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RankerError, match=r"model_int8\.onnx: missing"):
        Ranker.load(tmp_path, precision="int8")
    (tmp_path / INT8_FILE).write_bytes(int8_graph((tmp_path / "model.onnx").read_bytes()))
    prompts = ["write a story about the sea", "name the king"]

    exact, fast, either = (
        Ranker.load(tmp_path, precision=it) for it in ("float32", "int8", "auto")
    )

    np.testing.assert_allclose(exact.score(prompts), fast.score(prompts), atol=0.05)
    assert fast.precision == "int8"
    assert either.precision in ("float32", "int8")
    with pytest.raises(RankerError, match="must be one of auto, float32, int8"):
        Ranker.load(tmp_path, precision="half")


def test_no_prompts_have_no_scores(folder):
    """An empty list is answered with an empty array."""
    assert Ranker.load(folder).score([]).shape == (0,)


def test_odd_prompts_have_finite_scores(folder):
    """Empty, blank, lone surrogate, NUL, emoji, one word and many words of a megabyte."""
    assert np.isfinite(Ranker.load(folder).score(ODD_PROMPTS)).all()


def test_only_the_start_of_a_prompt_is_read(encoder):
    """Words beyond max_length (16 tokens) change nothing for an encoder."""
    ranker = Ranker.load(encoder)
    start = "write a story about the sea " * 4

    short, long = ranker.score([start, start + "name the king"])

    assert short == long


def test_a_lone_surrogate_becomes_a_question_mark():
    """JSON may hold one, UTF-8 may not."""
    assert tokenizable(["a\ud800b"], 8) == ["a?b"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("expected_tokens", [1.0, float("inf")]), ("score_quantiles", [float("nan"), 1.0])],
)
def test_numbers_that_are_not_finite_are_refused_with_their_field(tmp_path, field, value):
    """json writes NaN and Infinity; in a calibration they would reach every request's place."""
    folder = shutil.copytree(bundled_ranker(), tmp_path / "ranker")
    info = json.loads((folder / "ranker.json").read_text()) | {field: value}
    (folder / "ranker.json").write_text(json.dumps(info))

    with pytest.raises(RankerError, match=rf"ranker\.json: damaged: field '{field}\[\d\]' holds"):
        Ranker.load(folder)


def test_the_bundled_ranker_puts_a_story_after_a_sum():
    """The ranker that comes with the package is one, and knows the obvious."""
    ranker = Ranker.load(bundled_ranker())

    sum_score, story_score = ranker.score(
        ["What is 2+2?", "Write a detailed essay about the history of the Roman empire."]
    )

    assert sum_score < story_score
    assert ranker.info.kind == "lite"
    assert len(ranker.info.expected_tokens) == 101


def test_the_bundled_ranker_is_at_most_five_megabytes():
    """It travels in every wheel."""
    assert sum(file.stat().st_size for file in bundled_ranker().iterdir()) <= 5_000_000


def test_a_missing_folder_is_named(tmp_path):
    """The error says which folder there is not."""
    with pytest.raises(RankerError, match="nowhere: no such ranker folder"):
        Ranker.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "ranker.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_folder_is_refused_by_name(folder, tmp_path, name, damage):
    """Whichever file is missing or cut short, the error names it, and nothing else is raised."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if damage == "missing":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes((folder / name).read_bytes()[:50])

    with pytest.raises(RankerError, match=name if damage == "cut" else None):
        Ranker.load(tmp_path)


def test_a_folder_of_a_later_pars_is_refused(lite, tmp_path):
    """A format this version does not know is not guessed at."""
    for file in lite.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    info = json.loads((tmp_path / "ranker.json").read_text())
    (tmp_path / "ranker.json").write_text(json.dumps({**info, "format_version": 99}))

    with pytest.raises(RankerError, match="made for a later pars"):
        Ranker.load(tmp_path)


def test_fields_of_a_later_version_are_ignored(lite, tmp_path):
    """A ranker.json may say more than this version reads."""
    info = json.loads((lite / "ranker.json").read_text())
    (tmp_path / "ranker.json").write_text(json.dumps({**info, "colour": "blue"}))

    assert RankerInfo.read(tmp_path).kind == "lite"


def test_scoring_never_imports_torch(lite):
    """Neither does the command line's help."""
    code = (
        "import sys; from pathlib import Path; from pars.ranking.ranker import Ranker;"
        f"Ranker.load(Path({str(lite)!r})).score(['a']);"
        "import pars.cli.main; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_onnxruntime_sends_nothing_and_leaves_nothing_at_home(tmp_path):
    """Its telemetry, on by default from 1.32 on, would do both."""
    code = "from pars.ranking.ranker import *; Ranker.load(bundled_ranker()).score(['a'])"
    environment = {it: value for it, value in os.environ.items() if not it.startswith("ORT_")}
    environment["HOME"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)

    assert list(tmp_path.iterdir()) == []
