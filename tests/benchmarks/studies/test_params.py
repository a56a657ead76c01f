"""Counts from configurations alone equal the published ones, and agreement with print is computed, never asserted."""

import csv
import dataclasses
import itertools
import socket
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from peft_bench.config.compose import backbone_choice, method_choice, register, typed
from peft_bench.config.schema import CONF_DIR
from peft_bench.report.reference import read_reference
from peft_bench.studies.params import (
    CountRow,
    count,
    count_rows,
    figure_of,
    main,
    readings,
    write_rows,
)
from peft_methods.counting import ParameterCounts

HOULSBY, LORA = "experiment=houlsby2019/table1_", "experiment=lora/table2_"
# Counted once with transformers' own models and closed formulas: configuration, labels of the head, counted n (method
# without head, LayerNorms and heads apart), the same with everything that trains, and the model with its head.
EXPECTED = [
    ([f"{HOULSBY}full"], 2, 335_141_888, 335_143_938, 335_143_938),
    ([f"{HOULSBY}adapters_64"], 2, 6_343_680, 6_446_082, 335_143_938),
    ([f"{HOULSBY}adapters_8_256", "method.bottleneck_dim=8"], 2, 835_968, 938_370, 335_143_938),
    ([f"{HOULSBY}adapters_8_256", "method.bottleneck_dim=256"], 2, 25_227_264, 25_329_666, 335_143_938),
    (["backbone=bert_base_uncased", "method=houlsby"], 3, 2_379_264, 2_419_971, 109_484_547),
    ([f"{LORA}roberta_base_full"], 3, 124_055_040, 124_647_939, 124_647_939),
    ([f"{LORA}roberta_base_bitfit"], 3, 102_144, 695_043, 124_647_939),
    ([f"{LORA}roberta_base_adapter_d_0_9m"], 3, 894_528, 1_487_427, 124_647_939),
    ([f"{LORA}roberta_base_adapter_d_0_3m"], 3, 298_176, 891_075, 124_647_939),
    ([f"{LORA}roberta_base_adapter_d_0_9m", "method.skip_layers=5"], 3, 521_808, 1_114_707, 124_647_939),
    ([f"{LORA}roberta_base_lora"], 3, 294_912, 887_811, 124_647_939),
    ([f"{LORA}roberta_large_full"], 3, 354_310_144, 355_362_819, 355_362_819),
    ([f"{LORA}roberta_large_lora"], 3, 786_432, 1_839_107, 355_362_819),
    ([f"{LORA}roberta_large_lora_dagger"], 3, 786_432, 1_839_107, 355_362_819),
    ([f"{LORA}roberta_large_adapter_p_3m"], 3, 3_171_840, 4_224_515, 355_362_819),
    ([f"{LORA}roberta_large_adapter_p_0_8m"], 3, 811_392, 1_864_067, 355_362_819),
    ([f"{LORA}roberta_large_adapter_h_6m"], 3, 6_343_680, 7_396_355, 355_362_819),
    ([f"{LORA}roberta_large_adapter_h_0_8m"], 3, 835_968, 1_888_643, 355_362_819),
]
ADAPTERS = {8: 835_968, 64: 6_343_680, 256: 25_227_264}  # 48 (2 * 1024 m + m + 1024)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("counting opened a socket")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture(scope="module")
def rows() -> list[CountRow]:
    register()
    reference = read_reference()
    start = time.process_time()
    rows = count_rows(reference)
    print(f"{(time.process_time() - start) * 1000 / len(rows):.0f} ms of processor time a row")
    return rows


def counts_of(overrides: list[str], labels: int) -> ParameterCounts:
    register()
    with initialize_config_dir(str(CONF_DIR), version_base=None):
        cfg = typed(compose("config", [*overrides, "scale=paper"]))
    return count(cfg.backbone, cfg.method, labels)


@pytest.mark.parametrize(("overrides", "labels", "alone", "with_head", "model"), EXPECTED)
def test_counts_equal_the_published(overrides: list[str], labels: int, alone: int, with_head: int, model: int):
    counts = counts_of(overrides, labels)
    houlsby_norms = counts.method - counts.added if 0 < counts.added < counts.method else 0
    assert counts.method - houlsby_norms == alone
    assert counts.stored == with_head == counts.method + counts.head
    assert counts.backbone + counts.head == model
    assert houlsby_norms in (0, 100_352, 38_400)  # gains and biases of 49 LayerNorms of 1,024, of 25 of 768


