"""Every function, method and constructor of the C core with hostile objects in every place.

What there is to call comes from the module, and its arguments from the stub, so that a new one
without a row here fails. A call ends in a result or in an exception of a documented kind, leaves
no reference behind, and never ends the process; `make asan` runs this file under sanitizers.
"""

from __future__ import annotations

import _thread
import ast
import contextlib
import copy
import gc
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf_bytes as gb
import numpy as np
import pytest
from conftest import GOLDEN, load_model, make_engine
from hostile_objects import Clears, HostileError, every_object

import lmdeploy_c
from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import Checkpoint, open_checkpoint

MODEL = GOLDEN / "models" / "llama-gqa-tied"
#: Kinds of exceptions that the stub names, and what a hostile object raises itself.
DOCUMENTED = (TypeError, ValueError, KeyError, OSError, MemoryError, RuntimeError, HostileError)
#: A part of NumPy's own conversion fails by another kind.
OF_NUMPY = (IndexError, AttributeError, np.exceptions.DTypePromotionError)


@dataclass
class World:
    """An object of each type, in use."""

    checkpoint: Checkpoint
    gguf: _C.Gguf
    model: _C.Model
    engine: _C.Engine
    request: _C.Request
    snapshot: _C.Snapshot
    poller: _C.Poller
    scheduler: _C.Scheduler
    quantizer: _C.Quantizer
    inputsums: _C.InputSums

    def objects(self) -> list[Any]:
        return [self.gguf, self.model, self.engine, self.request, self.snapshot, self.poller,
                self.scheduler, self.quantizer, self.inputsums]  # fmt: skip


def make_world(path: Path) -> World:
    path.write_bytes(gb.small_file())
    checkpoint = open_checkpoint(MODEL)
    model = load_model(MODEL, num_threads=1)
    engine = make_engine(model, session_len=32, n_blocks=4, max_batch_size=2)
    request = engine.submit([1, 2, 3], max_new_tokens=2, keep_snapshot=True)
    while not request.done:
        request.read(30)
    snapshot = request.snapshot
    assert snapshot is not None
    scheduler = _C.Scheduler(n_blocks=8, block_len=16, session_len=64)
    scheduler.add([1, 2, 3], max_new_tokens=4)
    return World(
        checkpoint=checkpoint,
        gguf=_C.Gguf(path),
        model=model,
        engine=engine,
        request=request,
        snapshot=snapshot,
        poller=_C.Poller(),
        scheduler=scheduler,
        quantizer=_C.Quantizer(1),
        inputsums=some_sums(),
    )


def some_sums() -> _C.InputSums:
    sums = _C.InputSums(32)
    _C.Quantizer(1).add_inputs(sums, np.ones((3, 32), np.float32))
    return sums


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path / "small.gguf")
    yield made
    made.engine.close()


# ---- what there is ----


def callables() -> dict[str, Any]:
    """Everything of the module that can be called, by its name."""
    found: dict[str, Any] = {}
    for name, value in vars(_C).items():
        if name.startswith("_") or not callable(value):
            continue
        found[name] = value
        for member, method in vars(value).items() if isinstance(value, type) else ():
            if not member.startswith("_") and callable(method):
                found[f"{name}.{member}"] = method
    return found


@dataclass
class Signature:
    """A function's arguments, as the stub has them."""

    positional: list[str]
    named: list[str]
    defaults: dict[str, Any]


def signature_of(function: ast.FunctionDef) -> Signature:
    arguments = function.args
    positional = [a.arg for a in [*arguments.posonlyargs, *arguments.args] if a.arg != "self"]
    named = [a.arg for a in arguments.kwonlyargs]
    last = positional[len(positional) - len(arguments.defaults) :]
    defaults = dict(zip(last, map(ast.literal_eval, arguments.defaults), strict=True))
    return Signature(positional, named, defaults)


