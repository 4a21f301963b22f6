"""The solver against dense formulas in NumPy and fp64: GPTQ by the inverse of H as its paper has
it, coordinate descent one column at a time, scales by their normal equations."""

from __future__ import annotations

import numpy as np
import pytest

from lmdeploy_c import _C

GROUP = 32


def inputs(n_cols, n_tokens=400, seed=0):
    """Correlated columns of very different sizes."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(n_cols, n_cols)) * 0.3 + np.eye(n_cols)
    sizes = np.exp(rng.normal(size=n_cols))
    return (rng.normal(size=(n_tokens, n_cols)) @ mix * sizes).astype(np.float32)


def sums_of(*texts):
    sums = _C.InputSums(texts[0].shape[1])
    for rows in texts:
        _C.Quantizer(2).add_inputs(sums, rows)
    return sums


def matrix(n_rows, n_cols, seed=1):
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, size=(n_rows, n_cols)) * 0.05).astype(np.float32)


# ---- the definition ----


class Dense:
    """A weight [n, k] being quantised in groups; all in fp64, columns in their own order."""

    def __init__(self, weight, gram, scales, offsets, bits, shrink, damp):
        h = gram.astype(np.float64)
        self.h = (1 - shrink) * h + shrink * np.diag(np.diag(h))
        self.h += damp * np.diag(h).mean() * np.eye(len(h))
        self.w, self.most = weight.astype(np.float64), 2**bits - 1
        self.set_grids(scales, offsets)

    def set_grids(self, scales, offsets):
        self.s, self.o = (np.repeat(x.astype(np.float64), GROUP, 1) for x in (scales, offsets))

    def nearest(self, column, wanted):
        code = np.rint((wanted - self.o[:, column]) / self.s[:, column])
        return np.clip(code, 0, self.most)

    def value(self, codes):
        return codes * self.s + self.o

    def loss(self, codes):
        d = self.w - self.value(codes)
        return np.einsum("ni,ij,nj->n", d, self.h, d)

    def gptq(self, order):
        upper = np.linalg.cholesky(np.linalg.inv(self.h[np.ix_(order, order)])).T
        w, codes = self.w[:, order].copy(), np.empty_like(self.w)
        for i, column in enumerate(order):
            codes[:, column] = self.nearest(column, w[:, i])
            value = codes[:, column] * self.s[:, column] + self.o[:, column]
            w[:, i + 1 :] -= np.outer((w[:, i] - value) / upper[i, i], upper[i, i + 1 :])
        return codes

    def sweep(self, codes, order):
        for column in order:
            difference = self.w - self.value(codes)
            wanted = (
                self.value(codes)[:, column]
                + difference @ self.h[:, column] / (self.h[column, column])
            )
            codes[:, column] = self.nearest(column, wanted)
        return codes

    def refit(self, codes, has_min):
        """The scales and offsets that are best for the codes: least squares, row by row."""
        root = np.linalg.cholesky(self.h)
        n_groups = self.w.shape[1] // GROUP
        zeros = np.zeros_like(self.o) if has_min else -self.o / self.s
        scales, offsets = [], []
        for row in range(len(self.w)):
            columns = []
            for g in range(n_groups):
                part = np.zeros((2, self.w.shape[1]))
                at = slice(g * GROUP, (g + 1) * GROUP)
                part[0, at] = codes[row, at] - zeros[row, at]
                part[1, at] = 1.0
                columns.append(part[: 2 if has_min else 1])
            basis = np.concatenate(columns) @ root
            found = np.linalg.lstsq(basis.T, self.w[row] @ root, rcond=None)[0]
            scales.append(found[:: 2 if has_min else 1])
            offsets.append(found[1::2] if has_min else -scales[-1] * zeros[row, ::GROUP])
        return np.array(scales), np.array(offsets)


def reordered(gram):
    """Groups by their largest diagonal, and columns inside likewise, both descending."""
    size = np.diag(gram)
    groups = sorted(range(len(gram) // GROUP), key=lambda g: -size[g * GROUP :][:GROUP].max())
    inside = [sorted(range(g * GROUP, (g + 1) * GROUP), key=lambda i: -size[i]) for g in groups]
    return np.concatenate(inside)


def solve(weight, sums, **settings):
    """(codes, scales, offsets) as fp64."""
    made = _C.Quantizer(2).solve(weight, sums, group_size=GROUP, **settings)
    codes, scales, last = (x.astype(np.float64) for x in made)
    return codes, scales, last if settings.get("minima") else -scales * last


# ---- sums ----


def test_sums_are_those_of_numpy():
    texts = [inputs(130, 333), inputs(130, 70, seed=4)]
    rows = np.concatenate(texts).astype(np.float64)
    sums = sums_of(*texts)
    assert (sums.n_cols, sums.n_tokens) == (130, 403)
    gram = rows.T @ rows
    np.testing.assert_allclose(sums.gram(), gram, atol=2e-6 * np.abs(gram).max())
    assert (sums.gram() == sums.gram().T).all()
    np.testing.assert_allclose(sums.squares(), np.diag(gram), rtol=1e-6)
    np.testing.assert_allclose(sums.absolute(), np.abs(rows).sum(0), rtol=1e-6)
    assert (sums.largest() == np.abs(rows).max(0).astype(np.float32)).all()
    assert (sums.least() == rows.min(0).astype(np.float32)).all()
    assert (sums.most() == rows.max(0).astype(np.float32)).all()
    assert _C.InputSums(8, gram=False).gram() is None


def test_sums_have_the_same_bits_for_every_number_of_threads():
    rows = inputs(200, 600)
    grams = []
    for n in (1, 2, 5):
        sums = _C.InputSums(200)
        _C.Quantizer(n).add_inputs(sums, rows)
        grams.append(sums.gram())
    assert all((g == grams[0]).all() for g in grams)


def test_sums_in_another_order_are_those_of_the_columns_in_it():
    rows, order = inputs(96), np.random.default_rng(4).permutation(96)
    got, wanted = sums_of(rows).in_order(order), sums_of(rows[:, order])
    assert got.n_cols == 96 and got.n_tokens == len(rows)
    for name in ("squares", "absolute", "largest"):
        assert (getattr(got, name)() == getattr(wanted, name)()).all()
    assert got.gram() == pytest.approx(wanted.gram(), rel=1e-5, abs=1e-3)
    assert (got.gram() == got.gram().T).all()
    few = _C.InputSums(3, gram=False)
    assert few.in_order([2, 0, 1]).gram() is None
    for order, text in (([0, 1], "2 items; there are 3"), ([0, 1, 1], "item 2 is 1"),
                        ([0, 1, 3], "item 2 is 3"), ([-1, 0, 1], "item 0 is -1")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            few.in_order(order)


def test_output_errors_are_those_of_numpy():
    rows = inputs(100)
    differences = matrix(37, 100)
    wanted = np.square(differences.astype(np.float64) @ rows.T.astype(np.float64)).sum(1)
    got = _C.Quantizer(2).output_errors(sums_of(rows), differences)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


@pytest.mark.parametrize("n_cols", [1, 31, 48, 49, 200])
@pytest.mark.parametrize("n_rows", [1, 33, 300])
def test_regression_is_that_of_numpy(n_rows, n_cols):
    x, products = inputs(n_cols, 50 + 2 * n_cols), matrix(n_rows, n_cols)
    gram = x.T.astype(np.float64) @ x
    gram[np.diag_indices(n_cols)] += 0.1 * gram.diagonal().mean()
    expected = np.linalg.solve(gram, products.T.astype(np.float64)).T
    sums = sums_of(x)
    got = [_C.Quantizer(n).regress(sums, products, damp=0.1) for n in (1, 3)]
    assert np.abs(got[0] - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.array_equal(*got)


def test_regression_refuses_what_it_cannot_solve():
    sums, products = sums_of(np.zeros((3, 32), np.float32)), np.ones((2, 32), np.float32)
    for damp, text in (
        (0.1, "positive definite"),
        (-1.0, "damp must be"),
        (np.nan, "damp must be"),
    ):
        with pytest.raises(ValueError, match=text):
            _C.Quantizer(1).regress(sums, products, damp=damp)
    with pytest.raises(ValueError, match="no gram"):
        _C.Quantizer(1).regress(_C.InputSums(32, gram=False), products)


def test_shrink_is_what_brings_one_gram_nearest_to_another():
    rows = inputs(64, 200)
    a, b = sums_of(rows[:100]), sums_of(rows[100:])

    def correlations(sums):
        gram = sums.gram().astype(np.float64)
        root = np.sqrt(np.diag(gram))
        return (gram / np.outer(root, root))[np.tril_indices(64, -1)]

    x, y = correlations(a), correlations(b)
    wanted = 1 - x @ y / (x @ x)
    assert 0.01 < wanted < 0.99
    assert a.shrink(b) == pytest.approx(wanted, abs=1e-5)


# ---- codes ----


@pytest.mark.parametrize("n_cols", [96, 160])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (3, True), (8, False)])
def test_gptq_is_that_of_its_paper(n_cols, ordered, bits, symmetric):
    weight, sums = matrix(45, n_cols), sums_of(inputs(n_cols))
    codes, scales, offsets = solve(
        weight, sums, bits=bits, symmetric=symmetric, search=False, rounds=0, shrink=0.1,
        ordered=ordered,
    )  # fmt: skip
    plain = _C.Quantizer(1).quantize(
        weight, bits=bits, group_size=GROUP, symmetric=symmetric, search=False
    )
    assert (scales == plain[1].astype(np.float64)).all()
    dense = Dense(weight, sums.gram(), scales, offsets, bits, 0.1, 0.01)
    order = reordered(sums.gram()) if ordered else np.arange(n_cols)
    wanted = dense.gptq(order)
    # fp32 rounds a weight that lies between two codes the other way, and all that follows.
    same_rows = (codes == wanted).all(1)
    assert same_rows.mean() > 0.7
    np.testing.assert_allclose(dense.loss(codes).sum(), dense.loss(wanted).sum(), rtol=0.02)


@pytest.mark.parametrize("minima", [False, True])
def test_rounds_are_those_of_dense_formulas(minima):
    weight, sums = matrix(50, 96), sums_of(inputs(96))
    settings = {"search": False, "shrink": 0.25, "ordered": True, "minima": minima}
    codes, scales, offsets = solve(weight, sums, rounds=0, **settings)
    dense = Dense(weight, sums.gram(), scales, offsets, 4, 0.25, 0.01)
    order = reordered(sums.gram())
    before = dense.loss(codes).sum()

    def refit():
        new_scales, new_offsets = dense.refit(codes, minima)
        scales = new_scales.astype(np.float16)
        if minima:
            dense.set_grids(scales, new_offsets.astype(np.float16))
        else:
            zeros = np.rint(-offsets / made_scales)
            dense.set_grids(scales, -scales.astype(np.float64) * zeros)

    made_scales = scales
    refit()
    for _ in range(2):
        codes = dense.sweep(codes, order)
    refit()
    got = solve(weight, sums, rounds=1, **settings)
    wanted_loss = dense.loss(codes).sum()
    dense.set_grids(got[1], got[2])
    got_loss = dense.loss(got[0]).sum()
    assert got_loss < 0.9 * before
    assert got_loss == pytest.approx(wanted_loss, rel=0.02)
    assert (got[0] == codes).mean() > 0.9  # a ridge keeps columns that are nearly alike apart


def test_more_rounds_and_minima_lose_less():
    weight, sums = matrix(64, 128), sums_of(inputs(128))

    def loss(**settings):
        codes, scales, offsets = solve(weight, sums, **settings)
        values = codes * np.repeat(scales, GROUP, 1) + np.repeat(offsets, GROUP, 1)
        return _C.Quantizer(1).output_errors(sums, (weight - values).astype(np.float32)).sum()

    plain = loss(search=False, rounds=0, ordered=False)
    best = loss()
    assert best < loss(rounds=0) < plain
    assert loss(minima=True) < best


def test_scales_change_the_basis():
    """Columns times s, H over s s^T: the same as solving the scaled weight by scaled inputs."""
    weight, rows = matrix(33, 64), inputs(64)
    scales = np.exp2(np.arange(64) % 5 - 2).astype(np.float32)  # exact
    got = _C.Quantizer(2).solve(weight, sums_of(rows), group_size=GROUP, scales=scales)
    wanted = _C.Quantizer(2).solve(weight * scales, sums_of(rows / scales), group_size=GROUP)
    assert (got[0] == wanted[0]).mean() > 0.99
    np.testing.assert_allclose(got[1], wanted[1], rtol=2e-3)


def test_codes_have_the_same_bits_for_every_number_of_threads():
    weight, sums = matrix(100, 160), sums_of(inputs(160))
    made = [_C.Quantizer(n).solve(weight, sums, group_size=GROUP) for n in (1, 2, 4)]
    for one in made[1:]:
        assert all((a == b).all() for a, b in zip(one, made[0], strict=True))


@pytest.mark.parametrize("isa", [n for n, usable in _C.cpu_info()["isas"].items() if usable])
def test_codes_have_the_same_bits_on_every_instruction_set(monkeypatch, isa):
    weight, rows = matrix(50, 160), inputs(160, 90)
    wanted = _C.Quantizer(2).solve(weight, sums_of(rows), group_size=GROUP)
    monkeypatch.setenv("LMDEPLOY_C_ISA", isa)
    sums = sums_of(rows)
    got = _C.Quantizer(2).solve(weight, sums, group_size=GROUP)
    assert all((a == b).all() for a, b in zip(got, wanted, strict=True))
    gram, regression = sums.gram(), _C.Quantizer(2).regress(sums, weight)
    monkeypatch.delenv("LMDEPLOY_C_ISA")
    assert (regression == _C.Quantizer(2).regress(sums, weight)).all()
    assert (gram == sums_of(rows).gram()).all()


def test_dead_columns_and_zero_weights_are_served():
    rows, weight = inputs(64), matrix(20, 64)
    rows[:, :40] = 0.0
    weight[:5] = 0.0
    codes, scales, offsets = solve(weight, sums_of(rows))
    values = codes * np.repeat(scales, GROUP, 1) + np.repeat(offsets, GROUP, 1)
    assert np.isfinite(values).all()
    assert (values[:5] == 0).all()
    solve(weight, sums_of(np.zeros((4, 64), np.float32)))


# ---- what is refused, and how it stops ----


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bits": 1}, "bits must be 2 to 8"),
        ({"group_size": 24}, "group_size must be a multiple of 16"),
        ({"rounds": -1}, "rounds must be"),
        ({"shrink": 1.5}, "shrink must be"),
        ({"shrink": float("nan")}, "shrink must be"),
        ({"damp": -1.0}, "damp must be"),
        ({"scales": np.zeros(64, np.float32)}, "scale of column 0"),
        ({"scales": np.ones(3, np.float32)}, "64 columns, not 3"),
        ({"minima": True, "symmetric": True}, "not symmetric"),
        ({"weight": np.full((2, 64), np.nan, np.float32)}, "NaN"),
        ({"weight": np.full((2, 64), 1e30, np.float32)}, "fp16"),
        ({"weight": np.ones((2, 32), np.float32)}, "gram of 32 columns"),
        ({"sums": _C.InputSums(64)}, "no token"),
        ({"sums": _C.InputSums(64, gram=False)}, "gram of 64 columns"),
    ],
)  # fmt: skip
def test_wrong_arguments_say_what_is_wrong(change, text):
    call = {"weight": matrix(4, 64), "sums": sums_of(inputs(64)), "group_size": GROUP} | change
    with pytest.raises(ValueError, match=text):
        _C.Quantizer(1).solve(**call)


def test_inputs_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        sums_of(np.array([[1.0, np.inf]], np.float32))


def test_a_callback_sees_the_rows_and_stops_the_work():
    weight, sums, seen = matrix(700, 64), sums_of(inputs(64)), []
    _C.Quantizer(1).solve(weight, sums, group_size=GROUP, progress=seen.append)
    assert seen[-1] == 700 and seen == sorted(seen) and len(seen) > 2

    def stop(n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _C.Quantizer(1).solve(weight, sums, group_size=GROUP, progress=stop)
    _C.Quantizer(1).solve(weight, sums, group_size=GROUP)  # the sums are free again


def test_sums_in_use_are_refused():
    weight, sums = matrix(100, 64), sums_of(inputs(64))

    def use(n):
        with pytest.raises(RuntimeError, match="in use"):
            sums.gram()

    _C.Quantizer(1).solve(weight, sums, group_size=GROUP, progress=use)
