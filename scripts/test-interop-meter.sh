#!/usr/bin/env bash
# Clients of two other stacks change keys of the simulated meter: interop/meter/test_meter.py.
#
#   scripts/test-interop-meter.sh
#
# Wants python3 (3.10 or later) with venv, and PyPI once: the environment is kept in target/interop-meter/.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' || {
  echo "python3 (3.10 or later) with venv is missing; on Debian: apt-get install python3-venv" >&2
  exit 1
}

# Made anew when the list of requirements changes.
requirements=interop/meter/requirements.txt
venv=target/interop-meter/venv
if ! cmp -s "$requirements" "$venv/requirements.txt"; then
  rm -rf "$venv"
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 5 \
    --requirement "$requirements"
  cp "$requirements" "$venv/requirements.txt"
fi

${CARGO:-cargo} build --quiet --package simulated-meter --example bridge
"$venv/bin/python" interop/meter/test_meter.py "${CARGO_TARGET_DIR:-target}/debug/examples/bridge"
