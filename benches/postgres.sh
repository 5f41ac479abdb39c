#!/usr/bin/env bash
# A PostgreSQL for `sites --postgres DIRECTORY`: makes one in DIRECTORY, as the account `postgres`, and leaves it running.
#   benches/postgres.sh DIRECTORY          benches/postgres.sh DIRECTORY stop
set -euo pipefail
dir=$1
binaries=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
as_postgres() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi }
if [ "${2:-}" = stop ]; then
    as_postgres "$binaries/pg_ctl" stop --silent --mode fast --pgdata "$dir/data"
    exit
fi
mkdir -p "$dir"
if [ "$(id -u)" = 0 ]; then chown postgres "$dir"; fi
chmod 755 "$dir"
as_postgres "$binaries/initdb" --auth=trust --encoding=UTF8 --locale=C.UTF-8 --username boss --pgdata "$dir/data" >/dev/null
# Durable commits, as the service demands; the rest as a site of a million meters would have it.
cat >>"$dir/data/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '$dir'
shared_buffers = '1GB'
max_wal_size = '4GB'
END
as_postgres "$binaries/pg_ctl" start --silent --wait --pgdata "$dir/data" --log "$dir/log"
sql() { psql --quiet --no-psqlrc --host "$dir" --username boss --dbname postgres --command "$1"; }
sql "CREATE ROLE ami LOGIN"
for database in ami_a ami_b ami_copy; do sql "CREATE DATABASE $database OWNER ami"; done
echo "$dir"
