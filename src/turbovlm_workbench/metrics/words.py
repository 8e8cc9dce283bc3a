"""Captions as words, the way COCO's evaluation splits them, without its Java program.

BLEU and CIDEr count words, so a number can only be compared with published ones if captions are
split as COCO's evaluation splits them: Penn Treebank tokens in lower case without punctuation.
There a Java program does it, ``java_tokenizer``; the rules below were written by watching what it
returns. On the 35,000 captions of Flickr8k's train and development splits the two differ once.
NLTK's Treebank tokenizer does not serve: it leaves the period of every sentence but the last.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence

from turbovlm.errors import ConfigError, require

# abbreviations that keep their period; initials such as u.s. do so by rule
_SHORT = (
    "mr|mrs|ms|dr|jr|sr|st|mt|ft|ave|blvd|rd|sq|bldg|dept|vs|etc|inc|co|corp|ltd|bros|univ|"
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|"
    "gen|sen|rep|gov|lt|col|sgt|capt|cpl|maj|prof|rev|hon|pres|est|calif|conn|fla|ariz|va|md"
)
_TOKEN = re.compile(
    rf"""
      (?<!\w)[-+]?\.?\d++(?:[.,:]\d++)++(?!-\w)                    # 1,000  5.5  3:30
    | (?<!\w)(?:[-+]\.?|\.)\d+(?!\w)                               # -5  .5
    | (?<!\w)[^\W\d_](?:\.[^\W\d_])*\.(?!\w)                       # u.s.  c.
    | (?<!\w)(?:{_SHORT}|ph\.d|no(?=\.\s*\d))\.(?!\w)              # mr.  no. 5
    | n't(?!\w) | '(?:s|m|d|ll|re|ve)(?!\w)                        # do n't, man 's
    | '(?:n'|(?:n|em|cause|\d0s)(?!\w)|t(?=(?:is|was)\b))          # 'n' 'em '50s 't is
    | (?<!\w)(?:can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:gim|lem)(?=me\b)|y'(?=all\b))
    | \w+?(?=n't(?!\w))                                            # the do of don't
    | \w+(?:[-./@]\w+|(?<=\d)[,:]\d+|'(?!(?:s|m|d|ll|re|ve|n)(?!\w))[^\W\d_]+)*
    | [#@][^\W\d]\w* | [?!]+ | \.+ | -+ | \S
    """,
    re.VERBOSE,
)
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "..."})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# removed: one mark, or a run of periods or hyphens. COCO's own list names brackets in upper case
# only, so that "-lrb-" stays in its captions, and so do runs such as "!!"
_REMOVED = re.compile(r"""['"`.,:;?!-]|\.+|-+""")

Tokenizer = Callable[[Sequence[str]], list[list[str]]]


def tokenize(caption: str) -> list[str]:
    """Words of a caption, in lower case and without punctuation; a caption "" has none."""
    tokens: list[str] = _TOKEN.findall(caption.translate(_PLAIN).lower())
    return [_BRACKETS.get(token, token) for token in tokens if not _REMOVED.fullmatch(token)]


def plain_tokenizer(captions: Sequence[str]) -> list[list[str]]:
    """``tokenize`` of every caption."""
    return [tokenize(caption) for caption in captions]


def java_tokenizer() -> Tokenizer:
    """COCO's own tokenizer; starting it takes about a second, whatever the number of captions.

    Raises:
        MissingExtra: if pycocoevalcap, which carries the program, is not installed.
        ConfigError: if Java, which runs it, is not installed.
    """
    module = require("pycocoevalcap.tokenizer.ptbtokenizer", "eval")
    if shutil.which("java") is None:
        raise ConfigError(
            "COCO's tokenizer is a Java program and there is no java on PATH: install a Java "
            "runtime, or use turbovlm's own tokenizer (it gives the same words but for rare cases)"
        )

    def run(captions: Sequence[str]) -> list[list[str]]:
        # lines come back by position, so every caption must be exactly one
        lines = {i: [{"caption": " ".join(c.split())}] for i, c in enumerate(captions)}
        words = module.PTBTokenizer().tokenize(lines)
        return [words[i][0].split() for i in range(len(captions))]

    return run
