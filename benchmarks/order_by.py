"""
What to order by: a score, or what a predicted distribution says; and what more tau-b would buy.

    python benchmarks/order_by.py --work-dir build/order_by [--keep]

Lite rankers are trained on four fifths of the prompts; of the held-out rest one half fits what a
score predicts, the other makes requests, which go through the simulated engine at three loads. From
one score come: its rank, and the mean, median, tail-inflated mean (TIE, arXiv 2604.00499: mean plus
conditional value at risk), Gittins index (least E[min(X, d)] / P(X <= d) over d: Gittins 1979) and
Smith's ratio (E[X] / E[1/X]: Smith 1956 for weights 1/X, which is what the mean of NTPOT weighs
with) of the 200 lengths whose scores are nearest. From two outputs a prompt, centre and spread of a
log-t distribution with 4 degrees of freedom, trained as TIE's is, come the same. Then synthetic
predictors: true lengths with log-normal errors. The last line of stdout is one JSON document.
PARS_SHARED names the folder with data/*.jsonl.gz (default ../shared); without it nothing runs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from pars.ranking.order_metrics import kendall_tau_b
from pars.ranking.ranker import Ranker
from pars.scheduling.demand import Demand
from pars.scheduling.keys import EPOCH_S
from pars.scheduling.policies.shortest_first import ShortestFirst
from virtual_load import (
    MEASURES,
    Job,
    Load,
    capacity,
    mean_and_error,
    ranks,
    rounded,
    run_all,
)

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))
PICTURE = Path(__file__).with_name("results") / "order_by.svg"

DATA_SETS = {"alpaca": "instruction_alpaca_davinci003", "sharegpt": "chat_sharegpt"}
NUM_REQUESTS, SEEDS = 4000, (0, 1, 2, 3, 4)
LOADS = {"under": 0.85, "at": 1.0, "over": 1.3}  # of what the engine gets done
MAX_PROMPT_TOKENS = 4096
NEIGHBOURS = 200  # held-out lengths that stand for what a score predicts
TAIL, TAIL_WEIGHT = 0.1, 1.0  # of TIE: the longest tenth, added once
FREEDOM, SPREAD_PROMPTS, EPOCHS, BATCH = 4.0, 12_000, 3, 128
GRID = np.linspace(0.0025, 0.9975, 200)
SIGMAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
OVERTAKE_S = 1.0  # of the runs with aging: of the order of the waits here


def main() -> None:
    """Train, simulate, print, draw; then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--work-dir", type=Path, default=Path("build/order_by"))
    parser.add_argument("--keep", action="store_true", help="what an interrupted run has trained")
    options = parser.parse_args()
    if not (SHARED / "data").is_dir():
        sys.exit(f"{SHARED / 'data'} is not there: set PARS_SHARED to the folder with the records")
    if not options.keep:
        shutil.rmtree(options.work_dir, ignore_errors=True)
    results = {}
    for name in DATA_SETS:
        told = prepared(name, options.work_dir / name)
        results[name] = {**measure(told), "noise": measure_noise(told)}
        print_orders(name, results[name])
        print_noise(name, results[name])
    draw({name: result["noise"] for name, result in results.items()})
    print(json.dumps(rounded(results)))


# What is known of the held-out prompts