def signatures() -> dict[str, Signature]:
    """Name -> arguments, from the stub; older names have those of the newer ones."""
    stub = ast.parse((Path(lmdeploy_c.__file__).parent / "_C.pyi").read_text())
    found: dict[str, Signature] = {}
    for node in stub.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = signature_of(node)
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            where = node.name  # type: ignore[attr-defined]
            if isinstance(member, ast.FunctionDef):
                name = where if member.name == "__init__" else f"{where}.{member.name}"
                found[name] = signature_of(member)
            elif isinstance(member, ast.Assign) and isinstance(member.value, ast.Name):
                older = ast.unparse(member.targets[0])
                found[f"{where}.{older}"] = found[f"{where}.{member.value.id}"]
    return found


SIGNATURES = signatures()
NO_ARGUMENTS = Signature([], [], {})

# ---- a row for each: the object, and right values of what must be given ----

Values = Callable[[World], dict[str, Any]]


def nothing(world: World) -> dict[str, Any]:
    return {}


def seq_id(world: World) -> dict[str, Any]:
    return {"seq_id": world.scheduler.add([1, 2], max_new_tokens=2)}


def blocks(world: World) -> dict[str, Any]:
    layout, n_computed, kv = world.snapshot.export_kv()
    return {"token_ids": [1, 2, 3, 4], "layout": layout, "n_computed": n_computed, "kv": kv}


def a_plan(world: World) -> dict[str, Any]:
    plan = world.scheduler.schedule()
    return {"plan_id": plan.plan_id, "token_ids": [1]} if plan else {"plan_id": 0, "token_ids": []}


def model_and_source(world: World) -> dict[str, Any]:
    return {"config": world.checkpoint.config, "source": world.checkpoint.source}


def one_layer(world: World) -> _C.Model:
    """On the CPU, whatever device the tests have: a GPU shows no activations."""
    return _C.Model(
        {**world.checkpoint.config, "n_layer": 1}, world.checkpoint.source, num_threads=1
    )


