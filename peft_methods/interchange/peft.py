"""LoRA, (IA)^3, prompt and prefix tuning to and from the folders of Hugging Face `peft`.

    adapter_config.json         peft_type and the method's settings
    adapter_model.safetensors   base_model.model.<module>.lora_A.weight   (r x in), lora_B.weight (out x r)
                                base_model.model.<module>.ia3_l           (out x 1), before a projection (1 x in)
                                prompt_embeddings (P x H); of prefixes (P x 2·L·H): k_1 v_1 k_2 ..
                                base_model.model.classifier...            the head (modules_to_save)

GPT-2's fused query, key and value: projections.py.

peft hands prefixes over as past keys and values of a decoder: only decoder-only models have them on both sides. Behind
prompt rows peft's classifiers read the first row, ours the first token of the text: a prompt goes without its head.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from peft_methods.attached import Attached
from peft_methods.ia3 import IA3
from peft_methods.interchange.folders import (
    HEADS,
    Imported,
    check_fields,
    fitted,
    head_tensors,
    naming,
    read_json,
    read_tensors,
    take_head,
    write_folder,
)
from peft_methods.interchange.projections import EVERYWHERE, Contents, read_ia3, read_lora, write_ia3, write_lora
from peft_methods.lora import Lora
from peft_methods.prefix import Prefix
from peft_methods.prompt import Prompt
from peft_methods.run_modules import RunModules
from peft_methods.sites import EMBEDDINGS, Sites

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def export_peft(attached: Attached, folder: Path, k: int = 0) -> None:
    """Write run k as a folder that `peft.PeftModel.from_pretrained` loads onto the same backbone (with a head: onto its
    `...ForSequenceClassification`), with equal logits.

    Raises ValueError where the folder exists or peft has no layout for the method or the head.
    """
    run, sites = attached.run(k), attached.sites
    write = _WRITERS.get(type(run.method))
    if write is None:
        raise ValueError(
            f"{type(run.method).__name__} has no layout in peft: expected one of "
            f"{', '.join(kind.__name__ for kind in _WRITERS)}; export bottlenecks with export_adapters"
        )
    head = head_tensors(sites, run)
    config, tensors = write(sites, run)
    virtual = "num_virtual_tokens" in config
    if virtual and head:
        raise ValueError(_NO_HEAD)
    base = f"{sites.backbone.base_model_prefix}." if head or sites.base is not sites.backbone else ""
    tensors = {name if virtual else f"base_model.model.{base}{name}": t for name, t in tensors.items()}
    tensors |= {f"base_model.model.{name}": t for name, t in head.items()}
    config |= {
        "task_type": _task_type(sites, bool(head)),
        "base_model_name_or_path": sites.backbone.config.name_or_path or None,
        "inference_mode": True,
        "modules_to_save": sorted({name.partition(".")[0] for name in head}) or None,
    }
    write_folder(folder, {CONFIG: config, WEIGHTS: tensors})


def read_peft(folder: Path | str, backbone: PreTrainedModel) -> Imported:
    """What a folder saved by peft holds, in our terms, checked against the backbone, which is left alone.

    Raises ValueError, one sentence, where the folder is not whole, holds what we cannot express, or does not fit.
    """
    folder = Path(folder)
    with naming(folder):
        sites = Sites(backbone)
        config = read_json(folder / CONFIG)
        read = _READERS.get(kind := str(config.get("peft_type")))
        if read is None:
            raise ValueError(f"peft_type={kind!r} has no counterpart here: expected one of {', '.join(_READERS)}")
        tensors = read_tensors(folder / WEIGHTS, "save_pretrained(..., safe_serialization=True)")
        tensors = {re.sub(r"^base_model\.(model\.)?", "", name): t for name, t in tensors.items()}
        head = take_head(HEADS.get(sites.model_type, {}), tensors)
        tensors = {name.removeprefix(f"{backbone.base_model_prefix}."): t for name, t in tensors.items()}
        if head and "num_virtual_tokens" in config:
            raise ValueError(_NO_HEAD)
        method, own = read(sites, config, tensors)
        return fitted(sites, method, own | head)


def import_peft(folder: Path | str, backbone: PreTrainedModel) -> Attached:
    """The backbone with the run of a peft folder on it, its head included. Raises as `read_peft` and `attach` do, with
    nothing attached."""
    return read_peft(folder, backbone).attach(backbone)


def _task_type(sites: Sites, head: bool) -> str | None:
    if head:
        return "SEQ_CLS"
    if sites.backbone.get_output_embeddings() is None:
        return "FEATURE_EXTRACTION"
    if sites.architecture.decoder_only:
        return "CAUSAL_LM"
    return "SEQ_2_SEQ_LM" if len(sites.architecture.stacks) > 1 else None


def _write_prompt(sites: Sites, run: RunModules) -> Contents:
    rows = run.at(EMBEDDINGS).collapsed()["rows"]
    return _virtual(sites, "PROMPT_TUNING", rows) | {"prompt_tuning_init": "RANDOM"}, {"prompt_embeddings": rows}


def _read_prompt(sites: Sites, config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Prompt, dict[str, Tensor]]:
    starts = ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")
    check_fields(config, (*EVERYWHERE, *_VIRTUAL_FIELDS, *starts))
    if (parts := config.get("num_transformer_submodules") or 1) != 1:
        raise ValueError(
            f"num_transformer_submodules={parts} puts rows before the decoder's text too: expected 1, the encoder's"
        )
    rows = _rows(tensors)
    method = Prompt(len(rows), None, "normal", (-0.5, 0.5), 5000, ())
    return method, {f"sites.{EMBEDDINGS}.rows": rows}


def _write_prefix(sites: Sites, run: RunModules) -> Contents:
    _check_decoder(sites)
    pairs = [run.at(site.name).collapsed() for site in sites.attentions()]
    rows = torch.cat([pair[which] for pair in pairs for which in ("keys", "values")], dim=1)
    config = {"encoder_hidden_size": sites.base.config.hidden_size, "prefix_projection": False}
    return _virtual(sites, "PREFIX_TUNING", rows) | config, {"prompt_embeddings": rows}


def _read_prefix(sites: Sites, config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Prefix, dict[str, Tensor]]:
    check_fields(config, (*EVERYWHERE, *_VIRTUAL_FIELDS, "encoder_hidden_size", "prefix_projection"))
    _check_decoder(sites)
    rows, attentions = _rows(tensors), sites.attentions()
    width = sites.base.config.hidden_size
    if rows.shape[1] != 2 * width * len(attentions):
        raise ValueError(
            f"prompt_embeddings is {tuple(rows.shape)}, expected ({len(rows)}, {2 * width * len(attentions)}): "
            f"keys and values of {len(attentions)} layers of width {width}"
        )
    names = [f"sites.{site.name}.{which}" for site in attentions for which in ("keys", "values")]
    return Prefix(len(rows), None, "random", ""), dict(zip(names, rows.split(width, dim=1), strict=True))


def _check_decoder(sites: Sites) -> None:
    if not sites.architecture.decoder_only:
        raise ValueError(
            f"a prefix on {sites.model_type} is another thing in peft (past keys and values of a decoder alone) than "
            "here (every attention): expected a decoder-only backbone such as gpt2"
        )


def _virtual(sites: Sites, kind: str, rows: Tensor) -> dict[str, Any]:
    config = sites.base.config
    return {
        "peft_type": kind,
        "num_virtual_tokens": len(rows),
        "token_dim": config.hidden_size,
        "num_transformer_submodules": 1,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
    }


def _rows(tensors: dict[str, Tensor]) -> Tensor:
    if [*tensors] != ["prompt_embeddings"] or tensors["prompt_embeddings"].ndim != 2:
        raise ValueError(
            f"{WEIGHTS} holds {', '.join(sorted(tensors)) or 'nothing'}: expected prompt_embeddings (P, ..)"
        )
    return tensors["prompt_embeddings"]


_NO_HEAD = (
    "behind virtual tokens peft's classifier reads the first of them, ours the first token of the text: expected none; "
    "exchange the prompt without its head"
)
_VIRTUAL_FIELDS = (
    *("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
)
_WRITERS: dict[type, Callable[[Sites, RunModules], Contents]] = {
    Lora: write_lora,
    IA3: write_ia3,
    Prompt: _write_prompt,
    Prefix: _write_prefix,
}
_READERS: dict[str, Callable[[Sites, dict[str, Any], dict[str, Tensor]], tuple[Any, dict[str, Tensor]]]] = {
    "LORA": read_lora,
    "IA3": read_ia3,
    "PROMPT_TUNING": _read_prompt,
    "PREFIX_TUNING": _read_prefix,
}
