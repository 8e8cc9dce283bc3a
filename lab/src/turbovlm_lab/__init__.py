"""The lab: procedural scenes and small models trained on them from scratch.

They are the models that the library carries with it, so that every command works without a
download. ``scenes`` draws, ``grammar`` writes and scores captions, ``captioner`` builds and loads
the captioner, ``train`` trains it and ``evaluate`` measures it.

``kinds``, ``questions`` and ``pairs`` ask about scenes. ``heads`` builds and loads what answers,
matches and judges with the captioner's vision encoder, ``lessons`` and ``train_heads`` train it,
and ``export`` writes all of it as standard files.

``lettering`` prints words into scenes. ``vlm`` builds and loads the vision-language model that
reads them; ``train_vlm`` trains it, its encoder by ``seeing``, its language model by ``telling``
and ``reading``.
"""
