#!/bin/bash
# Makes the database ready, and can be run again at any time, as after a new mirror: the present package and docferry.toml,
# the extension, the owner of the trigger functions, the first table where it is wanted, `docferry apply`, whose options it
# takes. Run as root.
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
    # What follows is the new package's business.
    exec bash "$scripts/bootstrap.sh" "$@" >&3
fi

aws ssm get-parameter --name "$CONFIG_PARAMETER" --query Parameter.Value --output text > /etc/docferry/docferry.toml
# setting NAME...: one setting of it.
setting() {
    python3.13 -c 'import functools, sys, tomllib
print(functools.reduce(dict.__getitem__, sys.argv[1:], tomllib.load(sys.stdin.buffer)))' "$@" < /etc/docferry/docferry.toml
}
owner=$(setting source triggers owner)
capture=$(setting source capture)

database
run() {
    psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 "$@"
}
run --file "$scripts/bootstrap.sql"
run --set owner="$owner" --set capture="$capture" --file "$scripts/owner.sql"
if [ "$FIRST_ROWS" = true ]; then
    run --file "$scripts/orders.sql"
fi

docferry apply "$@" >&3
