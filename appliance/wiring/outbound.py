"""What is common to all associations that we ask for."""

from appliance.config import Config, DimseDestination, OutboundTls
from appliance.dimse.wire import Security, Target


def target(config: Config, options: DimseDestination) -> Target:
    """Where a destination is called, as whom, and how patiently."""
    return Target(
        host=str(options.host),
        port=options.port,
        calling_ae=options.calling_ae or config.ae_title,
        called_ae=options.called_ae,
        timeout_s=options.timeout_s,
        max_pdu=options.max_pdu,
        security=security(options.tls, str(options.host)),
    )


def security(tls: OutboundTls | None, name: str) -> Security | None:
    """TLS as configured, towards a node whose certificate has this name unless the configuration knows another."""
    if tls is None:
        return None
    from appliance.dimse.tls import ClientTls  # noqa: PLC0415 - OpenSSL takes 6 MB, and most sites have no TLS

    return ClientTls(
        ca=tls.ca.file,
        server_name=tls.server_name or name,
        certificate=tls.certificate.file if tls.certificate is not None else None,
        key=tls.key.file if tls.key is not None else None,
        minimum_version=tls.minimum_version,
    )
