"""Questions about a scene, answered word by word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor
from torch.nn import functional as F

from turbovlm_lab.lessons.base import HINT, SEEDS, Attended, EncodedScenes, Lesson, tokens_to_attend
from turbovlm_lab.questions import SceneQuestion, ask


class VqaLesson(Lesson):
    """Answers, word by word."""

    images, per_image = 16, 8
    texts = images * per_image

    def loss(self, encoded: EncodedScenes, rng: RandomState) -> Tensor:
        """The loss of one step."""
        chosen = rng.permutation(len(encoded.objects))[: self.images]
        asked: list[SceneQuestion] = []
        for place in chosen:
            pool = [q for _ in range(2) for q in ask(encoded.objects[place], rng.randint(SEEDS))]
            asked += [pool[i] for i in rng.permutation(len(pool))[: self.per_image]]
        # generate() lets the decoder read the padding of questions, where forward() masks it
        logits, labels, missed = self._answer(encoded, chosen, asked, masked=bool(rng.randint(2)))
        right = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=0)
        return right + HINT * missed

    def scores(self, encoded: EncodedScenes) -> dict[str, float]:
        """Share of right answers: of all, and by the topic of the question."""
        right: dict[str, list[float]] = {}
        for place, objects in enumerate(encoded.objects):
            asked = ask(objects, place)
            logits, labels, _ = self._answer(encoded, np.array([place]), asked, masked=False)
            # Greedy words are all right if each is the likeliest one after those before it.
            same = ((logits.argmax(-1) == labels) | (labels == 0)).all(1)
            for question, good in zip(asked, same.tolist(), strict=True):
                right.setdefault(question.topic, []).append(good)
        flat = [good for values in right.values() for good in values]
        means = {topic: float(np.mean(values)) for topic, values in sorted(right.items())}
        return {"right": float(np.mean(flat)), **means}

    def _answer(
        self,
        encoded: EncodedScenes,
        chosen: np.ndarray,
        asked: Sequence[SceneQuestion],
        masked: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, L, V) of the words of the answers, those words (B, L), and how they attended.

        The questions are as many for each of the scenes chosen, and in their order.
        """
        ids, mask = self.tokens([q.text for q in asked])
        words, _ = self.tokens([q.answer for q in asked])
        index = torch.arange(len(chosen)).repeat_interleave(len(asked) // len(chosen))
        attended = Attended(
            index, tokens_to_attend(encoded, chosen[index], [q.about for q in asked])[:, None]
        )
        read, missed = self.read(ids, mask, encoded.states[chosen].float(), attended)
        logits = self.model.text_decoder(
            words[:, :-1],
            encoder_hidden_states=read,
            encoder_attention_mask=mask if masked else torch.ones_like(mask),
        ).logits
        return logits, words[:, 1:], missed
