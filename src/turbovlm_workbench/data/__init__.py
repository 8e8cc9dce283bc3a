"""Readers of data sets in the layouts that they are published in, and of plain JSON lines.

A reader checks a whole file before anything is run, finds the image files and opens none of them.
Every error is an `InputError` that names the file, the line or record, the field and the fix.
"""

from turbovlm_workbench.data.captions import read_captions
from turbovlm_workbench.data.classes import read_classification
from turbovlm_workbench.data.examples import Captioned, Labelled, Pair, Question
from turbovlm_workbench.data.pairs import read_pairs
from turbovlm_workbench.data.questions import read_questions

__all__ = [
    "Captioned",
    "Labelled",
    "Pair",
    "Question",
    "read_captions",
    "read_classification",
    "read_pairs",
    "read_questions",
]
