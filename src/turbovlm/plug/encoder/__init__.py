"""How merging enters an encoder: each block in two halves, with the merge between them."""