ROWS: dict[str, Values] = {
    "Gguf": lambda world: {"path": world.gguf.path},
    "Gguf.dequantize": lambda world: {"name": "floats"},
    "Model": model_and_source,
    "Engine": lambda world: {"model": world.model, "session_len": 32, "n_blocks": 4},
    "Engine.submit": lambda world: {"token_ids": [1, 2], "max_new_tokens": 1},
    "Engine.reject": lambda world: {"message": "no"},
    "Engine.import_snapshot": blocks,
    "Engine.import_session": blocks,
    "Engine.stats": nothing,
    "Engine.metrics": nothing,
    "Engine.trace_start": nothing,
    "Engine.trace_stop": nothing,
    "Engine.close": nothing,
    "Request.read": lambda world: {"timeout": 0.0},
    "Request.fileno": nothing,
    "Request.cancel": nothing,
    "Poller": nothing,
    "Poller.add": lambda world: {"request": world.engine.submit([1]), "key": 1},
    "Poller.remove": lambda world: {"request": world.request},
    "Poller.wait": lambda world: {"timeout": 0.0},
    "Poller.fileno": nothing,
    "Snapshot.export_kv": nothing,
    "Scheduler": lambda world: {"n_blocks": 4},
    "Scheduler.add": lambda world: {"token_ids": [1, 2], "max_new_tokens": 2},
    "Scheduler.set_budget": lambda world: {"n_tokens": 8},
    "Scheduler.snapshot": seq_id,
    "Scheduler.session": seq_id,
    "Scheduler.schedule": nothing,
    "Scheduler.update": a_plan,
    "Scheduler.cancel": seq_id,
    "Scheduler.finish": seq_id,
    "Scheduler.check": nothing,
    "Scheduler.stats": nothing,
    "Quantizer": lambda world: {"num_threads": 1},
    "Quantizer.quantize": lambda world: {"weight": np.ones((2, 32), np.float32), "group_size": 32},
    "Quantizer.add_inputs": lambda world: {
        "sums": _C.InputSums(32), "rows": np.ones((2, 32), np.float32),
    },
    "Quantizer.output_errors": lambda world: {
        "sums": some_sums(), "differences": np.ones((2, 32), np.float32),
    },
    "Quantizer.regress": lambda world: {
        "sums": some_sums(), "products": np.ones((2, 32), np.float32),
    },
    "Quantizer.run_layer": lambda world: {
        "model": one_layer(world),
        "hidden": np.ones((2, world.checkpoint.config["hidden_dim"]), np.float32),
        "lengths": [2],
        "sums": None,
    },
    "Quantizer.run_pair": lambda world: {
        "original": one_layer(world),
        "drifted": one_layer(world),
        "hidden": np.ones((2, world.checkpoint.config["hidden_dim"]), np.float32),
        "drifted_hidden": np.ones((2, world.checkpoint.config["hidden_dim"]), np.float32),
        "lengths": [2],
        "input": 0,
        "sums": _C.InputSums(
            world.checkpoint.config["hidden_dim"], n_wanted=world.checkpoint.config["hidden_dim"]
        ),
    },
    "Quantizer.solve": lambda world: {
        "weight": np.ones((2, 32), np.float32), "sums": some_sums(), "group_size": 32,
    },
    "InputSums": lambda world: {"n_cols": 4},
    "InputSums.squares": nothing,
    "InputSums.absolute": nothing,
    "InputSums.least": nothing,
    "InputSums.most": nothing,
    "InputSums.largest": nothing,
    "InputSums.gram": nothing,
    "InputSums.wanted": nothing,
    "InputSums.in_order": lambda world: {"order": np.arange(32)},
    "InputSums.shrink": lambda world: {"other": some_sums()},
    "dequantize": lambda world: {"spec": world.gguf.specs[0]},
    "cpu_info": nothing,
    "device_info": lambda world: {"num_threads": 1},
    "gpu_count": nothing,
    "gpu_info": lambda world: {"idx": 0},
    "engine_bytes": lambda world: {
        "config": world.checkpoint.config, "session_len": 32, "n_blocks": 4, "num_threads": 1,
    },
    "watched": lambda world: {"function": int, "seconds": 60.0, "text": "slow"},
    "alloc_count": nothing,
    "host_memory": nothing,
    "alloc_bytes": nothing,
    "model_sizes": model_and_source,
    "read_bandwidth": lambda world: {"n_bytes": 64, "num_threads": 1, "seconds": 0.0},
    "alloc_fail_after": lambda world: {"n": 0},
    "kv_block_bytes": lambda world: {"n_layer": 1, "n_kv_head": 1, "head_dim": 8},
    "kv_encode": lambda world: {"x": np.ones((2, 8), np.float32), "bits": 8},
    "kv_decode": lambda world: {
        "codes": np.ones((2, 8), np.uint8),
        "scales": np.ones(2, np.float16),
        "mins": np.ones(2, np.float16),
    },
}  # fmt: skip
#: Only read, or made by others: their constructors are Python's own, or refuse every call.
MADE_BY_OTHERS = {"Request", "Snapshot", "Session", "Output", "StepPlan", "Plan",
                  "CheckpointError", "UnsupportedError"}  # fmt: skip


def is_too_much(name: str, argument: str, value: Any) -> bool:
    """What would be allocated and read, or waited for."""
    if (name, argument) == ("read_bandwidth", "n_bytes"):
        return type(value) is int and 2**30 < value < 2**40
    if name == "InputSums" and argument in ("n_cols", "n_wanted"):
        return type(value) is int and value > 2**14
    if (name, argument) in {("Poller.wait", "timeout"), ("read_bandwidth", "seconds")}:
        is_negative = type(value) in (int, float) and value <= 0
        is_number = isinstance(value, (int, float, np.generic, np.ndarray))
        return value is None or isinstance(value, Clears) or (is_number and not is_negative)
    return False


def target(world: World, name: str) -> Any:
    owner, _, method = name.rpartition(".")
    return getattr(getattr(world, owner.lower()), method) if owner else getattr(_C, name)


def call(world: World, name: str, values: dict[str, Any]) -> Any:
    signature = SIGNATURES.get(name, NO_ARGUMENTS)
    values = {**signature.defaults, **values}
    positional = [values.pop(n) for n in signature.positional if n in values]
    return target(world, name)(*positional, **values)


