#!/bin/bash
# Makes a fresh Amazon Linux 2023 the host of the stack: psql, docferry with its load generator, pgAdmin behind TLS; then it
# makes the database ready. Run once, as root, by the instance's user data, which has put the package into /opt/docferry.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

dnf install -y --quiet postgresql17 python3.13 python3.13-pip python3.13-devel gcc krb5-devel nginx openssl

# So that TLS to Aurora can be checked against Amazon's own authorities.
curl --silent --show-error --fail --output /opt/docferry/rds.pem \
    https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem

bash "$here/install.sh"
bash "$here/pgadmin.sh"
docferry-bootstrap