def prepared(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Lengths, prompt tokens, lite's scores, and a log-t's centre and spread, of held-out rows."""
    data = folder / "data"
    if not (data / "val_data.json").is_file():
        source = SHARED / f"data/{DATA_SETS[name]}.jsonl.gz"
        fields = ["--length-field", "response_tokens", "--test-size", "0.2"]
        pars("prepare", "records", "--input", source, *fields, "--output-dir", data)
    train, val = data / "train_data.json", data / "val_data.json"
    if not (folder / "lite/ranker/ranker.json").is_file():
        files = ["--train-data", train, "--val-data", val]
        pars("train", "--model", "lite", *files, "--output-dir", folder / "lite")
    if not (folder / "told.npz").is_file():
        rows = [row for row in json.loads(val.read_text()) if row["answer_length"] >= 1]
        rows = [row for row in rows if len(row["prompt"]) <= 4 * MAX_PROMPT_TOKENS]
        prompts = [row["prompt"] for row in rows]
        centre, spread = fit_log_t(json.loads(train.read_text()), prompts)
        np.savez(
            folder / "told.npz",
            lengths=np.array([int(row["answer_length"]) for row in rows]),
            prompt_tokens=np.array([max(1, len(prompt) // 4) for prompt in prompts]),
            scores=Ranker.load(folder / "lite/ranker").score(prompts).astype(np.float64),
            centre=centre,
            spread=spread,
        )
    return dict(np.load(folder / "told.npz"))


def pars(*arguments: object) -> None:
    """Run the command line of this checkout; its report goes to stderr."""
    command = [sys.executable, "-m", "pars", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def fit_log_t(train: list[dict], prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Centre and spread of each prompt's log length: two lite networks, one likelihood."""
    import torch
    from torch.nn.functional import softplus

    from pars.learn.training.models import LiteModel

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(train))[:SPREAD_PROMPTS]
    rows = [train[row] for row in chosen if train[row]["answer_length"] >= 1]
    logs = torch.tensor([row["answer_length"] for row in rows], dtype=torch.float32).log()
    mean, scale = logs.mean(), logs.std()
    logs = (logs - mean) / scale
    models = [LiteModel.untrained([row["prompt"] for row in rows], 256) for _ in range(2)]
    encoded = models[0].encode([row["prompt"] for row in rows])
    networks = torch.nn.ModuleList(model.network for model in models)

    def outputs(part):
        inputs = models[0].collate(part, torch.device("cpu"))
        return networks[0](**inputs), softplus(networks[1](**inputs)) + 0.05

    optimizer = torch.optim.AdamW(networks.parameters(), lr=3e-3, weight_decay=0.0)
    num_steps = EPOCHS * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, num_steps, pct_start=0.1)
    networks.train()
    for _ in range(EPOCHS):
        for batch in np.array_split(rng.permutation(len(rows)), num_steps // EPOCHS):
            centre, spread = outputs([encoded[row] for row in batch])
            far = ((logs[batch] - centre) / spread) ** 2
            loss = spread.log() + (FREEDOM + 1) / 2 * torch.log1p(far / FREEDOM)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            schedule.step()
    networks.eval()
    found = []
    with torch.no_grad():
        for part in np.array_split(np.arange(len(prompts)), -(-len(prompts) // 64)):
            found.append(torch.stack(outputs(models[0].encode([prompts[i] for i in part]))))
    centre, spread = torch.cat(found, dim=1).double().numpy()
    return centre * float(scale) + float(mean), spread * float(scale)


# What to order by


def costs(told: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every way to order the second half of the rows: costs [num_rows], smaller first."""
    fit, use = np.arange(len(told["lengths"])) % 2 == 0, np.arange(len(told["lengths"])) % 2 == 1
    order = np.argsort(told["scores"][fit], kind="stable")
    scores, lengths = told["scores"][fit][order], told["lengths"][fit][order]
    at = np.searchsorted(scores, told["scores"][use])
    starts = np.clip(at - NEIGHBOURS // 2, 0, len(scores) - NEIGHBOURS)
    near = np.sort(lengths[starts[:, None] + np.arange(NEIGHBOURS)].astype(np.float64), axis=1)
    # A log-t has no mean; no answer is longer than the longest one known.
    centre, spread = told["centre"][use], told["spread"][use]
    logs = centre[:, None] + spread[:, None] * student_quantiles()
    drawn = np.exp(np.clip(logs, 0, np.log(lengths.max())))
    found = {"score": told["scores"][use]}
    for source, values in (("score", near), ("log-t", drawn)):
        found |= {f"{source}: {how}": cost for how, cost in summaries(values).items()}
    found["oracle"] = told["lengths"][use].astype(np.float64)
    return found


def student_quantiles() -> np.ndarray:
    from scipy.stats import t

    return t.ppf(GRID, FREEDOM)


def summaries(values: np.ndarray) -> dict[str, np.ndarray]:
    """What to make of predicted lengths [num_rows, num_values], each row rising."""
    num_values = values.shape[1]
    mean = values.mean(axis=1)
    tail = values[:, -round(TAIL * num_values) :].mean(axis=1)
    upto = np.arange(1, num_values + 1)
    # E[min(X, d)] with d each of the values in turn, over the chance to be done by then.
    served = (np.cumsum(values, axis=1) + values * (num_values - upto)) / num_values
    return {
        "mean": mean,
        "median": np.median(values, axis=1),
        "TIE": mean + TAIL_WEIGHT * tail,
        "Gittins": (served / (upto / num_values)).min(axis=1),
        "Smith": mean / (1 / values).mean(axis=1),
    }


def measure(told: dict[str, np.ndarray]) -> dict:
    """Every order at every load, with and without aging."""
    use = np.arange(len(told["lengths"])) % 2 == 1
    lengths, prompt_tokens = told["lengths"][use], told["prompt_tokens"][use]
    ways = costs(told)
    rate = capacity(lengths[:NUM_REQUESTS], prompt_tokens[:NUM_REQUESTS])
    jobs, names = [], []
    for load_name, share in LOADS.items():
        for seed in SEEDS:
            rows = np.random.default_rng(seed).permutation(len(lengths))[:NUM_REQUESTS]
            load = Load.poisson(lengths[rows], prompt_tokens[rows], rate=share * rate, seed=seed)
            jobs.append(Job(load, np.zeros(len(rows), dtype=np.int64)))
            names.append((load_name, "fcfs"))
            for name, cost in ways.items():
                jobs.append(Job(load, ranks(cost[rows])))
                names.append((load_name, name))
                if load_name == "over":
                    jobs.append(Job(load, aged(cost[rows], cost, load.arrivals_s, name)))
                    names.append((load_name, f"{name} @{OVERTAKE_S:g}"))
    runs: dict[str, dict[str, list]] = {load_name: {} for load_name in LOADS}
    for (load_name, name), found in zip(names, run_all(jobs), strict=True):
        runs[load_name].setdefault(name, []).append(found)
    return {
        "capacity": rate,
        "num_requests": len(rows),
        "tau_b": {name: kendall_tau_b(cost, lengths) for name, cost in ways.items()},
        "loads": {load_name: beside_score(of_load) for load_name, of_load in runs.items()},
    }


def aged(cost: np.ndarray, every_cost: np.ndarray, arrivals_s: np.ndarray, name: str) -> np.ndarray:
    """Priorities with linear aging, where the scale of the costs matters and not only the order."""
    if name == "score":  # its rank: spread evenly over the range
        cost, every_cost = ranks(cost).astype(float), np.arange(len(cost), dtype=float)
    long_tokens = float(np.quantile(every_cost, 0.9))
    policy = ShortestFirst(OVERTAKE_S)
    return np.array(
        [
            policy.place(Demand(value, value), EPOCH_S + at_s, long_tokens=long_tokens).key
            for value, at_s in zip(cost.tolist(), arrivals_s.tolist(), strict=True)
        ]
    )


def beside_score(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """Means over the seeds, and the change against the score's order of the same seed."""
    found = {}
    for name, of_seeds in runs.items():
        base = runs["score @1" if name.endswith("@1") and "score @1" in runs else "score"]
        found[name] = {}
        for measure_name in MEASURES:
            values = [it[measure_name] for it in of_seeds]
            changes = [value / it[measure_name] - 1 for value, it in zip(values, base, strict=True)]
            change, error = mean_and_error(changes)
            found[name][measure_name] = {
                "mean": mean_and_error(values)[0],
                "change": change,
                "change_error": error,
            }
    return found


# What more order buys


def measure_noise(told: dict[str, np.ndarray]) -> list[dict]:
    """Synthetic predictors, and lite, at the two higher loads: tau-b and share of the gain."""
    use = np.arange(len(told["lengths"])) % 2 == 1
    lengths, prompt_tokens = told["lengths"][use], told["prompt_tokens"][use]
    scores = told["scores"][use]
    rate = capacity(lengths[:NUM_REQUESTS], prompt_tokens[:NUM_REQUESTS])
    found = []
    for load_name in ("at", "over"):
        jobs, taus = [], {}
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            rows = rng.permutation(len(lengths))[:NUM_REQUESTS]
            load = Load.poisson(
                lengths[rows], prompt_tokens[rows], rate=LOADS[load_name] * rate, seed=seed
            )
            error = rng.normal(size=len(rows))
            predictions = {sigma: lengths[rows] * np.exp(sigma * error) for sigma in SIGMAS}
            predictions |= {"lite": scores[rows], "fcfs": np.zeros(len(rows))}
            for name, predicted in predictions.items():
                jobs.append(Job(load, ranks(predicted)))
                taus.setdefault(name, []).append(kendall_tau_b(predicted, lengths[rows]))
        runs = run_all(jobs)
        by_name = {name: runs[i :: len(predictions)] for i, name in enumerate(predictions)}
        for name, of_seeds in by_name.items():
            line = {"load": load_name, "predictor": name, "tau_b": float(np.mean(taus[name]))}
            for measure_name in MEASURES:
                shares = [
                    (base[measure_name] - it[measure_name])
                    / (base[measure_name] - best[measure_name])
                    for it, base, best in zip(of_seeds, by_name["fcfs"], by_name[0.0], strict=True)
                ]
                mean, half = mean_and_error(shares)
                line[measure_name] = {"share": mean, "error": half}
                line[measure_name]["mean"] = float(np.mean([it[measure_name] for it in of_seeds]))
            found.append(line)
    return found


# What people see


def print_orders(name: str, result: dict) -> None:
    """A table a data set: mean NTPOT, mean end-to-end and p99 TTFT at each load."""
    print(
        f"\n{name}: {result['num_requests']:,} requests, {len(SEEDS)} seeds, the engine gets"
        f" {result['capacity']:.0f} a second done; loads"
        f" {', '.join(f'{load} {share:g}' for load, share in LOADS.items())} of that\n"
        "score: seconds; the others: change against score, same seeds, with half of its 95%"
        " interval\n"
    )
    shown = (("ntpot_s", "mean NTPOT"), ("e2e_s", "mean e2e"), ("p99_ttft_s", "p99 TTFT"))
    loads = list(LOADS)
    print(f"{'':<18}{'tau-b':>7}" + "".join(f"{title:^39}" for _, title in shown))
    print(f"{'':<25}" + "".join(f"{load:>13}" for _ in shown for load in loads))
    over = result["loads"]["over"]
    for row in over:
        tau = result["tau_b"].get(row)
        cells = [
            cell(result["loads"][load].get(row), key, row) for key, _ in shown for load in loads
        ]
        print(f"{row:<18}{'' if tau is None else f'{tau:.3f}':>7}" + "".join(cells))


def cell(measures: dict | None, key: str, row: str) -> str:
    """Seconds of the score's order, change in percent of the others."""
    if measures is None:
        return f"{'':>13}"
    told = measures[key]
    if row.split(" @")[0] == "score":
        return f"{told['mean']:>12.4f}s"
    return f"{100 * told['change']:>+8.1f}±{100 * told['change_error']:.1f}%".rjust(13)


def print_noise(name: str, result: dict) -> None:
    """Tau-b against latency."""
    print(f"\n{name}: share of the oracle's gain over fcfs, by true lengths times exp(sigma z)\n")
    print(
        f"{'load':<7}{'sigma':>6}{'tau-b':>8}{'mean NTPOT':>18}{'mean e2e':>18}{'p99 TTFT, s':>13}"
    )
    for line in result["noise"]:
        shares = "".join(
            f"{100 * line[key]['share']:>11.1f}%±{100 * line[key]['error']:<4.1f} "
            for key in ("ntpot_s", "e2e_s")
        )
        tau = "" if np.isnan(line["tau_b"]) else f"{line['tau_b']:.3f}"
        print(
            f"{line['load']:<7}{line['predictor']:>6}{tau:>8}{shares}"
            f"{line['p99_ttft_s']['mean']:>12.2f}"
        )


def draw(noise: dict[str, list[dict]]) -> None:
    """Share of the oracle's gain in mean NTPOT against tau-b, as SVG."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"], rcParams["svg.fonttype"] = "order_by", "none"
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, load in zip(figure.subplots(1, 2, sharey=True), ("at", "over"), strict=True):
        for color, (name, lines) in zip(("tab:blue", "tab:orange"), noise.items(), strict=True):
            here = [line for line in lines if line["load"] == load]
            steps = [line for line in here if line["predictor"] in SIGMAS]
            axes.errorbar(
                [line["tau_b"] for line in steps],
                [line["ntpot_s"]["share"] for line in steps],
                [line["ntpot_s"]["error"] for line in steps],
                marker="o", markersize=3, capsize=2, color=color, label=f"{name}, synthetic",
            )  # fmt: skip
            lite = next(line for line in here if line["predictor"] == "lite")
            axes.plot(
                lite["tau_b"], lite["ntpot_s"]["share"], "*", markersize=11, color=color,
                label=f"{name}, lite",
            )  # fmt: skip
        axes.set(
            xlabel="Kendall tau-b", title=f"{load} capacity ({LOADS[load]:g}x)", ylim=(0, 1.05)
        )
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("share of the oracle's gain, mean NTPOT")
    figure.axes[0].legend(frameon=False, fontsize=8)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
