#!/usr/bin/env bash
# The public tools that tests use: to restore a store without Muster, to make certificates, to ask MinIO. Installs what
# is missing where it can.
set -euo pipefail
missing=()
for tool in zstd jq sqlite3 python3 openssl curl; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && apt-get install -y -qq "${missing[@]}"
    exit 0
fi
echo "missing: ${missing[*]}. Install them (Debian: apt-get install ${missing[*]}) and run again." >&2
exit 1
