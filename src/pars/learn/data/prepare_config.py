"""What `pars prepare` is asked for, checked once."""

from dataclasses import dataclass
from pathlib import Path

from pars.errors import ParsError

NO_TOKENIZER = (
    "--length-unit tokens needs --tokenizer: a tokenizer.json, a folder with one, or a Hub name"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """What `pars prepare` is asked for; None stands for the source's own setting."""

    source: str
    input: Path | None = None
    requests: Path | None = None
    dataset: str | None = None
    revision: str | None = None
    allow_truncated: bool = False
    where: tuple[tuple[str, str], ...] = ()
    prompt_field: str | None = None
    answer_field: str | None = None
    length_field: str | None = None
    length_unit: str | None = None
    tokenizer: str | None = None
    seed: int = 42
    test_size: float = 0.1
    threshold: float = 0.2
    train_num_pairs: int | None = None
    val_num_pairs: int | None = None
    group_by_prompt: bool | None = None

    def __post_init__(self) -> None:
        own = self.source == "records"
        fewest_pairs = min(self.train_num_pairs or 0, self.val_num_pairs or 0)
        for is_wrong, told in (
            (not 0 <= self.threshold <= 1, f"--threshold is from 0 to 1, not {self.threshold}"),
            (not 0 < self.test_size < 1, f"--test-size is between 0 and 1, not {self.test_size}"),
            (self.seed < 0, f"--seed is 0 or more, not {self.seed}"),
            (fewest_pairs < 0, f"the number of pairs is 0 or more, not {fewest_pairs}"),
            (
                self.input and (self.dataset or self.revision),
                "--input reads a file, --dataset and --revision the Hub: give one or the other",
            ),
            (
                own and not (self.input or self.dataset),
                "records are your own: name their file with --input",
            ),
            (
                not own and (self.prompt_field or self.answer_field or self.length_field),
                "--prompt-field, --answer-field and --length-field are for records only",
            ),
            (
                self.requests and not (own and self.input),
                "--requests is a batch's input file: give records and the answers with --input",
            ),
            (
                self.tokenizer and self.length_unit != "tokens",
                "--tokenizer is of use with --length-unit tokens only",
            ),
            (not own and self.length_unit == "tokens" and not self.tokenizer, NO_TOKENIZER),
        ):
            if is_wrong:
                raise ParsError(told)
