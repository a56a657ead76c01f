"""Folders of peft: theirs load here, ours there, with equal logits; what does not fit is refused in one sentence."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertForSequenceClassification,
    DebertaV2ForSequenceClassification,
    RobertaForSequenceClassification,
)

from peft_methods.attach import attach
from peft_methods.bitfit import BitFit
from peft_methods.bottleneck import Houlsby
from peft_methods.heads import ClassificationHead
from peft_methods.ia3 import IA3
from peft_methods.interchange import export_peft, import_peft, read_peft
from peft_methods.lora import Lora
from peft_methods.prefix import Prefix
from peft_methods.prompt import Prompt
from peft_methods.state import copy_trained

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*oken.type.ids.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
LABELS = 4
ALL = ("bert", "roberta", "deberta_v2", "gpt2", "t5", "t5_gated", "bart")
WITH_HEAD = {
    "bert": BertForSequenceClassification,
    "roberta": RobertaForSequenceClassification,
    "deberta_v2": DebertaV2ForSequenceClassification,
}
LORA = Lora(2, 6.0, 0.1, ("query", "value"), "normal_0.02")
SIX = Lora(2, 5.0, 0.0, ("query", "key", "value", "attention_output", "ffn_in", "ffn_out"), "kaiming_uniform")
METHODS = {
    "lora": LORA,
    "lora_six": SIX,
    "lora_ffn_out": Lora(3, 7.0, 0.0, ("ffn_out",), "kaiming_uniform"),  # whose name ends the attention's, too
    "lora_fused_and_not": Lora(2, 5.0, 0.0, ("query", "value", "ffn_in"), "kaiming_uniform"),
    "ia3": IA3(),
    "prompt": Prompt(3, None, "normal", (-0.5, 0.5), 61, ()),
    "embedding_only": Prompt(3, 5, "normal", (-0.5, 0.5), 61, ()),
    "prefix": Prefix(3, None, "random", ""),
    "prefix_mlp": Prefix(3, 5, "random", ""),
}
# A prompt goes without its head, a prefix to a decoder alone; a head makes another folder, so encoders without one too.
CASES = [
    (architecture, method, head)
    for architecture in ALL
    for method in METHODS
    for head in (True, False)
    if (architecture == "gpt2" or not method.startswith("prefix"))
    and head == (architecture in WITH_HEAD and METHODS[method] not in (METHODS["prompt"], METHODS["embedding_only"]))
] + [("bert", "lora", False), ("roberta", "ia3", False)]


@pytest.fixture
def attached_run(tiny_backbone, randomize):
    """attached_run("bert", method, head=True): everything randomized."""

    def build(architecture: str, method: Any, head: bool, dtype: torch.dtype = torch.float64) -> Any:
        backbone = tiny_backbone(architecture, dtype)
        attached = attach(backbone, [method], [lambda: ClassificationHead(backbone.config, LABELS)] if head else None)
        randomize(attached.run(0))
        return attached

    return build


@pytest.fixture
def their_model(tiny_backbone):
    """transformers' own model around the same backbone, with a classification head if asked."""

    def build(architecture: str, head: bool, dtype: torch.dtype = torch.float64) -> Any:
        backbone: Any = tiny_backbone(architecture, dtype)
        if not head:
            return backbone
        config = deepcopy(backbone.config)
        config.num_labels = LABELS
        model = WITH_HEAD[architecture](config).to(dtype)
        setattr(model, model.base_model_prefix, backbone)
        return model.eval()

    return build


def load_theirs(model: Any, folder: Any) -> Any:
    theirs: Any = PeftModel.from_pretrained(model, str(folder)).eval()
    if hasattr(theirs, "prompt_encoder"):  # peft rounds rows to float32, which the tiny models magnify
        rows = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
        theirs.prompt_encoder["default"].embedding.weight = torch.nn.Parameter(rows)
    return theirs


