"""One face for each task about images and text, whichever model stands behind it."""

from turbovlm_workbench.load.vlm.answer import Answerer
from turbovlm_workbench.load.vlm.judge import Judge
from turbovlm_workbench.load.vlm.load import load_answerer, load_judge, load_matcher
from turbovlm_workbench.load.vlm.match import Matcher

__all__ = ["Answerer", "Judge", "Matcher", "load_answerer", "load_judge", "load_matcher"]
