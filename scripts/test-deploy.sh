#!/usr/bin/env bash
# Checks deploy/: the unit's exposure, account and directories, firewall, kernel settings, PostgreSQL.
# Changes nothing on this machine. Run as root; installs systemd and nftables where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

exposure_max=2.0
work=$(mktemp -d)
postmasters=()
cleanup() {
  local data
  for data in "${postmasters[@]}"; do
    as_postgres "$pg/pg_ctl" stop --silent --mode=immediate --pgdata="$data" || true
  done
  rm -rf "$work"
}
trap cleanup EXIT

passed=0
ok() { passed=$((passed + 1)); echo "ok   $*"; }
fail() { echo "FAIL $*" >&2; exit 1; }

install_missing() {
  local missing=()
  command -v systemd-analyze >/dev/null || missing+=(systemd)
  command -v nft >/dev/null || missing+=(nftables)
  [ ${#missing[@]} -eq 0 ] && return
  echo "installing: ${missing[*]}"
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}")
  "${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; }
}
install_missing

# The unit alone, then with each drop-in: systemd-analyze looks for UNIT.d beside the file.
check_exposure() { # NAME [DROP-IN [UNIT]]
  local dir="$work/$1" unit=${3:-ami-kms} exposure
  mkdir -p "$dir/$unit.service.d"
  cp "deploy/systemd/$unit.service" "$dir"
  [ -z "${2:-}" ] || cp "$2" "$dir/$unit.service.d"
  exposure=$(systemd-analyze security --offline=true --no-pager "$dir/$unit.service" |
    sed -nE "s/.*Overall exposure level for $unit.service: ([0-9.]+).*/\1/p")
  [ -n "$exposure" ] || fail "systemd-analyze said nothing of the exposure ($1)"
  awk -v is="$exposure" -v most="$exposure_max" 'BEGIN { exit !(is <= most) }' ||
    fail "exposure of the unit, $1: $exposure, more than $exposure_max"
  ok "exposure of the unit, $1: $exposure (at most $exposure_max)"
}
check_exposure "alone"
check_exposure "with softhsm.conf" deploy/systemd/drop-ins/softhsm.conf
check_exposure "with hsm-device.conf" deploy/systemd/drop-ins/hsm-device.conf
check_exposure "of sync-keys" "" ami-sync-keys
check_exposure "of backups" "" ami-backup

# Unknown settings, paths that do not exist: a root with what the package puts there.
root="$work/root"
mkdir -p "$root"/{opt/ami/bin,etc/systemd/system,bin,usr/lib/systemd/system}
cp deploy/systemd/ami-kms.service deploy/systemd/ami-sync-keys.* deploy/systemd/ami-backup.* "$root/etc/systemd/system"
printf '#!/bin/sh\n' | tee "$root/bin/kill" "$root/opt/ami/bin/sync-keys" >"$root/opt/ami/bin/kms-server"
chmod 755 "$root"/opt/ami/bin/{kms-server,sync-keys} "$root/bin/kill"
cp -r /usr/lib/systemd/system/*.target /usr/lib/systemd/system/*.slice "$root/usr/lib/systemd/system" 2>/dev/null || true
said=$(systemd-analyze verify --root="$root" --man=no --recursive-errors=no ami-kms.service 2>&1 || true)
said=$(grep -i 'ami-kms' <<<"$said" || true)
[ -z "$said" ] || fail "systemd-analyze verify: $said"
ok "the unit has no setting that systemd does not know"
said=$(systemd-analyze verify --root="$root" --man=no --recursive-errors=no ami-sync-keys.service ami-sync-keys.timer 2>&1 || true)
said=$(grep -i 'ami-sync' <<<"$said" || true)
[ -z "$said" ] || fail "systemd-analyze verify: $said"
ok "nor have the unit and the timer of sync-keys"
said=$(systemd-analyze verify --root="$root" --man=no --recursive-errors=no ami-backup.service ami-backup.timer 2>&1 || true)
said=$(grep -i 'ami-backup' <<<"$said" || true)
[ -z "$said" ] || fail "systemd-analyze verify: $said"
ok "nor have those of backups"

mkdir -p "$root"/{etc,usr/lib/{sysusers.d,tmpfiles.d}}
cp deploy/sysusers.d/ami-kms.conf "$root/usr/lib/sysusers.d"
cp deploy/tmpfiles.d/ami-kms.conf "$root/usr/lib/tmpfiles.d"
systemd-sysusers --root="$root" ami-kms.conf 2>/dev/null
grep -q '^ami_admin:x:[0-9]*:[0-9]*:Key management for smart meters:/var/lib/ami:/usr/sbin/nologin$' \
  "$root/etc/passwd" || fail "sysusers did not make ami_admin: $(cat "$root/etc/passwd")"
ok "sysusers makes ami_admin"
systemd-tmpfiles --root="$root" --create ami-kms.conf
uid=$(awk -F: '$1 == "ami_admin" { print $3 }' "$root/etc/passwd")
gid=$(awk -F: '$1 == "ami_admin" { print $3 }' "$root/etc/group")
while read -r path mode owner group; do
  is=$(stat -c '%a %u %g' "$root$path")
  [ "$is" = "$mode $owner $group" ] || fail "$path is $is, not $mode $owner $group"
done <<EOF
/etc/ami 750 0 $gid
/etc/ami/tls 750 0 $gid
/var/lib/ami 750 $uid $gid
/var/lib/ami/tokens 700 $uid $gid
/var/log/ami 750 $uid $gid
EOF
ok "tmpfiles makes the directories with owners and modes"

# A network of its own, where the rules can be loaded without harm; twice, as a reload does.
unshare --net sh -ec 'nft -f "$1"; nft -f "$1"; nft list chain inet ami_kms input | grep -q 7443' \
  - deploy/nftables/ami-kms.nft || fail "the firewall rules do not load"
ok "the firewall rules load, and load again"

while read -r key; do
  [ -e "/proc/sys/${key//.//}" ] || echo "     this kernel has no $key"
done < <(sed -nE 's/^([a-z0-9_.]+) *=.*/\1/p' deploy/sysctl.d/60-ami-kms.conf)
keys=$(grep -cE '^[a-z0-9_.]+ = [0-9]+$' deploy/sysctl.d/60-ami-kms.conf)
lines=$(grep -cE '^[^#]' deploy/sysctl.d/60-ami-kms.conf)
[ "$keys" -eq "$lines" ] || fail "sysctl: a line that is no setting"
ok "sysctl: $keys settings"

# PostgreSQL: where its programs are installed, a primary and a standby with exactly these files.
pg=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups --inh-caps=-all -- "$@"; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

certificates() { # A CA; the server; the two clients.
  local tls="$work/tls" name
  mkdir -p "$tls"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=test CA" \
    -keyout "$tls/ca.key" -out "$tls/clients.pem" 2>/dev/null
  cp "$tls/clients.pem" "$tls/servers.pem"
  for name in server ami_replica ami_admin; do
    local cn=$name
    [ "$name" != server ] || cn=localhost
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$cn" \
      -keyout "$tls/$name.key" -out "$tls/$name.csr" 2>/dev/null
    openssl x509 -req -in "$tls/$name.csr" -CA "$tls/clients.pem" -CAkey "$tls/ca.key" -days 2 \
      -extfile <(echo "subjectAltName=DNS:$cn") -out "$tls/$name.pem" 2>/dev/null
  done
  cp "$tls/ami_replica.pem" "$tls/replica.pem"
  cp "$tls/ami_replica.key" "$tls/replica.key"
  chmod 600 "$tls"/*.key
}

# The settings as they are in deploy/, but for paths, port, addresses and memory.
settings() { # DATA PORT ROLE PRIMARY_PORT
  local data=$1 port=$2 role=$3 primary=$4
  cat deploy/postgresql/common.conf "deploy/postgresql/$role.conf" |
    sed -E "s#/etc/postgresql/tls#$work/tls#g; s#^port = .*#port = $port#; s#db1.example.org port=5432#localhost port=$primary#
      s#^listen_addresses = .*#listen_addresses = 'localhost'#; s#^shared_buffers = .*#shared_buffers = 32MB#" \
      >"$data/postgresql.conf"
  echo "unix_socket_directories = '$work'" >>"$data/postgresql.conf"
  sed 's#203.0.113.0/28 #all            #' deploy/postgresql/pg_hba.conf >"$data/pg_hba.conf"
}

if [ -z "$pg" ]; then
  echo "     PostgreSQL is not installed: its settings were not tried"
else
  certificates
  chmod 755 "$work"
  chown -R postgres "$work/tls"
  install -d -o postgres -m 700 "$work/primary"
  setfacl -m u:postgres:rwx "$work" 2>/dev/null || chown postgres "$work"
  one=$(free_port)
  two=$(free_port)
  as_postgres "$pg/initdb" --pgdata="$work/primary" --data-checksums --encoding=UTF8 --locale=C.UTF-8 \
    --auth-host=scram-sha-256 --auth-local=peer >/dev/null
  settings "$work/primary" "$one" primary "$one"
  postmasters+=("$work/primary")
  as_postgres "$pg/pg_ctl" start --silent --wait --pgdata="$work/primary" --log="$work/primary/log" ||
    { cat "$work/primary/log" >&2; fail "PostgreSQL does not start with common.conf and primary.conf"; }
  ask() { as_postgres psql --no-psqlrc -qAt -v ON_ERROR_STOP=1 -h "$work" -p "$1" -d postgres "${@:2}"; }
  ask "$one" -f deploy/postgresql/roles.sql
  [ "$(ask "$one" -c 'SHOW data_checksums')" = on ] || fail "no data checksums"
  [ "$(ask "$one" -c 'SHOW synchronous_commit')" = on ] || fail "synchronous_commit is off"
  as_postgres "$pg/pg_basebackup" --pgdata="$work/standby" --wal-method=stream --checkpoint=fast --create-slot \
    --slot=standby_a --dbname="host=localhost port=$one user=ami_replica sslmode=verify-full sslrootcert=$work/tls/servers.pem sslcert=$work/tls/replica.pem sslkey=$work/tls/replica.key"
  settings "$work/standby" "$two" standby "$one"
  touch "$work/standby/standby.signal"
  postmasters+=("$work/standby")
  as_postgres "$pg/pg_ctl" start --silent --wait --pgdata="$work/standby" --log="$work/standby/log" ||
    { cat "$work/standby/log" >&2; fail "the standby does not start"; }
  ask "$one" -c 'CREATE TABLE said AS SELECT 42 AS what'
  for _ in $(seq 100); do
    [ "$(ask "$two" -c 'SELECT what FROM said' 2>/dev/null)" != 42 ] || break
    sleep 0.1
  done
  [ "$(ask "$two" -c 'SELECT what, pg_is_in_recovery() FROM said')" = "42|t" ] || fail "the standby does not follow"
  ok "PostgreSQL $("$pg/postgres" --version | grep -oE '[0-9.]+' | head -1): the standby follows the primary over TLS"
  said=$(psql -w "host=localhost port=$one user=ami_admin dbname=ami_kms sslmode=disable" -c '' 2>&1) &&
    fail "PostgreSQL lets ami_admin in without TLS"
  grep -q 'pg_hba.conf rejects connection' <<<"$said" || fail "without TLS PostgreSQL says: $said"
  ask "$one" -c "ALTER ROLE ami_admin PASSWORD 'for this test only'"
  as_postgres env HOME=/nonexistent PGPASSWORD='for this test only' psql -qAt -c 'SELECT 1' \
    "host=localhost port=$one user=ami_admin dbname=ami_kms sslmode=verify-full sslrootcert=$work/tls/servers.pem" >/dev/null ||
    fail "a node with its password, as kms-server comes, is turned away"
  ok "PostgreSQL lets a node in with TLS and password, and nobody without TLS"
  ask "$two" -c 'SELECT pg_promote()' >/dev/null
  ask "$two" -c 'INSERT INTO said VALUES (43)' || fail "the promoted standby does not write"
  ok "PostgreSQL: the standby can be promoted"
fi

echo
echo "deploy: $passed passed, 0 failed"
