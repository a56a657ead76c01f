"""Which of our bottlenecks a `BnConfig` of the adapters library is, for adapters.py.

    Houlsby     mh_adapter, output_adapter
    Pfeiffer    output_adapter, original_ln_before; leave_out: the skipped layers
    Parallel    mh_adapter or output_adapter or both, is_parallel, scaling
    Adapter^L   output_adapter, original_ln_before, ln_before, neither original_ln_after nor residual_before_ln

The library's parallel adapter reads what the sub-layer's residual sum reads, ours the sub-layer's input: the same only
where the norm comes after. Its dropout falls on the adapter's output, ours on the bottleneck: equal but in training. A
shared adapter is written once per layer, and comes back as one adapter a layer.
"""

from collections.abc import Mapping
from typing import Any

from peft_methods.bottleneck import AdapterL, Houlsby, Parallel, Pfeiffer, SharedPfeiffer
from peft_methods.interchange.folders import check_fields
from peft_methods.sites import Sites

_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu", "relu": "relu", "swish": "swish"}
_READ_ACTIVATIONS = {theirs: ours for ours, theirs in _ACTIVATIONS.items()} | {
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "swish",
}
_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # before the library wrote its version
_DEFAULTS: dict[str, Any] = {
    "mh_adapter": False,
    "output_adapter": False,
    "original_ln_before": False,
    "original_ln_after": True,
    "residual_before_ln": True,
    "ln_before": False,
    "ln_after": False,
    "is_parallel": False,
    "scaling": 1.0,
    "use_gating": False,
    "inv_adapter": None,
    "cross_adapter": False,
    "phm_layer": False,
    "stochastic_depth": 0.0,
}
_FREE = (
    *("reduction_factor", "non_linearity", "leave_out", "dropout", "init_weights", "init_weights_seed", "architecture"),
    # What means nothing without ln_after, inv_adapter or phm_layer, which are refused.
    *("adapter_residual_before_ln", "inv_adapter_reduction_factor", "phm_dim", "factorized_phm_W", "shared_W_phm"),
    *("shared_phm_rule", "factorized_phm_rule", "phm_c_init", "phm_init_range", "learn_phm"),
    *("hypercomplex_nonlinearity", "phm_rank", "phm_bias"),
)


def config_of(sites: Sites, method: Any) -> dict[str, Any]:
    """The library's configuration of a method. Raises ValueError where it has none."""
    if not isinstance(method, Houlsby | Pfeiffer | SharedPfeiffer | Parallel | AdapterL):
        raise ValueError(
            f"{type(method).__name__} is no bottleneck: expected Houlsby, Pfeiffer, SharedPfeiffer, Parallel or "
            "AdapterL; export LoRA, (IA)^3, prompts and prefixes with export_peft"
        )
    config: dict[str, Any] = _DEFAULTS | {
        "output_adapter": True,
        "non_linearity": _ACTIVATIONS[method.activation],
        "reduction_factor": _reduction(sites.base.config.hidden_size, method.bottleneck_dim),
        "leave_out": [],
        "dropout": 0.0,
        "init_weights": "bert",
    }
    if isinstance(method, Houlsby):
        if method.train_layer_norms:
            raise ValueError(
                "train_layer_norms=True: adapters has no layout for trained LayerNorms, and without them the logits "
                "would differ; train with method.train_layer_norms=false to export"
            )
        return config | {"mh_adapter": True}
    if isinstance(method, Pfeiffer | SharedPfeiffer):
        skipped = range(method.skip_layers) if isinstance(method, Pfeiffer) else ()
        starts = [sum([*sites.depths.values()][:i]) for i in range(len(sites.depths))]  # it counts through both stacks
        return config | {"original_ln_before": True, "leave_out": [start + i for start in starts for i in skipped]}
    if isinstance(method, AdapterL):
        return config | {
            "original_ln_before": True,
            "ln_before": True,
            "original_ln_after": False,
            "residual_before_ln": False,
        }
    _check_parallel(sites)
    where = {"mh_adapter": "attention" in method.sublayers, "output_adapter": "ffn" in method.sublayers}
    if unknown := sorted({*method.sublayers} - {"attention", "ffn"}):
        raise ValueError(f"sublayers={unknown} cannot be exported: expected attention, ffn or both")
    return config | where | {"is_parallel": True, "scaling": float(method.scale), "dropout": method.dropout}


def method_of(sites: Sites, config: Mapping[str, Any], m: int, versioned: bool) -> Any:
    """Our method for a configuration and m. versioned: it says which version of the library wrote it.

    Raises ValueError where there is none.
    """
    check_fields(config, (*_DEFAULTS, *_FREE))
    activation = str(config.get("non_linearity"))
    if not versioned:
        activation = _OLD_ACTIVATIONS.get(activation, activation)
    if activation not in _READ_ACTIVATIONS:
        raise ValueError(
            f"non_linearity={activation!r} has no counterpart here: expected one of {', '.join(_READ_ACTIVATIONS)}"
        )
    activation = _READ_ACTIVATIONS[activation]
    set_ = {field: config.get(field, default) for field, default in _DEFAULTS.items()}
    start = ("normal", 0.02)
    skipped = sorted(config.get("leave_out") or [])
    if set_["is_parallel"]:
        _check_parallel(sites)
        names = (("mh_adapter", "attention"), ("output_adapter", "ffn"))
        sublayers = tuple(ours for theirs, ours in names if set_[theirs])
        scale = set_["scaling"] if isinstance(set_["scaling"], float | int) else 1.0
        method: Any = Parallel(m, activation, *start, float(scale), float(config.get("dropout") or 0.0), sublayers)
    elif set_["ln_before"]:
        method = AdapterL(m, activation, *start)
    elif set_["original_ln_before"]:
        method = Pfeiffer(m, activation, *start, len(skipped) // len(sites.depths))
    else:
        method = Houlsby(m, activation, *start, False)
    expected = config_of(sites, method)
    for field in (*_DEFAULTS, "leave_out"):
        given = skipped if field == "leave_out" else set_[field]
        if given != expected[field] and not (field == "residual_before_ln" and not expected["original_ln_before"]):
            raise ValueError(
                f"{field}={given!r} has no counterpart here: expected {expected[field]!r} for {type(method).__name__}, "
                "the nearest method"
            )
    return method


def _check_parallel(sites: Sites) -> None:
    if not all(stack.post_norm for stack in sites.architecture.stacks):
        raise ValueError(
            f"{sites.model_type} normalizes before its sub-layers, where the library's parallel adapter reads the "
            "input before the norm and ours after it: expected bert, roberta, deberta-v2 or bart"
        )


def _reduction(hidden: int, bottleneck: int) -> float:
    """A factor that the library's int(hidden // factor) takes back to the bottleneck, in spite of rounding."""
    factor = hidden / bottleneck
    return factor if int(hidden // factor) == bottleneck else hidden / (bottleneck + 0.5)
