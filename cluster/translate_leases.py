"""Leases of external steps as protobuf messages, and back."""

from __future__ import annotations

from laban.cluster import records
from laban.cluster.translate import seconds, timestamp
from laban.cluster.translate_sessions import duration, duration_s
from laban.cluster.translate_values import struct_from_python, struct_to_python
from laban.proto import laban_pb2 as pb


def lease_to_pb(lease: records.Lease) -> pb.Lease:
    return pb.Lease(
        lease_id=lease.lease_id,
        workflow_id=lease.workflow_id,
        address=lease.address,
        tool=lease.tool,
        attempt=lease.attempt,
        args=struct_from_python(lease.args),
        messages=[
            pb.LeaseMessage(key=message.key, role=message.role, name=message.name, text=message.text)
            for message in lease.messages
        ],
        description=lease.description,
        duration=duration(lease.duration_s),
        expires_at=timestamp(lease.expires_at),
        output_schema=None if lease.output_schema is None else struct_from_python(lease.output_schema),
    )


def lease_from_pb(lease: pb.Lease) -> records.Lease:
    return records.Lease(
        lease_id=lease.lease_id,
        workflow_id=lease.workflow_id,
        address=lease.address,
        tool=lease.tool,
        attempt=lease.attempt,
        args=struct_to_python(lease.args),
        messages=tuple(
            records.LeaseMessage(message.key, message.role, message.name, message.text) for message in lease.messages
        ),
        description=lease.description,
        duration_s=duration_s(lease.duration),
        expires_at=seconds(lease.expires_at),
        output_schema=struct_to_python(lease.output_schema) if lease.HasField("output_schema") else None,
    )
