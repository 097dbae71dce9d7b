"""What a run has seen and could not use: counted on every rank alike, kept over resumes, held against a limit."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgemim.errors import UserError
from edgemim.training.distributed import World

_REASONS = 1000
_FAIR_SAMPLE = 1000


@dataclass
class Tally:
    """Counts that survive a resume: images drawn, draws that could not be read, why, and steps that were not finite."""

    seen: int = 0
    unreadable: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    nonfinite_steps: int = 0
    seconds: float = 0.0

    def share(self, skipped: list[tuple[str, str]], world: World) -> None:
        """Add what each rank could not read, as (path, reason), so that every rank judges and saves the same counts."""
        for part in world.gather(skipped):
            self.unreadable += len(part)
            for path, reason in part:
                if len(self.reasons) < _REASONS:
                    self.reasons[path] = reason

    def check(self, limit: float, one_pass: int) -> None:
        """Judge the share of unreadable draws, once a whole pass or a thousand draws of a larger set are a fair sample.

        Raises:
            UserError: if it is over `limit`.
        """
        share = self.unreadable / max(self.seen, 1)
        if self.seen >= min(_FAIR_SAMPLE, one_pass) and share > limit:
            path, reason = next(iter(self.reasons.items()))
            raise UserError(
                f"{share:.1%} of the images cannot be read (limit {limit:.1%}), such as {path}: {reason}; "
                "run `edgemim data check`, mend the data, or raise --max-unreadable"
            )
