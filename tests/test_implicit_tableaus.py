"""Implicit and Rosenbrock tableaus: their self check, stability, and dense output."""

import copy
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fastode.tableaus import IMPLICIT_TABLEAUS, TABLEAUS, ImplicitTableau, RosenbrockTableau, get_tableau
from fastode.tableaus.order_conditions import Array, rooted_trees
from fastode.tableaus.rosenbrock import rosenbrock_weights

NAMES = sorted(IMPLICIT_TABLEAUS)
ADAPTIVE = [name for name in NAMES if IMPLICIT_TABLEAUS[name].is_adaptive]
L_STABLE = [name for name in NAMES if name not in ("implicit_midpoint", "trapezoid", "gl4", "gl6")]
THETA = np.linspace(0.05, 0.95, 19)


def linear_form(name: str) -> tuple[Array, Array, Array | None, Array]:
    """(A, b, e, b(theta) for THETA) with which y' = lambda y is solved."""
    t = IMPLICIT_TABLEAUS[name]
    dense = np.power.outer(THETA, np.arange(1, t.degree + 1)) @ t.p.T
    if isinstance(t, RosenbrockTableau):
        alpha, gamma = t.classical()
        return alpha + gamma, t.b @ gamma, None if t.e is None else t.e @ gamma, dense @ gamma
    return t.a, t.b, t.e, dense


def growth(a: Array, weights: Array, z: complex) -> complex:
    return complex(1 + z * weights @ np.linalg.solve(np.eye(len(a)) - z * a, np.ones(len(a))))


@pytest.mark.parametrize("name", NAMES)
def test_a_stability(name: str) -> None:
    """Bounded on the imaginary axis, without a pole in the left half plane: A-stable by the maximum principle."""
    a, b, e, _ = linear_form(name)
    axis = 1j * np.logspace(-3, 6, 500)
    assert max(abs(growth(a, b, z)) for z in axis) < 1 + 1e-12
    assert (np.linalg.eigvals(a).real > -1e-12).all()
    if e is not None:
        assert max(abs(growth(a, b - e, z)) for z in axis) < 1 + 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_l_stability(name: str) -> None:
    a, b, e, _ = linear_form(name)
    at_infinity = abs(growth(a, b, -1e9))
    if name in L_STABLE:
        assert at_infinity < 1e-6
        assert abs(growth(a, b, 1e9j)) < 1e-6
    else:
        assert abs(at_infinity - 1) < 1e-6
    if e is not None:  # the estimate of a stiff decay is bounded: no step is rejected for it again and again
        assert abs(growth(a, b - e, -1e9)) < 1


@pytest.mark.parametrize("name", L_STABLE)
def test_dense_output_of_l_stable_methods_is_bounded_however_stiff(name: str) -> None:
    a, _, _, dense = linear_form(name)
    for stiffness in (-1e3, -1e6, -1e9):
        assert max(abs(growth(a, weights, stiffness)) for weights in dense) < 2.5


@pytest.mark.parametrize("name", ["kvaerno3", "kvaerno4", "kvaerno5"])
def test_kvaerno_stage_order_and_structure(name: str) -> None:
    t = IMPLICIT_TABLEAUS[name]
    assert isinstance(t, ImplicitTableau)
    gamma = t.a[1, 1]
    assert np.diag(t.a).tolist() == [0.0] + [gamma] * (t.n_stages - 1)
    assert np.allclose(t.a @ t.c, t.c**2 / 2, rtol=0, atol=1e-15)
    assert t.e is not None
    assert np.allclose(t.b - t.e, t.a[-2], rtol=0, atol=1e-16)  # the embedded method is the last stage but one
    assert t.is_fsal_native
    assert {block.kind for block in t.blocks} == {"diagonal"}


def test_kvaerno3_gamma_is_the_root_that_makes_it_l_stable() -> None:
    gamma = IMPLICIT_TABLEAUS["kvaerno3"].a[1, 1]
    assert abs(gamma**3 - 3 * gamma**2 + 1.5 * gamma - 1 / 6) < 1e-16


def test_kvaerno5_dense_output_is_the_one_its_docstring_defines() -> None:
    """Along every direction that the conditions leave free the truncation error is stationary."""
    t = IMPLICIT_TABLEAUS["kvaerno5"]
    s, degree = t.n_stages, t.degree
    inner = np.linalg.solve(t.a[1:, 1:], t.a[1:, 0])
    conditions = np.stack([np.ones(s), t.c, t.c**2, t.c**3, t.a @ t.c**2, np.concatenate([[1.0], -inner])])
    assert np.abs(conditions[5] @ t.p).max() < 1e-14
    constraints = np.concatenate([np.kron(conditions, np.eye(degree)), np.kron(np.eye(s), np.ones((1, degree)))])
    _, singular, right = np.linalg.svd(constraints)
    free = right[int((singular > 1e-10).sum()) :]
    assert len(free) == 3
    trees = rooted_trees(5)
    phi, _ = rosenbrock_weights(t.a, np.zeros_like(t.a), 5)
    high = trees.order == 5
    x, weight = np.polynomial.legendre.leggauss(9)
    x, weight = (x + 1) / 2, weight / 2
    powers = np.power.outer(x, np.arange(1, degree + 1))
    residual = (powers @ t.p.T @ phi[high].T - np.power.outer(x, [5.0]) / trees.gamma[high]) / trees.sigma[high]
    for direction in free:
        change = powers @ direction.reshape(s, degree).T @ phi[high].T / trees.sigma[high]
        size = np.sqrt((weight[:, None] * change**2).sum() * (weight[:, None] * residual**2).sum())
        assert abs((weight[:, None] * change * residual).sum()) < 1e-9 * max(size, 1e-9)


