"""
A trained ranker as a folder, and its scores. Needs ONNX Runtime and tokenizers, never torch.

    ranker/
    ├── model.onnx       the graph: token ids (and, for lite, surface features) to one score
    ├── model_int8.onnx  for some encoders, the same with 8-bit matrix products
    ├── tokenizer.json   of Hugging Face tokenizers ("encoder") or of request.words ("lite")
    └── ranker.json      `RankerInfo`: what scoring needs, and what the ranker was trained on
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pars.errors import RankerError
from pars.ranking.ranker_info import RankerInfo
from pars.request.conversation import as_read
from pars.request.words import WordTokenizer
from pars.scheduling.demand import Calibration

MODEL_FILE, TOKENIZER_FILE = "model.onnx", "tokenizer.json"
INT8_FILE = "model_int8.onnx"
PRECISIONS = ("auto", "float32", "int8")
WORTH_INT8 = 1.2  # times as fast: below that, the exact scores are worth more

# Prompts of one forward pass: they are sorted by length first, so that little is padded. A larger
# batch wins nothing on a CPU and makes the short prompts of the batch wait for the long ones.
PROMPTS_PER_PASS = {"encoder": 16, "lite": 64}
MOST_PADDING = {"encoder": 8, "lite": 128}  # tokens of a pass: more cost more than another pass
MOST_THREADS = 4
PROBES = ("Is this ranker whole?", "", "Name a sea.\n" * 200)  # scored once it is loaded
CHARS_PER_TOKEN = 64  # a prompt is cut to this many characters a token before it is tokenized

FloatArray = NDArray[np.float32]
Inputs = dict[str, NDArray[Any]]


class Scorer(Protocol):
    """Anything that scores prompts: a `Ranker`, a checkpoint, an object of the user's own."""

    def score(self, prompts: list[str], /) -> ArrayLike:
        """Scores [num_prompts], higher for a longer expected answer. Blocks; thread-safe."""
        ...


def bundled_ranker() -> Path:
    """The folder of the lite ranker that comes with the package."""
    return Path(str(files("pars") / "bundled_ranker"))


