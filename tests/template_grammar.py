"""Random chat templates, by a grammar of jinja: what they build grows as fast as jinja lets it."""

from __future__ import annotations

import random
import re
from typing import Any

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<b>Tea</b> & cake, für 3 € 🫖?\n" * 3},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": [1]}}]},
]
VALUES: dict[str, Any] = {"messages": MESSAGES, "tools": None, "bos_token": "<s>"}

START = (
    "{% set ns = namespace(t='xy', l=['x'], n=7, d={'a': 2}) %}"
    "{% set t, l, n, d = 'xä', [1, 'x'], 3, {'b': [1]} %}{% set item = 'i' %}"
)

#: What a capital letter stands for: a statement, the name of a macro, or an expression (a text, a
#: list, a number, a dict, a condition, anything). One production a line.
PRODUCTIONS = {
    "S": r"""
        X{{ A }}
        X{{ A }}
        {{ T }}{{ t }}
        {{ raise_exception(T) if false }}
        {% set G %}
        {% set G %}
        {% set G %}
        {% set G %}
        {% set t = T %}
        {% set ns.l = L %}
        {% set n = N %}{% set ns.d = D %}
        {% set item = A %}
        {% for item in L %}S S{% endfor %}
        {% for item in range(60) %}S S{% endfor %}
        {% for item in range(60) %}S S{% endfor %}
        {% for item in range(3000) %}{% set G %}S{% endfor %}
        {% for item in range(99999) %}{% set G %}{{ T }}{% endfor %}
        {% for item in range(999) %}{% for item in range(999) %}S{% endfor %}{% endfor %}
        {% for item in L if B %}S{% else %}S{% endfor %}
        {% for item in L recursive %}S{{ loop(L) if loop.depth < 3 }}{% endfor %}
        {% for item in range(99) recursive %}{% set G %}{{ loop(L) }}{% endfor %}
        {% for k, v in D.items() %}S{{ k ~ v }}{% endfor %}
        {% for item in L %}{{ loop.cycle(A, A) ~ loop.changed(A) ~ loop.length }}{% endfor %}
        {% for item in range(200) %}{% set ns.l = loop %}{% break %}{% endfor %}
        {% if B %}S{% elif B %}S{% else %}S{% endif %}
        {% set t %}S S{% endset %}
        {% set ns.t | upper %}S{% endset %}
        {% filter F %}S{% endfilter %}
        {% macro m(t, n=2) %}S{{ varargs ~ kwargs }}{% endmacro %}{{ m(T, N, A) }}
        {% macro m(n) %}{% set G %}{{ m(n - 1) ~ m(n - 1) if n > 0 }}{% endmacro %}{{ m(N) }}
        {% for item in L %}{{ loop.nextitem ~ loop.previtem ~ loop }}{% endfor %}
        {% macro m() %}{% set ns.l = varargs %}{% endmacro %}{% for i in T %}{{m(ns.l)}}{% endfor %}
        {% macro m() %}{{ caller(A) }}{% endmacro %}{% call(t) m() %}S{% endcall %}
        {% with t = T, l = L %}S{% endwith %}
        {% generation %}S{% endgeneration %}
        {% block Q %}S{% endblock %}
        {% block Q %}S{{ self.Q() }}{% endblock %}
        {% set c = cycler(A, A) %}{{ c.next() }}{{ c.current }}
        {% set j = joiner(T) %}{{ j() }}{{ j() }}
    """,
    "G": r"""
        ns.t = ns.t + ns.t
        ns.t = ns.t ~ ns.t
        ns.t = ns.t * 3
        ns.t = ns.t ~ T
        ns.t = ns.l | join(ns.t)
        ns.t = ns.t.join([T, T, T])
        ns.t = ns.t.replace('x', 'xyx')
        ns.t = ns.t | replace('', T)
        ns.t = '%s%s' | format(ns.t, ns.t)
        ns.t = '{0}{0}'.format(ns.t)
        ns.t = ns.l | string
        ns.t = ns.l | tojson(indent=4)
        ns.t = (ns.t ~ '\n') | indent(40, true)
        ns.t = ns.t | safe
        ns.t = (ns.t | e) + '<'
        ns.t = ns.t.center(9999)
        ns.l = ns.l + ns.l
        ns.l = ns.l * 3
        ns.l = [ns.l, ns.l]
        ns.l = [ns.l]
        ns.l = (ns.l, ns.t)
        ns.l = ns.l + [ns.t]
        ns.l = ns.l + (T | list)
        ns.l = ns.t.split('x')
        ns.l = ns.l | batch(2) | list
        ns.l = ns.l | slice(3) | list
        ns.l = [ns.l] | map('list') | list
        ns.l = ns.l | map('string') | list
        ns.l = ns.l | map('center', 200)
        ns.l = ns.l | list | unique | list
        ns.l = ns.d.items() | list
        ns.l = ns.d | dictsort
        ns.l = (ns.l | list) + [ns]
        ns.d = dict(a=ns.d, b=ns.d)
        ns.d = dict(ns.d, **{T: A})
        ns.d = {(ns.l | list | string): ns.d}
        ns.d = {((1, ns.t),): ns.l}
        ns.d = dict.fromkeys([T, N], ns.d)
        ns.d = dict.fromkeys(range(0, 10 ** 22, 10 ** 18))
        ns.n = ns.n * ns.n
        ns.n = ns.n ** 3
        ns.n = ns.n * 10 ** 30 + N
        ns.n = (ns.n * 7 - N) // 3 % 10 ** 40
        ns.n = (T ~ '7') | int
        n = n * 2
        t = t ~ ns.t
        l = [l, ns.l]
    """,
    "T": r"""
        'X'
        'X'
        t
        ns.t
        messages[1].content
        messages[N % 3].role
        T + T
        T ~ A
        T * N
        A | string
        A | tojson
        A | tojson(indent=N % 16, ensure_ascii=true)
        A | pprint
        A | e
        T | safe
        T | F
        T | F
        T | F
        T.lower()
        T.upper()
        T.title()
        T.casefold()
        T.swapcase()
        T.strip()
        T.strip(T)
        T.rstrip(T)
        T.lstrip('xy')
        T.removeprefix(T)
        T.rpartition('X')[0]
        T.center(N)
        T.zfill(N)
        T.ljust(N, 'x')
        T.M(T)
        T.M()
        T.replace(T, T)
        T.join(L | map('string'))
        L | join(T)
        L | map('string') | join(T)
        T[N:N:N]
        T[:-N]
        '%s X' % (A,)
        'X %9s' | format(A)
        'X{}'.format(A)
        '{0[a]:>99}X{a.b!r}'.format(D, a=A)
        A if B else T
        strftime_now('%d' ~ T)
        A | default(T, true)
        A.M
    """,
    "F": r"""
        upper
        lower
        capitalize
        title
        trim
        trim(T)
        center(N)
        indent(N)
        indent(T, true, true)
        replace(T, T)
        replace(T, T, N)
        truncate(N, true, T, N)
        wordwrap(N)
        striptags
        urlize
        urlencode
        xmlattr
        forceescape
        string
        filesizeformat
        format(A, A)
        attr('M')
    """,
    "L": r"""
        l
        ns.l
        messages
        [A, A]
        (A, T, N)
        [T, T, T]
        range(N)
        range(N, 99999)
        L + L
        L * N
        L | list
        T | list
        T.split(T)
        T.split()
        T.rsplit(T, N)
        T.splitlines()
        T.partition(T)
        L[N:]
        L[::-1]
        L | map('string') | sort(reverse=true)
        L | reverse
        L | unique
        L | batch(N, A)
        L | slice(N)
        L | select
        L | select('O', A)
        L | reject('P')
        messages | selectattr('role', 'O', A)
        messages | map(attribute='content', default=A)
        L | map('string') | map('F')
        L | map('list')
        L | map('tojson')
        messages | groupby('role')
        L | groupby(0, default=A)
        D | dictsort
        D | items
        D.items()
        D.values()
        D.keys() | list
        l.copy()
    """,
    "N": r"""
        1
        2
        3
        7
        40
        n
        ns.n
        500
        9999
        -1
        10 ** 9
        2305843009213693951
        N + N
        N - N
        N * N
        N ** 2
        N // 3
        N % 1000
        -N
        T | length
        L | length
        A | int
        A | float | int
        L | map('int') | sum
        L | sum(start=N)
        N | round(N % 400)
        N | abs
        T.count(T)
        T.find(T)
        T.rfind(T)
        L.count(A)
        L | map('string') | max | length
    """,
    "D": r"""
        d
        ns.d
        messages[0]
        {T: A}
        {N: A}
        {(T, N): L}
        dict(a=A, b=A)
        {T: D}
        dict(D, **D)
        dict([T, A] | batch(2))
        dict.fromkeys(L | map('string'), A)
        D.copy()
        D.get(T, D)
    """,
    "B": r"""
        true
        A
        A is P
        A is O(A)
        A is in L
        N is divisibleby N
        A == A
        L == L
        A != A
        N < N
        T <= T
        A in A
        A in L
        T in T
        A not in D
        not B
        B and B
        B or A
        T.startswith(T)
        T.endswith((T, T))
    """,
    "P": "defined none string mapping iterable sequence number odd even lower upper test filter",
    "O": "eq ne lt in sameas ge divisibleby",
    "A": r"""
        T
        T
        T
        T
        L
        L
        L
        N
        item
        item
        D
        B
        item
        none
        none_such
        0.5
        N / 7
        cycler(*L)
        A.a
        A[A]
        A[N]
        D.get(T)
        D.M
        L[N]
        L | first
        L | last
        L | random
        L | map('string') | min
        D.items
        range(N)
        T.index
        ns
        namespace(a=A)
        none_such.a
        m
        A | attr('M')
        A | F
        A.M(A)
    """,
}  # fmt: skip
CHOICES = {
    letter: lines.split()
    if letter == "P"
    else [line.strip() for line in lines.strip().splitlines()]
    for letter, lines in PRODUCTIONS.items()
}
METHODS = sorted(
    {name for kind in (str, list, dict, tuple, int, range) for name in dir(kind) if name[0] != "_"}
    | {"a", "role", "content", "name", "grouper", "__class__", "__init__", "mro"}
)
CHOICES["M"] = METHODS
CHOICES["X"] = [
    "x",
    " ",
    "xx",
    "\\n",
    "ä",
    "🫖",
    "<b>",
    "a b",
    "0",
    "{a}",
    "%",
    "\\t",
    "</think>",
    "xy" * 40,
]
#: The shortest of each, where a template is deep enough.
LEAVES = {"S": "{{ item }}", "T": "t", "L": "l", "N": "2", "D": "d", "B": "item", "A": "item"}
MAX_LETTERS = 150


class Grammar:
    """One template for each seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.n_letters = 0
        self.n_blocks = 0

    def template(self) -> str:
        return START + "".join(self.expanded("S", 5) for _ in range(self.random.randint(2, 5)))

    def expanded(self, letter: str, depth: int) -> str:
        self.n_letters += 1
        if (depth <= 0 or self.n_letters > MAX_LETTERS) and letter in LEAVES:
            return LEAVES[letter]
        text = self.random.choice(CHOICES[letter])
        if letter in "MXPO":
            return text
        if "Q" in text:
            self.n_blocks += 1
            text = text.replace("Q", f"b{self.n_blocks}")
        inside = text not in LEAVES.values() and letter in "TLNDBA" and len(text) > 1
        text = re.sub(r"\b[A-Z]\b", lambda found: self.expanded(found[0], depth - 1), text)
        return f"({text})" if inside else text