@pytest.mark.parametrize("name", ["kvaerno3", "kvaerno5"])
@pytest.mark.parametrize("where", ["a", "b", "b_embedded", "dense"])
def test_a_wrong_digit_is_found(name: str, where: str) -> None:
    t = IMPLICIT_TABLEAUS[name]
    assert t.e is not None
    given: dict[str, Any] = {
        "c": t.c.tolist(),
        "a": t.a.tolist(),
        "b": t.b.tolist(),
        "b_embedded": (t.b - t.e).tolist(),
        "dense": t.p.tolist(),
    }
    fixed = {"order": t.order, "embedded_order": t.embedded_order, "dense_order": t.dense_order}
    assert np.array_equal(ImplicitTableau(name, **given, **fixed).a, t.a)
    wrong = copy.deepcopy(given)
    row = wrong[where][2] if where in ("a", "dense") else wrong[where]
    row[0] += 1e-11
    with pytest.raises(ValueError, match=f"tableau '{name}'"):
        ImplicitTableau(name, **wrong, **fixed)


@pytest.mark.parametrize("where", ["gamma", "c", "d", "a", "C", "b", "b_embedded", "dense"])
def test_a_wrong_digit_of_rodas5p_is_found(where: str) -> None:
    t = IMPLICIT_TABLEAUS["rodas5p"]
    assert isinstance(t, RosenbrockTableau)
    assert t.e is not None
    given: dict[str, Any] = {
        "gamma": t.gamma,
        "c": t.c.tolist(),
        "d": t.d.tolist(),
        "a": [row[:i] for i, row in enumerate(t.a.tolist())],
        "C": [row[:i] for i, row in enumerate(t.C.tolist())],
        "b": t.b.tolist(),
        "b_embedded": (t.b - t.e).tolist(),
        "dense": t.p.tolist(),
    }
    fixed = {"order": 5, "embedded_order": 4, "dense_order": 4}
    assert RosenbrockTableau("rodas5p", **given, **fixed) == t
    wrong = copy.deepcopy(given)
    if where == "gamma":
        wrong["gamma"] += 1e-11
    else:
        row = wrong[where][2] if where in ("a", "C", "dense") else wrong[where]
        row[1] += 1e-10
    with pytest.raises(ValueError, match="tableau 'rodas5p'"):
        RosenbrockTableau("rodas5p", **wrong, **fixed)


def test_rosenbrock_conditions_are_those_of_runge_kutta_where_gamma_is_zero() -> None:
    t = TABLEAUS["dopri5"]
    phi, _ = rosenbrock_weights(t.a, np.zeros_like(t.a), 5)
    assert np.allclose(phi @ t.b, 1 / rooted_trees(5).gamma, rtol=0, atol=1e-15)


def test_stages_are_completed() -> None:
    midpoint = IMPLICIT_TABLEAUS["implicit_midpoint"]
    assert midpoint.a.tolist() == [[0, 0, 0], [0, 0.5, 0], [0, 1, 0]]
    assert midpoint.c.tolist() == [0, 0.5, 1]
    assert midpoint.b.tolist() == [0, 1, 0]
    gauss = IMPLICIT_TABLEAUS["gl6"]
    assert isinstance(gauss, ImplicitTableau)
    assert [(b.start, b.stop, b.kind) for b in gauss.blocks] == [(1, 4, "coupled"), (4, 5, "explicit")]
    own = ImplicitTableau("theta", [0, 1], [[], ["2/5", "3/5"]], ["2/5", "3/5"], 1)
    assert own.is_stiffly_accurate
    assert own.dense_order == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": [1]}, "c has 1 entries, a 2 rows and b 2"),
        ({"a": [[0], [0, 1, 0]]}, "row 1 of a has 3 entries, expected at most 2"),
        ({"order": 5}, "order is 5, expected an integer from 1"),
        ({"b_embedded": [1, 0]}, "must be given together"),
        ({"b_embedded": [1], "embedded_order": 1}, "b_embedded has 1 entries"),
        ({"dense": [[1]], "dense_order": 1}, "dense has 1 rows"),
        ({"c": [0, "x"]}, "expected a number"),
        ({"c": [0, "1/2"]}, "the sum of row 2 of a"),
    ],
)
def test_malformed_arguments(change: dict[str, Any], message: str) -> None:
    half = ["1/2", "1/2"]
    given: dict[str, Any] = {"name": "own", "c": [0, 1], "a": [[], half], "b": half, "order": 2}
    assert ImplicitTableau(**given).order == 2
    with pytest.raises(ValueError, match="tableau 'own'.*" + message):
        ImplicitTableau(**(given | change))


@pytest.mark.parametrize("name", NAMES)
def test_found_by_name_pickled_and_compared(name: str) -> None:
    t = get_tableau(name)
    assert t.name == name
    assert t is IMPLICIT_TABLEAUS[name]
    assert not t.is_explicit
    assert name not in TABLEAUS
    again = pickle.loads(pickle.dumps(t))
    assert again == t
    assert hash(again) == hash(t)
    assert not again.a.flags.writeable
    assert name in repr(t)


def test_square_roots_are_exact() -> None:
    from fastode.tableaus.implicit_methods import _sqrt

    for n in (2, 3, 6, 15):
        assert abs(_sqrt(n) ** 2 - n) < Fraction(1, 10**38)
