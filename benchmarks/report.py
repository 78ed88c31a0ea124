"""The figures of the cases as objects for ``--json`` and as Markdown, as ``benchmarks/README.md``
shows them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import OURS, Agreement, Case
from benchmarks.machine import in_words


@dataclass(frozen=True)
class Outcome:
    """Figures of one case, by side: milliseconds of each run, MiB of resident memory (at its peak,
    and after loading), the variables of the process that its speed depends on, and, of all sides
    but ours, whether the results agree.
    """

    name: str
    case: Case
    runs_ms: Mapping[str, list[float]]
    peak_mib: Mapping[str, float]
    loaded_mib: Mapping[str, float]
    environment: Mapping[str, Mapping[str, str]]
    agreement: Mapping[str, Agreement]

    @property
    def median_ms(self) -> dict[str, float]:
        return {side: statistics.median(times) for side, times in self.runs_ms.items()}

    @property
    def same_result(self) -> bool:
        """Whether all sides came to our result."""
        return all(agreement.holds for agreement in self.agreement.values())

    @property
    def ratios(self) -> dict[str, float]:
        """Our median time over that of each other side: below 1 is faster."""
        return _ratios(self.median_ms)

    @property
    def peak_ratios(self) -> dict[str, float]:
        """Our peak of memory over that of each other side."""
        return _ratios(self.peak_mib)

    @property
    def comparison(self) -> str:
        """How each other side's result agrees with ours."""
        return "; ".join(
            f"{self.case.sides[side].label}: {'same' if agreement.holds else 'ANOTHER'} result, "
            f"{agreement.text}"
            for side, agreement in self.agreement.items()
        )

    def as_json(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        """One object of ``--json``. ``ratio`` and ``peak_ratio`` are those to ``compared_with``;
        the peaks are null where sides work in several processes.
        """
        case = self.case
        whole = case.one_process
        found: dict[str, Any] = {"name": self.name, "what": case.what}
        found |= {f"{side}_ms": round(ms, 2) for side, ms in self.median_ms.items()}
        found |= {
            "compared_with": case.against,
            "ratio": round(self.ratios[case.against], 3),
            "ratios": {side: round(ratio, 3) for side, ratio in self.ratios.items()},
            "aim": case.aim,
        }
        for side, mib in self.peak_mib.items():
            found[f"{side}_peak_mib"] = round(mib, 1) if whole else None
            found[f"{side}_loaded_mib"] = round(self.loaded_mib[side], 1)
        found |= {
            "peak_ratio": round(self.peak_ratios[case.against], 3) if whole else None,
            "peak_ratios": {s: round(r, 3) for s, r in self.peak_ratios.items()} if whole else None,
            "peak_aim": case.peak_aim,
        }
        found |= {
            f"{side}_runs_ms": [round(ms, 2) for ms in runs] for side, runs in self.runs_ms.items()
        }
        sides = {
            name: {"label": side.label, "environment": dict(self.environment[name])}
            for name, side in case.sides.items()
        }
        return found | {
            "same_result": self.same_result,
            "comparison": self.comparison,
            "sides": sides,
            "machine": dict(machine),
        }


def markdown(outcomes: list[Outcome], machine: Mapping[str, Any]) -> str:
    """The machine, a table of times, one of peaks where they are those of a side, and how the
    results agree.

    Each figure of another side is followed by our figure over it; the ratio that is compared with
    the aim is bold.
    """
    runs = len(outcomes[0].runs_ms[OURS])
    parts = [f"{in_words(dict(machine))} {runs} run{'s' * (runs > 1)} of each side, medians."]
    parts.append(_table("time", outcomes, lambda o: (o.median_ms, o.ratios, o.case.aim), seconds))
    whole = [outcome for outcome in outcomes if outcome.case.one_process]
    if whole:
        parts.append(
            _table(
                "peak memory",
                whole,
                lambda o: (o.peak_mib, o.peak_ratios, o.case.peak_aim),
                lambda mib: f"{mib:.0f} MiB",
            )
        )
    parts.append("\n".join(f"- `{outcome.name}`: {outcome.comparison}" for outcome in outcomes))
    return "\n\n".join(parts)


def _table(
    title: str,
    outcomes: list[Outcome],
    figures: Callable[[Outcome], tuple[Any, Any, Any]],
    in_units: Callable[[float], str],
) -> str:
    labels = {name: side.label for outcome in outcomes for name, side in outcome.case.sides.items()}
    lines = [f"| {title} | {' | '.join(labels.values())} | aim |", "|---" * (len(labels) + 2) + "|"]
    for outcome in outcomes:
        values, ratios, aim = figures(outcome)
        cells = [f"`{outcome.name}`: {outcome.case.what}"]
        for side in labels:
            cell = in_units(values[side]) if side in values else "–"
            if side in ratios:
                text = f"{ratios[side]:.2f}"
                cell += f" (**{text}**)" if side == outcome.case.against else f" ({text})"
            cells.append(cell)
        cells.append("" if aim is None else f"{aim:g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seconds(ms: float) -> str:
    """Milliseconds as seconds with three or more digits."""
    return f"{ms / 1000:.3f} s" if ms < 1000 else f"{ms / 1000:.{2 if ms < 10_000 else 1}f} s"


def _ratios(figures: Mapping[str, float]) -> dict[str, float]:
    return {side: figures[OURS] / value for side, value in figures.items() if side != OURS}
