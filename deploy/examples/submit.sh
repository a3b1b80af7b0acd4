#!/bin/sh
# Submit a check of an object in S3: submit.sh BUCKET KEY CHECK_ID (DNF_REDIS_URL names the broker).
# The arguments must not need escaping in JSON.
set -eu
uuid() { cat /proc/sys/kernel/random/uuid; }

check=$(printf '{"check_id":"%s","bucket":"%s","key":"%s","submitted_at":"%s"}' \
    "$3" "$1" "$2" "$(date -u +%Y-%m-%dT%H:%M:%SZ)")
body=$(printf '[[%s],{},{}]' "$check" | base64 | tr -d '\n')
entry=$(printf '{"body":"%s","content-type":"application/json","content-encoding":"utf-8","headers":{"task":"check_image","id":"%s"},"properties":{"delivery_tag":"%s","body_encoding":"base64"}}' \
    "$body" "$(uuid)" "$(uuid)")
redis-cli -u "$DNF_REDIS_URL" LPUSH image-checks "$entry" > /dev/null
printf '%s\n' "$3"
