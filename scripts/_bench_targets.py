"""What the figures of the detection bench should reach, and whether they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Figures = Mapping[str, float]

RULES = ("amount", "ratio", "robust_z")


@dataclass(frozen=True)
class Target:
    """One figure and what it should be.

    Attributes
    ----------
    what : str
        For a person.
    found, wanted : float
        The figure, and its bound.
    most : bool
        Is the bound the most that it may be, rather than the least.
    above : bool
        Must the figure be above the bound: as much is not enough.
    """

    what: str
    found: float
    wanted: float
    most: bool = False
    above: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side."""
        if self.above:
            return self.found > self.wanted
        return self.found <= self.wanted if self.most else self.found >= self.wanted

    def row(self) -> list[object]:
        """Cells of a table."""
        verdict = "met" if self.met else f"missed by {abs(self.found - self.wanted):.3g}"
        how = "above" if self.above else "at most" if self.most else "at least"
        return [self.what, f"{how} {self.wanted:.4g}", f"{self.found:.4g}", verdict]


def kinds(figures: Figures) -> list[str]:
    """Kinds of fraud that were planted."""
    start = "simulator.ours.recall."
    found = (name.removeprefix(start) for name in figures if name.startswith(start))
    return sorted(name for name in found if "." not in name and name != "macro")


def best_rule(figures: Figures, measure: str) -> float | None:
    """The best of the rules on simulated payments."""
    found = [figures[name] for rule in RULES if (name := f"simulator.{rule}.{measure}") in figures]
    return max(found, default=None)


def simulator(figures: Figures) -> list[Target]:
    """Every kind above every rule, and the mean well above."""
    found = []
    for kind in kinds(figures):
        rule = best_rule(figures, f"recall.{kind}")
        if rule is not None:
            found.append(
                Target(f"recall of {kind}: the best rule's", figures[f"simulator.ours.recall.{kind}"], rule, above=True)
            )
    macro, rule = figures.get("simulator.ours.recall.macro"), best_rule(figures, "recall.macro")
    if macro is not None and rule is not None:
        found.append(Target("mean recall: 1.5 times the best rule's", macro, 1.5 * rule))
    return found


def promises(figures: Figures) -> list[Target]:
    """False alerts and cases a day."""
    found = [
        Target(
            f"false share among the alerts at q = {q}: q and a standard error",
            figures[f"fdr.{q}"],
            float(q) + figures[f"fdr.{q}.se"],
            most=True,
        )
        for q in ("0.05", "0.1", "0.2")
        if f"fdr.{q}" in figures
    ]
    if "budget.mean" in figures:
        away = abs(figures["budget.mean"] - 1)
        found.append(Target("cases a day: away from the budget", away, 0.1, most=True))
    return found


def contamination(figures: Figures) -> list[Target]:
    """What is left at 2 % of fraud."""
    return _least(figures, [("contamination.ratio_2_to_0", 0.85, "AP with 2 % fraud in the history over AP with none")])


def rates(figures: Figures) -> list[Target]:
    """Each share inside its interval."""
    found = []
    for way, told in (("", "calibrated once"), ("monthly.", "calibrated anew each month")):
        for level in ("0.01", "0.001", "0.0001"):
            name = f"rates.{way}{level}"
            if name in figures:
                share, low, high = figures[name], figures[f"{name}.low"], figures[f"{name}.high"]
                above = share > float(level)
                end = "upper" if above else "lower"
                what = f"share of p <= {level}, {told}: the {end} end of the interval"
                found.append(Target(what, share, high if above else low, most=above))
    return found


def handbook(figures: Figures) -> list[Target]:
    """On the Handbook's payments."""
    return _least(
        figures,
        [
            ("handbook.ours.ap", 0.335, "average precision over all frauds"),
            ("handbook.ours.s1.auc", 0.9995, "AUC of scenario 1"),
            ("handbook.ours.s3.ap", 0.90, "average precision of scenario 3"),
            ("handbook.ours.s3.auc", 0.985, "AUC of scenario 3"),
        ],
    )


def nab(figures: Figures) -> list[Target]:
    """Above the rule, and above TSB-AD's autoencoder."""
    found = []
    for key, told, published in (("vus_pr", "VUS-PR", 0.328), ("auc_pr", "AUC-PR", 0.340)):
        mine, rule = figures.get(f"nab.ours.{key}"), figures.get(f"nab.distance_from_median.{key}")
        if mine is not None and rule is not None:
            found.append(Target(f"{told}: the distance from the median", mine, rule, above=True))
            found.append(Target(f"{told}: TSB-AD's AutoEncoder", mine, published, above=True))
    return found


def _least(figures: Figures, wanted: Sequence[tuple[str, float, str]]) -> list[Target]:
    return [Target(what, figures[name], bound) for name, bound, what in wanted if name in figures]
