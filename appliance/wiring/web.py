"""DICOMweb servers that we send to."""

from urllib.parse import urlsplit

from appliance.config import StowDestination
from appliance.destinations.stow import StowNode
from appliance.destinations.stow_wire import WebTarget
from appliance.dimse.tls import ClientTls


def stow_node(options: StowDestination, congestion: str) -> StowNode:
    return StowNode(
        WebTarget(
            url=options.url,
            timeout_s=options.timeout_s,
            congestion=congestion,
            security=_security(options),
            token=options.token.file if options.token is not None else None,
        )
    )


def _security(options: StowDestination) -> ClientTls | None:
    tls = options.tls
    if tls is None:
        return None
    return ClientTls(
        ca=tls.ca.file,
        server_name=tls.server_name or urlsplit(options.url).hostname or "",
        certificate=tls.certificate.file if tls.certificate is not None else None,
        key=tls.key.file if tls.key is not None else None,
        minimum_version=tls.minimum_version,
    )