def survive(world: World, name: str, values: dict[str, Any]) -> None:
    try:
        result = call(world, name, values)
    except (*DOCUMENTED, *OF_NUMPY):
        return
    finally:
        _C.alloc_fail_after(0)
    if isinstance(result, _C.Request):
        result.cancel()
    elif isinstance(result, _C.Engine):
        result.close()


def end_trace(world: World) -> None:
    with contextlib.suppress(ValueError):
        world.engine.trace_stop()


def test_every_callable_has_a_row() -> None:
    older = {"Session.export_kv"}
    there = {n for n in callables() if n not in older}
    assert there == set(ROWS) | MADE_BY_OTHERS
    assert set(SIGNATURES) - {n for n in SIGNATURES if not callable(target_of(n))} == set(ROWS)


def target_of(name: str) -> Any:
    owner, _, member = name.rpartition(".")
    return getattr(getattr(_C, owner), member) if owner else getattr(_C, name)


@pytest.mark.parametrize("name", ROWS)
def test_right_values_are_right(world: World, name: str) -> None:
    values = ROWS[name](world)
    if name == "Engine.trace_stop":
        world.engine.trace_start()
    elif name == "Request.read":
        world.request = world.engine.submit([1])
    try:
        call(world, name, values)
    except _C.UnsupportedError:
        assert name.startswith("gpu_")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROWS)
def test_hostile_objects_in_every_place(world: World, name: str) -> None:
    signature = SIGNATURES.get(name, NO_ARGUMENTS)
    for argument in [*signature.positional, *signature.named]:
        right = ROWS[name](world)
        for value in every_object():
            if is_too_much(name, argument, value):
                continue
            before = sys.getrefcount(value)
            survive(world, name, {**right, argument: value})
            end_trace(world)
            if sys.getrefcount(value) > before:
                gc.collect()
            assert sys.getrefcount(value) <= before, (argument, type(value))
    with pytest.raises((TypeError, ValueError)):
        target(world, name)(*[None] * 9)
    with pytest.raises((TypeError, ValueError)):
        target(world, name)(**{"\ud800": 1})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", [n for n in ROWS if "." not in n or SIGNATURES[n].named])
def test_keywords_that_disappear(world: World, name: str) -> None:
    """A dict of keywords goes to C as it is, and a value empties it."""
    signature = SIGNATURES.get(name, NO_ARGUMENTS)
    for argument in [*signature.positional, *signature.named]:
        row, shared = ROWS[name](world), ("model", "source", "sums")
        values = {**signature.defaults, **{k: v for k, v in row.items() if k in shared}}
        values |= copy.deepcopy({k: v for k, v in row.items() if k not in shared})
        values[argument] = Clears(values)
        n_threads = _thread._count()
        _thread.start_new_thread(target(world, name), (), values)
        deadline = time.monotonic() + 60
        while _thread._count() > n_threads and time.monotonic() < deadline:
            time.sleep(0.001)
        assert _thread._count() <= n_threads


@pytest.mark.parametrize("name", ROWS)
def test_a_closed_engine(world: World, name: str) -> None:
    values = ROWS[name](world)
    world.engine.close()
    survive(world, name, values)


@pytest.mark.parametrize("name", ROWS)
def test_every_allocation_of_the_core_fails_once(world: World, name: str) -> None:
    if name == "alloc_fail_after":
        return
    for n in range(1, 200):
        values = ROWS[name](world)
        _C.alloc_fail_after(n)
        survive(world, name, values)
        end_trace(world)


@contextlib.contextmanager
def allocation_fails(n: int) -> Iterator[None]:
    """Python's own n-th allocation from here fails, once."""
    testcapi = pytest.importorskip("_testcapi")
    gc.disable()
    testcapi.set_nomemory(n, n + 1)
    try:
        yield
    finally:
        testcapi.remove_mem_hooks()
        gc.enable()


