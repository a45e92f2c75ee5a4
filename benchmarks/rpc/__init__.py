"""How fast calls are, beside a bare gRPC echo and beside peers: `python -m benchmarks.rpc`."""
