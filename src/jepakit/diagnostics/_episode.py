"""When a sign becomes a collapse, and what has been told of it already."""

from typing import Any

from jepakit.diagnostics.collapse import CollapseKind

__all__ = ["KINDS", "Episode"]

# From the gravest on: a sign, how grave it is, and what it is called.
KINDS: dict[str, tuple[int, CollapseKind]] = {
    "not finite": (4, "not finite"),
    "full": (3, "full"),
    "line": (2, "dimensional"),
    "rank": (2, "dimensional"),
    "dead": (2, "dimensional"),
    "slow": (1, "slow"),
}
# Trends and dead dimensions are found over many observations already.
_CERTAIN = ("dead", "slow")


class Episode:
    """Counts the signs of consecutive observations; tells each degree of a collapse once."""

    def __init__(self) -> None:
        # For each sign: how many observations in a row have shown it, and where it began.
        self.shown: dict[str, tuple[int, int]] = {}
        self.told, self.quiet = 0, 0

    def observe(self, signs: dict[str, int], patience: int) -> tuple[str, int] | None:
        """Take the signs of one observation; give the gravest that is certain and not yet told."""
        runs = {sign: self.shown.get(sign, (0, since)) for sign, since in signs.items()}
        self.shown = {sign: (count + 1, since) for sign, (count, since) in runs.items()}
        self.quiet = 0 if signs else self.quiet + 1
        if self.quiet >= patience:
            self.told = 0
        for sign, (grave, _) in KINDS.items():
            count, since = self.shown.get(sign, (0, 0))
            if grave > self.told and count >= (1 if sign in _CERTAIN else patience):
                self.told = grave
                return sign, since
        return None

    def state_dict(self) -> dict[str, Any]:
        """Numbers and strings."""
        shown = {sign: list(run) for sign, run in self.shown.items()}
        return {"shown": shown, "told": self.told, "quiet": self.quiet}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.shown = {sign: (run[0], run[1]) for sign, run in state["shown"].items()}
        self.told, self.quiet = state["told"], state["quiet"]
