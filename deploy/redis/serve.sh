#!/bin/sh
# Start the broker with the users of users.acl and an append-only file: what it confirms is on the disk
# (docs/explanation/reliability.md says what other values of appendfsync lose). The users' passwords are in
# PRODUCER_PASSWORD, WORKER_PASSWORD, CONSUMER_PASSWORD, RELAY_PASSWORD, WEB_PASSWORD, EXPORTER_PASSWORD and OPERATOR_PASSWORD; REDIS_MAXMEMORY limits the memory, beyond
# which writes are refused; REDIS_DIR is the folder of the data. Further arguments go to the server.
set -eu
umask 077
generated=${TMPDIR:-/tmp}
: > "$generated/users.sed"
for role in PRODUCER WORKER CONSUMER RELAY WEB EXPORTER OPERATOR; do
    eval "password=\${${role}_PASSWORD:?choose a password}"
    hash=$(printf %s "$password" | sha256sum | cut -c-64)
    echo "s/#${role}_PASSWORD_SHA256/#$hash/" >> "$generated/users.sed"
done
sed -f "$generated/users.sed" "$(dirname "$0")/users.acl" > "$generated/users.acl"
exec valkey-server --aclfile "$generated/users.acl" --dir "${REDIS_DIR:-/data}" \
    --appendonly yes --appendfsync always --save '' \
    --maxmemory "${REDIS_MAXMEMORY:?}" --maxmemory-policy noeviction "$@"
