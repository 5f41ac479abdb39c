#!/usr/bin/env bash
# Builds Kryoptic as a PKCS #11 module and prints the module's path. Where it was built already it does nothing else.
set -euo pipefail
cd "$(dirname "$0")/../other-tokens"

# Debian package, and why it is needed.
packages=()
need() { packages+=("$1"); printf '  %-15s %s\n' "$1" "$2" >&2; }

[ -e /usr/include/openssl/evp.h ] || need libssl-dev "OpenSSL, under Kryoptic"
command -v pkg-config >/dev/null || need pkg-config "finds it"
compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || compgen -G '/usr/lib/*/libclang-[0-9]*.so*' >/dev/null ||
  [ -n "${LIBCLANG_PATH:-}" ] || need libclang-dev "reads OpenSSL's headers"

if [ ${#packages[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "The above is missing. As root: apt-get install ${packages[*]}" >&2
    exit 1
  fi
  echo "Installing with apt-get: ${packages[*]}" >&2
  install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}")
  "${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; }
fi

# A target of its own, whatever the caller's is: the tests look for the module there.
env -u CARGO_TARGET_DIR "${CARGO:-cargo}" build --release --locked >&2
module=$PWD/target/release/libkryoptic.so
[ -f "$module" ] || { echo "$module was not built" >&2; exit 1; }
echo "$module"
