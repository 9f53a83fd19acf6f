"""What groups of keys have in common, and the groups that stand in more than one place."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from appliance.config import sources, values

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=1, le=65_535)]
PduLength = Annotated[int, Field(ge=4_096, le=1_048_576)]


class Options(BaseModel):
    """A group of keys. A known key without a value counts as left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _nothing_means_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}


MinimumVersion = Literal["TLSv1.2", "TLSv1.3"]


class OutboundTls(Options):
    """TLS of associations that we ask for: towards a destination, or a device that takes reports."""

    ca: sources.FileOrCredential = Field(description="PEM file of who certifies the other side, or credential:NAME")
    certificate: sources.FileOrCredential | None = Field(
        default=None, description="PEM file of the certificate we show it, or credential:NAME"
    )
    key: sources.FileOrCredential | None = Field(
        default=None, description="PEM file of its private key, or credential:NAME"
    )
    server_name: values.Host | None = Field(
        default=None, description="DNS name or IP address in the other side's certificate; null is the one we call"
    )
    minimum_version: MinimumVersion = Field(default="TLSv1.2", description="oldest TLS we speak to it")
