#!/bin/bash
# docferry with the stack's configuration, for everybody who may read /etc/docferry.
set -euo pipefail
set -a
. /etc/docferry/environment
set +a
export PGSSLMODE=verify-full PGSSLROOTCERT=/opt/docferry/rds.pem
export DOCFERRY_CONFIG="${DOCFERRY_CONFIG:-/etc/docferry/docferry.toml}"
exec /opt/docferry/venv/bin/python -m docferry "$@"
