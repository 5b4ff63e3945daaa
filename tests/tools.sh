#!/usr/bin/env bash
# The public tools that tests use: to restore a store without Muster, to make certificates, to ask MinIO, to test alert
# rules and the unit of the service. Installs what is missing where it can.
set -euo pipefail
missing=()
for tool in zstd jq sqlite3 python3 openssl curl; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
command -v systemd-analyze >/dev/null || missing+=(systemd)
command -v promtool >/dev/null || missing+=(promtool)
[ ${#missing[@]} -eq 0 ] && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    for package in "${missing[@]}"; do
        [ "$package" = promtool ] || apt-get install -y -qq "$package"
    done
    # promtool is part of a package that would start a Prometheus as well: it is taken out of it.
    if [[ " ${missing[*]} " == *" promtool "* ]]; then
        dir=$(mktemp -d)
        trap 'rm -rf "$dir"' EXIT
        chmod 755 "$dir"
        (cd "$dir" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb .)
        install "$dir/usr/bin/promtool" /usr/local/bin/promtool
    fi
    exit 0
fi
echo "missing: ${missing[*]}. Install them (Debian: apt-get install ${missing[*]/promtool/prometheus}) and run again." >&2
exit 1