def test_layers_alone():
    large, base = counts_of([f"{HOULSBY}adapters_64"], 2), counts_of([f"{LORA}roberta_base_lora"], 3)
    assert (large.layers, base.layers) == (302_309_376, 85_054_464)


HEADS = {"base": [591_361, 592_130, 592_899], "large": [1_050_625, 1_051_650, 1_052_675]}


@pytest.mark.parametrize("size", sorted(HEADS))
def test_roberta_heads_for_one_two_and_three_labels(size: str):
    assert [counts_of([f"{LORA}roberta_{size}_lora"], n).head for n in (1, 2, 3)] == HEADS[size]


T5_WIDTHS = {"Small": 512, "Base": 768, "Large": 1024, "XL": 2048, "XXL": 4096}
# Closed formulas of the other papers' rows: key of the row -> n without head. L layers, d width, in the paper's words.
FORMULAS = {
    ("LayerNorm tuning, BERT_BASE", "25 LayerNorms"): 25 * 2 * 768,
    ("Adapters (64), BERT_BASE", "m = 64"): 24 * (2 * 768 * 64 + 64 + 768),
    ("Fine-tuned top layer, BERT_BASE", "one layer"): 12 * 768**2 + 13 * 768,
    ("RoB_base (Adpt^D)*", "one adapter, m = 192, shared by all layers"): 2 * 768 * 192 + 192 + 768,
    ("DeB_XXL (FT)*", "all weights"): 1_564_549_632,
    ("DeB_XXL (LoRA)", "r = 16 on query and value (released scripts)"): 48 * 2 * 2 * 1536 * 16,
    ("DeB_XXL (LoRA)", "r = 8 on query and value (paper's Table 10)"): 48 * 2 * 2 * 1536 * 8,
    ("GPT-2 M (FT)*", "all weights, tied output layer"): 354_823_168,
    ("GPT-2 M (Adapter^L)* 0.37M", "m = 6, its own LayerNorm"): 24 * (2 * 1024 * 6 + 6 + 1024 + 2 * 1024),
    ("GPT-2 M (Adapter^L)* 11.09M", "m = 224, its own LayerNorm"): 24 * (2 * 1024 * 224 + 224 + 1024 + 2 * 1024),
    ("GPT-2 M (Adapter^H)", "m = 112"): 48 * (2 * 1024 * 112 + 112 + 1024),
    ("GPT-2 M (FT^Top2)", "two layers"): 2 * (12 * 1024**2 + 13 * 1024) + 2 * 1024,  # and ln_f
    ("GPT-2 M (PreLayer)*", "length 5, what is stored"): 2 * 24 * 1024 * 5,
    ("GPT-2 M (LoRA)", "r = 4 on query and value"): 24 * 2 * 2 * 1024 * 4,
    ("GPT-2 L (FT)*", "all weights, tied output layer"): 774_030_080,
    ("GPT-2 L (Adapter^L)* 0.88M", "m = 8, its own LayerNorm"): 36 * (2 * 1280 * 8 + 8 + 1280 + 2 * 1280),
    ("GPT-2 L (Adapter^L)* 23.00M", "m = 248, its own LayerNorm"): 36 * (2 * 1280 * 248 + 248 + 1280 + 2 * 1280),
    ("GPT-2 L (PreLayer)*", "length 5, what is stored"): 2 * 36 * 1280 * 5,
    ("GPT-2 L (LoRA)", "r = 4 on query and value"): 36 * 2 * 2 * 1280 * 4,
    ("Prefix, GPT-2 medium", "length 5, what is stored"): 2 * 24 * 1024 * 5,
    ("Prefix, GPT-2 medium", "length 10, what is stored"): 2 * 24 * 1024 * 10,
    ("FINE-TUNE, BART-large", "all weights, tied output layer"): 406_291_456,
    ("PREFIX (2%), BART-large", "length 100, what is stored"): 3 * 2 * 12 * 1024 * 100,
    ("PREFIX (0.1%), BART-large", "length 5, what is stored"): 3 * 2 * 12 * 1024 * 5,
    **{
        (f"T5 {size}, prompt", f"{length} token{'s' if length > 1 else ''}, {what}"): length * width
        for size, width in T5_WIDTHS.items()
        for length in (1, 5, 20, 50, 100, 150)
        for what in ("trainable", "total", "percent")
    },
}
# The whole models with their output layers; T5 1.1's is not its embedding (Lester et al., Table 4: minus the prompt).
MODELS = {
    "bert_base_uncased": 109_482_240,
    "deberta_v2_xxlarge": 1_564_549_632,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "bart_large": 406_291_456,
    "t5_small_lm_adapt": 77_012_352 - 51_200,
    "t5_base_lm_adapt": 247_654_656 - 76_800,
    "t5_large_lm_adapt": 783_252_480 - 102_400,
    "t5_xl_lm_adapt": 2_849_961_984 - 204_800,
    "t5_xxl_lm_adapt": 11_135_741_952 - 409_600,
}
DO_NOT_RECONCILE = {
    ("Adapters (64)", "2.1%"),  # of the whole model; of the layers it does
    ("Fine-tuned top layer, BERT_BASE", "9M"),
    ("RoB_base (FT)*", "125.0M"),
    ("RoBERTa base LoRA", "0.8M"),
    ("RoB_large (FT)*", "355.0M"),
    ("DeB_XXL (FT)*", "1500.0M"),
    ("DeB_XXL (LoRA)", "4.7M"),  # with rank 8; with 16 it does
    ("GPT-2 M (FT)*", "354.92M"),
    ("GPT-2 M (Adapter^H)", "11.09M"),
    ("GPT-2 M (PreLayer)*", "0.35M"),
    ("GPT-2 M (LoRA)", "0.35M"),
    ("GPT-2 L (PreLayer)*", "0.77M"),
    ("GPT-2 L (LoRA)", "0.77M"),
    ("T5 Large, prompt", "0.01907%"),
    ("T5 XL, prompt", "0.00718%"),  # cut off, not rounded, like the next
    ("T5 XL, prompt", "0.00143%"),
    ("T5 Small, prompt", "10,420"),
    ("T5 Small, prompt", "76,971,572"),
    ("T5 XXL, prompt", "11,137,380,352"),
}


