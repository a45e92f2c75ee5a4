"""Who is who: identity keys, the network's authority, certificates and call tokens. Knows nothing of gRPC."""