@pytest.mark.parametrize("name", ROWS)
def test_every_allocation_of_python_fails_once(world: World, name: str) -> None:
    signature = SIGNATURES.get(name, NO_ARGUMENTS)
    for n in range(60):
        values = {**signature.defaults, **ROWS[name](world)}
        positional = [values.pop(key) for key in signature.positional if key in values]
        function, result = target(world, name), None
        with contextlib.suppress(*DOCUMENTED), allocation_fails(n):
            result = function(*positional, **values)
        del result
        end_trace(world)


def test_what_is_taken_is_not_lost(world: World) -> None:
    """An allocation fails while a plan, keys or a trace become Python objects: the next call has
    them."""
    plan = None
    for n in range(100):
        with contextlib.suppress(MemoryError), allocation_fails(n):
            plan = world.scheduler.schedule()
        if plan is not None:
            break
    assert n > 10 and plan is not None and plan.token_ids.tolist() == [1, 2, 3]
    request = world.engine.submit([1, 2], max_new_tokens=1)
    world.poller.add(request, 10**12)
    while world.engine.stats()["n_running"] + world.engine.stats()["n_waiting"]:
        time.sleep(0.001)
    keys: list[int] = []
    for n in range(100):
        with contextlib.suppress(MemoryError), allocation_fails(n):
            keys = world.poller.wait(0)
        if keys:
            break
    assert n > 1 and keys == [10**12]
    trace = None
    world.engine.trace_start(4)
    for n in range(200):
        with contextlib.suppress(MemoryError), allocation_fails(n):
            trace = world.engine.trace_stop()
        if trace is not None:
            break
    assert n > 10 and trace is not None


#: What Python does with any object.
PROTOCOLS: list[Callable[[Any], Any]] = [
    lambda o: pickle.loads(pickle.dumps(o)), copy.copy, copy.deepcopy, repr, hash, len, iter,
    lambda o: o == o, lambda o: o < o, lambda o: type(o).__new__(type(o)),
    lambda o: object.__new__(type(o)), lambda o: type(o)(), lambda o: o.__init__(1, a=2),
    lambda o: o.__reduce_ex__(0), lambda o: o.__reduce_ex__(2), lambda o: o.__sizeof__(),
    lambda o: setattr(o, "new", 1), lambda o: setattr(type(o), "new", 1),
    lambda o: type("Sub", (type(o),), {}), lambda o: setattr(o, "__class__", World),
    lambda o: [getattr(o, name) for name in dir(o)],
]  # fmt: skip


def test_what_python_does_with_any_object(world: World) -> None:
    for obj in [*world.objects(), world.scheduler.schedule()]:
        for protocol in PROTOCOLS:
            with contextlib.suppress(*DOCUMENTED, AttributeError):
                protocol(obj)
    gc.collect()


def test_nobody_finds_an_object_that_is_half_made(world: World) -> None:
    """Whoever looks through the collector's objects may use what is there."""

    def use(*_: object) -> None:
        for obj in gc.get_objects():
            if type(obj) is _C.Model:
                assert obj.device and obj.config and obj.weight_bytes
            elif type(obj) is _C.Engine:
                obj.stats()

    model = _C.Model(world.checkpoint.config, world.checkpoint.source, progress=use)
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            use()

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(3):
        make_engine(model, session_len=32, n_blocks=4).close()
    stop.set()
    looker.join()


def test_a_callback_may_close_the_engine(world: World) -> None:
    class Closes:
        def __index__(self) -> int:
            world.engine.close()
            return 1

    with pytest.raises(RuntimeError, match="closed"):
        world.engine.submit([1], max_new_tokens=Closes())  # type: ignore[arg-type]


def test_an_array_that_is_resized_while_it_is_read(world: World) -> None:
    """The engine reads KV without the GIL; another thread gives its memory back meanwhile."""
    layout, n_computed, kv = world.snapshot.export_kv()
    for _ in range(20):
        mine = np.repeat(kv, 40, axis=0)
        thread = threading.Thread(target=mine.resize, args=(1,), kwargs={"refcheck": False})
        thread.start()
        with contextlib.suppress(ValueError):
            world.engine.import_snapshot([1, 2, 3, 4], layout, n_computed, mine)
        thread.join()
