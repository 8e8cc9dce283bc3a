"""Metrics of the evaluated tasks: pure functions over plain data, none of them knows a model."""
