"""Models by their ids, fetched by huggingface_hub from a hub on loopback."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, Repository

from lmdeploy_c.files import hub as hub_files
from lmdeploy_c.files.checkpoint import resolve_model
from lmdeploy_c.files.hub import ModelId, choose_gguf, parse_id

GOLDEN = Path(__file__).parents[1] / "golden"
QUANTS = ("Q2_K", "Q4_0", "Q4_K_M", "Q4_K_S", "Q8_0")
#: A repository of many quantisations, with what else such repositories have.
MANY = {
    **{f"Some-1B-{quant}.gguf": quant.encode() for quant in QUANTS},
    "mmproj-Some-F16.gguf": b"a projector",
    "Some-1B-imatrix.gguf": b"a matrix",
    "README.md": b"text",
    "config.json": b"{}",
}
PROGRAM = """
import json, sys
from lmdeploy_c.files.checkpoint import resolve_model
try:
    print(json.dumps({"path": str(resolve_model(**json.loads(sys.argv[1])))}))
except (FileNotFoundError, ValueError) as error:
    print(json.dumps({"error": type(error).__name__ + ": " + str(error)}))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


class Client:
    """A process with a cache of its own."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "hf")}
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "LMDEPLOY_USE_MODELSCOPE"):
            self.env.pop(name, None)

    def ask(self, path_or_id: str, env: dict[str, str] | None = None, **options: str) -> dict:
        words = json.dumps({"path_or_id": path_or_id, **options})
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, words],
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def path(self, path_or_id: str, **options) -> Path:
        answer = self.ask(path_or_id, **options)
        assert "path" in answer, answer
        return Path(answer["path"])

    def error(self, path_or_id: str, **options) -> str:
        answer = self.ask(path_or_id, **options)
        assert "error" in answer, answer
        return answer["error"]


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(hub, tmp_path)


# ---- names ----


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a/b", ModelId("a/b")),
        ("a/b:latest", ModelId("a/b")),
        ("a/b:Q4_0", ModelId("a/b", tag="Q4_0")),
        ("hf.co/a/b.c:q4_0", ModelId("a/b.c", tag="q4_0")),
        ("a/b/x.gguf", ModelId("a/b", file="x.gguf")),
        ("a/b/f/x y.gguf", ModelId("a/b", file="f/x y.gguf")),
        ("https://huggingface.co/a/b", ModelId("a/b")),
        ("https://huggingface.co/a/b/tree/dev/", ModelId("a/b", revision="dev")),
        (
            "https://huggingface.co/a/b/blob/main/x.gguf",
            ModelId("a/b", file="x.gguf", revision="main"),
        ),
        ("a", None),
        ("a/b/c", None),
        ("a/b:c:d", None),
        ("a/b:", None),
        ("", None),
    ],
)
def test_ids(text: str, wanted: ModelId | None) -> None:
    assert parse_id(text) == wanted


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["x-Q8_0.gguf"], "x-Q8_0.gguf"),
        (["x-Q8_0.gguf", "x-Q4_K_M.gguf", "x-Q4_0.gguf"], "x-Q4_K_M.gguf"),
        (["x.q8_0.gguf", "x.q5_k_m.gguf", "x.iq3_xs.gguf"], "x.q5_k_m.gguf"),
        (["x-fp16.gguf", "x-iq2_xs.gguf"], "x-fp16.gguf"),
        (["Q4_K_M/x-00001-of-00002.gguf", "Q8_0/x.gguf"], "Q4_K_M/x-00001-of-00002.gguf"),
        (["x-Q4_0_4_4.gguf", "x-Q8_0.gguf"], "x-Q8_0.gguf"),
    ],
)
def test_the_quantisation_that_is_taken(names: list[str], wanted: str) -> None:
    assert choose_gguf("a/b", names)[0] == wanted


def test_a_choice_that_is_none_names_what_there_is() -> None:
    names = [name for name in MANY if name.endswith(".gguf")]
    assert choose_gguf("a/b", names, tag="q4_k_s") == ["Some-1B-Q4_K_S.gguf"]
    assert choose_gguf("a/b", names, pattern="*q2_k*".upper()) == ["Some-1B-Q2_K.gguf"]
    with pytest.raises(FileNotFoundError, match=r"'a/b' has not a GGUF file of 'Q4_K'; .*Q4_K_M"):
        choose_gguf("a/b", names, tag="Q4_K")
    with pytest.raises(FileNotFoundError, match="'a/b' has not a file 'y'; .*Some-1B-Q8_0.gguf"):
        choose_gguf("a/b", names, pattern="y")
    with pytest.raises(ValueError, match=r"several: Some-1B-Q4_K_M.gguf, Some-1B-Q4_K_S.gguf; "):
        choose_gguf("a/b", names, pattern="*Q4_K_*")
    with pytest.raises(ValueError, match=r"several: x-1b-Q4_0.gguf, x-7b-Q4_0.gguf; name one by"):
        choose_gguf("a/b", ["x-1b-Q4_0.gguf", "x-7b-Q4_0.gguf"])
    with pytest.raises(FileNotFoundError, match="and 8 more"):
        choose_gguf("a/b", [f"{i:02}.gguf" for i in range(20)], tag="Q4_0")
    with pytest.raises(FileNotFoundError, match="GGUF files: none"):
        choose_gguf("a/b", [])


def test_a_file_of_a_folder(tmp_path: Path) -> None:
    for name in ("x-Q4_0.gguf", "x-Q8_0.gguf"):
        (tmp_path / name).touch()
    assert resolve_model(tmp_path) == tmp_path, "which of them is not for us to say"
    assert resolve_model(tmp_path, filename="*q8_0*".upper()) == tmp_path / "x-Q8_0.gguf"
    with pytest.raises(ValueError, match="filename='x' is for a folder"):
        resolve_model(tmp_path / "x-Q4_0.gguf", filename="x")
    (tmp_path / "nested" / "Q8_0").mkdir(parents=True)
    (tmp_path / "nested" / "Q8_0" / "x.gguf").touch()
    assert resolve_model(tmp_path / "nested") == tmp_path / "nested" / "Q8_0" / "x.gguf"


# ---- fetching ----


def test_one_file_of_many_is_fetched_once(hub: Hub, client: Client) -> None:
    hub.repositories["a/b-GGUF"] = Repository(MANY)
    path = client.path("a/b-GGUF")
    assert (path.name, path.read_bytes()) == ("Some-1B-Q4_K_M.gguf", b"Q4_K_M")
    assert hub.fetched() == ["Some-1B-Q4_K_M.gguf"]
    # huggingface_hub's cache, where its own tools and other programs find it
    assert "hf/hub/models--a--b-GGUF/snapshots" in str(path)
    hub.asked.clear()
    assert client.path("a/b-GGUF") == path
    assert hub.fetched() == []
    assert client.path("a/b-GGUF:q8_0").read_bytes() == b"Q8_0"
    assert client.path("a/b-GGUF/Some-1B-Q4_0.gguf").read_bytes() == b"Q4_0"
    assert client.path("a/b-GGUF", filename="*-Q2_?.gguf").read_bytes() == b"Q2_K"
    assert hub.fetched() == ["Some-1B-Q2_K.gguf", "Some-1B-Q4_0.gguf", "Some-1B-Q8_0.gguf"]


def test_without_a_network_the_cache_serves(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.repositories["a/b-GGUF"] = Repository(MANY)
    path = client.path("a/b-GGUF:Q4_0")
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for env in ({"HF_HUB_OFFLINE": "1"}, unreachable):
        assert client.path("a/b-GGUF:Q4_0", env=env) == path
        assert client.path("a/b-GGUF", env=env) == path, "the only one that is there"
    assert "its GGUF files: Some-1B-Q4_0.gguf" in client.error("a/b-GGUF:Q8_0", env=unreachable)
    empty = {**unreachable, "HF_HOME": str(tmp_path / "empty")}
    error = client.error("a/b-GGUF:Q8_0", env=empty)
    assert error.startswith("FileNotFoundError: 'a/b-GGUF' is no path here")
    assert 'run: hf download a/b-GGUF --include "*Q8_0*.gguf" --local-dir b-GGUF; bring' in error
    assert '"*Q4_K_M*.gguf" --local-dir b-GGUF' in client.error("a/b-GGUF", env=empty)
    assert "run: hf download a/b --local-dir b;" in client.error("a/b", env=empty)


def test_all_parts_of_a_model(hub: Hub, client: Client) -> None:
    parts = {f"Q4_0/x-0000{i}-of-00003.gguf": b"part" + bytes([i]) for i in (1, 2, 3)}
    hub.repositories["a/b"] = Repository({**parts, "Q8_0/x-00001-of-00001.gguf": b"other"})
    path = client.path("a/b:Q4_0")
    assert path.name == "x-00001-of-00003.gguf"
    assert sorted(p.name for p in path.parent.iterdir()) == [Path(name).name for name in parts]
    assert hub.fetched() == sorted(parts)


def test_what_a_directory_is_read_from(hub: Hub, client: Client) -> None:
    names = ["config.json", "tokenizer.json", "chat_template.jinja", "x.py"]
    texts = {name: name.encode() for name in names}
    names = ["original/consolidated.safetensors", "consolidated.safetensors", "onnx/config.json",
             "pytorch_model.bin"]  # fmt: skip
    others = {name: name.encode() for name in names}
    hub.repositories["a/one"] = Repository({**texts, **others, "model.safetensors": b"w"})
    folder = client.path("a/one")
    wanted = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(p.name for p in folder.iterdir()) == wanted == hub.fetched()
    index = {"weight_map": {"x": "part-1.safetensors", "y": "part-2.safetensors"}}
    shards = {"part-1.safetensors": b"1", "part-2.safetensors": b"2"}
    named = {"model.safetensors.index.json": json.dumps(index).encode()}
    hub.repositories["a/shards"] = Repository({**texts, **others, **shards, **named})
    hub.asked.clear()
    client.path("a/shards")
    assert hub.fetched() == sorted([*wanted[:2], wanted[3], *named, *shards])
    hub.repositories["a/pickles"] = Repository({**texts, "pytorch_model.bin": b""})
    assert "pickles, which are never loaded" in client.error("a/pickles")


def test_a_broken_connection_goes_on_where_it_was(hub: Hub, client: Client) -> None:
    data = bytes(range(256)) * (24 << 12)  # the library writes 10 MB at a time
    hub.repositories["a/b"] = Repository({"x.gguf": data})
    hub.cut_after = 22 << 20
    if "error" in client.ask("a/b"):  # from older ones of the library, which go on when asked again
        client.path("a/b")
    [path] = client.path("a/b").parent.iterdir()
    assert path.read_bytes() == data
    ranges = [asked for method, path, asked in hub.asked if method == "GET" and "resolve" in path]
    assert any(r and not r.startswith("bytes=0-") for r in ranges), ranges


def test_refusals_say_what_to_do(hub: Hub, client: Client) -> None:
    hub.repositories["a/private"] = Repository({"x.gguf": b"private"}, token="secret")
    hub.repositories["a/gated"] = Repository({"x.gguf": b"gated"}, gated=True)
    hub.repositories["a/b"] = Repository({"x.gguf": b"dev"}, branch="dev")
    assert "no such repository, or a private one, which needs HF_TOKEN" in client.error("a/gone")
    assert "needs HF_TOKEN" in client.error("a/private")
    with_token = client.path("a/private", env={"HF_TOKEN": "secret"})
    assert with_token.read_bytes() == b"private"
    assert "who asked on its page" in client.error("a/gated")
    assert "no revision 'v2'" in client.error("a/b", revision="v2")
    assert client.path("a/b", revision="dev").read_bytes() == b"dev"
    assert client.path("https://huggingface.co/a/b/blob/dev/x.gguf").read_bytes() == b"dev"
    assert "no such repository" in client.error("models/llama/x.gguf")


def test_names_from_the_network_stay_in_their_folder(hub: Hub, client: Client) -> None:
    hub.repositories["a/b"] = Repository({"../../x-Q4_K_M.gguf": b"out", "x-Q8_0.gguf": b"in"})
    assert client.path("a/b").read_bytes() == b"in"


def test_the_first_answer_in_two_lines(hub: Hub, client: Client) -> None:
    model = (GOLDEN / "gguf" / "llama-q4_1.gguf").read_bytes()
    hub.repositories["a/tiny-GGUF"] = Repository({"tiny-Q4_1.gguf": model, "tiny-F32.gguf": b""})
    code = """