def test_135_rows_with_a_key_of_their_own(rows: list[CountRow]):
    assert len({(row.table, row.row, row.configuration) for row in rows}) == len(rows) == 135


def test_counts_equal_closed_formulas(rows: list[CountRow]):
    found = {(row.row, row.configuration): row for row in rows}
    for key, n in FORMULAS.items():
        row = found[key]
        houlsby_norms = row.method_params - row.added_params if "Adapters" in row.row else 0
        assert n in (row.method_params - houlsby_norms, row.stored_params), row
    for row in rows:
        assert MODELS.get(row.backbone, row.backbone_params) == row.backbone_params, row
    assert {row.backbone for row in rows} == {*MODELS, "bert_large_uncased", "roberta_base", "roberta_large"}


def test_what_is_left_after_merging(rows: list[CountRow]):
    for row in rows:
        if "lora" in row.method.lower() or row.added_params == 0:
            assert row.merged_params == 0, row
        elif row.method.startswith("Prefix"):
            assert row.merged_params == row.stored_params < row.added_params, row
        else:
            assert row.merged_params == row.added_params > 0, row


def test_every_row_of_the_tables_is_counted(rows: list[CountRow]):
    for name, table in read_reference().tables.items():
        # rounded shares in some rows: one of them, 0.1%, is counted; Lester et al. print their counts in table 4
        if name.startswith(("prefix_e2e", "prompt_tuning", "prompt_design")):
            continue
        for line in table.drop_duplicates("experiment").to_dict("records"):
            assert line["printed_params"] in {row.printed for row in rows if row.experiment == line["experiment"]}


def test_a_rows_configuration_is_its_experiments():
    register()
    lines = [line for line in read_reference().params.to_dict("records") if line["experiment"]]
    assert len(lines) == 39
    for line in lines:
        settings = "script" if "(released scripts)" in line["configuration"] else "paper"
        with initialize_config_dir(str(CONF_DIR), version_base=None):
            words = [f"experiment={line['experiment']}", "scale=paper", f"settings={settings}"]
            cfg = typed(compose("config", words))
        assert cfg.backbone == backbone_choice(line["backbone"])
        assert cfg.method == method_choice(line["method"], line["settings"])


def test_what_reconciles(rows: list[CountRow]):
    no = {(row.row, row.printed): row for row in rows if row.agrees == "no"}
    assert set(no) == DO_NOT_RECONCILE
    for row in no.values():
        assert row.convention.startswith("does not reconcile")
        assert row.note
    for row in rows:
        assert (row.ours == row.printed) == (row.agrees == "yes")


