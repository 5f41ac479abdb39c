#!/usr/bin/env bash
# Installs the package in a clean Debian and runs the service there as its unit would: the blocks of
# docs/HANDBOOK.md marked "tried", in order, then the unit's command line as the service account.
#
#   scripts/test-deb.sh [--bin-dir DIR] [--root TAR]
#
# Wants root on Debian, and once a Debian mirror: the clean root is kept as target/deb-test/root.tar.
# Changes nothing on this machine but installing mmdebstrap where it is missing. Packs the programs that
# `make build` made: a release build costs minutes and would show no more.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=libsofthsm2,openssl,sqlite3,systemd-standalone-sysusers,systemd-standalone-tmpfiles

if [ "${1:-}" != inside ]; then
  bin_dir=${CARGO_TARGET_DIR:-target}/debug root_tar=target/deb-test/root.tar
  while [ $# -gt 0 ]; do
    case "$1" in
      --bin-dir) bin_dir=$2 && shift 2 ;;
      --root) root_tar=$2 && shift 2 ;;
      *) echo "unknown argument: $1" >&2 && exit 2 ;;
    esac
  done
  [ "$(id -u)" -eq 0 ] || { echo "this needs root: it makes a root directory and changes into it" >&2; exit 1; }
  mkdir -p target/deb-test "$(dirname "$root_tar")"
  scripts/deb.sh --profile debug --bin-dir "$bin_dir" --out target/deb-test
  if [ ! -s "$root_tar" ]; then
    if ! command -v mmdebstrap >/dev/null; then
      install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap)
      "${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; }
    fi
    . /etc/os-release
    echo "making a clean Debian $VERSION_CODENAME (some minutes, once)"
    # From where this machine has its own Debian; nobody else's packages.
    sources=$(ls /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/ubuntu.sources \
      2>/dev/null || true)
    make_root() {
      # shellcheck disable=SC2086
      mmdebstrap --quiet --format=tar --variant=minbase --include="$packages" --dpkgopt=force-unsafe-io \
        "$VERSION_CODENAME" "$root_tar.new" $sources
    }
    make_root || make_root # A mirror may be slow to answer, once.
    mv "$root_tar.new" "$root_tar"
  fi
  # Mounts, processes and network of its own: all of them end with this script.
  exec unshare --mount --pid --fork --kill-child --net "$0" inside "$root_tar"
fi

root_tar=$2
work=$(mktemp -d)
root=$work/root view=$work/view
server=''
cleanup() {
  local code=$?
  [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
  umount --lazy --recursive "$view" 2>/dev/null || true
  umount --lazy "$root/proc" 2>/dev/null || true
  rm -rf --one-file-system "$work"
  exit "$code"
}
trap cleanup EXIT

passed=0
ok() { passed=$((passed + 1)); echo "ok   $*"; }
fail() {
  echo "FAIL $*" >&2
  tail -20 "$work/serve.log" >&2 2>/dev/null || true
  exit 1
}
in_root() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 chroot "$root" "$@"; }

python3 - <<'PY' # Loopback up, without needing `ip`.
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14s", b"lo", 0x1 | 0x40, b""))
PY
mkdir "$root" "$view"
tar -xf "$root_tar" -C "$root"
mount -t proc proc "$root/proc"

package=$(ls target/deb-test/ami-kms_*.deb)
cp "$package" "$root/root/ami-kms.deb"
in_root dpkg -i /root/ami-kms.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; fail "dpkg -i"; }
ok "installed in a clean root: $(basename "$package")"
in_root dpkg -i /root/ami-kms.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; fail "dpkg -i again"; }
[ -z "$(in_root dpkg --audit)" ] || fail "dpkg --audit complains"
ok "installed once more: nothing complains"

while read -r path wanted; do
  is=$(in_root stat -c '%a %U %G' "$path") || fail "$path is missing"
  [ "$is" = "$wanted" ] || fail "$path is $is, not $wanted"
done <<'EOF'
/etc/ami 750 root ami_admin
/etc/ami/kms.toml 640 root ami_admin
/etc/ami/profiles 755 root root
/etc/ami/profiles/dlms.toml 644 root root
/etc/ami/tls 750 root ami_admin
/var/lib/ami 750 ami_admin ami_admin
/var/lib/ami/tokens 700 ami_admin ami_admin
/var/log/ami 750 ami_admin ami_admin
/opt/ami/bin/kms-server 755 root root
/opt/ami/bin/sync-keys 755 root root
/usr/lib/systemd/system/ami-kms.service 644 root root
/usr/lib/systemd/system/ami-sync-keys.service 644 root root
/usr/lib/systemd/system/ami-sync-keys.timer 644 root root
/usr/lib/systemd/system/ami-backup.service 644 root root
/usr/lib/systemd/system/ami-backup.timer 644 root root
EOF
conffiles=$(in_root dpkg-query -f '${Conffiles}' -W ami-kms | awk '{ print $1 }')
for file in kms.toml profiles/dlms.toml profiles/dlms-udp.toml profiles/gbcs.toml; do
  grep -qx "/etc/ami/$file" <<<"$conffiles" || fail "$file is no conffile"
