"""Where settings and state are found: the settings file, the home folder, the token keys."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from optimizer.errors import InvalidSettings
from optimizer.settings import DEFAULT_FILE, SETTINGS_VARIABLE, Settings, load_settings

__all__ = ["Home", "find_settings"]

_PACKAGED = Path(__file__).with_name("llmopt.yaml")
_KEY_BYTES = 32
_SHORT = Path("/tmp")  # noqa: S108  (the path of a socket may have 107 characters in all)


def find_settings() -> tuple[Settings, Path]:
    """The settings, and the absolute path of the file they came from.

    It is the file that ``LLMOPT_SETTINGS`` names, else ``llmopt.yaml`` here, else the packaged one.

    Raises
    ------
    InvalidSettings
        Naming the file, the key and the value that is refused.
    """
    named = os.environ.get(SETTINGS_VARIABLE)
    here = Path(DEFAULT_FILE)
    file = Path(named) if named else here if here.is_file() else _PACKAGED
    return load_settings(file), file.absolute()


class Home:
    """The folder of all state, and what lies where in it.

    Parameters
    ----------
    folder
        ``settings.home``; made absolute, since children may work elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.logs = self.folder / "logs"
        self.postgres = self.folder / "postgres"
        self.valkey = self.folder / "valkey"
        self.prefect = self.folder / "prefect-home"
        self.artifacts = self.folder / "mlflow-artifacts"
        self.up_log = self.logs / "up.log"
        self.picture = self.folder / "demo.png"
        whose = f"{os.getuid()} {self.folder}".encode()
        self.temporary = _SHORT / f"llmopt-{hashlib.blake2b(whose, digest_size=3).hexdigest()}"
        """For files that live as long as the processes; nobody else's platform shares it."""

    def make(self) -> None:
        """Make the folders that are missing."""
        for folder in (self.logs, self.prefect, self.artifacts):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InvalidSettings(
                    f"home={str(self.folder)!r}: cannot be written ({error.strerror}); name a "
                    "folder of your own in LLMOPT_HOME"
                ) from error
        self.temporary.mkdir(mode=0o700, exist_ok=True)
        if self.temporary.stat().st_uid != os.getuid():
            raise InvalidSettings(f"{self.temporary} belongs to another user; have it removed")

    def token_keys(self) -> list[str]:
        """The keys that sign decisions, newest first; one is made at the first start.

        One key a line, in hexadecimal, in a file that only its owner can read.
        """
        file = self.folder / "token_keys"
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            keys = file.read_text().split()
            if not keys:
                raise InvalidSettings(f"{file} is empty: put a key back or remove it") from None
            return keys
        with os.fdopen(descriptor, "w") as new:
            key = secrets.token_hex(_KEY_BYTES)
            new.write(key + "\n")
        return [key]
