"""What people read of a result: tables, JSON, and one page that needs nothing beside itself."""

import json
import re

import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.prove.report.course import gaps
from pars.prove.report.latency import figures
from pars.prove.report.pictures import _styles, pictures
from pars.prove.report.report import Table, number, write_report
from pars.prove.report.times import (
    QueueSample,
    RequestTimes,
    ResultWriter,
    Run,
    itl_counts,
    read_result,
)

POLICIES = {"fcfs": 10.0, "ranker@30": 4.0, "oracle": 2.0}


def written(folder, *, rates=(None,), failed=0, interrupted=False, stall_s=0.0, queue=6, num=9):
    """A result in which requests n end after the policy's time x (1 + n/10)."""
    with ResultWriter(folder, {"kind": "bench", "url": "http://here", "model": "tiny"}) as writer:
        for rate in rates:
            for policy, base in POLICIES.items():
                for n in range(num):
                    end = base * (1 + n / 10) * (rate or 1.0)
                    writer.add(
                        RequestTimes(
                            request_id=str(n),
                            policy=policy,
                            rate=rate,
                            arrival_s=0.0,
                            first_token_s=end / 2,
                            finished_s=end,
                            prompt_tokens=3,
                            output_tokens=n + 1,
                            error="HTTP <b>500</b>" if n < failed else None,
                        )
                    )
                samples = tuple(QueueSample(t, 2, max(0, queue - t)) for t in range(10))
                writer.add_run(
                    Run(
                        policy=policy,
                        rate=rate,
                        duration_s=20.0,
                        queue=samples,
                        itl_counts=itl_counts([0.1, 0.2]),
                        largest_stall_s=stall_s,
                        facts={"error_excerpts": {"HTTP <b>500</b>": "<script>alert(1)</script>"}},
                    )
                )
        writer.end(interrupted=interrupted)
    return folder


def outputs(folder, **limits):
    """Terminal text, JSON and page."""
    told = write_report(folder, limits)
    page = (folder / "report.html").read_text(encoding="utf-8")
    return told, json.loads((folder / "report.json").read_text()), page


def test_all_outputs_begin_with_the_verdict(tmp_path):
    """The page's first words, the terminal's first line and the JSON's first field are one."""
    told, report, page = outputs(written(tmp_path))

    body = re.sub(r"<[^>]*>", "", page[page.index("<body>") :]).strip()
    assert report["verdict"].startswith("ranker@30 cut mean NTPOT from ")
    assert told.splitlines()[0] == told.splitlines()[-3] == report["verdict"]
    assert body.startswith(report["verdict"])


def test_the_page_needs_nothing_beside_itself(tmp_path):
    """No script, and no address in it is followed by a browser."""
    _, _, page = outputs(written(tmp_path, rates=(1.0, 2.0)))

    assert page.count("<svg ") == 5
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!#)', page.replace("xlink:href", "href"))
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_interrupted_and_failed_stand_in_every_output(tmp_path):
    """Errors by kind with what the server said, escaped; none enters a figure."""
    told, report, page = outputs(written(tmp_path, failed=2, interrupted=True))

    assert told.startswith("INTERRUPTED")
    assert "2 of 9 requests failed: HTTP <b>500</b>" in told
    assert (report["interrupted"], report["num_failed"]) == (True, 6)
    assert report["figures"][0]["errors"] == {"HTTP <b>500</b>": 2}
    assert "2 of 9 requests failed: HTTP &lt;b&gt;500&lt;/b&gt;" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "The run was INTERRUPTED" in page


def test_a_standstill_of_the_client_is_told(tmp_path):
    """0.7 s in which this process did not run are a note; 10 ms are not."""
    assert "stood still for up to 0.70 s" in outputs(written(tmp_path / "a", stall_s=0.7))[0]
    assert "stood still" not in outputs(written(tmp_path / "b", stall_s=0.01))[0]


