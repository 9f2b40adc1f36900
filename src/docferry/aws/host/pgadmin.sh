#!/bin/bash
# pgAdmin on this machine's loopback, nginx with TLS in front of it. Run once, as root.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

useradd --system --create-home --home-dir /var/lib/pgadmin --shell /sbin/nologin pgadmin
python3.13 -m venv /opt/pgadmin
/opt/pgadmin/bin/pip install --quiet pgadmin4 gunicorn
pgadmin=$(/opt/pgadmin/bin/python -c 'import importlib.util; print(importlib.util.find_spec("pgadmin4").submodule_search_locations[0])')
cat > "$pgadmin/config_local.py" <<'END'
SERVER_MODE = True
DATA_DIR = "/var/lib/pgadmin/data"
LOG_FILE = "/var/lib/pgadmin/pgadmin.log"
PROXY_X_FOR_COUNT = PROXY_X_PROTO_COUNT = PROXY_X_HOST_COUNT = 1
SESSION_COOKIE_SECURE = True
END
chmod 750 /var/lib/pgadmin
password=$(aws secretsmanager get-secret-value --secret-id "$PGADMIN_SECRET" --query SecretString --output text)
runuser -u pgadmin -- env PGADMIN_SETUP_EMAIL="$PGADMIN_EMAIL" PGADMIN_SETUP_PASSWORD="$password" \
    /opt/pgadmin/bin/python "$pgadmin/setup.py" setup-db

# The server is there when somebody logs in; its password is not: pgAdmin asks for it.
database
cat > /var/lib/pgadmin/servers.json <<END
{"Servers": {"1": {"Name": "Aurora", "Group": "Servers", "Host": "$PGHOST", "Port": $PGPORT, "MaintenanceDB": "$PGDATABASE",
  "Username": "$PGUSER", "ConnectionParameters": {"sslmode": "verify-full", "sslrootcert": "/opt/docferry/rds.pem"}}}}
END
chown pgadmin /var/lib/pgadmin/servers.json
runuser -u pgadmin -- /opt/pgadmin/bin/python "$pgadmin/setup.py" load-servers /var/lib/pgadmin/servers.json \
    --user "$PGADMIN_EMAIL"

cat > /etc/systemd/system/pgadmin.service <<END
[Unit]
Description=pgAdmin
After=network-online.target
[Service]
User=pgadmin
# One process: sessions of the query tool live in it.
ExecStart=/opt/pgadmin/bin/gunicorn --bind 127.0.0.1:5050 --workers 1 --threads 25 --chdir $pgadmin pgAdmin4:app
Restart=always
[Install]
WantedBy=multi-user.target
END

mkdir -p /etc/nginx/tls
openssl req -x509 -newkey rsa:3072 -noenc -days 825 -subj "/CN=docferry host" \
    -keyout /etc/nginx/tls/key.pem -out /etc/nginx/tls/certificate.pem 2>/dev/null
chmod 600 /etc/nginx/tls/key.pem
cat > /etc/nginx/conf.d/pgadmin.conf <<'END'
server {
    listen 443 ssl;
    ssl_certificate /etc/nginx/tls/certificate.pem;
    ssl_certificate_key /etc/nginx/tls/key.pem;
    ssl_protocols TLSv1.2 TLSv1.3;
    add_header Strict-Transport-Security "max-age=31536000" always;
    location / {
        proxy_pass http://127.0.0.1:5050;
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto https;
        proxy_set_header X-Forwarded-Host $host;
        proxy_read_timeout 300;
    }
}
END
systemctl daemon-reload
systemctl enable --now pgadmin nginx
