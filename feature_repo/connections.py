"""From the platform's two URLs to the configuration that Feast wants."""

from __future__ import annotations

import getpass
import json

import psycopg
from feast import RepoConfig
from redis.connection import SSLConnection, parse_url
from sqlalchemy.engine import URL

from feature_repo.definitions import STATISTICS_TTL_S
from feature_repo.tables import SCHEMA
from optimizer.errors import InvalidSettings

__all__ = ["PROJECT", "SCHEMA", "offline_store", "online_store", "registry_url", "repo_config"]

PROJECT = "llmopt"

_VALKEY_OPTIONS = {
    "socket_timeout": 2,
    "socket_connect_timeout": 2,
    "retry": None,  # or an answer that Valkey is away takes ten seconds
}
_POSTGRES_PORT = "5432"
_OFFLINE_KEYS = {
    "sslmode": "sslmode",
    "sslkey": "sslkey_path",
    "sslcert": "sslcert_path",
    "sslrootcert": "sslrootcert_path",
}


def repo_config(postgres_url: str, valkey_url: str) -> RepoConfig:
    """What `feature_store.yaml` says for the default ports, for any servers.

    Raises
    ------
    InvalidSettings
        If a URL can't be read, or names something that Feast can't use.
    """
    return RepoConfig(
        project=PROJECT,
        provider="local",
        registry={
            "registry_type": "sql",
            "path": registry_url(postgres_url),
            "cache_ttl_seconds": 0,  # for ever: decisions must not wait for PostgreSQL
        },
        online_store=online_store(valkey_url),
        offline_store=offline_store(postgres_url),
        entity_key_serialization_version=3,
    )


def registry_url(postgres_url: str) -> str:
    """SQLAlchemy's URL of the registry: only `SCHEMA` is searched, nothing of the user's."""
    parts = _postgres_parts(postgres_url)
    own_options = f"{parts.pop('options', '')} -csearch_path={SCHEMA}".strip()
    url = URL.create(
        "postgresql+psycopg",
        username=parts.pop("user", None),
        password=parts.pop("password", None),
        host=parts.pop("host", None),
        port=int(parts.pop("port", _POSTGRES_PORT)),
        database=parts.pop("dbname", None),
        query={"connect_timeout": "5", **parts, "options": own_options},
    )
    return url.render_as_string(hide_password=False)


def offline_store(postgres_url: str) -> dict[str, object]:
    """Feast's offline store on that database."""
    parts = _postgres_parts(postgres_url)
    user = parts.get("user") or getpass.getuser()
    return {
        "type": "feature_repo.offline_store.AsOfPostgreSQLOfflineStore",
        "host": parts.get("host", ""),
        "port": int(parts.get("port", _POSTGRES_PORT)),
        "database": parts.get("dbname") or user,
        "db_schema": SCHEMA,
        "user": user,
        "password": parts.get("password", ""),
        "sslmode": "prefer",
        **{ours: parts[name] for name, ours in _OFFLINE_KEYS.items() if name in parts},
    }


def online_store(valkey_url: str) -> dict[str, object]:
    """Feast's online store on that server.

    Raises
    ------
    InvalidSettings
        If the URL can't be read, or its host is a bare IPv6 address.

    Examples
    --------
    >>> text = online_store("rediss://:secret@cache:6380/1")["connection_string"]
    >>> text.split(",")[0], text.split(",")[-3:]
    ('cache:6380', ['password="secret"', 'db=1', 'ssl=true'])
    """
    try:
        options = dict(parse_url(valkey_url))  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise InvalidSettings(f"valkey_url can't be read: {error}") from None
    host = str(options.pop("host", "localhost"))
    if ":" in host:
        raise InvalidSettings(
            f"valkey_url has the host {host!r}; Feast needs a name or IPv4 address"
        )
    if "path" in options:
        options["unix_socket_path"] = options.pop("path")
    if issubclass(options.pop("connection_class", object), SSLConnection):
        options["ssl"] = True
    port = options.pop("port", 6379)
    options = {**_VALKEY_OPTIONS, **options}
    # Feast splits at commas and reads each value as JSON, where a comma can be written in hex.
    given = [
        f"{name}={json.dumps(value)}".replace(",", "\\u002c") for name, value in options.items()
    ]
    return {
        "type": "redis",
        "connection_string": ",".join([f"{host}:{port}", *given]),
        "key_ttl_seconds": STATISTICS_TTL_S,
    }


def _postgres_parts(postgres_url: str) -> dict[str, str]:
    try:
        found = psycopg.conninfo.conninfo_to_dict(postgres_url)
    except psycopg.ProgrammingError as error:
        raise InvalidSettings(f"postgres_url can't be read: {error}") from None
    parts = {name: str(value) for name, value in found.items()}
    port = parts.get("port", _POSTGRES_PORT)
    if not port.isdecimal():
        raise InvalidSettings(f"postgres_url has the port {port!r}; Feast needs one number")
    return parts
