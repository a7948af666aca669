"""The ranker that learns, in virtual time: it knows an answer when it ends and not before."""

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import ParsError
from pars.prove.simulation import simulate
from pars.prove.workload.learning import LearningEstimator
from pars.prove.workload.workload import Workload, WorkloadRequest, read_workload


def request(name: str, prompt: str | None, tokens: int, **more: object) -> WorkloadRequest:
    return WorkloadRequest(name, 0.0, prompt, 10, tokens, **more)  # type: ignore[arg-type]


def essays_and_translations(num_requests: int) -> tuple[list[str], list[int]]:
    chance = random.Random(0)
    prompts, tokens = [], []
    for number in range(num_requests):
        is_long = chance.random() < 0.3
        prompts.append(f"{'Write an essay about' if is_long else 'Translate'} thing{number}")
        tokens.append(chance.randint(400, 600) if is_long else chance.randint(10, 30))
    return prompts, tokens


ESSAY = "Write a detailed essay on the causes of the First World War."
QUESTION = "What is the capital of France?"


def test_at_first_the_bundled_ranker_s_word_orders():
    """Before any answer an essay is expected to be longer; after a thousand nobody asks it."""
    estimator = LearningEstimator()
    essay = estimator.demand(request("a", ESSAY, 1))
    question = estimator.demand(request("b", QUESTION, 1))

    assert estimator.is_ordered
    assert essay.cost > 1.1 * question.cost
    assert estimator.ranker.bundled_share == 1.0
    for number in range(1_000):
        estimator.demand(request(str(number), "Hello", 9))
        estimator.learn(str(number), 9)
    assert estimator.ranker.bundled_share == 0.0


def test_nothing_is_known_until_answers_end():
    """All stand alike until the order is better than chance; then essays go for longer."""
    estimator = LearningEstimator(hears_bundled=False)
    prompts, tokens = essays_and_translations(60)
    requests = [request(str(n), it, tokens[n]) for n, it in enumerate(prompts)]

    first = {estimator.demand(it).cost for it in requests}
    assert len(first) == 1
    assert not estimator.is_ordered
    for number, answer_tokens in enumerate(tokens[:11]):
        estimator.learn(str(number), answer_tokens)
    assert not estimator.is_ordered
    for number, answer_tokens in enumerate(tokens[11:], 11):
        estimator.learn(str(number), answer_tokens)
    assert estimator.is_ordered
    essay = estimator.demand(request("a", "Write an essay about tea", 1))
    other = estimator.demand(request("b", "Translate tea", 1))
    assert essay.cost > 3 * other.cost


def test_who_asks_is_known_where_the_workload_tells():
    """The same words by two callers."""
    estimator = LearningEstimator()
    for number in range(80):
        caller, tokens = [("long", 500), ("short", 20)][number % 2]
        estimator.demand(request(str(number), f"word{number}", tokens, facts=[f"key={caller}"]))
        estimator.learn(str(number), tokens)

    costs = [
        estimator.demand(request(it, "Hello", 1, facts=[f"key={it}"])).cost
        for it in ("long", "short")
    ]
    assert costs[0] > 3 * costs[1]


def test_an_answer_at_its_limit_is_one_cut_short():
    """Cut at 20 tokens each, essays are not taken for short."""
    costs = []
    for max_tokens in (None, 20):
        estimator = LearningEstimator()
        for number in range(60):
            essay = request(str(number), "Write an essay", 500 if number < 30 else 20)
            limit = None if number < 30 else max_tokens
            estimator.demand(WorkloadRequest(str(number), 0.0, essay.prompt, 10, 20, limit))
            estimator.learn(str(number), essay.output_tokens)
        estimator.demand(request("x", "Write an essay", 1))
        costs.append(estimator._guesses["x"][0].tokens)

    assert costs[1] > 2 * costs[0]


def test_learning_shortens_the_wait_of_a_full_queue():
    """A burst of 400 on four slots: better than first come, first served, not than the truth."""
    prompts, tokens = essays_and_translations(400)
    workload = Workload.of(tokens, prompts=prompts, rate=20.0)

    told = simulate(workload, ["fcfs", "online", "oracle"], max_num_seqs=4)

    ntpot_s = {it.policy: it.measures["ntpot_s"].mean for it in told.figures}
    assert ntpot_s["oracle"] < ntpot_s["online"] < ntpot_s["fcfs"]
    again = simulate(workload, ["online"], max_num_seqs=4)
    assert again.figures[0].measures["ntpot_s"].mean == ntpot_s["online"]


def test_requests_without_a_prompt_are_refused():
    """One line that says what would be right."""
    with pytest.raises(ParsError, match=r"request 0 has no prompt.*--records"):
        simulate(Workload.of([3, 4]), ["online"])


def test_the_command_takes_it_for_a_ranker(tmp_path: Path):
    """`--ranker online` is the policy online; the workload keeps who asked, and no key in clear."""
    prompts, tokens = essays_and_translations(60)
    with (tmp_path / "log.jsonl").open("w") as file:
        for prompt, answer_tokens in zip(prompts, tokens, strict=True):
            row = {"prompt": prompt, "output_tokens": answer_tokens, "model": "m"}
            file.write(json.dumps({**row, "api_key": "sk-secret", "system": "Be brief."}) + "\n")
    done = CliRunner().invoke(
        commands,
        [
            *("simulate", "--records", str(tmp_path / "log.jsonl"), "--rates", "5"),
            *("--policies", "fcfs,ranker,ranker@1.5x", "--ranker", "online"),
            *("--output-dir", str(tmp_path / "out"), "--num-processes", "1"),
        ],
    )

    assert done.exit_code == 0, done.output
    assert "online@1.5x" in done.output
    workload = tmp_path / "out/workload.jsonl"
    facts = read_workload(workload).requests[0].facts
    assert facts is not None
    assert {"model=m", "system=Be brief."} <= set(facts)
    assert "sk-secret" not in workload.read_text()
