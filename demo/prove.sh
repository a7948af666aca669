#!/usr/bin/env bash
# What a ranker is worth on a real vLLM with a tiny model of random weights: tokens mean nothing, but
# prompts, answer lengths, queue and scheduler are real.
#
#   bash demo/prove.sh RECORDS RANKER OUTPUT
set -euo pipefail
records=$1 ranker=$2 output=$3
mkdir -p "$output"
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

setpriv --pdeathsig TERM bash engine/serve.sh --port "$port" --scheduling-policy priority \
    --max-num-seqs 8 --max-model-len 8192 >"$output/vllm.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true' EXIT
echo "Starting vLLM (20 s; $output/vllm.log)"
until python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=9)' \
    "http://127.0.0.1:$port/health" 2>/dev/null; do
    kill -0 $server 2>/dev/null || { tail -n 20 "$output/vllm.log"; exit 1; }
    sleep 1
done

pars workload --records "$records" --length-field answer_length --num-requests 100 \
    --max-output-tokens 250 --arrivals burst --output "$output/workload.jsonl"
pars bench "http://127.0.0.1:$port" --workload "$output/workload.jsonl" --truncate-prompts \
    --ranker own="$ranker" --policies fcfs,ranker,ranker:own,oracle --repeats 1 --output-dir "$output"
