"""One face for each task about images and text, whichever model stands behind it."""

from turbovlm.tasks.vlm.answer import Answerer
from turbovlm.tasks.vlm.judge import Judge
from turbovlm.tasks.vlm.load import load_answerer, load_judge, load_matcher
from turbovlm.tasks.vlm.match import Matcher

__all__ = ["Answerer", "Judge", "Matcher", "load_answerer", "load_judge", "load_matcher"]
