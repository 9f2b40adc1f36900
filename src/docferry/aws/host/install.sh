#!/bin/bash
# Installs docferry and the host's commands from the package in /opt/docferry/package. Run as root, again for each package.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
package=$(cd "$here/../../.." && pwd)

# docferry itself comes from the package; what it needs is fetched for this machine, in the package's versions.
python3.13 -m venv /opt/docferry/venv
/opt/docferry/venv/bin/pip install --quiet --requirement "$package/docferry-requirements.txt"
site=$(/opt/docferry/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$site/docferry"
cp -r "$package/docferry" "$site"

install -m 755 "$here/docferry.sh" /usr/local/bin/docferry
install -m 755 "$here/psql.sh" /usr/local/bin/docferry-psql
install -m 755 "$here/bootstrap.sh" /usr/local/bin/docferry-bootstrap
sha256sum /opt/docferry/package.zip > /opt/docferry/installed
