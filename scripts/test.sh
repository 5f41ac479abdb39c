#!/usr/bin/env bash
# All tests of the workspace. Ends with one line that counts them; fails if one failed or none ran.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0

# Documentation examples first: nextest does not run them, and their closing lines say little.
"$cargo" test --workspace --doc 2>&1 | tee -a "$log" || failed=1
# One process a test suits SoftHSM best: it reads its configuration once a process.
# Much of a test's time is waiting for a server that starts or a host that stays silent: half again as many at
# once as there are processors. Those that are measured against a clock run alone (.config/nextest.toml).
threads=$(( ($(nproc) * 3 + 1) / 2 ))
if "$cargo" nextest --version >/dev/null 2>&1; then
  "$cargo" nextest run --workspace --no-fail-fast --test-threads "$threads" 2>&1 | tee -a "$log" || failed=1
else
  "$cargo" test --workspace --no-fail-fast --lib --bins --tests 2>&1 | tee -a "$log" || failed=1
fi

# "test result: ok. 3 passed; 0 failed; 1 ignored; …" of cargo test;
# "Summary [ 1.2s] 5 tests run: 4 passed (1 slow), 1 failed, 2 skipped" of nextest.
sum() {
  sed -E 's/\x1b\[[0-9;]*m//g' "$log" | { grep -E '^(test result:| *Summary \[)' || true; } |
    { grep -oE "[0-9]+ ($1)" || true; } | awk '{ sum += $1 } END { print sum + 0 }'
}
passed=$(sum 'passed')
bad=$(sum 'failed|timed out')
skipped=$(sum 'ignored|skipped')

echo
if [ -z "${KRYOPTIC_LIBRARY:-}" ] && [ ! -f other-tokens/target/release/libkryoptic.so ]; then
  echo "left out: what needs a token of another vendor (tests/other_tokens.rs); make kryoptic builds one"
fi
echo "$passed passed, $bad failed, $skipped skipped"
if [ "$passed" -eq 0 ]; then
  echo "no test ran" >&2
  exit 1
fi
exit "$failed"
