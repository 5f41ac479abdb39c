#!/usr/bin/env bash
# Installs what the build and the tests need and this machine lacks. With --check: only says what is
# missing, and fails if anything is.
set -euo pipefail

softhsm_places=(
  /usr/lib/softhsm/libsofthsm2.so
  /usr/lib/*-linux-gnu/softhsm/libsofthsm2.so
  /usr/lib64/pkcs11/libsofthsm2.so
  /usr/lib64/softhsm/libsofthsm2.so
  /usr/lib64/libsofthsm2.so
  /usr/lib/libsofthsm2.so
  /usr/local/lib/softhsm/libsofthsm2.so
)

has_softhsm() {
  local place
  if [ -n "${SOFTHSM2_LIBRARY:-}" ]; then
    [ -e "$SOFTHSM2_LIBRARY" ]
    return
  fi
  for place in "${softhsm_places[@]}"; do
    if [ -e "$place" ]; then return 0; fi
  done
  return 1
}

# Debian keeps the servers' programs off the path, a directory for each version.
has_postgresql() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }

has() { command -v "$1" >/dev/null 2>&1; }

# Debian package, and why it is needed.
packages=()
reasons=()
need() { packages+=("$1"); reasons+=("$2"); }

has cc || need gcc "the C compiler: SQLite and ring are compiled from source"
[ -e /usr/include/stdio.h ] || has musl-gcc || need libc6-dev "the C library's headers, for the same"
has make || need make "runs the Makefile"
has_softhsm || need softhsm2 "the software HSM that demo and tests use (libsofthsm2.so)"
has_postgresql || need postgresql "the database server that tests start clusters of their own with"
[ -x /usr/sbin/pgbouncer ] || has pgbouncer || need pgbouncer "a pooler before it, which the server must know from the database"
has softhsm2-util || need softhsm2 "the same"
has openssl || need openssl "makes keys and certificates in other forms for tests"
has strace || need strace "system calls that fail for tests"
has faketime || need faketime "a wrong clock for tests"

if ! has cargo; then
  echo "cargo is missing: install Rust 1.95 or later from https://rustup.rs, then run this again." >&2
  exit 1
fi
if [ ${#packages[@]} -eq 0 ]; then
  [ "${1:-}" = --check ] || echo "Nothing to install: compiler, make, SoftHSM, PostgreSQL and what tests use of them are here."
  exit 0
fi

echo "Missing here:"
for index in "${!packages[@]}"; do
  printf '  %-10s %s\n' "${packages[$index]}" "${reasons[$index]}"
done
if [ "${1:-}" = --check ]; then
  echo "Run: make bootstrap" >&2
  exit 1
fi
if ! has apt-get; then
  echo "This script installs with apt-get (Debian, Ubuntu) only. Please install the above with your" >&2
  echo "system's package manager; on Fedora: dnf install gcc make softhsm postgresql-server" >&2
  exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! has sudo; then
    echo "Installing needs root and sudo is not here. As root: apt-get install ${packages[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "Installing with apt-get: ${packages[*]}"
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq
  --no-install-recommends "${packages[@]}")
# The package list may be old or empty: then once more with a fresh one.
"${install[@]}" >/dev/null 2>&1 || { "${as_root[@]}" apt-get update -qq && "${install[@]}" >/dev/null; }
if ! has_softhsm; then
  echo "softhsm2 is installed, but libsofthsm2.so is in none of the usual places." >&2
  echo "Set SOFTHSM2_LIBRARY to its path." >&2
  exit 1
fi
echo "Done."