done
ok "account, directories, modes, conffile"
for program in kms-server ami-tool sync-keys; do
  in_root sh -c "command -v $program && $program --version" >"$work/path.log" || fail "$program is not on the path"
done
[ -n "$(in_root dpkg-query -f '${Maintainer}' -W ami-kms | grep -vF localhost)" ] || fail "the package has no maintainer"
[ "$(in_root sh -c 'zcat /usr/share/doc/ami-kms/changelog.gz | grep -c "^  \* "')" -ge 1 ] || fail "the changelog is empty"
in_root sh -c 'cd /usr/share/doc/ami-kms && grep -ohE "\]\([^)#]+" ./*.md | sed "s/^..//" | grep -v "^http" | sort -u' |
  while read -r link; do [ -e "$root/usr/share/doc/ami-kms/$link" ] || fail "a link of the documents leads nowhere: $link"; done
ok "all programs on the path; maintainer, changelog and links"

# A block of the handbook. Its text runs as it stands there, but for what this machine lacks.
tried() { # NAME
  local text
  text=$(awk -v mark="<!-- tried: $1 -->" '$0 == mark { found = 1; next }
    found && /^```sh$/ { inside = 1; next } inside && /^```$/ { exit } inside { print }' docs/HANDBOOK.md)
  [ -n "$text" ] || fail "the handbook has no block \"tried: $1\""
  if ! prlimit --memlock=unlimited true 2>/dev/null; then
    # The test's arena is small enough for the limit that there is.
    text=${text//prlimit --memlock=unlimited /}
  fi
  in_root sh -eu -c "$text" >"$work/$1.log" 2>&1 || { cat "$work/$1.log" >&2; fail "the handbook's block \"$1\""; }
}

tried certificates
tried softhsm
set_to() { # SECTION KEY VALUE: in kms.toml, where it stands commented out or not
  sed -i -E "/^\[$1\]/,/^\[/ s|^#?$2 = [^#]*|$3 |" "$root/etc/ami/kms.toml"
  grep -qF "$3" "$root/etc/ami/kms.toml" || fail "kms.toml has no $2 in [$1]"
}
set_to site block_count 'block_count = 64'
set_to import allow_clear 'allow_clear = true'
limit_kib=$(ulimit -H -l)
if [ "$limit_kib" != unlimited ] && [ "$limit_kib" -lt 300000 ] && ! prlimit --memlock=unlimited true 2>/dev/null; then
  set_to keyring arena_mib 'arena_mib = 4'
  echo "     this machine locks $limit_kib KiB at most: keyring.arena_mib = 4 instead of 256"
fi
tried init
ok "init as ami_admin: $(grep -c ' id ' "$work/init.log") keys in the token"
tried probe
! grep -q '^FAIL' "$work/probe.log" || fail "probe-hsm: $(cat "$work/probe.log")"
ok "probe-hsm: $(head -1 "$work/probe.log")"
tried check
[ "$(cat "$work/check.log")" = "nothing is wrong" ] || fail "check-config: $(cat "$work/check.log")"
ok "check-config: nothing is wrong"

# As the unit has it: ProtectSystem=strict, StateDirectory, LogsDirectory, PrivateTmp; as-unit.py does
# the rest.
mount --bind "$root" "$view"
mount -o remount,bind,ro "$view"
for dir in var/lib/ami var/log/ami; do mount --bind "$root/$dir" "$view/$dir"; done
mount -t tmpfs tmpfs "$view/tmp"
mount --rbind "$root/proc" "$view/proc"
unit=("$root/usr/lib/systemd/system/ami-kms.service" "$root/etc/systemd/system/ami-kms.service.d/softhsm.conf")

start() {
  scripts/as-unit.py --root "$view" "${unit[@]}" >>"$work/serve.log" 2>&1 &
  server=$!
  for _ in $(seq 300); do
    grep -q ' serving' "$work/serve.log" && return
    kill -0 "$server" 2>/dev/null || { wait "$server" || fail "the service ended with exit code $?"; fail "the service ended"; }
    sleep 0.1
  done
  fail "the service does not serve"
}
stop() {
  kill -TERM "$server"
  wait "$server" || fail "stopped with exit code $?"
  server=''
  : >"$work/serve.log"
}
start
status=$root/proc/$server/status
is_uid=$(awk '/^Uid:/ { print $2 }' "$status")
[ "$is_uid" = "$(in_root id -u ami_admin)" ] || fail "it runs as $is_uid"
for line in 'CapEff:0000000000000000' 'CapBnd:0000000000000000' 'NoNewPrivs:1' 'Seccomp:2'; do
  [ "$(awk -v key="${line%%:*}:" '$1 == key { print $2 }' "$status")" = "${line#*:}" ] || fail "not so: $line"
done
grep -q '^Max core file size *0 ' "$root/proc/$server/limits" || fail "core dumps are on"
ok "$(grep '^ExecStart=' "${unit[0]}" | cut -d= -f2-): runs as ami_admin under the unit's filters, no capability, no core"

install -m 600 deploy/client.toml "$root/root/client.toml"
sed -i 's|"tls/|"ami-ca/|; s|operator\.|operator.example.org.|' "$root/root/client.toml"
echo '127.0.0.1 localhost kms.example.org' >"$root/etc/hosts"
sed 's|operator\.|hes.|' "$root/root/client.toml" >"$root/root/hes.toml"
tool() { in_root /opt/ami/bin/ami-tool --config "/root/$1.toml" "${@:2}"; }
tool client site status >"$work/status.log" || fail "site status: $(cat "$work/status.log")"
grep -q 'none known' "$work/status.log" || fail "site status: $(cat "$work/status.log")"
ok "ami-tool site status: $(grep '^token' "$work/status.log")"

# README's meter, and its telegram among the published vectors.
cat >"$root/root/meters.jsonl" <<'EOF'
{"meter_id": "LGZ-677370B177", "system_title": "4C475A677370B177", "keys": [{"kind": "GUEK", "security_setup": 0, "value": "5C316162209EBB790B52EB0E7FC5B11C"}, {"kind": "GAK", "security_setup": 0, "value": "92705C5C97286064EABAE38D190F87A4"}]}
EOF
tool client meter import /root/meters.jsonl >"$work/import.log" 2>&1 || fail "import: $(cat "$work/import.log")"
tool client meter get LGZ-677370B177 >/dev/null || fail "the meter that was imported is not there"
tool client meter list >"$work/meters-before.log"
! tool hes meter list >/dev/null 2>&1 || fail "the head-end system may list meters"
read -r apdu plaintext < <(python3 - <<'PY'
import json
vectors = json.load(open("softhsm-tests/vectors/vectors.json"))
one = next(v for v in vectors if v["system_title"].upper() == "4C475A677370B177" and v["verified"] == "tag")
print(one["apdu_hex"].upper(), one["plaintext_hex"].upper())
PY
)
tool hes decrypt --json --apdu "$apdu" >"$work/opened.log" 2>&1 || fail "decrypt: $(cat "$work/opened.log")"
grep -q '"OK"' "$work/opened.log" && grep -qi "$plaintext" "$work/opened.log" || fail "decrypt: $(cat "$work/opened.log")"
tool hes decrypt --json --apdu "${apdu%??}00" >"$work/forged.log" 2>&1 && fail "a forged telegram was opened"
grep -q MIC_FAILURE "$work/forged.log" || fail "a forged telegram: $(cat "$work/forged.log")"
ok "the operator imports a meter, the head-end system opens its telegram, may not list meters, and a forged one is refused"

kill -HUP "$server"
for _ in $(seq 50); do grep -q 'certificates read again' "$work/serve.log" && break; sleep 0.1; done
grep -q 'certificates read again' "$work/serve.log" || fail "SIGHUP does not read certificates"
ok "ExecReload's signal reads the certificates again"

tried backup
grep -q '^drill .* blocks opened' "$work/backup.log" || fail "the backup was not tried: $(cat "$work/backup.log")"
tool client site status >/dev/null || fail "the service does not answer after a backup"
stop
ok "backed up while running; SIGTERM: exit code 0"
tried restore
tried check
[ "$(cat "$work/check.log")" = "nothing is wrong" ] || fail "check-config after restoring: $(cat "$work/check.log")"
start
tool client meter list | cmp -s - "$work/meters-before.log" || fail "the restored site has other meters"
tool hes decrypt --json --apdu "$apdu" | grep -qi "$plaintext" || fail "the restored site does not open the telegram"
stop
ok "restored: check-config is clean and the meters are there"

# A database without its token.
mv "$root/var/lib/ami/tokens" "$root/var/lib/ami/tokens.away"
in_root install -d -o ami_admin -g ami_admin -m 700 /var/lib/ami/tokens
code=0
scripts/as-unit.py --root "$view" "${unit[@]}" >"$work/refused.log" 2>&1 || code=$?
[ "$code" -eq 6 ] && grep -q 'no slot has a token labelled' "$work/refused.log" ||
  fail "without its token it ended with $code: $(cat "$work/refused.log")"
rm -rf "$root/var/lib/ami/tokens" && mv "$root/var/lib/ami/tokens.away" "$root/var/lib/ami/tokens"
ok "without its token it does not start: exit code 6, from which the unit starts again"

in_root dpkg -P ami-kms >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; fail "dpkg -P"; }
[ ! -e "$root/opt/ami/bin/kms-server" ] || fail "purging left the program"
[ -s "$root/var/lib/ami/kms.db" ] && [ -s "$root/etc/ami/pin" ] || fail "purging took keys away"
ok "purged: the programs are gone, database, token and PINs are left"

echo
echo "deb: $passed passed, 0 failed"
