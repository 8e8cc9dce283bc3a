"""The studies: the paper's ablations (section 4.2 and the supplementary), and others that it leaves
open.

The paper's numbers are BLIP's: captioning on COCO, images a second on an RTX 3090.
"""

from __future__ import annotations

from turbovlm.errors import ConfigError
from turbovlm_workbench.studies.arm import BASE, Arm, Study

CAPTIONS = ("B@4", "CIDEr", "images/s")
METHODS = {"turbo": "S1, alpha 6", "redundancy": "R alone", "semantics": "A alone"}
"""By what the paper calls them."""
STEPS = tuple(number / 30 for number in (10, 20, 30, 40, 50, 60))
"""Drop ratios as multiples of the paper's 30."""
QUARTER = 0.75  # removed, where 25 % of the tokens are left

# supplementary Table 1: S4 by beta and gamma, B@4 and CIDEr
_S4 = {
    0.9: ((38.2, 129.5), (38.3, 129.5), (38.1, 129.5), (38.2, 129.5), (38.1, 129.7),
          (38.0, 129.2), (38.0, 129.5), (38.4, 130.2), (38.2, 129.9), (38.2, 129.7)),
    1.1: ((38.3, 130.0), (38.3, 130.3), (38.4, 130.1), (38.3, 129.9), (38.5, 129.9),
          (38.1, 129.3), (38.2, 129.6), (38.5, 130.3), (38.2, 129.8), (38.2, 129.6)),
}  # fmt: skip
_S3 = ((37.8, 128.5), (37.9, 128.4), (36.9, 125.7), (36.1, 123.1))
# supplementary Table 2: drop ratio and threshold of 577 tokens
_THRESHOLD = (
    (65, 0, (28.8, 95.5, 107.6)),
    (65, 70, (31.1, 104.3, 103.3)),
    (65, 130, (34.2, 115.3, 100.8)),
    (70, 0, (27.3, 89.4, 113.0)),
    (70, 70, (31.0, 103.7, 110.7)),
)

COMPONENTS = Study(
    "components",
    "which part does what",
    (
        Arm("A1, random pairs", {"method": "random"}, published=(34.5, 112.8, 73.6)),
        Arm("A2, redundancy R", {"method": "redundancy"}, published=(35.5, 120.9, 67.9)),
        Arm("A3, semantics A", {"method": "semantics"}, published=(36.4, 123.8, 70.3)),
        Arm("A4, S1: R - 6 A", {"alpha": 6.0}, published=(38.2, 130.0, 67.6)),
        Arm("A5, S2: R / A", {"fusion": "S2"}, published=(38.2, 129.9, 62.8)),
        Arm("ours: R - A, weight fitted", paper=False),
    ),
    source="Table 8",
    columns=CAPTIONS,
)
FUSION = Study(
    "fusion",
    "how R and A are joined",
    (
        Arm("S1, alpha 6", {"alpha": 6.0}, published=(38.2, 130.0, 67.6)),
        Arm("S2", {"fusion": "S2"}, published=(38.2, 129.9, 62.8)),
        *(
            Arm(f"S3, alpha {alpha}", {"fusion": "S3", "alpha": float(alpha)},
                published=(*scores, 61.9))
            for alpha, scores in enumerate(_S3, start=1)
        ),
        *(
            Arm(f"S4, alpha 6, beta {beta}, gamma {gamma}",
                {"fusion": "S4", "alpha": 6.0, "beta": beta, "gamma": gamma},
                published=(*scores, 67.4))
            for beta, rows in _S4.items()
            for gamma, scores in enumerate(rows, start=1)
        ),
    ),
    source="supplementary Table 1",
    columns=CAPTIONS,
)  # fmt: skip
RATIO = Study(
    "ratio",
    "drop ratio",
    tuple(
        Arm(f"{line}, {step:.2f} of the base", {"method": method}, share=BASE * step, x=step,
            line=line)
        for method, line in METHODS.items()
        for step in STEPS
    ),
    source="Fig. 4",
    axis="drop ratio, 1 is the paper's 30 of 576",
)  # fmt: skip
ALPHA = Study(
    "alpha",
    "weight of the semantic value",
    tuple(
        Arm(f"alpha {alpha}", {"alpha": float(alpha)}, x=alpha, line="S1") for alpha in range(1, 21)
    ),
    source="Fig. 5",
    axis="alpha",
)
THRESHOLD = Study(
    "threshold",
    "a floor under the number of tokens",
    tuple(
        Arm(f"r as {r} of 576, floor as {floor} of 577", share=12 * r / 576, floor=floor / 577,
            published=published)
        for r, floor, published in _THRESHOLD
    ),
    source="supplementary Table 2",
    columns=CAPTIONS,
)  # fmt: skip
LEFT = Study(
    "quarter",
    "25 % of the tokens left",
    (
        Arm("random pairs", {"method": "random"}, share=QUARTER),
        *(Arm(line, {"method": method}, share=QUARTER) for method, line in METHODS.items()),
        Arm("ours: weight fitted", share=QUARTER, paper=False),
    ),
    source="section 3.1 says that a quarter nearly restores the whole, without a number",
)
FIVE = Study(
    "five-percent",
    "the largest speed-up within a drop of 5 %",
    tuple(
        Arm(f"{line}, {step:.1f} of the base", options, share=BASE * step, paper=paper, x=step,
            line=line)
        for line, options, paper in (
            ("ours", {}, False),
            ("S1, alpha 6", {"alpha": 6.0}, True),
            ("R alone", {"method": "redundancy"}, True),
            ("A alone", {"method": "semantics"}, True),
        )
        for step in (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
    ),
    axis="drop ratio, 1 is the paper's 30 of 576",
    within=0.05,
)  # fmt: skip
METRIC = Study(
    "metric",
    "similarity of keys or of queries",
    (
        Arm("key", {"metric": "key"}),
        Arm("query", {"metric": "query"}),
        Arm("key, R alone", {"metric": "key", "method": "redundancy"}),
        Arm("query, R alone", {"metric": "query", "method": "redundancy"}),
    ),
    source="supplementary 1.1 names both, without a number",
)
START = Study(
    "start",
    "which block merges first, the same number of tokens left",
    tuple(
        Arm(f"the first {share:.0%} of the blocks do not merge" if share else "all blocks merge",
            start=share, paper=False, x=share, line="ours")
        for share in (0.0, 0.25, 0.5)
    ),
    axis="share of the blocks before the first merge",
)  # fmt: skip
SCHEDULES = Study(
    "schedules",
    "more tokens early, or late, the same number in all",
    tuple(
        Arm(f"inflection {shape:+g}", {"inflection": shape}, paper=False, x=shape, line="ours")
        for shape in (-1.0, -0.5, 0.0, 0.5, 1.0)
    ),
    axis="inflection: -1 merges early, 1 late",
)

STUDIES = {
    study.name: study
    for study in (
        COMPONENTS, FUSION, RATIO, ALPHA, THRESHOLD, LEFT, FIVE, METRIC, START, SCHEDULES,
    )
}  # fmt: skip


def find_studies(names: list[str] | None) -> list[Study]:
    """The studies of these names, each once; all of them for None.

    Raises:
        ConfigError: for a name that there is not.
    """
    if names is None:
        return list(STUDIES.values())
    for name in names:
        if name not in STUDIES:
            raise ConfigError(f"no study {name!r}: there are {', '.join(STUDIES)}")
    return [STUDIES[name] for name in dict.fromkeys(names)]
