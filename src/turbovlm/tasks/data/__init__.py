"""Readers of data sets in the layouts that they are published in, and of plain JSON lines.

A reader checks a whole file before anything is run, finds the image files and opens none of them.
Every error is an `InputError` that names the file, the line or record, the field and the fix.
"""

from turbovlm.tasks.data.captions import read_captions
from turbovlm.tasks.data.classes import read_classification
from turbovlm.tasks.data.examples import Captioned, Labelled, Pair, Question
from turbovlm.tasks.data.pairs import read_pairs
from turbovlm.tasks.data.questions import read_questions

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
