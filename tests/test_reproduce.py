"""`pars reproduce`: PARS's tables and figures again, and the plots that papers print."""

import csv
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import pars
from pars.cli.main import commands
from pars.errors import ParsError
from pars.prove.report.plot import plot
from pars.prove.reproduce.experiment import POLICIES, _measured

from fake_engine import FakeEngine
from rankers import rows

pytestmark = pytest.mark.torch


def test_one_plot_is_svg_pdf_and_png(tmp_path):
    """The same drawing each time, byte for byte; the name tells the kind."""
    drawn = plot("A line", "Rising.", lambda axes: axes.plot([0, 1], [0, 1], label="straight"))

    paths = [drawn.save(tmp_path / f"figures/line.{it}") for it in ("svg", "pdf", "png")]

    starts = [path.read_bytes()[:8] for path in paths]
    assert [it[:5] for it in starts] == [b"<?xml", b"%PDF-", b"\x89PNG\r"]
    assert drawn._repr_svg_() == drawn.svg
    assert drawn.svg.startswith('<svg role="img" aria-label="A line"')
    before = paths[1].read_bytes()
    assert drawn.save(paths[1]).read_bytes() == before


def test_a_plot_of_another_kind_is_refused(tmp_path):
    """With the kinds that there are."""
    drawn = plot("A line", "Rising.", lambda axes: axes.plot([0, 1], [0, 1]))

    with pytest.raises(ParsError, match=r"ends in \.svg, \.pdf, \.png"):
        drawn.save(tmp_path / "line.gif")


def test_a_simulation_shows_its_plots():
    """In a notebook, one call: against load where there are several."""
    workload = pars.Workload.of(answer_tokens=[200, 10, 20] * 20, rate=5)

    drawn = pars.simulate(workload, ["fcfs", "oracle"], rates=[5, 10], max_num_seqs=2).plots()

    assert drawn[0].title == "Latency against load"
    assert all(it.svg.startswith("<svg") for it in drawn)


def test_mean_p90_and_ratio_worked_out_by_hand():
    """Always 2 s beside always 6 s: three times lower, and nothing in doubt."""
    mean, p90, lower = _measured(np.full(300, 2.0), np.full(300, 6.0))

    assert (mean.value, mean.low, mean.high) == (2, 2, 2)
    assert p90.value == 2
    assert (lower.value, lower.low, lower.high) == pytest.approx((3, 3, 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of one small run, with the burst on an engine that is live."""
    folder = tmp_path_factory.mktemp("reproduce")
    log = folder / "stories.jsonl"
    lines = [{"prompt": it["prompt"], "answer_tokens": it["answer_length"]} for it in rows(400)]
    log.write_text("\n".join(map(json.dumps, lines)))
    with FakeEngine(num_slots=8, token_s=0.0001).served() as url:
        arguments = ["reproduce", "--records", str(log), "--output-dir", str(folder / "out")]
        arguments += ["--seeds", "2", "--loads", "0.8,1.2", "--slots", "2", "--live", url]
        done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "out", done.output


def test_the_tables_have_every_objective_policy_and_load(made):
    """Two trainings each; a burst and two loads under five policies; the oracle is never slower."""
    folder, _ = made

    taus = list(csv.DictReader((folder / "tau.csv").read_text().splitlines()))
    points = list(csv.DictReader((folder / "latency.csv").read_text().splitlines()))

    assert [it["objective"] for it in taus] == ["pairwise-margin", "pointwise", "listmle"]
    assert all(len(json.loads(it["by_training"])) == 2 for it in taus)
    assert all(float(it["low"]) <= float(it["value"]) <= float(it["high"]) for it in taus)
    assert len(points) == 3 * len(POLICIES)
    bursts = {it["policy"]: float(it["mean"]) for it in points if it["arrivals"] == "burst"}
    assert bursts["oracle"] < bursts["fcfs"]
    assert bursts["pairwise"] < bursts["fcfs"]


def test_the_page_says_what_is_not_the_same(made):
    """The paper's figures stand beside ours as other data, and the page needs nothing else."""
    folder, printed = made
    page = (folder / "report.html").read_text()

    assert "not the same data" in page
    assert "up to 15.7 times lower" in printed
    assert "<script" not in page
    assert "src=" not in page
    assert page.count("<svg") == 4
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {"tau.svg", "tau.pdf", "stories_mean.pdf", "stories_burst.svg"} <= names


def test_the_burst_ran_live_by_the_same_scores(made):
    """`pars bench` left its report beside the workload."""
    folder, _ = made

    report = json.loads((folder / "live/stories/bench/report.json").read_text())

    assert "pairwise" in json.dumps(report)


def test_the_commands_for_engines_can_be_typed(made):
    """The one for a simulated engine runs as it stands on the page, but for whose scheduler."""
    folder, _ = made
    page = (folder / "report.html").read_text()
    line = next(it for it in page.split("<code>") if it.startswith("pars simulate"))
    words = shlex.split(line.partition("</code>")[0])[1:]
    at = words.index("--stepper")
    del words[at : at + 4]

    subprocess.run([sys.executable, "-m", "pars", *words], check=True, capture_output=True)

    assert (folder / "live/stories/exact/report.html").is_file()
