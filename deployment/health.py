"""`python -m deployment.health HOST:PORT`: exit status 0 if gRPC health is SERVING."""

import sys

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

TIMEOUT = 3.0
"""Seconds to wait for an answer."""


def is_serving(address: str) -> bool:
    """Whether the health service at HOST:PORT answers SERVING."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=TIMEOUT)
        except grpc.RpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if is_serving(sys.argv[1]) else 1)
