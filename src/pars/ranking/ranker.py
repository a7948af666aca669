"""
A trained ranker as a folder, and its scores. Needs ONNX Runtime and tokenizers, never torch.

    ranker/
    ├── model.onnx       the graph: token ids (and, for lite, surface features) to one score
    ├── model_int8.onnx  for some encoders, the same with 8-bit matrix products
    ├── tokenizer.json   of Hugging Face tokenizers ("encoder") or of request.words ("lite")
    └── ranker.json      `RankerInfo`: what scoring needs, and what the ranker was trained on
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pars.errors import RankerError
from pars.files import write_json
from pars.request.conversation import as_read
from pars.request.words import WordTokenizer

# 2: a lite ranker's tokenizer says which features and marks it was trained with. 3: `reads_notes`
# says whether the ranker knows notes of the conversation before a message.
FORMAT_VERSION = 3
MODEL_FILE, TOKENIZER_FILE, INFO_FILE = "model.onnx", "tokenizer.json", "ranker.json"
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
    """Anything that scores prompts: a `Ranker`, a checkpoint, a test's own."""

    def score(self, prompts: Sequence[str]) -> FloatArray:
        """Scores [num_prompts], higher for a longer expected answer. Blocks; thread-safe."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerInfo:
    """The contents of ranker.json."""

    kind: str  # "encoder" or "lite"
    model_name: str
    max_length: int  # tokens (encoder) or words (lite) read from a prompt's start
    reads_notes: bool = False  # of a prompt's conversation: whether it was trained on such
    format_version: int = FORMAT_VERSION
    pars_version: str = ""
    int8_tau_b: float | None = None  # between 8-bit and float32 scores of held-out prompts
    tau_b: dict[str, float | None] | None = None  # on validation prompts: value, low, high
    trained_on: dict[str, Any] = field(default_factory=dict)
    length_unit: str = "tokens"  # of the answer lengths it was trained on
    # 101 scores at the quantiles 0, 0.01, … 1 of the validation prompts, and the expected answer
    # tokens at each, which never fall as the score rises. None without validation data.
    score_quantiles: list[float] | None = None
    expected_tokens: list[float] | None = None
    # By "0.1", "0.5", "0.9": the tokens that this share of the answers stays within, [101] each.
    token_quantiles: dict[str, list[float]] | None = None

    @classmethod
    def read(cls, folder: Path) -> "RankerInfo":
        """
        Read ranker.json; fields of a later version are ignored.

        Raises:
            RankerError: no such folder or file, or it is not what pars writes.
        """
        path = folder / INFO_FILE
        if not folder.is_dir():
            raise RankerError(
                f"{folder}: no such ranker folder (`pars train` and `pars export` make one)"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            known = {f.name for f in fields(cls)}
            info = cls(**{name: value for name, value in values.items() if name in known})
        except FileNotFoundError:
            raise RankerError(f"{folder}: not a ranker folder: {INFO_FILE} is missing") from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RankerError(f"{path}: damaged: {error}") from error
        _check_finite(path, values)
        if info.format_version > FORMAT_VERSION or info.kind not in PROMPTS_PER_PASS:
            raise RankerError(
                f"{path}: kind {info.kind!r}, format {info.format_version}: made for a later pars; "
                f"this one reads {', '.join(PROMPTS_PER_PASS)} up to format {FORMAT_VERSION}"
            )
        return info

    def write(self, folder: Path) -> None:
        """Write ranker.json into `folder`, whole or not at all."""
        write_json(folder / INFO_FILE, asdict(self))


def _check_finite(path: Path, value: Any, name: str = "") -> None:
    """
    Refuse NaN and infinity anywhere in ranker.json: they would reach every request's place.

    Raises:
        RankerError: names the field.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise RankerError(f"{path}: damaged: field {name!r} holds {value}, no finite number")
    parts = value.items() if isinstance(value, dict) else ()
    for inner_name, inner in parts:
        _check_finite(path, inner, f"{name}.{inner_name}" if name else inner_name)
    if isinstance(value, list):
        for place, inner in enumerate(value):
            _check_finite(path, inner, f"{name}[{place}]")


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
        cls, folder: Path, *, num_threads: int | None = 1, precision: str = "auto"
    ) -> "Ranker":
        """
        Load a ranker folder.

        Args:
            precision: float32, int8, or auto: int8 where the folder has it and this machine runs
                it faster, which is tried out (some 0.1 s).
            num_threads: of one forward pass. 1 leaves the other cores to the rest of the process;
                None takes one a core, up to 4, for an encoder, and 1 for lite, which gains nothing.

        Raises:
            RankerError: a file is missing, damaged or made for a later pars.
        """
        folder = Path(folder)
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
        """Scores [num_prompts], float32: the higher, the longer the expected answer."""
        scores = np.empty(len(prompts), dtype=np.float32)
        prepared = self._prepare(as_read(prompts, self.info.reads_notes))
        kind = self.info.kind
        for rows in _passes(prepared.lengths, PROMPTS_PER_PASS[kind], MOST_PADDING[kind]):
            scores[rows] = self._session.run(None, prepared.inputs(rows))[0]
        return scores


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


def _open_session(path: Path, num_threads: int) -> Any:
    import onnxruntime

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
