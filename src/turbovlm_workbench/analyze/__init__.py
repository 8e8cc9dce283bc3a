"""What the blocks of a model make of their tokens: informativity, block by block."""
