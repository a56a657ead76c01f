"""What is asked of the hub: one form of a checkpoint's weights, and nothing more than is read.

A server on this machine answers the few questions that huggingface_hub asks; processes of their own use it, since the
library reads where the hub is when it is imported.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "ab" * 20
SMALL = ("config.json", "tokenizer.json")
PARTS = {suffix: [f"{suffix}-{i}.{suffix}" for i in (1, 2)] for suffix in ("safetensors", "bin")}
INDEX = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}
# Repository -> the files of its weights, those first that are to be fetched.
REPOSITORIES = {
    "every/form": ["model.safetensors", *PARTS["safetensors"], "pytorch_model.bin", *PARTS["bin"]],
    "parts/first": [*PARTS["safetensors"], "pytorch_model.bin"],
    "one/pickle": ["pytorch_model.bin", *PARTS["bin"]],
    "sharded/pickle": [*PARTS["bin"], "other.bin"],
    "no/weights": [],
}
FETCHED = {"every/form": 1, "parts/first": 2, "one/pickle": 1, "sharded/pickle": 2, "no/weights": 0}


def files_of(repository: str) -> dict[str, bytes]:
    """Name -> content, with the indices of the parts that there are."""
    weights = REPOSITORIES[repository]
    files = dict.fromkeys([*SMALL, "tf_model.h5", "README.md", *weights], b"{}")
    for suffix, parts in PARTS.items():
        if parts[0] in weights:
            files[INDEX[suffix]] = json.dumps({"weight_map": {name: name for name in parts}}).encode()
    return files


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        _, *parts = self.path.partition("?")[0].split("/")
        api = parts[:2] == ["api", "models"]
        repository, what = "/".join(parts[2 * api :][:2]), parts[2 * api :][2:]
        files = files_of(repository) if repository in REPOSITORIES else {}
        if files and api and what[0] == "revision":
            self.answer({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        elif files and api and what[0] == "tree":
            self.answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
                    for name, content in files.items()
                ]
            )
        elif what[:1] == ["resolve"] and what[2] in files:
            self.answer(files[what[2]])
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def answer(self, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{oid(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(home: Path, endpoint: str, offline: bool) -> dict[str, Any]:
    """Repository -> the names in the folder that a process finds or makes of it, or what it says instead."""
    code = (
        "import json\nfrom peft_bench.backbones.location import BackboneError, _published_folder, commit_of\n"
        "found = {}\n"
        f"for name in {[*REPOSITORIES]}:\n"
        "    try:\n"
        "        folder = _published_folder('mine', name, 'main', None)\n"
        "        found[name] = [commit_of(folder), *sorted(path.name for path in folder.iterdir())]\n"
        "    except BackboneError as error: found[name] = str(error)\n"
        "print(json.dumps(found))"
    )
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    answer = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "No files matched" not in answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def test_one_form_is_fetched_and_found_again_without_the_hub(tmp_path, hub):
    expected = {}
    for name, weights in REPOSITORIES.items():
        indices = [file for file in files_of(name) if file.endswith(".index.json")]
        expected[name] = [COMMIT, *sorted([*SMALL, *indices, *weights[: FETCHED[name]]])]
    assert fetch(tmp_path, hub, offline=False) == expected
    nowhere = "http://127.0.0.1:9"
    assert fetch(tmp_path, nowhere, offline=True) == expected
    # What the hub is known to hold, and is not here any more, is not replaced by another form.
    snapshot = tmp_path / "hub" / "models--every--form" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    (snapshot / "pytorch_model.bin").write_bytes(b"{}")
    assert fetch(tmp_path, nowhere, offline=True)["every/form"].startswith("cannot load the backbone 'every/form' at ")
