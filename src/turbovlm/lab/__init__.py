"""The lab: procedural scenes and a small BLIP captioner trained on them from scratch.

It is the model that the library carries with it, so that every command works without a
download. ``scenes`` draws, ``grammar`` writes and scores captions, ``captioner`` builds and loads
the model, ``train`` trains it and ``evaluate`` measures it.
"""
