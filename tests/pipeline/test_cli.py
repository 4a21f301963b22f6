"""The command line: one answer, a conversation on a terminal, reports, and mistakes in one line."""

import contextlib
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_models import write_directory, write_gguf

from lmdeploy_c import GenerationConfig, TurbomindEngineConfig, __version__, pipeline
from lmdeploy_c.cli import main, make_parser
from lmdeploy_c.cli.loop_guard import LoopGuard
from lmdeploy_c.cli.terminal import _is_meant_as_command, read_prompt
from lmdeploy_c.files.checkpoint import open_checkpoint
from lmdeploy_c.files.sampling_defaults import sampling_defaults

LMDEPLOY_C = [sys.executable, "-m", "lmdeploy_c"]
SMALL = ["--session-len", "512", "--cache-max-entry-count", "32MB"]
QUESTION = "What is the capital of France?"


def run(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*LMDEPLOY_C, *arguments], input=stdin, capture_output=True, text=True, timeout=120
    )


def test_help_is_quick() -> None:
    def spent() -> float:  # processor time: what else the machine does should not count
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(5):
        before = spent()
        done = run("--help")
        times.append(spent() - before)
        assert done.returncode == 0 and "chat" in done.stdout
    assert min(times) < 0.3, times


def test_help_shows_defaults_and_types() -> None:
    text = " ".join(run("chat", "--help").stdout.split())
    assert "Default: 512. Type: int" in text
    assert "--cache-max-entry-count" in text


def test_version() -> None:
    assert run("--version").stdout == run("-v").stdout == f"lmdeploy_c {__version__}\n"


def test_chat_answers_a_prompt_once() -> None:
    done = run("chat", *SMALL, "--prompt", QUESTION)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout


def test_chat_answers_standard_input_once() -> None:
    done = run("chat", *SMALL, "--max_new_tokens=5", stdin=QUESTION + "\n")
    assert done.returncode == 0 and done.stdout.startswith("The capital of France is")
    assert "--max-new-tokens" in done.stderr, "it says why the answer is cut"


def test_flags_become_configs() -> None:
    from lmdeploy_c.cli.chat import generation_config

    parse = make_parser().parse_args
    assert generation_config(parse(["chat"])) == GenerationConfig()
    config = generation_config(parse(["chat", "--temperature", "0.8", "--seed", "4"]))
    assert config == GenerationConfig(do_sample=True, random_seed=4)
    assert not generation_config(parse(["chat", "--repetition-penalty", "1.2"])).do_sample


