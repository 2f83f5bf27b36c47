"""Contracts and I/O that every floor shares: records, storage, identity, manifests, config, Ray."""
