"""Why nobody answers at an address, for people."""

from __future__ import annotations

import re

NOT_TRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([^:]+)")
OTHER_NAME = re.compile(r"(?i)hostname verification|not in peer certificate")


def why_unreachable(address: str, details: str) -> str:
    """What to do, by what gRPC says of the connection.

    >>> why_unreachable("h:1", "SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired: OK")
    'the certificate of h:1 is not trusted: certificate has expired; LABAN_TLS_CA names a file of authorities that are'
    """
    if (found := NOT_TRUSTED.search(details)) is not None:
        why = f"the certificate of {address} is not trusted: {found[1].strip()}"
        return f"{why}; LABAN_TLS_CA names a file of authorities that are"
    if OTHER_NAME.search(details):
        return f"the certificate of {address} is for another name: give --address by a name that it is for"
    if "WRONG_VERSION_NUMBER" in details:
        return f"what answers at {address} speaks no TLS: leave out LABAN_TLS and LABAN_TLS_CA, or give another address"
    if "Failed parsing HTTP/2" in details:
        from laban.cluster.cli.arguments import DEFAULT_ADDRESS

        return (
            f"what answers at {address} speaks no gRPC: it may be the port of OpenAI's API or of the metrics; "
            f"`laban serve` says where it serves gRPC, {DEFAULT_ADDRESS} by default"
        )
    return (
        f"no Laban answers at {address}; start one with `laban serve`, or give --address or LABAN_ADDRESS, and for one "
        "with TLS LABAN_TLS=1 or LABAN_TLS_CA"
    )
