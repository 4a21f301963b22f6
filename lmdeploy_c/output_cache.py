"""IPython keeps what a cell displays, as Out[7], _7 and _. Of what holds an engine it shall keep
nothing: a cell that ends in `pipe` and is run again would leave a second model in memory."""

from __future__ import annotations

import re
import sys
from typing import Any

#: Names of the last outputs, and of the output of a cell.
_NAMES = re.compile(r"_{1,3}|_\d+")


class NotKept:
    """Base of objects that IPython's cache lets go of at the end of the cell that displays them."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What IPython calls to display an object."""
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython else None
        if shell is not None:
            _let_go_after_cell(shell, self)
        return {"text/plain": repr(self)}


def _let_go_after_cell(shell: Any, shown: object) -> None:
    def let_go(*result: object) -> None:
        shell.events.unregister("post_run_cell", let_go)
        for names in (shell.user_ns, shell.user_ns_hidden, vars(shell.displayhook)):
            for name in [n for n, value in names.items() if value is shown and _NAMES.fullmatch(n)]:
                names[name] = ""
        outputs = shell.user_ns.get("_oh", {})
        for n in [n for n, value in outputs.items() if value is shown]:
            del outputs[n]

    shell.events.register("post_run_cell", let_go)
