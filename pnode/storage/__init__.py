"""Blob stores behind one interface, content-addressed blobs, and run manifests, whose commit is a compare-and-set."""
