"""The wire: statuses, tensors of messages, deadlines, servers, channels and stubs. Knows gRPC; nothing of torch."""
