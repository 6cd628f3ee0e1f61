"""The source of a user-defined operator, for tests that read it from a file."""


def decayed_sum(name: str) -> str:
    """Return the source of an operator of this class name: it evicts the lowest decayed sum of attention weights."""
    return f"""from dataclasses import dataclass
import msrnn


@dataclass(frozen=True)
class {name}(msrnn.Reduction):
    decay: float = 0.5
    stat_names = ("received",)

    def update(self, observation):
        return {{"received": observation.row_stats["received"] * self.decay + observation.weights.mean(2)}}

    def score(self, observation):
        return observation.row_stats["received"]
"""
