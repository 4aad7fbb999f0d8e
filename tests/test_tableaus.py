"""Tableaus: self check, measured orders, dense output, and comparison with published and with other codes' numbers."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction
from math import factorial
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastode.tableaus import TABLEAUS, Tableau, get_tableau, methods
from fastode.tableaus.dense import hermite_interpolant
from fastode.tableaus.order_conditions import elementary_weights, rooted_trees

Array = NDArray[np.float64]
NAMES = list(TABLEAUS)
ADAPTIVE = [name for name in NAMES if TABLEAUS[name].is_adaptive]
ORDERS = {  # order, embedded order, dense order, stages in FSAL form
    "euler": (1, None, 1, 2),
    "midpoint": (2, None, 2, 3),
    "heun2": (2, None, 2, 3),
    "heun3": (3, None, 3, 4),
    "rk4": (4, None, 3, 5),
    "rk4_classic": (4, None, 3, 5),
    "bosh3": (3, 2, 3, 4),
    "fehlberg2": (2, 1, 2, 4),
    "adaptive_heun": (2, 1, 2, 3),
    "dopri5": (5, 4, 4, 7),
    "tsit5": (5, 4, 4, 7),
    "dopri8": (8, 7, 5, 14),
}


def arguments(tableau: Tableau) -> dict[str, Any]:
    """Constructor arguments, as float arrays in FSAL form, that give ``tableau`` again."""
    given: dict[str, Any] = {
        "name": tableau.name,
        "c": tableau.c.copy(),
        "a": tableau.a.copy(),
        "b": tableau.b.copy(),
        "order": tableau.order,
        "dense": tableau.p.copy(),
        "dense_order": tableau.dense_order,
    }
    if tableau.e is not None:
        given |= {"b_embedded": tableau.b - tableau.e, "embedded_order": tableau.embedded_order}
    return given


def powers(theta: Any, degree: int) -> Array:
    return np.asarray(theta, dtype=float)[..., None] ** np.arange(1, degree + 1)


# --- lookup and form -------------------------------------------------------------------------------------------------


def test_every_method_of_the_design_is_there() -> None:
    assert set(NAMES) == set(ORDERS)
    assert len(TABLEAUS) == len(ORDERS)
    for name, expected in ORDERS.items():
        t = get_tableau(name)
        assert (t.order, t.embedded_order, t.dense_order, t.n_stages) == expected
        assert t.name == name
        assert get_tableau(name) is t
        assert get_tableau(t) is t
        assert TABLEAUS[name] is t
        assert t.error_exponent == 1 / (min(expected[0], expected[1] or expected[0]) + 1)


def test_get_tableau_rejects_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'rk45'.*euler.*dopri8"):
        get_tableau("rk45")
    with pytest.raises(TypeError, match="int"):
        get_tableau(5)  # type: ignore[arg-type]
    assert "rk45" not in TABLEAUS
    with pytest.raises(KeyError):
        TABLEAUS["rk45"]


@pytest.mark.parametrize("name", NAMES)
def test_fsal_form(name: str) -> None:
    t = TABLEAUS[name]
    s = t.n_stages
    assert t.a.shape == (s, s)
    assert t.b.shape == t.c.shape == (s,)
    assert t.p.shape == (s, t.degree)
    assert t.c[0] == 0
    assert t.c[-1] == 1
    assert t.b[-1] == 0
    assert np.array_equal(t.a[-1], t.b)
    assert not np.triu(t.a).any()
    assert t.is_fsal_native == (name in ("bosh3", "dopri5", "tsit5"))
    assert t.is_adaptive == (t.e is not None)
    for array in (t.a, t.b, t.c, t.p, *([] if t.e is None else [t.e])):
        assert array.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


@pytest.mark.parametrize("name", NAMES)
def test_polynomials_join_smoothly_at_both_ends(name: str) -> None:
    t = TABLEAUS[name]
    unit = np.eye(t.n_stages)
    scale = np.abs(t.p).sum(axis=1).max()
    assert np.array_equal(powers(0.0, t.degree) @ t.p.T, np.zeros(t.n_stages))
    assert np.allclose(powers(1.0, t.degree) @ t.p.T, t.b, rtol=0, atol=4e-16 * scale)
    assert np.array_equal(t.p[:, 0], unit[0])
    assert np.allclose(t.p @ np.arange(1, t.degree + 1), unit[-1], rtol=0, atol=4e-15 * scale)


def test_equality_hash_pickle_and_copies() -> None:
    t = TABLEAUS["dopri5"]
    for other in (pickle.loads(pickle.dumps(t)), copy.deepcopy(t), copy.copy(t), methods.dopri5()):
        assert other == t
        assert hash(other) == hash(t)
        assert not other.a.flags.writeable
        assert not other.p.flags.writeable
    assert t != TABLEAUS["tsit5"]
    assert t != "dopri5"
    assert "dopri5" in repr(t)
    assert "dopri8" in repr(TABLEAUS)


# --- the self check --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_digit_in_any_coefficient_is_found(name: str) -> None:
    t = TABLEAUS[name]
    Tableau(**arguments(t))
    tried = 0
    for key in ("c", "a", "b", "b_embedded", "dense"):
        for index in np.argwhere(arguments(t).get(key, np.zeros(0))):
            for factor in (1 + 1e-6, 1 - 1e-6):
                changed = arguments(t)
                changed[key][tuple(index)] *= factor
                with pytest.raises(ValueError, match=r"(is|gives) .*expected .*residual"):
                    Tableau(**changed)
                tried += 1
    assert tried >= 2 * np.count_nonzero(t.a) + 2 * np.count_nonzero(t.p)


@pytest.mark.parametrize("name", ["heun3", "rk4", "bosh3", "dopri5", "tsit5", "dopri8"])
def test_errors_that_cancel_in_the_row_sums_are_found(name: str) -> None:
    t = TABLEAUS[name]
    for i in range(2, t.n_stages):
        for key in ("a", "b") if i == t.n_stages - 1 else ("a",):
            changed = arguments(t)
            row = changed[key][i] if key == "a" else changed[key]
            row[0] += 1e-6
            row[i - 1] -= 1e-6
            with pytest.raises(ValueError, match="order condition"):
                Tableau(**changed)


@pytest.mark.parametrize(
    ("name", "which"),
    [(name, which) for name in NAMES for which in ("order", "dense_order")]
    + [(name, "embedded_order") for name in ADAPTIVE],
)
def test_a_claim_of_a_higher_order_is_rejected(name: str, which: str) -> None:
    changed = arguments(TABLEAUS[name])
    changed[which] += 1
    with pytest.raises(ValueError, match=r"order condition|expected an integer from 1"):
        Tableau(**changed)


def test_the_message_names_the_condition_and_its_residual() -> None:
    with pytest.raises(ValueError, match=r"'kutta'.*'sum b_i c_i' \(order 2\) of b gives 0.75, expected 0.5"):
        Tableau("kutta", [0, 1], [[], [1]], ["1/4", "3/4"], 2)
    with pytest.raises(ValueError, match=r"sum of row 2 of a is 1, expected 0.5 \(residual 5.000e-01"):
        Tableau("kutta", [0, "1/2"], [[], [1]], [0, 1], 2)
    with pytest.raises(ValueError, match=r"error weights b - b_embedded is 0.5, expected 0"):
        Tableau("kutta", [0, 1], [[], [1]], ["1/2", "1/2"], 2, b_embedded=["1/2", 0], embedded_order=1)
    with pytest.raises(ValueError, match="b_embedded equals b"):
        Tableau("kutta", [0, 1], [[], [1]], ["1/2", "1/2"], 2, b_embedded=["1/2", "1/2"], embedded_order=1)
    with pytest.raises(ValueError, match=r"theta = 1, stage 1, is 0, expected 1"):
        Tableau("line", [0], [[]], [1], 1, dense=[[1, -1]], dense_order=1)
    with pytest.raises(ValueError, match=r"'sum b_i' \(order 1\) of b\(theta\), coefficient of theta\^1"):
        Tableau("line", [0], [[]], [1], 1, dense=[[0, 1]], dense_order=1)


HEUN: dict[str, Any] = {"name": "heun", "c": [0, 1], "a": [[], [1]], "b": ["1/2", "1/2"], "order": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": []}, "c has 0 entries and b has 2"),
        ({"b": [1]}, "c has 2 entries and b has 1"),
        ({"a": [[1]]}, "a has 1 rows, expected 2"),
        ({"a": [[], [1, 0, 0]]}, "row 1 of a has 3 entries, expected 1"),
        ({"a": [[], []]}, "row 1 of a has 0 entries"),
        ({"a": [[0, 0], ["1/2", "1/2"]]}, "not explicit"),
        ({"a": [[], 1]}, "expected a sequence of numbers"),
        ({"b": "1/2 1/2"}, "expected a sequence of numbers"),
        ({"b": ["1/2", "a half"]}, "b has 'a half', expected a number"),
        ({"b": ["1/2", "1/0"]}, "b has '1/0', expected a number"),
        ({"b": [0.5, None]}, "b has None, expected a number"),
        ({"b": [0.5, float("nan")]}, "expected a finite number"),
        ({"order": 0}, "order is 0, expected an integer from 1"),
        ({"order": 3}, "order is 3, expected an integer from 1 to the number of stages, 2"),
        ({"order": 2.0}, "order is 2.0"),
        ({"order": True}, "order is True"),
        ({"b_embedded": [1, 0]}, "b_embedded and embedded_order must be given together"),
        ({"embedded_order": 1}, "b_embedded and embedded_order must be given together"),
        ({"b_embedded": [1], "embedded_order": 1}, "b_embedded has 1 entries, expected 2"),
        ({"dense_order": 1}, "dense and dense_order must be given together"),
        ({"dense": [[1], [0]]}, "dense and dense_order must be given together"),
        ({"dense": [[1]], "dense_order": 1}, "dense has 1 rows"),
        ({"dense": [[1, 0], [0]], "dense_order": 1}, "of equal length"),
        ({"dense": [[], []], "dense_order": 1}, "at least 1"),
    ],
)
def test_malformed_arguments(change: dict[str, Any], message: str) -> None:
    assert Tableau(**HEUN).order == 2
    with pytest.raises(ValueError, match="tableau 'heun'.*" + message.replace("(", r"\(")):
        Tableau(**(HEUN | change))


# --- trees -----------------------------------------------------------------------------------------------------------


def test_rooted_trees() -> None:
    trees = rooted_trees(9)
    counts = np.bincount(trees.order)[1:]
    assert counts.tolist() == [1, 1, 2, 4, 9, 20, 48, 115, 286]
    assert len(set(trees.children)) == len(trees.children)
    for n in range(1, 10):  # the monotonic labellings n! / (sigma gamma) of all trees of n vertices number (n - 1)!
        level = trees.order == n
        labellings = factorial(n) / (trees.sigma * trees.gamma)[level]
        assert np.array_equal(labellings, np.round(labellings))
        assert labellings.sum() == factorial(n - 1)
    conditions = [trees.condition(i) for i in range(8)]
    assert len(set(conditions)) == 8
    assert {"sum b_i", "sum b_i c_i", "sum b_i c_i c_i", "sum b_i a_ij c_j", "sum b_i a_ij a_jk c_k"} <= set(conditions)


# --- users' methods --------------------------------------------------------------------------------------------------


def test_ralston_with_its_numbers_in_every_notation() -> None:
    expected = Tableau("ralston", [0, "2/3"], [[], ["2/3"]], ["1/4", "3/4"], 2)
    assert expected.n_stages == 3
    assert expected.dense_order == 2
    assert expected.e is None
    for third, quarter in ((Fraction(2, 3), 0.25), (2 / 3, np.float32(0.25)), (np.float64(2 / 3), Fraction("0.25"))):
        assert Tableau("ralston", [0, third], [[0, 0], [third, 0]], [quarter, 1 - quarter], 2) == expected


def test_the_appended_stage_may_take_part_in_error_estimate_and_dense_output() -> None:
    given: dict[str, Any] = {"b_embedded": ["1/2", "1/2"], "embedded_order": 2, "dense_order": 1}
    t = Tableau("euler", [0], [[]], [1], 1, dense=[[1, -1, 1], [0, 1, -1]], **given)
    assert t.e is not None
    assert t.e.tolist() == [0.5, -0.5]
    assert t.error_exponent == 0.5
    assert not t.is_fsal_native
    assert Tableau("euler", [0], [[]], [1], 1, dense=[[1]], **given).p.tolist() == [[1], [0]]
    with pytest.raises(ValueError, match=r"theta = 1, stage 2, is 0\.5, expected 0"):
        Tableau("euler", [0], [[]], [1], 1, dense=[[1, 0, 0], [0, 1, "-1/2"]], **given)


@settings(max_examples=60, deadline=None)
@given(alpha=st.floats(1e-3, 1e3), wrong=st.sampled_from([1e-9, -1e-9]))
def test_one_parameter_family_of_order_two(alpha: float, wrong: float) -> None:
    weight = 1 / (2 * alpha)
    t = Tableau("second", [0, alpha], [[], [alpha]], [1 - weight, weight], 2)
    assert t.order == t.dense_order == 2
    assert t.n_stages == 3
    assert np.allclose(powers(1.0, t.degree) @ t.p.T, t.b, rtol=1e-14, atol=1e-14)
    with pytest.raises(ValueError, match="'sum b_i c_i'"):  # a wrong weight that keeps the sum of the weights
        Tableau("second", [0, alpha], [[], [alpha]], [1 - weight * (1 + wrong), weight * (1 + wrong)], 2)


@settings(max_examples=60, deadline=None)
@given(u=st.floats(0.1, 0.6), gap=st.floats(0.1, 0.4), digits=st.integers(16, 18))
def test_two_parameter_family_of_order_three_printed_in_decimals(u: float, gap: float, digits: int) -> None:
    v = u + gap
    assume(abs(2 - 3 * u) > 0.05)
    b3 = (2 - 3 * u) / (6 * v * (v - u))
    b2 = (3 * v - 2) / (6 * u * (v - u))
    a32 = v * (v - u) / (u * (2 - 3 * u))
    c = [0, u, v]
    rows = [[], [u], [v - a32, a32]]
    b = [1 - b2 - b3, b2, b3]
    text = [[f"{x:.{digits}g}" for x in row] for row in (c, *rows, b)]
    assert Tableau("third", text[0], text[1:4], text[4], 3).dense_order == 3


# --- measured orders -------------------------------------------------------------------------------------------------


def exact(t: Any) -> Array:
    t = np.asarray(t, dtype=float)
    return np.stack([np.sin(2 * t) + 0.5, np.cos(t) * np.exp(-0.3 * t)], axis=-1)


def coupling(y: Array) -> Array:
    return np.stack([y[0] * y[1] - 0.5 * y[0] ** 2, np.sin(2 * y[0]) - y[1] ** 2])


def field(t: float, y: Array) -> Array:
    """A nonlinear, nonautonomous field whose solution from ``exact(t0)`` is ``exact``."""
    slope = np.stack([2 * np.cos(2 * t), -np.exp(-0.3 * t) * (np.sin(t) + 0.3 * np.cos(t))])
    return slope + coupling(y) - coupling(exact(t))


def integrate(tableau: Tableau, t0: float, h: float, n: int) -> tuple[Array, Array]:
    """n steps of size h: values (n + 1, 2) and stages (n, s, 2)."""
    ys = [exact(t0)]
    ks = np.zeros((n, tableau.n_stages, 2))
    for i, k in enumerate(ks):
        for j in range(tableau.n_stages):
            k[j] = field(t0 + h * (i + tableau.c[j]), ys[-1] + h * tableau.a[j] @ k)
        ys.append(ys[-1] + h * tableau.b @ k)
    return np.array(ys), ks


def inside(tableau: Tableau, theta: Array, h: float, ys: Array, ks: Array) -> Array:
    """Dense output at the fractions theta of every step: (n, len(theta), 2)."""
    increment: Array = np.einsum("qs,nsd->nqd", powers(theta, tableau.degree) @ tableau.p.T, ks)
    return ys[:-1, None] + h * increment


def measured_order(h: list[float], error: list[float]) -> float:
    return float(np.polyfit(np.log(h), np.log(error), 1)[0])


THETA = np.array([0.15, 0.35, 0.5, 0.65, 0.85])
N_STEPS = {1: (100, 200, 400), 2: (50, 100, 200), 3: (40, 80, 160), 4: (30, 60, 120), 5: (40, 80, 160), 8: (8, 11, 16)}


@pytest.mark.parametrize("name", NAMES)
def test_measured_order_of_steps_and_of_dense_output(name: str) -> None:
    t = TABLEAUS[name]
    sizes, at_steps, between = [], [], []
    for n in N_STEPS[t.order]:
        h = 2.0 / n
        ys, ks = integrate(t, 0.0, h, n)
        dense = inside(t, THETA, h, ys, ks)
        sizes.append(h)
        at_steps.append(float(np.abs(ys - exact(h * np.arange(n + 1))).max()))
        between.append(float(np.abs(dense - exact(h * (np.arange(n)[:, None] + THETA))).max()))
    assert min(at_steps) > 1e-12  # rounding plays no part
    assert t.order - 0.25 < measured_order(sizes, at_steps) < t.order + 0.7
    dense_order = min(t.order, t.dense_order + 1)
    assert dense_order - 0.25 < measured_order(sizes, between) < dense_order + 0.7


@pytest.mark.parametrize("name", NAMES)
def test_measured_local_order_of_error_estimate_and_of_dense_output(name: str) -> None:
    t = TABLEAUS[name]
    sizes = [0.4, 0.28, 0.2] if t.order == 8 else [0.05, 0.025, 0.0125]
    starts = np.linspace(0.0, 3.0, 12)
    estimates, errors = [], []
    for h in sizes:
        steps = [integrate(t, t0, h, 1) for t0 in starts]
        dense = np.concatenate([inside(t, THETA, h, ys, ks) for ys, ks in steps])
        errors.append(float(np.sqrt(np.mean((dense - exact(starts[:, None] + h * THETA)) ** 2))))
        if t.e is not None:
            estimates.append(float(np.sqrt(np.mean([(h * t.e @ ks[0]) ** 2 for _, ks in steps]))))
    assert t.dense_order + 1 - 0.25 < measured_order(sizes, errors) < t.dense_order + 1 + 0.7
    if t.embedded_order is not None:
        assert 1 / t.error_exponent == t.embedded_order + 1
        assert abs(measured_order(sizes, estimates) - (t.embedded_order + 1)) < 0.4


# --- published numbers and other codes -------------------------------------------------------------------------------


def test_tsit5_dense_output_is_the_published_one() -> None:
    """Tsitouras (2011) gives the polynomials in factored form."""
    x = np.linspace(0, 1, 21)
    factored = [
        -1.0530884977290216 * x * (x - 1.3299890189751412) * (x**2 - 1.4364028541716351 * x + 0.7139816917074209),
        0.1017 * x**2 * (x**2 - 2.1966568338249754 * x + 1.2949852507374631),
        2.490627285651252793 * x**2 * (x**2 - 2.38535645472061657 * x + 1.57803468208092486),
        -16.54810288924490272 * (x - 1.21712927295533244) * (x - 0.61620406037800089) * x**2,
        47.37952196281928122 * (x - 1.203071208372362603) * (x - 0.658047292653547382) * x**2,
        -34.87065786149660974 * (x - 1.2) * (x - 0.666666666666666667) * x**2,
        2.5 * (x - 1) * (x - 0.6) * x**2,
    ]
    t = TABLEAUS["tsit5"]
    assert np.allclose(powers(x, 4) @ t.p.T, np.stack(factored, axis=1), rtol=0, atol=5e-14)
    published_error = [0.001780011052226, 0.000816434459657, -0.007880878010262, 0.144711007173263]
    published_error += [-0.582357165452555, 0.458082105929187, -1 / 66]
    assert t.e is not None
    assert np.allclose(t.e, published_error, rtol=0, atol=1e-15)


def test_dopri5_error_weights_are_two_thirds_of_those_of_the_1980_paper() -> None:
    t = TABLEAUS["dopri5"]
    paper = ["71/57600", "0", "-71/16695", "71/1920", "-17253/339200", "22/525", "-1/40"]
    assert t.e is not None
    assert np.allclose(t.e, [float(Fraction(2, 3) * Fraction(x)) for x in paper], rtol=1e-15)


@pytest.mark.parametrize(("name", "solver"), [("dopri5", "RK45"), ("bosh3", "RK23")])
def test_scipy_has_the_same_method_and_dense_output(name: str, solver: str) -> None:
    theirs = getattr(pytest.importorskip("scipy.integrate"), solver)
    t = TABLEAUS[name]
    assert np.allclose(t.a[:-1, : theirs.A.shape[1]], theirs.A, rtol=1e-15, atol=0)
    assert np.allclose(t.b[:-1], theirs.B, rtol=1e-15)
    assert np.allclose(t.c[:-1], theirs.C, rtol=1e-15)
    assert np.allclose(t.p, theirs.P, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if name != "tsit5"])  # torchdiffeq has no tsit5
def test_torchdiffeq_has_the_same_adaptive_method(name: str) -> None:
    solvers = pytest.importorskip("torchdiffeq._impl.odeint").SOLVERS
    theirs = solvers[name].tableau
    t = TABLEAUS[name]
    s = len(theirs.c_sol)
    assert s == t.n_stages - (name in ("fehlberg2", "adaptive_heun"))
    for i, row in enumerate(theirs.beta, start=1):
        assert np.allclose(t.a[i, :i], row.numpy()[:i], rtol=1e-15, atol=0)
    assert np.allclose(t.c[1:s], theirs.alpha.numpy(), rtol=1e-15, atol=0)
    assert np.allclose(t.b[:s], theirs.c_sol.numpy(), rtol=1e-15, atol=0)
    sign = -1 if name == "adaptive_heun" else 1  # there the second stage, here Euler's method is the embedded one
    assert t.e is not None
    assert np.allclose(sign * t.e[:s], theirs.c_error.numpy(), rtol=1e-13, atol=1e-17)
    assert t.error_exponent == 1 / solvers[name].order
    if name == "dopri5":
        assert np.allclose(powers(0.5, t.degree) @ t.p.T, solvers[name].mid.numpy(), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ADAPTIVE and name != "rk4_classic"])
def test_torchdiffeq_takes_the_same_fixed_step(name: str) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    torch = pytest.importorskip("torch")
    h = 0.37
    y0 = torch.tensor(exact(0.2))
    theirs = torchdiffeq.odeint(
        lambda t, y: torch.tensor(field(float(t), y.numpy())),
        y0,
        torch.tensor([0.2, 0.2 + h], dtype=torch.float64),
        method=name,
    )
    ours, _ = integrate(TABLEAUS[name], 0.2, h, 1)
    assert np.allclose(theirs[1].numpy(), ours[1], rtol=0, atol=1e-15)


# --- dopri8's dense output -------------------------------------------------------------------------------------------


def test_dopri8_dense_output_has_the_highest_order_its_stages_allow() -> None:
    """Order 5 is solvable for every power of theta and forces b_2 = ... = b_5 = 0; order 6 is not solvable."""
    a = TABLEAUS["dopri8"].a
    for order, solvable in ((5, True), (6, False)):
        trees = rooted_trees(order)
        phi, _ = elementary_weights(a, order)
        scale = np.linalg.norm(phi, axis=1)
        worst = 0.0
        for power in range(1, order + 1):
            wanted = np.where(trees.order == power, 1 / trees.gamma, 0)
            weights = np.linalg.lstsq(phi / scale[:, None], wanted / scale, rcond=1e-12)[0]
            worst = max(worst, float(np.abs(phi @ weights - wanted).max()))
            if solvable:
                assert np.abs(weights[1:5]).max() < 1e-8 * np.abs(weights).max()
        assert (worst < 1e-12) if solvable else (worst > 1e-4)


def test_dopri8_dense_output_is_the_one_its_docstring_defines() -> None:
    t = TABLEAUS["dopri8"]
    live = np.array([0, *range(5, 14)])
    x, weight = np.polynomial.legendre.leggauss(9)  # exact to degree 17: residuals have degree 8 at most
    x, weight = (x + 1) / 2, weight / 2
    b = [Fraction(value) for value in t.b]
    hermite = np.array(hermite_interpolant(b), dtype=float)
    base = powers(x, 3) @ hermite.T  # (9, 14)
    bump = (x * (1 - x)) ** 2 * np.stack([np.ones(9), x, x**2])  # (3, 9): what the correction u multiplies

    # The five quadrature conditions determine the moments sum_i c_i^k u_i, k = 0..4.
    moments = t.c[live] ** np.arange(5)[:, None]
    wanted = np.stack([x ** (k + 1) / (k + 1) - base[:, live] @ moments[k] for k in range(5)])
    right, residual, *_ = np.linalg.lstsq(bump.T, wanted.T, rcond=None)
    assert residual.max() < 1e-24
    particular = np.linalg.pinv(moments) @ right.T  # (10, 3)
    free = np.linalg.svd(moments)[2][5:].T  # (10, 5)

    # The 15 parameters that are left minimise the truncation error of orders 6, 7 and 8.
    trees = rooted_trees(8)
    phi, _ = elementary_weights(t.a, 8)
    high = trees.order > 5
    phi, sigma = phi[high][:, live], trees.sigma[high, None]
    target = x ** trees.order[high, None] / trees.gamma[high, None] - phi @ (base[:, live].T + particular @ bump)
    design = np.einsum("tf,kx->txfk", phi @ free / sigma, bump * np.sqrt(weight))
    solution = np.linalg.lstsq(design.reshape(-1, 15), (target / sigma * np.sqrt(weight)).ravel(), rcond=None)[0]
    correction = np.zeros((14, 3))
    correction[live] = particular + free @ solution.reshape(5, 3)

    rows = [[Fraction(u) for u in row] for row in correction]
    assert np.allclose(np.array(hermite_interpolant(b, rows), dtype=float), t.p, rtol=0, atol=1e-7)
    assert not t.p[1:5].any()
    assert np.abs(t.p).max() < 250


def test_dopri8_dense_output_beats_the_quartic_of_torchdiffeq() -> None:
    solver = pytest.importorskip("torchdiffeq._impl.dopri8").Dopri8Solver
    t = TABLEAUS["dopri8"]
    first, last = np.eye(14)[0], np.eye(14)[-1]
    middle = solver.mid.numpy()
    quartic = np.stack(  # through y0, y1 and the midpoint, with the slopes at both ends
        [
            first,
            last - 4 * first - 5 * t.b + 16 * middle,
            5 * first - 3 * last + 14 * t.b - 32 * middle,
            2 * (last - first) - 8 * t.b + 16 * middle,
        ],
        axis=1,
    )
    n = 8
    h = 2.0 / n
    ys, ks = integrate(t, 0.0, h, n)
    truth = exact(h * (np.arange(n)[:, None] + THETA))
    theirs = ys[:-1, None] + h * np.einsum("qs,nsd->nqd", powers(THETA, 4) @ quartic.T, ks)
    ours = inside(t, THETA, h, ys, ks)
    assert np.abs(ours - truth).max() < np.abs(theirs - truth).max() / 40
