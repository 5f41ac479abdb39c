#!/usr/bin/env bash
# The Python client against a real server: makes a site as `make dev` does, imports its meters with
# ami-tool, generates the stubs from proto/ and runs interop/python/test_interop.py.
#
#   scripts/test-interop.sh [--bin-dir DIR] [--prepare]
#
# Wants python3 (3.10 or later) with venv, and PyPI once: the environment is kept in target/interop/.
# --prepare: only makes that environment.
set -euo pipefail
cd "$(dirname "$0")/.."

bin_dir=${CARGO_TARGET_DIR:-target}/debug
prepare=false
while [ $# -gt 0 ]; do
  case "$1" in
    --bin-dir) bin_dir=$2 && shift 2 ;;
    --prepare) prepare=true && shift ;;
    *) echo "unknown argument: $1" >&2 && exit 2 ;;
  esac
done
python=${PYTHON:-python3}
"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' || {
  echo "python3 (3.10 or later) with venv is missing; on Debian: apt-get install python3-venv" >&2
  exit 1
}

# Made anew when the list of requirements changes.
requirements=interop/python/requirements.txt
stacks=interop/python/stacks.txt
venv=target/interop/venv
if ! cmp -s <(cat "$requirements" "$stacks") "$venv/requirements.txt"; then
  rm -rf "$venv"
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 5 \
    --requirement "$requirements" --requirement "$stacks"
  cat "$requirements" "$stacks" >"$venv/requirements.txt"
fi
if "$prepare"; then exit 0; fi

for program in kms-server ami-tool kms-demo; do
  [ -x "$bin_dir/$program" ] || { echo "$bin_dir/$program is missing: run make build" >&2; exit 1; }
done
# Absolute: the server is started in the site's directory.
bin_dir=$(cd "$bin_dir" && pwd)
"$venv/bin/python" interop/python/generate.py

work=$(mktemp -d)
server=''
cleanup() {
  local code=$?
  if [ -n "$server" ]; then
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$work"
  exit "$code"
}
trap cleanup EXIT

site=$work/site
"$bin_dir/kms-demo" --kms-server-bin "$bin_dir/kms-server" --ami-tool-bin "$bin_dir/ami-tool" dev "$site" \
  >"$work/dev.log" 2>&1 &
server=$!
tool() { "$bin_dir/ami-tool" --config "$site/client.toml" "$@"; }
for _ in $(seq 600); do
  if [ -s "$site/telegrams.jsonl" ] && grep -q listens "$work/dev.log"; then break; fi
  kill -0 "$server" 2>/dev/null || { cat "$work/dev.log" >&2; echo "the site did not start" >&2; exit 1; }
  sleep 0.1
done
tool meter import "$site/meters.jsonl" >/dev/null

# What was published with these telegrams: the expectation does not come from our own programs.
"$venv/bin/python" - "$site/telegrams.jsonl" softhsm-tests/vectors/vectors.json >"$work/expected.jsonl" <<'PY'
import json, sys
telegrams = [json.loads(line) for line in open(sys.argv[1]) if line.strip()]
published = {vector["apdu_hex"].upper(): vector for vector in json.load(open(sys.argv[2]))}
for telegram in telegrams:
    vector = published[telegram["apdu"].upper()]
    telegram["verdict"] = {"tag": "OK", "plaintext": "OK_UNAUTHENTICATED"}[vector["verified"]]
    telegram["plaintext"] = vector["plaintext_hex"].upper()
    print(json.dumps(telegram))
PY
"$venv/bin/python" interop/python/test_interop.py "$site" "$work/expected.jsonl"

# Meters of other stacks, with the keys that test_hls.py gives them.
for title in 4855524858580001 5059444C4D530002; do
  printf '{"meter_id":"HLS-%s","system_title":"%s","keys":[{"kind":"GUEK","value":"%s"},{"kind":"GAK","value":"%s"},{"kind":"HLS_SECRET","value":"%s"}],"policy":{"client_title":"414D494845530001"}}\n' \
    "$title" "$title" 4B1D8E5C92A7F03366C1D4E8195A7B20 91C3E5F7082A4C6E7F5D3B1928374655 5A17C09B44E2D6318F60A2937C15BE4D
done >"$work/stacks.jsonl"
tool meter import "$work/stacks.jsonl" >/dev/null
for title in 4855524858580001 5059444C4D530002; do
  tool meter declare-counter --meter "HLS-$title" --never-used >/dev/null
done
"$venv/bin/python" interop/python/test_hls.py "$site"
echo "the example itself:"
"$venv/bin/python" interop/python/example.py "$site" "$site/telegrams.jsonl" | cut -c1-100