def test_houlsby_totals_and_percentages(rows: list[CountRow]):
    value = {(row.experiment.rpartition("table1_")[2], row.printed): row.value for row in rows if row.experiment}
    assert value["full", "9.0x"] == 9
    assert value["full", "100%"] == 100
    assert value["adapters_64", "2.1%"] == pytest.approx(100 * ADAPTERS[64] / 302_309_376)
    assert value["adapters_64", "1.2x"] == pytest.approx(1.189, abs=5e-4)
    assert value["adapters_8_256", "3.6%"] == pytest.approx(3.573, abs=5e-4)
    assert value["adapters_8_256", "1.3x"] == pytest.approx(1.322, abs=5e-4)


def test_three_tasks_of_each_size_is_the_only_split_that_prints_3_6():
    printing = []
    for n8, n64 in itertools.product(range(10), range(10)):
        if n8 + n64 <= 9:
            n256 = 9 - n8 - n64
            mean = (n8 * ADAPTERS[8] + n64 * ADAPTERS[64] + n256 * ADAPTERS[256]) / 9
            if f"{100 * mean / 302_309_376:.1f}" == "3.6":
                printing.append((n8, n64, n256))
    assert printing == [(3, 3, 3)]


def test_a_wrong_convention_does_not_agree():
    counts = counts_of([f"{HOULSBY}adapters_64"], 2)
    assert figure_of("2.1%", "added", "100 n / layers", counts)[1] == "2.1%"
    assert figure_of("2.1%", "added", "100 n / backbone", counts)[1] == "1.9%"
    reference = read_reference()
    line = (reference.params["printed"] == "2.1%") & (reference.params["experiment"] != "")
    wrong = reference.params[line].assign(formula="100 n / backbone")
    row = count_rows(dataclasses.replace(reference, params=wrong))[0]
    assert (row.agrees, row.ours) == ("no", "1.9%")
    assert "100 n / layers, n = added" in row.convention


def test_the_adapter_rows_fit_only_in_units_of_two_to_the_twenty():
    for experiment, printed in (("p_3m", "3.0M"), ("h_6m", "6.0M")):
        counts = counts_of([f"{LORA}roberta_large_adapter_{experiment}"], 3)
        assert readings(printed, counts) == [f"n / 2^20, n = {n}" for n in ("added", "method", "stored")]


def test_the_released_readme_of_lora_counts_otherwise_than_the_paper():
    """It prints 0.8M for RoBERTa-base LoRA: only the count with the head, in units of 2^20 (0.85), prints so."""
    assert readings("0.8M", counts_of([f"{LORA}roberta_base_lora"], 3)) == ["n / 2^20, n = with head"]


def test_the_committed_table_is_current(rows: list[CountRow], tmp_path: Path):
    write_rows(rows, tmp_path)
    committed = CONF_DIR.parent / "results" / "tables"
    for name in ("param_counts.csv", "param_counts.md"):
        assert (tmp_path / name).read_text() == (committed / name).read_text(), "run `peft-bench params`"


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--results", str(tmp_path)]) == 0
    assert "RoB_large (LoRA)†" in capsys.readouterr().out
    with (tmp_path / "tables" / "param_counts.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [field.name for field in dataclasses.fields(CountRow)] == list(lines[0])
    assert len(lines) == 135


def test_one_configuration_from_overrides(capsys: pytest.CaptureFixture[str]):
    assert main(["backbone=roberta_large", "method.rank=4"]) == 0
    assert "393,216" in capsys.readouterr().out


def test_a_control_without_parameters_is_refused():
    with pytest.raises(ValueError, match="Majority has no parameters to count"):
        counts_of(["experiment=controls/majority"], 2)


@pytest.mark.parametrize("size", ["small", "base", "large", "xl", "xxl"])
def test_claims_of_prompt_tuning_about_counts(size: str):
    """Lester et al. 2021, exact: T01 and T05, P rows of d; T22, fewest of all and under 0.01% above one billion; T36, a
    hundred rows are fewer than a prefix of ten."""
    register()
    backbone = backbone_choice(f"t5_{size}_lm_adapt")

    def trained(method: str, settings: str) -> ParameterCounts:
        return count(backbone, method_choice(method, settings), 0)

    prompts = {length: trained("prompt", f"length={length} init=uniform").method for length in (1, 5, 20, 100, 150)}
    assert prompts == {length: length * backbone.architecture["d_model"] for length in prompts}
    prefix = trained("prefix", "length=10 mlp_hidden=null")
    assert prompts[100] < prefix.stored < trained("full", "").method
    assert (prompts[100] / prefix.backbone < 1e-4) == (prefix.backbone > 1e9)
