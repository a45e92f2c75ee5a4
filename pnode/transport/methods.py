"""The methods of the wire, read from the descriptors: their paths, their messages, and the interface behind each."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

VNODES: ServiceDescriptor = vnode_pb2.DESCRIPTOR.services_by_name["VNodes"]
PNODE: ServiceDescriptor = node_pb2.DESCRIPTOR.services_by_name["PNode"]
ORCHESTRATOR: ServiceDescriptor = orchestrator_pb2.DESCRIPTOR.services_by_name["Orchestrator"]
DOOR: ServiceDescriptor = orchestrator_pb2.DESCRIPTOR.services_by_name["Door"]
RUNS: ServiceDescriptor = orchestrator_pb2.DESCRIPTOR.services_by_name["Runs"]

# The name of a method in pieces ends so.
IN_PIECES = "Stream"


@dataclass(frozen=True)
class Method:
    """One unary method of a service. `attribute` is its name in the interface: ReportFailure -> report_failure."""

    path: str
    attribute: str
    request: type[Message]
    reply: type[Message]

    @cached_property
    def service(self) -> str:
        """The full name of its service."""
        return self.path.split("/")[1]

    @cached_property
    def name(self) -> str:
        """Its own name, as the .proto has it."""
        return self.path.split("/")[2]


def methods_of(service: ServiceDescriptor) -> tuple[Method, ...]:
    """Every unary method of a service, in the order of its .proto."""
    return tuple(
        Method(
            path=f"/{service.full_name}/{method.name}",
            attribute=re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower(),
            request=GetMessageClass(method.input_type),
            reply=GetMessageClass(method.output_type),
        )
        for method in service.methods
        if not method.client_streaming
    )


def twins_of(service: ServiceDescriptor) -> tuple[Method, ...]:
    """Of the methods whose messages may come in pieces, what they are in pieces: the same under another path."""
    names = {method.name for method in service.methods}
    return tuple(
        replace(method, path=method.path + IN_PIECES)
        for method in methods_of(service)
        if method.path.rpartition("/")[2] + IN_PIECES in names
    )