def test_json_has_no_nan(tmp_path):
    """With one request there is no interval, and null stands for it."""
    _, report, _ = outputs(written(tmp_path, num=1))

    text = (tmp_path / "report.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert report["gains"][0]["share"]["low"] is None


def test_goodput_stands_in_the_table(tmp_path):
    """Of oracle's nine, those with a first token within 1.3 s: 1 + n/10 <= 1.3, so four."""
    told, report, _ = outputs(written(tmp_path), ttft_s=1.3)

    oracle = next(row for row in report["figures"] if row["policy"] == "oracle")
    assert oracle["goodput_rps"] == pytest.approx(4 / 20)
    assert "good requests/s" in told


def test_nothing_but_errors_makes_a_report(tmp_path):
    """Every request failed: the outputs are there and say so."""
    told, report, page = outputs(written(tmp_path, failed=9))

    assert "27 of 27 requests FAILED" in told
    assert report["figures"][0]["measures"] == {}
    assert "<svg" not in page


def test_a_policy_has_one_colour(tmp_path):
    """Whatever else runs beside it, and with aging its line is broken."""
    alone, among = (
        _styles(["ranker"]),
        _styles(["oracle", "fcfs", "ranker@30", "ranker", "ranker@5"]),
    )

    assert {among[name]["color"] for name in ("ranker", "ranker@30", "ranker@5")} == {
        alone["ranker"]["color"]
    }
    assert among["ranker@30"]["linestyle"] != among["ranker@5"]["linestyle"]
    assert alone["ranker"]["linestyle"] == "-"


def test_pictures_are_the_same_twice(tmp_path):
    """No date and no random id is in them."""
    result = read_result(written(tmp_path))

    assert pictures(result, figures(result)) == pictures(result, figures(result))


def test_a_table_lines_up():
    """Names to the left, numbers to the right."""
    table = Table("Title", ("policy", "mean"), [("fcfs", "1"), ("prompt-length", "10.5")])

    assert str(table).splitlines() == [
        "Title",
        "policy         mean",
        "fcfs              1",
        "prompt-length  10.5",
    ]


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.01234, "0.0123"), (9.999, "10"), (1234.5, "1,234"), (None, "-"), (float("nan"), "-")],
)
def test_numbers_for_people(value, told):
    """Three digits, no powers of ten."""
    assert number(value) == told


def test_no_result_in_the_folder(tmp_path):
    """`pars report` of something else is one line that names the file."""
    outcome = CliRunner().invoke(commands, ["report", str(tmp_path)])

    assert "requests.jsonl: cannot be read" in str(outcome.exception)


def learning(folder):
    """Eight requests of one token: 10 s each by fcfs, 2 s by the oracle; `gateway` gets better."""
    gateway_s = (10.0, 10.0, 6.0, 6.0, 4.0, 4.0, 2.0, 2.0)
    with ResultWriter(folder, {"kind": "bench"}) as writer:
        for policy, ends_s in (
            ("fcfs", (10.0,) * 8),
            ("gateway", gateway_s),
            ("oracle", (2.0,) * 8),
        ):
            for n, end_s in enumerate(ends_s):
                writer.add(
                    RequestTimes(
                        request_id=str(n),
                        policy=policy,
                        rate=None,
                        arrival_s=float(n),
                        first_token_s=n + end_s,
                        finished_s=n + end_s,
                        prompt_tokens=1,
                        output_tokens=1,
                    )
                )
            writer.add_run(Run(policy=policy, rate=None, duration_s=20.0))
        writer.end(interrupted=False)
    return folder


def test_of_a_policy_that_learns_each_quarter_is_told(tmp_path):
    """0, 50, 75 and 100% of the oracle's gain, in the JSON and in the table."""
    told, report, page = outputs(learning(tmp_path))

    assert [it["share"]["value"] for it in report["quarters"]] == [0.0, 0.5, 0.75, 1.0]
    table = told[told.index("As it learns") :].split("\n\n")[0]
    assert re.findall(r"(\d+)% \[", table) == ["0", "50", "75", "100"]
    assert "The gap to first come, first served opens" in page


def test_the_gap_is_what_was_saved_up_to_each_request(tmp_path):
    """0 s a token on average of the first two, 2 s of four, 4.5 s of all eight."""
    counts, saved_s = gaps(read_result(learning(tmp_path)), "gateway", "fcfs", None)

    assert counts == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [saved_s[1], saved_s[3], saved_s[7]] == [0.0, 2.0, 4.5]


def test_an_oracle_is_not_measured_against_itself(tmp_path):
    """The column says whose gain it is a share of, and its own row says so too."""
    folder = written(tmp_path)
    for path in folder.glob("*"):
        if path.is_file():
            path.write_text(path.read_text().replace('"oracle"', '"oracle@1.5x"'))

    told, _, _ = outputs(folder)
    [head] = [it for it in told.splitlines() if it.startswith("policy") and "of oracle" in it][:1]
    rows = [it for it in told.splitlines() if it.startswith("oracle@1.5x")]
    assert head.endswith("of oracle@1.5x's gain")
    assert rows[0].endswith("itself")
