"""Pretrained decoder-only LLMs as multi-state RNN cells: ``(x_t, H_{t-1}) -> (x_{t+1}, H_t)`` (arXiv:2401.06104)."""

from .startup import exit_on_interrupt, limit_spinning  # isort: skip

exit_on_interrupt()  # both before the import of torch
limit_spinning()

from . import lora
from .cell.cell import Cell
from .chat.conversation import Chat
from .decoding.generate import generate, stream
from .decoding.log_probs import log_probs
from .decoding.ngram_pool import NgramPool
from .decoding.prefill import prefill
from .decoding.speculative import jacobi, lookahead, stream_jacobi, stream_lookahead
from .diagnostics.operator_check import check_operator
from .errors import Error
from .models.loading import load
from .models.splitting import distribute
from .reductions.all_layers import AllLayers
from .reductions.budgets import pyramid
from .reductions.constants import Constants
from .reductions.contract import Observation, Reduction
from .reductions.forgetting import A2SF
from .reductions.key_based import KeyDiff, Knorm
from .reductions.lag import LagKV
from .reductions.learned_score import LearnedScore
from .reductions.observation_window import LastQueries, MorphKV, Scissorhands
from .reductions.query_statistics import ExpectedAttention, QFilters
from .reductions.redundancy import RKV
from .reductions.registry import parse_reduction
from .reductions.shared_budget import SharedBudget
from .reductions.stochastic import CaM, Keyformer, Random, VaSE
from .reductions.tova_paper import H2O, TOVA, Full, Sinks, Window
from .reductions.value_aware import CAOTE, VATP, DropKV
from .state.compaction import compact
from .state.loading import load_state
from .state.multistate import MultiState
from .state.state import State
from .threads import use_idle_cpus

__all__ = [
    "A2SF",
    "CAOTE",
    "H2O",
    "RKV",
    "TOVA",
    "VATP",
    "AllLayers",
    "CaM",
    "Cell",
    "Chat",
    "Constants",
    "DropKV",
    "Error",
    "ExpectedAttention",
    "Full",
    "KeyDiff",
    "Keyformer",
    "Knorm",
    "LagKV",
    "LastQueries",
    "LearnedScore",
    "MorphKV",
    "MultiState",
    "NgramPool",
    "Observation",
    "QFilters",
    "Random",
    "Reduction",
    "Scissorhands",
    "SharedBudget",
    "Sinks",
    "State",
    "VaSE",
    "Window",
    "check_operator",
    "compact",
    "distribute",
    "generate",
    "jacobi",
    "load",
    "load_state",
    "log_probs",
    "lookahead",
    "lora",
    "parse_reduction",
    "prefill",
    "pyramid",
    "stream",
    "stream_jacobi",
    "stream_lookahead",
    "use_idle_cpus",
]