def test_the_template_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text('{"model_name": "base", "user": "Q: ", "eoh": "\\nA:", "stop_words": ["\\n"]}')
    done = run(
        "chat", *SMALL, "--chat-template", str(file), "--prompt", "hi", "--max-new-tokens", "9"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["chat", "/no/such/model", "--prompt", "x"], 1, "/no/such/model"),
        (["chat", "--tp", "2", "--prompt", "x"], 1, "TurbomindEngineConfig.tp=2 is not served"),
        (["chat", "--device", "cuda:99", "--prompt", "x"], 1, 'device "cuda:99" cannot be used: '),
        (["chat", "--top-p", "3", "--prompt", "x"], 1, "GenerationConfig.top_p must be between"),
        (["chat", "--chat-template", "nobody", "--prompt", "x"], 1, "nobody"),
        (["chat", "--chat-template", "no.json", "--prompt", "x"], 1, "no.json"),
        (["chat", "--adapters", "a=b"], 2, "--adapters is not served by release"),
        (["chat", "--session-len", "long"], 2, "invalid int value: 'long'"),
        (["chat"], 1, "standard input is empty"),
        (["convert", "internlm2"], 2, "convert is not part of release"),
        (["serve"], 2, "KIND"),
        (["serve", "api_server", "--server-port", "99999"], 1, "port: 0 to 65535"),
        (["serve", "api_server", "--tool-call-parser", "qwen"], 2, "is not served by release"),
        (["check_env", "--dump-file", "x.txt"], 1, ".json, .yml or .yaml"),
        ([], 2, "COMMAND"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(
    arguments: list[str], code: int, why: str
) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert why in done.stderr and "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.startswith("lmdeploy_c: error: ") and done.stderr.count("\n") == 1


def test_a_failed_request_is_exit_code_1() -> None:
    done = run("chat", *SMALL, "--prompt", "word " * 2000)
    assert done.returncode == 1 and done.stderr.count("context length") == 1


def test_a_closed_pipe_is_no_traceback() -> None:
    command = " ".join([*LMDEPLOY_C, "chat", *SMALL, "--prompt", "'Tell a story.'", "| head -c 1"])
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_check_env(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check_env", "--dump-file", str(tmp_path / "x.json")]) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["lmdeploy_c"]["version"] == __version__
    assert report["cpu"]["isa"] in (
        "ref",
        "avx2",
        "avxvnni",
        "avx512",
        "amx",
        "neon",
        "neon_dotprod",
        "neon_i8mm",
    )
    gpus, auto = report["gpus"], report["device auto"]
    assert set(gpus) == {"driver", "error"} or " free of " in gpus["cuda:0"]
    assert " free of " in auto["memory"]
    assert (auto["name"] == "cpu") == auto["why"].startswith("no GPU: ")
    memory = {"total", "available", "cgroup limit", "address space", "data size", "usable"}
    assert set(report["memory"]) == memory
    assert report["memory"]["total"].endswith("iB")
    for word in ("numpy", "usable_threads", "max_batch_size", "optional packages"):
        assert word in shown


def test_check_env_yaml(tmp_path: Path) -> None:
    from lmdeploy_c.cli.check_env import collect, dump

    report = collect()
    dump(report, tmp_path / "x.yml")
    lines = (tmp_path / "x.yml").read_text().splitlines()
    assert '"python":' in lines
    for line in lines:  # every line is a key with a JSON value, or opens a section
        key, _, value = line.strip().partition(": ")
        json.loads(key.rstrip(":"))
        assert not value or json.loads(value) is not ...


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "Qwen2ForCausalLM" in shown and "vicuna" in shown


@pytest.mark.parametrize(
    ("typed", "prompt"),
    [
        (["hello"], "hello"),
        (["one \\", "two"], "one \ntwo"),
        (['"""def f():', "", '  pass"""'], "def f():\n\n  pass"),
        (['say """x""" now'], "say x now"),
        (['pasted\n  """x"""\n'], 'pasted\n  """x"""'),
        (["about \\", "two\nlines"], "about \ntwo\nlines"),
        (['"""', "two\nlines", '"""'], "\ntwo\nlines\n"),
    ],
)
def test_lines_of_a_prompt(typed: list[str], prompt: str) -> None:
    lines = iter(typed)
    assert read_prompt(lambda _: next(lines)) == prompt


class Terminal:
    """A `chat` with a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [*LMDEPLOY_C, "chat", *SMALL, *arguments])
        self.text = ""

    def type(self, text: str) -> None:
        self.text = ""
        os.write(self.fd, text.encode())

    def wait_for(self, wanted: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while wanted not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:  # the other end has gone
                    assert wanted in self.text, self.text
                    return

    def end(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if select.select([self.fd], [], [], 0.1)[0]:
                    os.read(self.fd, 4096)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("chat does not end")


def test_a_conversation_on_a_terminal(tmp_path: Path) -> None:
    terminal = Terminal()
    terminal.wait_for(">>> ")
    terminal.type(QUESTION + "\n")
    terminal.wait_for("Paris")
    terminal.wait_for(">>> ")
    terminal.type("/help\n")
    terminal.wait_for("forget the conversation")
    terminal.type("/nonsense\n")
    terminal.wait_for("/nonsense is not a command")
    for line, said in (
        (f"/save {tmp_path}/talk", "(saved: 1 turns)"),
        ("/undo", "(0 turns)"),
        ("/undo", "nothing to undo: the conversation has no turn"),
        (f"/load {tmp_path}/none", "No such file"),
        (f"/load {tmp_path}/talk", "(loaded: 1 turns)"),
        ("/save", "/save takes a file: /save talk.session"),
        ("/undo now", "/undo takes nothing after it"),
        ("/udno", "/udno is not a command; did you mean '/undo'? /help lists them"),
        ("/sav x", "/sav is not a command; did you mean '/save'?"),
        ("/reset", "(a new conversation)"),
        ("end", "(a new conversation)"),
    ):
        terminal.type(line + "\n")
        terminal.wait_for(said)
        terminal.wait_for(">>> ")
    terminal.type("/exit\n")
    assert terminal.end() == 0


@pytest.mark.parametrize(
    ("prompt", "command"),
    [
        ("/udno", True),
        ("/nonsense", True),
        ("/laod talk.session", True),
        ("/home is where the heart is", False),
        ("undo", False),
    ],
)
def test_what_is_meant_as_a_command(prompt: str, command: bool) -> None:
    name, _, argument = prompt.partition(" ")
    assert _is_meant_as_command(name, argument) == command


@pytest.mark.parametrize("leave", ["quit\n", "exit\n", "/quit\n", "\x03", "\x04"])
def test_leaving(leave: str) -> None:
    terminal = Terminal()
    terminal.wait_for(">>> ")
    time.sleep(0.5)  # readline loses a Ctrl-C that comes while it sets the terminal up
    terminal.type(leave)
    assert terminal.end() == 0


def test_pasted_text_is_one_message(tmp_path: Path) -> None:
    pasted = '/save f():\n    """Says hello."""\n/undo\n\n    return "hello"'
    terminal = Terminal("--max-new-tokens", "2")
    terminal.wait_for(">>> ")
    terminal.type(f"\x1b[200~{pasted}\n\x1b[201~\n")
    terminal.wait_for("(cut after 2 tokens")
    terminal.type(f"/save {tmp_path}/talk\n")
    terminal.wait_for("(saved: 1 turns)")
    terminal.type("\x04")
    assert terminal.end() == 0
    with pipeline(backend_config=TurbomindEngineConfig(session_len=512)) as pipe:
        ((said, _),) = pipe.load_session(tmp_path / "talk").history
    assert said == pasted


def test_ctrl_c_stops_the_answer_only() -> None:
    terminal = Terminal("--top-k", "1", "--max-new-tokens", "4000")
    terminal.wait_for(">>> ")
    terminal.type("Write a very long story about the sea, with many chapters.\n")
    terminal.wait_for("chapters.\r\n")
    time.sleep(0.3)  # well before its end
    terminal.type("\x03")
    terminal.wait_for(">>> ")
    for turns in ("(0 turns)", "nothing to undo"):  # what came of the answer was a turn
        terminal.type("/undo\n")
        terminal.wait_for(turns)
        terminal.wait_for(">>> ")
    time.sleep(0.5)  # readline loses a Ctrl-C that comes while it sets the terminal up
    terminal.type("\x03")
    assert terminal.end() == 0


def test_an_answer_that_goes_round_in_a_circle_is_ended(tmp_path: Path) -> None:
    path, _ = write_directory(tmp_path, ["tick", " tock"], ["tick", " tock", "tick"])
    done = run("chat", str(path), "--prompt", "Hi", "--max-new-tokens", "400")
    assert done.returncode == 0
    assert done.stdout.startswith("tick tock" * 60) and done.stdout.count("tick") < 150
    assert "goes round in a circle: the same 2 tokens again and again" in done.stderr


@pytest.mark.parametrize(
    ("tokens", "cycle"),
    [
        ([*range(300)], 0),
        ([7] * 119, 0),
        ([7] * 120, 1),
        ([*range(40), *[1, 2, 3] * 41], 3),
        ([*range(64)] * 5, 0),
        ([*range(64)] * 6, 64),
        ([*range(65)] * 20, 0),
        ([n for i in range(100) for n in (5, i)], 0),  # a list that counts
    ],
)
def test_loops(tokens: list[int], cycle: int) -> None:
    assert LoopGuard().add(tokens) == cycle
    guard = LoopGuard()
    found = [guard.add([token]) for token in tokens]
    assert next(filter(None, found), 0) == cycle


OWN = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}


def test_chat_samples_as_the_models_files_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lmdeploy_c.cli.chat import generation_config

    words = ["tick", " tock"]
    wrong = {"temperature": "hot", "top_p": 10**400, "top_k": 20, "do_sample": None}
    found = []
    for name, own in (("own", OWN), ("wrong", wrong), ("none", None)):
        path, _ = write_directory(tmp_path / name, words, words, generation_config=own)
        found.append(sampling_defaults(open_checkpoint(path)))
    assert found == [OWN, {"top_k": 20}, {}]
    assert "temperature must be a number, not 'hot'" in caplog.text and "top_p" in caplog.text
    parse = make_parser().parse_args
    assert generation_config(parse(["chat"]), OWN) == GenerationConfig(**OWN)
    mine = generation_config(parse(["chat", "--temperature", "0", "--top-k", "5"]), OWN)
    assert mine == GenerationConfig(**{**OWN, "temperature": 0, "top_k": 5})
    greedy = {**OWN, "do_sample": False}
    assert not generation_config(parse(["chat"]), greedy).do_sample
    assert generation_config(parse(["chat", "--seed", "3"]), greedy).do_sample


def test_a_gguf_file_says_how_to_sample(tmp_path: Path) -> None:
    path, _ = write_gguf(tmp_path / "m.gguf", ["tick"], ["tick"])
    checkpoint = open_checkpoint(path)
    assert sampling_defaults(checkpoint) == {}
    checkpoint.metadata.update({"general.sampling.temp": 0.5, "general.sampling.top_k": 9})
    assert sampling_defaults(checkpoint) == {"do_sample": True, "temperature": 0.5, "top_k": 9}
    checkpoint.metadata.clear()
    checkpoint.metadata["general.sampling.penalty_repeat"] = 1.1
    assert sampling_defaults(checkpoint) == {"repetition_penalty": 1.1}


def test_chat_says_how_it_samples(tmp_path: Path) -> None:
    path, _ = write_directory(tmp_path, ["tick"], ["tick"], generation_config=OWN)
    terminal = Terminal(str(path))
    terminal.wait_for("sampling: temperature 0.6, top_p 0.9, top_k 20")
    terminal.wait_for(">>> ")
    terminal.type("\x04")
    assert terminal.end() == 0
