"""The file ``adapter_config.json`` of PEFT (github.com/huggingface/peft 0.21.2, ``src/peft/tuners/lora/config.py``)."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import Error, check_bool, check_int, check_number
from ..layers.lora import LoraLinear
from .targets import Targets

NO_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "task_type", "megatron_core"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),  # settings of ``init_lora_weights``
    *("qalora_group_size", "ensure_weight_tying", "runtime_config"),  # settings of features that are refused
}
"""Fields that do not change what an adapter in a file computes."""
USED = {
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
}
INITIALIZATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that do not change the base model."""
REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules next to the adapters",
    "lora_bias": "biases of adapters",
    "fan_in_fan_out": "transposed weights",
    "trainable_token_indices": "trained rows of the embedding",
    "layer_replication": "repeated layers",
    "target_parameters": "adapters of single parameters",
    "alora_invocation_tokens": "adapters that a token switches on",
    "use_qalora": "QA-LoRA",
}
"""Fields that are refused unless they are empty, with their meaning. Fields that are not in any list are refused too."""


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter that a file has.

    Attributes:
        r, lora_alpha, lora_dropout, use_rslora: as of :func:`msrnn.lora.add`.
        rank_pattern, alpha_pattern: other values of ``r`` and ``lora_alpha`` by regular expressions for the ends of names.
        targets: the modules that have an adapter.
    """

    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: Targets

    def rank(self, name: str) -> int:
        """Return the rank of the module ``name``, a name of PEFT."""
        return self.rank_pattern.get(_matching_key(self.rank_pattern, name), self.r)

    def alpha(self, name: str) -> float:
        """Return ``lora_alpha`` of the module ``name``, a name of PEFT."""
        return self.alpha_pattern.get(_matching_key(self.alpha_pattern, name), self.lora_alpha)


def read_fields(fields: Mapping[str, Any], where: object) -> AdapterConfig:
    """Return the settings in the fields of ``adapter_config.json``.

    Raises:
        Error: another kind of adapter than LoRA, a field with a feature that is not supported, or a value of another type. The
            message begins with ``where``.
    """
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise Error(f"{where}: peft_type is {kind!r:.60}; expected 'LORA'")
    if (bias := fields.get("bias", "none")) != "none":
        raise Error(f"{where}: bias is {bias!r:.60}; expected 'none', because trained biases of the base are not supported")
    start = fields.get("init_lora_weights", True)
    if not any(start is x or (isinstance(x, str) and start == x) for x in INITIALIZATIONS):
        raise Error(
            f"{where}: init_lora_weights is {start!r:.60}, which changes the base model; expected an adapter of the unchanged "
            "model (PEFT's save_pretrained writes one with path_initial_model_for_weight_conversion)"
        )
    for name, value in fields.items():
        if name in NO_EFFECT | USED | {"bias", "init_lora_weights"} or not value:
            continue
        meaning = f", {REFUSED[name]}," if name in REFUSED else ","
        raise Error(f"{where}: {name} is {value!r:.60}{meaning} which is not supported; expected a plain LoRA adapter")
    patterns = {name: fields.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    use_rslora = fields.get("use_rslora", False)
    try:
        check_int("r", fields.get("r"), at_most=2**16)
        check_number("lora_alpha", fields.get("lora_alpha"), above=0)
        check_bool("use_rslora", use_rslora)
        dropout = 0.0 if (found := fields.get("lora_dropout")) is None else found
        check_number("lora_dropout", dropout, above=0, at_most=0.99, or_equal=True)
        for name, values in patterns.items():
            _check_pattern(name, values)
        targets = Targets.of(fields)
    except Error as error:
        raise Error(f"{where}: {error}") from None
    return AdapterConfig(fields["r"], fields["lora_alpha"], float(dropout), use_rslora, targets=targets, **patterns)


def _check_pattern(name: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise Error(f"{name} is {values!r:.60}; expected an object")
    for key, value in values.items():
        try:
            re.compile(key)
        except re.error as error:
            raise Error(f"{name} has {key!r:.60}; expected a regular expression ({error})") from None
        if name == "rank_pattern":
            check_int(f"{name} of {key!r:.60}", value, at_most=2**16)
        else:
            check_number(f"{name} of {key!r:.60}", value, above=0)


def _matching_key(pattern: Mapping[str, Any], name: str) -> str:
    """Return the key that applies to a module (``get_pattern_key`` of PEFT); ``name`` itself if none does."""
    return next((key for key in pattern if re.match(rf"(.*\.)?({key})$", name)), name)


def write_fields(adapters: Mapping[str, LoraLinear], linear_names: list[str], base_model: str | None) -> dict[str, Any]:
    """Return the fields of ``adapter_config.json``.

    Args:
        adapters: by the names of PEFT. All have the same dropout and kind of scale.
        linear_names: the names of all linear maps of the model.
        base_model: name or path of the model; PEFT shows it and some programs load it.
    """
    first = next(iter(adapters.values()))
    ranks, alphas = ({name: getattr(x, field) for name, x in adapters.items()} for field in ("r", "lora_alpha"))
    (r, _), (alpha, _) = (Counter(values.values()).most_common(1)[0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": first.lora_dropout,
        "target_modules": _target_modules(adapters, linear_names),
        "rank_pattern": {re.escape(name): x for name, x in ranks.items() if x != r},
        "alpha_pattern": {re.escape(name): x for name, x in alphas.items() if x != alpha},
        "use_rslora": first.use_rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _target_modules(adapters: Mapping[str, LoraLinear], linear_names: list[str]) -> list[str]:
    """Return the last parts of names if every module with such a name has an adapter, otherwise whole names."""
    targets = []
    for name in adapters:
        last = name.rpartition(".")[2]
        alike = [other for other in linear_names if other == last or other.endswith(f".{last}")]
        targets.append(last if all(other in adapters for other in alike) else name)
    return sorted(set(targets))