def logits_of(attached: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return attached([batch])[0]


def their_logits(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        outputs = model(**{name: t for name, t in batch.items() if name != "boundary"})
    logits = outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state
    own = logits.ndim == 3 and "decoder_input_ids" not in batch
    return logits[:, -batch["input_ids"].shape[1] :] if own else logits  # a prompt's own places come first


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor, batch: Any, atol: float = 1e-6) -> None:
    if ours.ndim == 3 and "decoder_input_ids" not in batch:  # what is computed at padding is nobody's business
        ours, theirs = (x[batch["attention_mask"].bool()] for x in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize(("architecture", "method", "head"), CASES)
def test_our_export_gives_equal_logits_in_peft_and_comes_back_equal(
    architecture, method, head, attached_run, their_model, tiny_backbone, tiny_batch, tmp_path
):
    attached, batch = attached_run(architecture, METHODS[method], head), tiny_batch(architecture, rows=4)
    if "token_type_ids" in batch and not head:  # peft's feature extraction drops them behind a prompt
        batch["token_type_ids"].zero_()
    export_peft(attached, tmp_path / "run")
    ours = logits_of(attached, batch)
    model = their_model(architecture, head)
    before = their_logits(model, batch)
    assert_equal(ours, their_logits(load_theirs(model, tmp_path / "run"), batch), batch)
    assert (ours - before).abs().max() > 1e-2, "the method changes nothing here: this test could not fail"

    again = import_peft(tmp_path / "run", tiny_backbone(architecture, torch.float64))
    assert_equal(logits_of(again, batch), ours, batch, atol=1e-12)
    export_peft(again, tmp_path / "again")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.run(0).trained().keys() == dict(attached.run(0).stored()).keys()


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_float32_too(architecture, attached_run, their_model, tiny_batch, tmp_path):
    head = architecture == "bert"
    attached, batch = attached_run(architecture, LORA, head, torch.float32), tiny_batch(architecture, rows=4)
    export_peft(attached, tmp_path / "run")
    theirs = load_theirs(their_model(architecture, head, torch.float32), tmp_path / "run")
    ours = logits_of(attached, batch)
    assert_equal(ours, their_logits(theirs, batch), batch, atol=1e-6 * max(1.0, ours.abs().max().item()))


THEIRS = {
    "lora": (LoraConfig(r=2, lora_alpha=5, target_modules=["query", "value"], task_type="SEQ_CLS"), "bert"),
    "rslora": (LoraConfig(r=4, lora_alpha=5, use_rslora=True, target_modules=["value"], task_type="SEQ_CLS"), "bert"),
    "all_linear": (LoraConfig(r=2, target_modules=r".*layer\.\d.*\.(query|dense)", task_type="SEQ_CLS"), "roberta"),
    "pooler_head": (
        LoraConfig(r=2, target_modules=["key_proj"], task_type="SEQ_CLS", modules_to_save=["pooler"]),
        "deberta_v2",
    ),
    "no_head": (LoraConfig(r=2, target_modules=["query"], task_type="FEATURE_EXTRACTION"), "roberta"),
    "tied_c_attn": (LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM", fan_in_fan_out=True), "gpt2"),
    "t5": (LoraConfig(r=2, task_type="SEQ_2_SEQ_LM"), "t5"),
    "t5_q_v": (LoraConfig(r=2, target_modules=r".*SelfAttention\.[qv]", task_type="SEQ_2_SEQ_LM"), "t5"),
    "bart": (LoraConfig(r=2, target_modules=["fc1"], task_type="SEQ_2_SEQ_LM"), "bart"),
    "ia3": (
        IA3Config(target_modules=r".*layer\.\d+\.(attention\.self\.(key|value)|output\.dense)",
                  feedforward_modules=["output.dense"], task_type="SEQ_CLS"),
        "bert",
    ),
    "ia3_t5": (IA3Config(task_type="SEQ_2_SEQ_LM"), "t5"),
    "prompt": (PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "gpt2"),
    "prompt_t5": (
        PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_2_SEQ_LM", num_transformer_submodules=1), "t5",
    ),
    "prefix": (PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "gpt2"),
    "prefix_mlp": (
        PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM", prefix_projection=True, encoder_hidden_size=7),
        "gpt2",
    ),
}  # fmt: skip


@pytest.fixture
def saved_by_peft(their_model, randomize, tmp_path):
    """saved_by_peft(config, "bert"): their model with everything that trains randomized, and the folder it saved."""

    def build(config: Any, architecture: str) -> Any:
        theirs: Any = get_peft_model(their_model(architecture, config.task_type == "SEQ_CLS"), deepcopy(config))
        with torch.no_grad():
            for i, parameter in enumerate(p for p in theirs.parameters() if p.requires_grad):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
                parameter.add_(0.2 * noise)
        theirs.save_pretrained(tmp_path / "theirs")
        return theirs.eval(), tmp_path / "theirs"

    return build


@pytest.mark.parametrize("case", THEIRS)
def test_what_peft_saves_gives_equal_logits_here(case, saved_by_peft, tiny_backbone, tiny_batch):
    config, architecture = THEIRS[case]
    theirs, folder = saved_by_peft(config, architecture)
    batch = tiny_batch(architecture, rows=4)
    attached = import_peft(folder, tiny_backbone(architecture, torch.float64))
    assert_equal(logits_of(attached, batch), their_logits(theirs, batch), batch)


def test_a_pack_of_imports(saved_by_peft, attached_run, tiny_backbone, tiny_batch, tmp_path):
    """Two folders on one backbone: method and head go to `attach`, the tensors to `copy_trained`."""
    theirs, folder = saved_by_peft(*THEIRS["lora"])
    second = attached_run("bert", IA3(), True)
    export_peft(second, tmp_path / "ia3")
    backbone, batch = tiny_backbone("bert", torch.float64), tiny_batch("bert", rows=4)
    both = [read_peft(path, backbone) for path in (folder, tmp_path / "ia3")]
    pack = attach(backbone, [each.method for each in both], [each.head for each in both])
    for k, each in enumerate(both):
        copy_trained(pack, each.tensors, k)
    with torch.no_grad():
        first, other = pack([batch, batch])
    assert_equal(first, their_logits(theirs, batch), batch)
    assert_equal(other, logits_of(second, batch), batch)


def test_separate_factors_of_gpt2_become_blocks(attached_run, tmp_path):
    """The layout spelled out: A stacked, B block diagonal over the columns of c_attn, rank and alpha doubled."""
    attached = attached_run("gpt2", LORA, False)
    export_peft(attached, tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "adapter_model.safetensors")
    own = attached.run(0).trained()
    query, value = (f"sites.layer.1.{role}" for role in ("query", "value"))
    name = "base_model.model.transformer.h.1.attn.c_attn"
    expected = torch.zeros(48, 4, dtype=torch.float64)
    expected[:16, :2], expected[32:, 2:] = own[f"{query}.B"].detach(), own[f"{value}.B"].detach()
    assert torch.equal(tensors[f"{name}.lora_B.weight"], expected)
    assert torch.equal(tensors[f"{name}.lora_A.weight"], torch.cat([own[f"{query}.A"], own[f"{value}.A"]]))
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 12, ["attn.c_attn"])


def test_a_tied_pair_of_gpt2_is_copied_to_every_role(saved_by_peft, tiny_backbone):
    _, folder = saved_by_peft(*THEIRS["tied_c_attn"])
    read = read_peft(folder, tiny_backbone("gpt2", torch.float64))
    assert read.method == Lora(3, 5.0, 0.0, ("query", "key", "value"), "kaiming_uniform")
    assert torch.equal(read.tensors["sites.layer.0.query.A"], read.tensors["sites.layer.0.value.A"])


@pytest.mark.parametrize(
    ("method", "head", "message"),
    [
        (Houlsby(2, "relu", "normal", 0.02, False), True, "Houlsby has no layout in peft: .*export_adapters"),
        (BitFit("all"), True, "BitFit has no layout in peft: expected one of Lora, IA3, Prompt, Prefix"),
        (METHODS["prompt"], True, "reads the first of them, ours the first token of the text"),
        (METHODS["prefix"], False, "prefix on bert is another thing in peft"),
    ],
)
def test_an_export_that_peft_cannot_hold_is_refused(method, head, message, attached_run, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        export_peft(attached_run("bert", method, head), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(attached_run, tmp_path):
    with pytest.raises(ValueError, match="exists: give a new folder"):
        export_peft(attached_run("bert", LORA, True), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_nothing(attached_run, tmp_path, monkeypatch):
    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("peft_methods.interchange.folders.save_file", full)
    with pytest.raises(OSError, match="No space"):
        export_peft(attached_run("bert", LORA, True), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def assert_import_refused(folder: Any, backbone: Any, message: str, snapshot: Any) -> None:
    before, grads = snapshot(backbone), [p.requires_grad for p in backbone.parameters()]
    with pytest.raises(ValueError, match=message) as error:
        import_peft(folder, backbone)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert grads == [p.requires_grad for p in backbone.parameters()]
    attach(backbone, [LORA])  # nothing is attached yet: this would be refused


@pytest.mark.parametrize(
    ("config", "architecture", "message"),
    [
        (LoraConfig(target_modules=["query"], use_dora=True), "bert", "use_dora=True has no counterpart here"),
        (LoraConfig(target_modules=["query"], bias="lora_only"), "bert", "bias='lora_only' trains biases"),
        (LoraConfig(target_modules=["query"], layers_to_transform=[1]), "bert", "sites.layer.0.query.A is missing"),
        (LoraConfig(target_modules=["query", "value"], rank_pattern={"value": 4}), "bert", "targets differ in rank"),
        (LoraConfig(target_modules=["word_embeddings"]), "bert", "lora_embedding_A has no place on this bert"),
        (LoraConfig(target_modules=["query"], modules_to_save=["embeddings"]), "bert", "embeddings.* has no place on"),
        (IA3Config(target_modules=["query"], feedforward_modules=[]), "bert", "scales the output of the query proj"),
        (IA3Config(target_modules=["c_attn"], feedforward_modules=[]), "gpt2", "scales the output of the query proj"),
        (IA3Config(target_modules=["value"], feedforward_modules=[]), "bert", "layer.0.key.scale is missing"),
        (PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_2_SEQ_LM"), "t5", "num_transformer_submodules=2"),
        (PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_CLS"), "bert", "ours the first token of the text"),
        (PrefixTuningConfig(num_virtual_tokens=2, task_type="SEQ_2_SEQ_LM"), "t5", "prefix on t5 is another thing"),
    ],
)
def test_what_we_cannot_express_is_refused(config, architecture, message, saved_by_peft, tiny_backbone, snapshot):
    _, folder = saved_by_peft(config, architecture)
    assert_import_refused(folder, tiny_backbone(architecture, torch.float64), message, snapshot)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("bert", {"hidden_size": 32}, r"query are \(2, 16\) and \(16, 2\), expected \(r, 32\) and \(32, r\)"),
        ("bert", {"num_hidden_layers": 3}, r"layer.2.query.A is missing, expected \(2, 16\) for Lora on this bert"),
        ("bert", {"num_hidden_layers": 1}, "layer.1.attention.self.query.lora_A.weight has no place on this bert"),
        ("gpt2", {}, "has no place on this gpt2"),
    ],
)  # fmt: skip
def test_another_backbone_is_refused(architecture, changes, message, attached_run, tiny_backbone, tmp_path, snapshot):
    export_peft(attached_run("bert", LORA, True), tmp_path / "run")
    assert_import_refused(tmp_path / "run", tiny_backbone(architecture, **changes), message, snapshot)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json is missing"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json is not JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[1]"), "holds a list, expected an object"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "peft_type='None' has no counterpart"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "pickled weights are not read: save with"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"1234567890"), "no.* whole safetensors"),
    ],
)
def test_a_broken_folder_is_refused(change, message, attached_run, tiny_backbone, tmp_path, snapshot):
    export_peft(attached_run("bert", LORA, True), tmp_path / "run")
    change(tmp_path / "run")
    assert_import_refused(tmp_path / "run", tiny_backbone("bert"), message, snapshot)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("classifier.bias", r"head.out_proj.bias is missing, expected \(4,\)"),
        ("classifier.weight", "the head has no output layer"),
        ("bert.encoder.layer.1.attention.self.value.lora_B.weight", "value has lora_A.weight alone"),
    ],
)
def test_a_lost_tensor_is_refused(lost, message, attached_run, tiny_backbone, tmp_path, snapshot):
    export_peft(attached_run("bert", LORA, True), tmp_path / "run")
    path = tmp_path / "run" / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[f"base_model.model.{lost}"]
    save_file(tensors, path)
    assert_import_refused(tmp_path / "run", tiny_backbone("bert"), message, snapshot)


def test_the_documented_example_runs():
    page = (Path(__file__).parents[3] / "docs" / "interchange.md").read_text(encoding="utf-8")
    exec(compile(page.split("```python\n")[1].split("```")[0], "docs/interchange.md", "exec"), {})
