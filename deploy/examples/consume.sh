#!/bin/sh
# Consume events as a member of a group: consume.sh GROUP COUNT (DNF_REDIS_URL names the broker).
set -eu
redis() { redis-cli -u "$DNF_REDIS_URL" "$@"; }

redis XGROUP CREATE verdicts "$1" 0 MKSTREAM > /dev/null 2>&1 || true # it may exist already
left=$2
while [ "$left" -gt 0 ]; do
    # A raw reply has one value per line: stream, entry id, "event", JSON.
    reply=$(redis --raw XREADGROUP GROUP "$1" "$(uname -n)" COUNT 1 BLOCK 5000 STREAMS verdicts '>' |
        tr -d '\000' | LC_ALL=C sed -n '2p;4p')
    [ -n "$reply" ] || continue
    printf '%s\n' "$reply" | sed -n 2p
    redis XACK verdicts "$1" "$(printf '%s\n' "$reply" | sed -n 1p)" > /dev/null
    left=$((left - 1))
done
