#!/bin/bash
# psql, connected to the stack's database.
set -euo pipefail
. /opt/docferry/package/docferry/aws/host/environment.sh
database
exec psql "$@"
