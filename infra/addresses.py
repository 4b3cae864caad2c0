"""URLs as programs need them and as people may see them."""

from __future__ import annotations

from urllib.parse import urlsplit

__all__ = ["http_url", "with_driver", "without_password"]


def http_url(host: str, port: int) -> str:
    """Where an HTTP server on that address answers.

    Examples
    --------
    >>> http_url("::1", 80)
    'http://[::1]:80'
    """
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def with_driver(url: str, driver: str) -> str:
    """A PostgreSQL URL as SQLAlchemy reads it.

    Examples
    --------
    >>> with_driver("postgresql://me@db/prefect", "asyncpg")
    'postgresql+asyncpg://me@db/prefect'
    """
    return f"postgresql+{driver}://{url.partition('://')[2]}"


def without_password(url: str) -> str:
    """The URL for people and state files.

    Examples
    --------
    >>> without_password("redis://:secret@cache:6379/0")
    'redis://:***@cache:6379/0'
    """
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}").geturl()