import sys, lmdeploy_c
config = lmdeploy_c.TurbomindEngineConfig(filename=sys.argv[2] if sys.argv[2:] else None)
with lmdeploy_c.pipeline(sys.argv[1], config) as pipe:
    print(pipe("a", gen_config=lmdeploy_c.GenerationConfig(max_new_tokens=4)).generate_token_len)
"""
    for words in (["a/tiny-GGUF"], ["a/tiny-GGUF", "*Q4_1*"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=client.env, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout.strip()) == (0, "4"), done.stderr


def test_modelscope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The calls of it that this package makes, on a stand-in of the same signatures."""
    (tmp_path / "x-Q4_0.gguf").touch()
    asked = {}

    def snapshot_download(model_id, revision=None, cache_dir=None, allow_patterns=None):  # type: ignore[no-untyped-def]
        asked.update(model_id=model_id, cache_dir=cache_dir, allow_patterns=allow_patterns)
        return str(tmp_path)

    class HubApi:
        def get_model_files(self, model_id, revision=None, root=None, recursive=False):  # type: ignore[no-untyped-def]
            assert recursive
            return [{"Path": "q", "Type": "tree"}, {"Path": "x-Q4_0.gguf"}, {"Path": "x-F16.gguf"}]

    package, api = types.ModuleType("modelscope"), types.ModuleType("modelscope.hub.api")
    package.snapshot_download, api.HubApi = snapshot_download, HubApi  # type: ignore[attr-defined]
    for name, module in (("modelscope", package), ("modelscope.hub", types.ModuleType("m")),
                         ("modelscope.hub.api", api)):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("LMDEPLOY_USE_MODELSCOPE", "True")
    assert resolve_model("a/b", download_dir="here") == tmp_path / "x-Q4_0.gguf"
    assert asked == {"model_id": "a/b", "cache_dir": "here", "allow_patterns": ["x-Q4_0.gguf"]}


def test_every_preference_is_one_word() -> None:
    for tag in hub_files.PREFERRED:
        assert choose_gguf("a/b", [f"x-{tag.lower()}.gguf", "x-IQ1_S.gguf"], tag=tag)
