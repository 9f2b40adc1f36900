"""What libpq says when no connection comes about for a reason that trying again does not mend: messages without a
SQLSTATE, about credentials and TLS."""

from __future__ import annotations

from typing import Final

__all__ = ["remedy_for"]

_CREDENTIALS: Final = "Check user and password in [source] dsn, and pg_hba.conf."
_CA: Final = (
    "The server's certificate was not signed by a CA in sslrootcert of [source]. Point sslrootcert at the right CA "
    "(on RDS and Aurora: the bundle https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem)."
)
_NAME: Final = (
    "sslmode=verify-full wants the name that the certificate was made for as host of the source; with hostaddr=... "
    "beside it, the connection still goes to that address."
)
_ROOT: Final = (
    "Point sslrootcert of [source] at the CA's certificate, or set sslrootcert=system for the CAs of this machine."
)
_NO_TLS: Final = "Set ssl = on at the server, or sslmode=disable in [source] where the network is trusted."
_CLIENT: Final = "Check sslcert and sslkey in [source] dsn; only its owner may be able to read the key (mode 0600)."
_BINDING: Final = (
    "channel_binding=require needs TLS and a password that the server keeps as scram-sha-256. See to both, or leave "
    "channel_binding out of [source] dsn."
)
_TLS_ONLY: Final = (
    "Where the server wants TLS, set sslmode=require, better verify-full, in [source]; otherwise see pg_hba.conf."
)
_IAM: Final = (
    "The token of IAM was refused: GRANT rds_iam TO the user, allow rds-db:connect for it in the IAM policy, switch on "
    "IAM authentication of the instance (for replication: rds.iam_auth_for_replication = 1), and check the region."
)

# The first that fits decides.
_REMEDIES: Final = {
    "certificate verify failed": _CA,
    "does not match host name": _NAME,
    "root certificate file": _ROOT,
    "server does not support SSL": _NO_TLS,
    "requires a valid client certificate": _CLIENT,
    "certificate authentication failed": "The client certificate's common name must be the user in [source] dsn.",
    "private key file": _CLIENT,
    "could not read certificate file": _CLIENT,
    "certificate present, but not private key": _CLIENT,
    "alert unknown ca": "The server does not know the CA of the client certificate: see its ssl_ca_file.",
    "channel binding": _BINDING,
    "no encryption": _TLS_ONLY,
    "no pg_hba.conf entry": _CREDENTIALS,
    "PAM authentication failed": _IAM,
    "password": _CREDENTIALS,
    "authentication failed": _CREDENTIALS,
}


def remedy_for(message: str) -> str | None:
    """What to do about a message with which the connection was refused for good; None for any other."""
    return next((remedy for part, remedy in _REMEDIES.items() if part in message), None)