class Ranker:
    """Scores prompts with a ranker folder. Thread-safe; the runtime releases the GIL."""

    def __init__(
        self,
        folder: Path,
        info: RankerInfo,
        prepare: Callable[[Sequence[str]], "_Prepared"],
        session: Any,
        precision: str = "float32",
    ) -> None:
        self.folder = folder
        self.info = info
        self.precision = precision
        self._prepare = prepare
        self._session = session

    @classmethod
    def load(
        cls,
        folder: Path | str | None = None,
        *,
        num_threads: int | None = 1,
        precision: str = "auto",
    ) -> "Ranker":
        """
        Load a ranker folder.

        Args:
            folder: What `pars train` and `pars export` make; None: the ranker that comes with pars.
            precision: float32, int8, or auto: int8 where the folder has it and this machine runs
                it faster, which is tried out (some 0.1 s).
            num_threads: of one forward pass. 1 leaves the other cores to the rest of the process;
                None takes one a core, up to 4, for an encoder, and 1 for lite, which gains nothing.

        Raises:
            RankerError: a file is missing, damaged or made for a later pars.
        """
        folder = bundled_ranker() if folder is None else Path(folder)
        info = RankerInfo.read(folder)
        if num_threads is None:
            num_threads = 1 if info.kind == "lite" else min(os.cpu_count() or 1, MOST_THREADS)
        if precision not in PRECISIONS:
            raise RankerError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision}")
        prepare = _prepare_lite(folder) if info.kind == "lite" else _prepare_encoder(folder, info)
        session, precision = _fastest_session(folder, num_threads, precision)
        ranker = cls(folder, info, prepare, session, precision)
        try:
            scores = ranker.score(PROBES)
        except Exception as error:  # whatever the runtime raises, the folder is what is wrong
            raise RankerError(f"{folder}: cannot score: {_first_line(error)}") from error
        if not np.isfinite(scores).all():
            raise RankerError(
                f"{folder / MODEL_FILE}: damaged: its scores are not finite; train or export"
                " the ranker again"
            )
        return ranker

    def score(self, prompts: Sequence[str]) -> FloatArray:
        """
        Scores [num_prompts], float32: the higher, the longer the expected answer.

        Only their order means something; `expected_tokens` has lengths.
        """
        if isinstance(prompts, str):
            raise TypeError("want a list of prompts, not one string: [prompt]")
        scores = np.empty(len(prompts), dtype=np.float32)
        prepared = self._prepare(as_read(prompts, self.info.reads_notes))
        kind = self.info.kind
        for rows in _passes(prepared.lengths, PROMPTS_PER_PASS[kind], MOST_PADDING[kind]):
            scores[rows] = self._session.run(None, prepared.inputs(rows))[0]
        return scores

    def expected_tokens(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """
        Expected tokens of each prompt's answer, [num_prompts], by the ranker's own calibration.

        A ranker without one (trained from pairs alone) only orders; its scores are spread over 16
        to 2,048 tokens then.
        """
        tokens_at = Calibration.of(self.info).expected_tokens
        return np.array([tokens_at(score) for score in self.score(prompts).tolist()], np.float64)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Prompts as token ids: their lengths [num_prompts], and the graph's inputs for some rows."""

    lengths: list[int]
    inputs: Callable[[list[int]], Inputs]


def _passes(lengths: list[int], prompts_per_pass: int, most_padding: int) -> Iterator[list[int]]:
    """Rows for each forward pass: of like length, since padding costs as much as text does."""
    rows: list[int] = []
    longest = padding = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        padding += len(rows) * (lengths[row] - longest)
        if rows and (len(rows) == prompts_per_pass or padding > most_padding):
            yield rows
            rows, padding = [], 0
        rows.append(row)
        longest = lengths[row]
    if rows:
        yield rows


def pad(id_lists: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Id lists of any lengths as one array [num_lists, longest]."""
    if len(id_lists) == 1:
        return np.array(id_lists, dtype=np.int64)
    padded = np.zeros((len(id_lists), max(map(len, id_lists))), dtype=np.int64)
    for row, ids in enumerate(id_lists):
        padded[row, : len(ids)] = ids
    return padded


def _prepare_lite(folder: Path) -> Callable[[Sequence[str]], _Prepared]:
    tokenizer = WordTokenizer.from_file(folder / TOKENIZER_FILE)

    def prepare(prompts: Sequence[str]) -> _Prepared:
        ids = [tokenizer.encode(prompt) for prompt in prompts]
        features = [tokenizer.features(prompt) for prompt in prompts]

        def inputs(rows: list[int]) -> Inputs:
            return {
                "input_ids": pad([ids[row] for row in rows]),
                "features": np.array([features[row] for row in rows], dtype=np.float32),
            }

        return _Prepared([len(row) for row in ids], inputs)

    return prepare


def _prepare_encoder(folder: Path, info: RankerInfo) -> Callable[[Sequence[str]], _Prepared]:
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise RankerError(f"{path}: missing or damaged: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(info.max_length)

    def prepare(prompts: Sequence[str]) -> _Prepared:
        ids = [
            encoding.ids
            for encoding in tokenizer.encode_batch_fast(tokenizable(prompts, info.max_length))
        ]
        lengths = [len(row) for row in ids]

        def inputs(rows: list[int]) -> Inputs:
            chosen = [lengths[row] for row in rows]
            positions = np.arange(max(chosen))
            return {
                "input_ids": pad([ids[row] for row in rows]),
                "attention_mask": (positions < np.array(chosen)[:, None]).astype(np.int64),
            }

        return _Prepared(lengths, inputs)

    return prepare


def tokenizable(prompts: Sequence[str], max_length: int) -> list[str]:
    """
    Prompts that `tokenizers` takes: cut to what `max_length` tokens can cover, valid Unicode.

    A lone surrogate, which JSON allows and UTF-8 does not, becomes a question mark.
    """
    cut = max_length * CHARS_PER_TOKEN
    return [prompt[:cut].encode("utf-8", "replace").decode() for prompt in prompts]


def _fastest_session(folder: Path, num_threads: int, precision: str) -> tuple[Any, str]:
    """A session of the graph in the wanted precision, and that precision."""
    if precision == "float32" or (precision == "auto" and not (folder / INT8_FILE).exists()):
        return _open_session(folder / MODEL_FILE, num_threads), "float32"
    if precision == "int8":
        return _open_session(folder / INT8_FILE, num_threads), "int8"
    float32 = _open_session(folder / MODEL_FILE, num_threads)
    with suppress(RankerError):  # an older runtime does not know its operators
        int8 = _open_session(folder / INT8_FILE, num_threads)
        if _seconds(float32) > WORTH_INT8 * _seconds(int8):
            return int8, "int8"
    return float32, "float32"


def _seconds(session: Any) -> float:
    """The least of five forward passes over 8 prompts of 32 tokens."""
    ids = np.ones((8, 32), dtype=np.int64)
    times_s = []
    for _ in range(5):
        started_s = time.perf_counter()
        session.run(None, {"input_ids": ids, "attention_mask": ids})
        times_s.append(time.perf_counter() - started_s)
    return min(times_s)


def import_onnxruntime() -> Any:
    """
    ONNX Runtime, without its telemetry.

    From 1.32 on its Linux builds write an identifier into the user's cache and send events to
    Microsoft, unless this variable is set before it is loaded. Who wants them sets it to 0.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _open_session(path: Path, num_threads: int) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails comes as an exception, and is not logged twice
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise RankerError(f"{path}: missing or damaged: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)
