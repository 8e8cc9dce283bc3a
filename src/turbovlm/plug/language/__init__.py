"""Fewer visual tokens at the entry of a language model."""
