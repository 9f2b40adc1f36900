# Read by the scripts beside it: the stack's names, and the database's address and credentials for libpq.
set -a
. /etc/docferry/environment
set +a

# secret NAME FIELD: one field of a JSON secret.
secret() {
    aws secretsmanager get-secret-value --secret-id "$1" --query SecretString --output text |
        python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$2"
}

database() {
    PGHOST=$(secret "$DATABASE_SECRET" host)
    PGPORT=$(secret "$DATABASE_SECRET" port)
    PGUSER=$(secret "$DATABASE_SECRET" username)
    PGPASSWORD=$(secret "$DATABASE_SECRET" password)
    PGDATABASE=$(secret "$DATABASE_SECRET" dbname)
    PGSSLMODE=verify-full
    PGSSLROOTCERT=/opt/docferry/rds.pem
    export PGHOST PGPORT PGUSER PGPASSWORD PGDATABASE PGSSLMODE PGSSLROOTCERT
}
