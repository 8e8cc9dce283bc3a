"""How merging enters a model and leaves it again: half blocks, attention mode, apply and remove."""
