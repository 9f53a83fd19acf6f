"""A server that runs an engine of this box where it can."""

from pydantic import Field

from appliance.config import sources, values
from appliance.config.groups import Options


class RemoteTls(Options):
    """TLS towards such a server. gRPC speaks nothing older than TLS 1.2."""

    ca: sources.FileOrCredential = Field(description="PEM file of who certifies the server, or credential:NAME")
    certificate: sources.FileOrCredential | None = Field(
        default=None, description="PEM file of the certificate we show it, or credential:NAME"
    )
    key: sources.FileOrCredential | None = Field(
        default=None, description="PEM file of its private key, or credential:NAME"
    )
    server_name: values.Host | None = Field(
        default=None, description="DNS name or IP address in the server's certificate; null is the one we call"
    )


class Remote(Options):
    """A Triton server, or whoever else speaks KServe v2 over gRPC (extra kserve)."""

    url: values.PlainHostPort = Field(description="host and port of its gRPC, as HOST:PORT")
    model: str = Field(
        min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the model there"
    )
    tls: RemoteTls | None = Field(default=None, description="group: TLS towards it; null is plain")
    share: float = Field(
        default=0.5, gt=0, le=0.9, description="share of a study's time after which this box takes over"
    )
    connect_s: float = Field(default=3.0, gt=0, le=60, description="seconds to wait for an answer on its health")
    max_message_mb: int = Field(default=512, ge=1, le=2_000, description="megabytes of the longest message either way")
