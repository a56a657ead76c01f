"""The house as data: which rooms there are, how large a file may be, and which way every import points."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# In the order of the walk: a package imports what stands before it, and peft_methods; cli.py imports all, when asked.
PACKAGES = (
    "config", "records", "micro", "backbones", "tasks", "metrics", "answers", "training", "runs", "report", "sweeps",
    "studies", "pretraining", "rehearsal",
)  # fmt: skip
BESIDE_THEM = {"__init__", "__main__", "cli", "controls"}
WITHOUT_TORCH = ("config", "records", "micro", "tasks", "report")
MOST_LINES = 300
MOST_PARAMETERS = 6  # of a function on a run's walk
TWINS = {"benchmarks.studies", "benchmarks.report.pages"}
WALK = ("answers", "backbones", "runs", "training")
# Modules of one name in several packages, and the one meaning that it has in all of them.
ONE_MEANING = {
    "attach": "methods put on a backbone: of any model; of the runs of a pack, with what they answer",
    "checks": "what a stage refuses before anything is trained",
    "command": "a verb of peft-bench: its arguments, and what it calls",
    "loading": "from the name in a configuration to what is in memory",
    "loop": "the steps of training",
    "schema": "every field there is, with its type and meaning",
    "texts": "answers that are free texts: their rows, how they are written and read, their tables",
}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("benchmarks", "peft_methods")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports_of(name: str, path: Path) -> set[str]:
    """The modules of ours that a module imports, at its top or within a function."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = package[:-1] if package[-1:] == ["__init__"] else package
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            found |= {f"{module}.{alias.name}" if f"{module}.{alias.name}" in FILES else module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    within = {f"{module}.__init__" if f"{module}.__init__" in FILES else module for module in found}
    return {module for module in within if module in FILES}


IMPORTS = {name: imports_of(name, path) for name, path in FILES.items()}


def floor(module: str) -> int:
    """peft_methods 0, then the packages in their order, then what stands beside them."""
    top, _, rest = module.partition(".")
    if top == "peft_methods":
        return 0
    package = rest.split(".")[0]
    return PACKAGES.index(package) + 1 if package in PACKAGES else len(PACKAGES) + 1


def test_the_rooms_are_these():
    folders = {path.parent.name for path in (ROOT / "benchmarks").glob("*/__init__.py")}
    assert folders == set(PACKAGES)
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == BESIDE_THEM
    assert len(BESIDE_THEM) <= 6


def test_no_file_is_long():
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in FILES.items()}
    assert not {name: n for name, n in lines.items() if n > MOST_LINES}


def test_every_import_points_one_way():
    up = [
        f"{name} imports {module}"
        for name, modules in IMPORTS.items()
        for module in modules
        if floor(module) > floor(name) and module != "benchmarks.__init__"
    ]
    assert not up, "\n".join(sorted(up))


def test_micro_imports_nothing_of_ours():
    """The generated language is frozen: what it says must not follow from other code."""
    assert not {m for name in IMPORTS if floor(name) == floor("benchmarks.micro") for m in IMPORTS[name]} - {
        name for name in FILES if name.startswith("benchmarks.micro.")
    }


def test_no_modules_import_each_other():
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        state[name] = 1
        for module in sorted(IMPORTS[name]):
            # a package's own __init__ gathers its parts: no reader meets a circle there
            if module.endswith("__init__"):
                continue
            assert state.get(module) != 1, f"circle: {' -> '.join([*path[path.index(module) :], module])}"
            if module not in state:
                visit(module, (*path, module))
        state[name] = 2

    for name in sorted(FILES):
        if name not in state:
            visit(name, (name,))


def test_the_package_names_itself_relatively():
    """Its folder has another name than what is installed."""
    absolute = re.compile(r"^\s*(from|import) (benchmarks|peft_bench)\b", re.MULTILINE)
    wrong = [n for n, p in FILES.items() if n.startswith("benchmarks") and absolute.search(p.read_text("utf-8"))]
    assert not wrong
    assert not [
        p
        for p in (ROOT / "tests").rglob("*.py")
        if re.search(r"^\s*(from|import) benchmarks\b", p.read_text("utf-8"), re.MULTILINE)
    ]


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_it_imports_without_torch(package):
    names = [n for n in FILES if n.startswith(f"benchmarks.{package}.") and not n.endswith("__init__")]
    modules = [n.replace("benchmarks", "peft_bench", 1) for n in names]
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_has_one_meaning():
    places = defaultdict(list)
    for name in FILES:
        if not name.endswith(("__init__", "__main__")):
            places[name.rpartition(".")[2]].append(name)
    twice = {base: where for base, where in places.items() if len(where) > 1}
    # what studies/ measures, report/pages/ prints: the same noun on purpose
    printed = {b for b, w in twice.items() if {n.rpartition(".")[0] for n in w} == TWINS}
    assert set(twice) - printed == set(ONE_MEANING), {b: w for b, w in twice.items() if b not in printed}


def test_functions_on_the_walk_take_few_parameters():
    wide = []
    for name, path in FILES.items():
        if name.split(".")[1] not in WALK:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                number = sum(argument.arg not in ("self", "cls") for argument in arguments)
                wide += [f"{name}.{node.name}: {number}"] if number > MOST_PARAMETERS else []
    assert not wide


def test_tests_stand_where_the_code_stands():
    for folder in (ROOT / "tests" / "benchmarks").iterdir():
        assert not folder.is_dir() or folder.name in {*PACKAGES, "__pycache__"}, folder.name
    flat = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "benchmarks").glob("test_*.py")}
    assert flat <= BESIDE_THEM


def test_what_is_installed_is_what_is_there():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {
        name.removesuffix(".__init__").replace("benchmarks", "peft_bench", 1)
        for name in FILES
        if name.endswith("__init__")
    }
    assert set(listed) == folders
    assert importlib.util.find_spec("peft_bench") is not None


PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_map_has_every_package_in_its_order():
    tree = PAGE.partition("## The tree")[2].partition("## One run")[0]
    assert tuple(re.findall(r"^\| `(\w+)/` \|", tree, re.MULTILINE)) == PACKAGES
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^    (\w+)/ ", readme.partition("benchmarks/ ")[2].partition("results/ ")[0], re.MULTILINE)
    assert tuple(listed) == PACKAGES


def test_the_walk_is_short_and_its_hops_exist():
    walk = PAGE.partition("## One run")[2].partition("Then `peft-bench report`")[0]
    hops = re.findall(r"^\d+\. `([\w/]+)\.py`: `(\w+)`", walk, re.MULTILINE)
    assert len(hops) == len(re.findall(r"^\d+\. ", walk, re.MULTILINE)) <= 20
    for file, function in hops:
        tree = ast.parse((ROOT / "benchmarks" / f"{file}.py").read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, function)


def test_groups_of_conf_are_all_on_the_map():
    named = set(re.findall(r"`(\w+)/`", PAGE.partition("## conf/")[2].partition("## results/")[0]))
    assert {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} <= named


def test_files_that_are_named_exist():
    """In README, docs, comments and messages: every path that begins with a folder of ours."""
    texts = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *FILES.values(), *(ROOT / "conf").rglob("*.yaml")]
    named = {
        (path.relative_to(ROOT).as_posix(), match)
        for path in texts
        for match in re.findall(
            r"\b((?:benchmarks|peft_methods|tests|conf)/[\w/]+\.(?:py|yaml|csv))", path.read_text("utf-8")
        )
    }
    assert not sorted((where, name) for where, name in named if not (ROOT / name).exists() and "/x." not in name)
