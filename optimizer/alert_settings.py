"""Settings of alerts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

__all__ = ["AlertSettings"]


class AlertSettings(BaseModel):
    """Where people are told."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    webhook_url: SecretStr | None = Field(
        None,
        description="incoming webhook that takes Slack's JSON; nobody is told if left out. It is a "
        "secret: better in LLMOPT_ALERTS__WEBHOOK_URL than in the file",
    )
    timeout_s: float = Field(5.0, gt=0, le=60, description="longest wait for one answer")
    attempts: int = Field(3, ge=1, le=10, description="tries before an alert is given up")

    @field_validator("webhook_url")
    @classmethod
    def _is_http(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("webhook_url must begin with http:// or https:// (it is not shown)")
        return url
