"""Connection strings without their secrets, for messages and logs."""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["has_stray_separator", "hide_secrets", "looks_like_dsn", "safe_dsn", "without_password"]

_HIDDEN = "***"
_SECRETS = ("password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret")
_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_PAIR = re.compile(
    rf"(?P<name>(?<!\w)(?:{'|'.join(_SECRETS)})\s*=\s*)(?:'(?:[^'\\]|\\.)*'?|(?:[^\s\\]|\\.)*)\\?",
    re.IGNORECASE | re.DOTALL,
)
_CREDENTIALS = re.compile(r"(?P<user>[a-z][a-z0-9+.-]*://[^\s:/@]*:)\S*(?=@)", re.IGNORECASE)
# A token of IAM or a presigned URL.
_SIGNED = re.compile(r"(?P<name>X-Amz-(?:Credential|Security-Token|Signature)=)[^&\s'\"]+", re.IGNORECASE)
_KEYWORD = re.compile(r"\s*\w+\s*=")


def looks_like_dsn(text: str) -> bool:
    """Whether `text` has one of libpq's two forms. It may still be refused by libpq."""
    return text.startswith(("postgresql://", "postgres://")) or _KEYWORD.match(text) is not None


def has_stray_separator(dsn: str) -> bool:
    """Whether a URI has an @ or a / in its credentials that nobody encoded. libpq would take the tail of the password
    for the host or the port, and say so in its message."""
    uri = _URI.fullmatch(dsn.strip())
    if uri is None:
        return False
    credentials, _, _ = uri["rest"].partition("?")[0].rpartition("@")
    return "@" in credentials or "/" in credentials


def safe_dsn(dsn: str) -> str:
    """`dsn` with every password replaced by ***. Where the form is broken it hides too much rather than too little."""
    uri = _URI.fullmatch(dsn.strip())
    if uri is None:
        return _PAIR.sub(rf"\g<name>{_HIDDEN}", dsn)
    # The last @, not the first: a password with an @ or a / in it that nobody encoded must not show its tail.
    credentials, at, place = uri["rest"].rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        credentials = user + (f":{_HIDDEN}" if colon else "")
    place, question, query = place.partition("?")
    parameters = "&".join(_safe_parameter(parameter) for parameter in query.split("&"))
    return uri["scheme"] + credentials + at + place + question + parameters


def hide_secrets(text: str) -> str:
    """`text` of any kind, such as a driver's message, with the passwords of the connection strings in it hidden."""
    text = _SIGNED.sub(rf"\g<name>{_HIDDEN}", text)
    return _PAIR.sub(rf"\g<name>{_HIDDEN}", _CREDENTIALS.sub(rf"\g<user>{_HIDDEN}", text))


def without_password(dsn: str) -> str:
    """`dsn` as it may be written to a file: the same connection, secrets left out."""
    uri = _URI.fullmatch(dsn.strip())
    if uri is None:
        return _PAIR.sub("", dsn).strip()
    credentials, at, place = uri["rest"].rpartition("@")
    place, question, query = place.partition("?")
    parameters = [parameter for parameter in query.split("&") if _safe_parameter(parameter) == parameter]
    kept = "&".join(parameters)
    return uri["scheme"] + credentials.partition(":")[0] + at + place + (question if kept else "") + kept


def _safe_parameter(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    return f"{name}={_HIDDEN}" if equals and unquote(name).strip().lower() in _SECRETS else parameter
