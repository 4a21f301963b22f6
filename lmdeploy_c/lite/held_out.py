"""Texts that no calibration has, and how a new model is compared with the original on them.

The texts were written for this project and are given to the public domain (CC0 1.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..engine.loading import make_tokenizer
from ..files.checkpoint import open_checkpoint, resolve_model
from ..messages import TurbomindEngineConfig
from ..units import format_size
from .evaluate import Comparison, compare
from .layers import is_held_out
from .source import Source

WINDOW, MAX_WINDOWS = 128, 4  # tokens of a window, windows of a text
CALIBRATION_WINDOW = 256
CALIBRATION = "calibration, held out"

TEXTS = {
    "prose": """\
The ferry left an hour late because the pilot's dog had swum out to the sandbank and would not
come back until it was bribed with half a herring. Nobody on the upper deck minded. A retired
schoolteacher explained the tides to two boys who were sure they knew better, and a man in a
borrowed coat slept through the whole affair with his hat over his eyes. When the engine finally
coughed and caught, the gulls rose all at once from the railing, and the town behind us, with its
crooked chimneys and its one green dome, began to slide away to the left as if somebody were
pulling it by a string. I had promised my sister that I would write to her from every harbour. In
the first letter I described the dog at length and said nothing at all about the reason for my
journey, which she knew, and which neither of us had been able to mention at the station. The
second letter was shorter. By the third I had run out of dogs.
""",
    "facts": """\
Granite forms when magma cools slowly, several kilometres below the surface, so that crystals of
quartz, feldspar and mica have time to grow until they can be seen with the naked eye. Basalt has
cooled quickly, at the surface or under the sea, and its grains are too small to see. Both are
igneous rocks. Limestone is sedimentary: most of it is made of the shells of small animals that
sank to the bottom of warm, shallow seas. Where limestone is buried deeply and heated, it becomes
marble, a metamorphic rock. Rain takes carbon dioxide from the air and becomes a weak acid, which
dissolves limestone along its cracks; over thousands of years this makes caves. The water that
drips from their ceilings leaves a little calcite behind with every drop. Stalactites hang down;
stalagmites grow up from the floor, and a column is what remains when the two have met.
""",
    "code": '''\
class RingBuffer:
    """A queue of at most `capacity` items: a new one takes the place of the oldest."""

    def __init__(self, capacity):
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self._items = [None] * capacity
        self._begin = 0
        self._length = 0

    def __len__(self):
        return self._length

    def push(self, item):
        end = (self._begin + self._length) % len(self._items)
        self._items[end] = item
        if self._length == len(self._items):
            self._begin = (self._begin + 1) % len(self._items)
        else:
            self._length += 1

    def pop(self):
        if self._length == 0:
            raise IndexError("pop from an empty buffer")
        item = self._items[self._begin]
        self._items[self._begin] = None
        self._begin = (self._begin + 1) % len(self._items)
        self._length -= 1
        return item


def moving_average(values, width):
    window = RingBuffer(width)
    total = 0.0
    for value in values:
        if len(window) == width:
            total -= window.pop()
        window.push(value)
        total += value
        yield total / len(window)
''',
    "questions": """\
Question: A train leaves at 14:20 and arrives at 17:05. How long does the journey take?
Answer: From 14:20 to 17:20 would be three hours. It arrives 15 minutes before that, so the
journey takes 2 hours and 45 minutes.

Question: I have 3 boxes with 12 eggs each, and I break 5 eggs. How many whole eggs are left?
Answer: 3 times 12 is 36 eggs. 36 minus 5 is 31, so 31 whole eggs are left.

Question: Can you suggest a simple dinner with what I have? There are potatoes, two onions, some
cheese and a carton of cream.
Answer: Make a potato gratin. Heat the oven to 180 degrees. Cut the potatoes and onions into thin
slices, put them into a buttered dish in layers, and pour the cream over them with salt, pepper
and a little nutmeg if you have it. Bake for 50 minutes, add the cheese on top, and bake for ten
minutes more until it is brown.

Question: Why is the sky dark at night if there are so many stars?
Answer: Because the universe has a finite age, and light from stars beyond a certain distance has
not had time to reach us. It also expands, which shifts the oldest light out of what we can see.
""",
    "other languages": """\
Der Schlüssel lag, wie immer, unter dem dritten Blumentopf, und doch suchte mein Onkel jedes Mal
zuerst unter dem ersten. Drinnen roch es nach Äpfeln und altem Papier. Er setzte Wasser auf,
räumte die Zeitungen vom Stuhl und fragte, ob die Brücke inzwischen wieder offen sei.

Le boulanger ouvrait avant l'aube, et l'odeur du pain descendait jusqu'au canal. Les enfants
disaient qu'il ne dormait jamais ; lui répondait, en riant, qu'il dormait debout, comme les
chevaux. Le dimanche, il fermait à midi et partait pêcher sans jamais rien rapporter.

La biblioteca del pueblo tenía dos salas: una para leer y otra para conversar, y en la segunda
había siempre más gente. Cuando llovía, la dueña dejaba la puerta abierta para que entraran los
perros, y nadie se quejaba de ello.
""",
}


def windows_of_texts(
    source: Source, calibration: Sequence[Sequence[int]]
) -> dict[str, list[list[int]]]:
    """By the texts' names, windows of tokens: of TEXTS, and of the calibration's held-out windows.
    ValueError, as a CheckpointError, where the model has no tokenizer."""
    most = source.checkpoint.config["max_position"]
    tokenizer = make_tokenizer(source.checkpoint)
    found = {}
    for name, text in TEXTS.items():
        ids, size = tokenizer.encode(text), min(WINDOW, most)
        found[name] = [ids[i : i + size] for i in range(0, len(ids), size)]
    held = [
        list(w[: min(CALIBRATION_WINDOW, most)])
        for i, w in enumerate(calibration)
        if is_held_out(i)
    ]
    found[CALIBRATION] = held
    long_enough = {k: [w for w in ws if len(w) > 1][:MAX_WINDOWS] for k, ws in found.items()}
    return {name: windows for name, windows in long_enough.items() if windows}


def _check_memory(source: Source, folder: Path) -> None:
    """MemoryError where this process may not hold both models."""
    from .._C import host_memory, model_sizes

    both = [source.checkpoint, open_checkpoint(resolve_model(folder))]
    needed = sum(model_sizes(c.config, c.source)["weight_bytes"] for c in both)
    usable = host_memory()["usable_bytes"]
    if 0 < usable < needed:
        raise MemoryError(
            f"both models take {format_size(needed)} of memory, and {format_size(usable)} are there"
        )


def evaluate(
    source: Source, folder: Path, calibration: Sequence[Sequence[int]], num_threads: int | None
) -> dict[str, Comparison]:
    """The model in a folder beside its source, by text: `evaluate.compare`. Both are in memory.
    MemoryError where they do not fit, and what `windows_of_texts` raises."""
    texts = windows_of_texts(source, calibration)
    _check_memory(source, folder)
    longest = max(len(window) for windows in texts.values() for window in windows)
    config = TurbomindEngineConfig(
        session_len=longest + 1, max_batch_size=1, num_threads=num_threads
    )
    return compare(source.path, folder, texts, config)
