#!/bin/bash
# Makes the database ready, and can be run again at any time, as after a new mirror: the present package, the extension, the
# first table where it is wanted, the present docferry.toml, `docferry apply`, whose options it takes. Run as root.
set -euo pipefail
# The answer of `apply` is all that goes to standard output: whoever runs this may read it as JSON.
exec 3>&1 1>&2
scripts=/opt/docferry/package/docferry/aws/host
. "$scripts/environment.sh"

location=$(aws ssm get-parameter --name "$PACKAGE_PARAMETER" --query Parameter.Value --output text)
aws s3 cp --quiet "$location" /opt/docferry/package.zip
if ! sha256sum --check --status /opt/docferry/installed; then
    rm -rf /opt/docferry/package
    python3 -m zipfile -e /opt/docferry/package.zip /opt/docferry/package
    bash "$scripts/install.sh"
fi

database
psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --file "$scripts/bootstrap.sql"
if [ "$FIRST_ROWS" = true ]; then
    psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --file "$scripts/orders.sql"
fi

aws ssm get-parameter --name "$CONFIG_PARAMETER" --query Parameter.Value --output text > /etc/docferry/docferry.toml
docferry apply "$@" >&3
