"""Architectures of the paper that no host library ships, with converters of their checkpoints."""
