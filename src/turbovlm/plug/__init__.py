"""How merging enters a model and leaves it again: half blocks, attention tap, apply and remove."""
