"""The coefficients of the implicit and Rosenbrock methods that come with fastode.

Dense output of the L-stable methods, unless said otherwise: b_1(theta) = sum_{i,j>1} b_i(theta) (A^-1)_ij a_j1, A the
matrix of the implicit stages. Then y(theta) is a combination of y and the stages' states alone: h f(t, y), which a
state off the slow manifold makes huge in a stiff problem, does not enter, as it does in Hermite interpolation.
"""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

from fastode.tableaus.implicit import ImplicitTableau
from fastode.tableaus.rosenbrock import RosenbrockTableau

_F = Fraction


def _sqrt(n: int) -> Fraction:
    """The square root to 40 digits."""
    return Fraction(isqrt(n * 10**80), 10**40)


def _rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip("\n").splitlines()]


def _sums(rows: list[list[str]]) -> list[Fraction]:
    return [sum((Fraction(x) for x in row), Fraction(0)) for row in rows]


# --- fixed steps -----------------------------------------------------------------------------------------------------


def implicit_euler() -> ImplicitTableau:
    """Implicit Euler method, order 1, L-stable; dense output is linear."""
    return ImplicitTableau("implicit_euler", [1], [[1]], [1], 1, dense=[[1]], dense_order=1)


def implicit_midpoint() -> ImplicitTableau:
    """Implicit midpoint rule, order 2, A-stable, symplectic; dense output is linear."""
    return ImplicitTableau("implicit_midpoint", ["1/2"], [["1/2"]], [1], 2, dense=[[1]], dense_order=1)


def trapezoid() -> ImplicitTableau:
    """Trapezoidal rule, order 2, A-stable (Crank and Nicolson 1947); dense output is linear."""
    half = ["1/2", "1/2"]
    return ImplicitTableau("trapezoid", [0, 1], [[], half], half, 2, dense=[half[:1], half[:1]], dense_order=1)


def radau_iia3() -> ImplicitTableau:
    """Radau IIA with two stages, order 3, L-stable (Hairer and Wanner 1996, IV.5); dense output by collocation."""
    a = [["5/12", "-1/12"], ["3/4", "1/4"]]
    dense = [["3/2", "-3/4"], ["-1/2", "3/4"]]
    return ImplicitTableau("radauIIA3", ["1/3", 1], a, a[1], 3, dense=dense, dense_order=2)


def gl4() -> ImplicitTableau:
    """Gauss-Legendre with two stages, order 4, A-stable, symplectic (Hairer and Wanner 1996, IV.5)."""
    r = _sqrt(3) / 6
    c = [_F(1, 2) - r, _F(1, 2) + r]
    return ImplicitTableau("gl4", c, [[_F(1, 4), _F(1, 4) - r], [_F(1, 4) + r, _F(1, 4)]], ["1/2", "1/2"], 4)


def radau_iia5() -> ImplicitTableau:
    """Radau IIA with three stages, order 5, L-stable (Hairer and Wanner 1996, IV.5); dense output by collocation."""
    r = _sqrt(6)
    c = [(4 - r) / 10, (4 + r) / 10, _F(1)]
    a = [
        [(88 - 7 * r) / 360, (296 - 169 * r) / 1800, (-2 + 3 * r) / 225],
        [(296 + 169 * r) / 1800, (88 + 7 * r) / 360, (-2 - 3 * r) / 225],
        [(16 - r) / 36, (16 + r) / 36, _F(1, 9)],
    ]
    return ImplicitTableau("radauIIA5", c, a, a[2], 5, dense=_collocation(c), dense_order=3)


def gl6() -> ImplicitTableau:
    """Gauss-Legendre with three stages, order 6, A-stable, symplectic (Hairer and Wanner 1996, IV.5).

    Dense output by collocation.
    """
    r = _sqrt(15)
    c = [_F(1, 2) - r / 10, _F(1, 2), _F(1, 2) + r / 10]
    a = [
        [_F(5, 36), _F(2, 9) - r / 15, _F(5, 36) - r / 30],
        [_F(5, 36) + r / 24, _F(2, 9), _F(5, 36) - r / 24],
        [_F(5, 36) + r / 30, _F(2, 9) + r / 15, _F(5, 36)],
    ]
    return ImplicitTableau("gl6", c, a, ["5/18", "4/9", "5/18"], 6, dense=_collocation(c), dense_order=3)


def sdirk2() -> ImplicitTableau:
    """Alexander's method with two stages, order 2, L-stable (Alexander 1977, SIAM J. Numer. Anal. 14, 1006-1021)."""
    g = 1 - _sqrt(2) / 2
    c = [g, _F(1)]
    return ImplicitTableau("sdirk2", c, [[g], [1 - g, g]], [1 - g, g], 2, dense=_collocation(c), dense_order=2)


def trbdf2() -> ImplicitTableau:
    """TR-BDF2, order 2, L-stable (Bank et al. 1985; as a Runge-Kutta method: Hosea and Shampine 1996)."""
    r = _sqrt(2)
    g, w = 1 - r / 2, r / 4
    dense = [[r / 2, -r / 4], [r / 2, -r / 4], [1 - r, r / 2]]
    return ImplicitTableau("trbdf2", [0, 2 * g, 1], [[], [g, g], [w, w, g]], [w, w, g], 2, dense=dense, dense_order=2)


def _collocation(c: list[Fraction]) -> list[list[Fraction]]:
    """b_i(theta), the integral from 0 to theta of the Lagrange polynomial of node i, in powers of theta."""
    rows = []
    for i, node in enumerate(c):
        polynomial = [_F(1)]
        for j, other in enumerate(c):
            if j != i:
                shifted, scaled = [_F(0), *polynomial], [-other * x for x in polynomial] + [_F(0)]
                polynomial = [(x + y) / (node - other) for x, y in zip(shifted, scaled, strict=True)]
        rows.append([x / (m + 1) for m, x in enumerate(polynomial)])
    return rows


# --- adaptive steps --------------------------------------------------------------------------------------------------


def kvaerno3() -> ImplicitTableau:
    """Kvaerno's ESDIRK 3(2) with four stages (Kvaerno 2004, BIT 44, 489-502), both methods stiffly accurate.

    gamma is the middle root of x^3 - 3 x^2 + 3/2 x - 1/6; the rest follows from stage order 2 and order 3. Dense output
    of order 3 is determined by the conditions.
    """
    a = _rows("""
0
0.4358665215084589994160195 0.4358665215084589994160195
0.490563388421780570628468 0.07357009006976042995551259 0.4358665215084589994160195
0.3088099699767465233481625 1.490563388421780570628468 -1.23523987990698609339265 0.4358665215084589994160195
""")
    dense = _rows("""
1 -1.073570090069760429955513 0.3823800600465069533036751
0 4.471690165265341711885404 -2.981126776843561141256936
1.045260255335102141840916 -5.796240150391162563859783 3.515740015149074328626216
-1.045260255335102141840916 2.398120075195581281929891 -0.9169932983520201406729554
""")
    return ImplicitTableau(
        "kvaerno3",
        [0, _F("0.871733043016917998832039"), 1, 1],
        a,
        a[3],
        3,
        b_embedded=[*a[2], 0],
        embedded_order=2,
        dense=dense,
        dense_order=3,
    )


def kvaerno4() -> ImplicitTableau:
    """Kvaerno's ESDIRK 4(3) with five stages (Kvaerno 2004), gamma for advancing by the method of order 4.

    Both methods are stiffly accurate. Dense output of order 3 has the least truncation error of order 4 (over theta, in
    the mean square over the trees).
    """
    a = _rows("""
0
0.5728160625 0.5728160625
0.1672354620418992748979655 -0.1429465368612871842118796 0.5728160625
0.2626032902739775454530642 -0.3119043274147853712111925 0.4764849746408078257581283 0.5728160625
0.1972165483210284811694176 0.176843783906613403721408 0.8154421814035514961479745 -0.7623185761311933810388001 \
0.5728160625
""")
    dense = _rows("""
0.9851980224637930532270177 -1.393548377500707609718765 0.6055669033579430376611648
0.1106407560396367185127395 0.4198905956802034926514846 -0.353687567813226807442816
0.07673171671174386179640268 2.369594827498910626647521 -1.630884362807102992295949
1.507664614945548611852196 -5.604527161067839186510049 3.334543969991097193619053
-1.680235110160722245388356 4.208590115389432676929808 -1.955538942728710431541453
""")
    return ImplicitTableau(
        "kvaerno4",
        [*_sums(a[:3]), 1, 1],
        a,
        a[4],
        4,
        b_embedded=[*a[3], 0],
        embedded_order=3,
        dense=dense,
        dense_order=3,
    )


def kvaerno5() -> ImplicitTableau:
    """Kvaerno's ESDIRK 5(4) with seven stages (Kvaerno 2004), both methods stiffly accurate.

    Dense output of order 4 has the least truncation error of order 5 (over theta, in the mean square over the trees).
    """
    a = _rows("""
0
0.26 0.26
0.13 0.84033320996790809 0.26
0.22371961478320505 0.47675532319799699 -0.06470895363112615 0.26
0.16648564323248321 0.10450018841591720 0.03631482272098715 -0.13090704451073998 0.26
0.13855640231268224 0 -0.04245337201752043 0.02446657898003141 0.61943039072480676 0.26
0.13659751177640291 0 -0.05496908796538376 -0.04118626728321046 0.62993304899016403 0.06962479448202728 0.26
""")
    dense = _rows("""
0.9968149237952480094568411 -2.074085639891257678654848 1.707301631707134962446959 -0.4934334038347223825483678
0 0 0 0
-0.02035004422793846387755886 0.8296389397185016721405708 -1.79775405438678457548752 0.9334960709308376062168889
-0.1067488532587788475465701 -0.7352268047225115652722976 1.732703953347296132216483 -0.9319145626492161793621123
0.01707689445024754603154937 3.267909510037235645596617 -4.084394401914805420483389 1.429341046417486259248665
1.026823429701499067314255 -0.4396246348998647491777885 -1.613179513288347725024979 1.095605512968740685908694
-0.9136163504602775112921956 -0.8486113702421030711852392 4.055322384535506789501543 -2.033094663833126207791697
""")
    return ImplicitTableau(
        "kvaerno5",
        [*_sums(a[:5]), 1, 1],
        a,
        a[6],
        5,
        b_embedded=[*a[5], 0],
        embedded_order=4,
        dense=dense,
        dense_order=4,
    )


def rodas5p() -> RosenbrockTableau:
    """Rodas5P 5(4) with eight stages, stiffly accurate, L-stable, and its dense output of order 4.

    Steinebach, "Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks within the Julia Differential
    Equations package", BIT 63, 27 (2023); the coefficients in the transformed form, as in OrdinaryDiffEq.jl.
    """
    last = "-7.502846399306121 2.561846144803919 -11.627539656261098 -0.18268767659942256 0.030198172008377946"
    a = _rows(f"""
3
2.849394379747939 0.45842242204463923
-6.954028509809101 2.489845061869568 -10.358996098473584
2.8029986275628964 0.5072464736228206 -0.3988312541770524 -0.04721187230404641
{last}
{last} 1
{last} 1 1
""")
    C = _rows("""
-14.155112264123755
-17.97296035885952 -2.859693295451294
147.12150275711716 -1.41221402718213 71.68940251302358
165.43517024871676 -0.4592823456491126 42.90938336958603 -5.961986721573306
24.854864614690072 -3.0009227002832186 47.4931110020768 5.5814197821558125 -0.6610691825249471
30.91273214028599 -3.1208243349937974 77.79954646070892 34.28646028294783 -19.097331116725623 -28.087943162872662
37.80277123390563 -3.2571969029072276 112.26918849496327 66.9347231244047 -40.06618937091002 -54.66780262877968 \
-9.48861652309627
""")
    h1, h2, h3 = (
        [Fraction(x) for x in row]
        for row in _rows("""
25.948786856663858 -2.5579724845846235 10.433815404888879 -2.3679251022685204 0.524948541321073 1.1241088310450404 \
0.4272876194431874 -0.17202221070155493
-9.91568850695171 -0.9689944594115154 3.0438037242978453 -24.495224566215796 20.176138334709044 15.98066361424651 \
-6.789040303419874 -6.710236069923372
11.419903575922262 2.8879645146136994 72.92137995996029 80.12511834622643 -52.072871366152654 -59.78993625266729 \
-0.15582684282751913 4.883087185713722
""")
    )
    b = [Fraction(x) for x in last.split()] + [_F(1)] * 3
    # y + theta (y1 - y) + theta (1 - theta) (h1 + theta h2 + theta^2 h3), in powers of theta
    dense = [[w + p, q - p, r - q, -r] for w, p, q, r in zip(b, h1, h2, h3, strict=True)]
    return RosenbrockTableau(
        "rodas5p",
        "0.21193756319429014",
        [0, "0.6358126895828704", "0.4095798393397535", "0.9769306725060716", "0.4288403609558664", 1, 1, 1],
        [
            "0.21193756319429014",
            "-0.42387512638858027",
            "-0.3384627126235924",
            "1.8046452872882734",
            "2.325825639765069",
            0,
            0,
            0,
        ],
        [[], *a],
        [[], *C],
        b,
        5,
        b_embedded=[*b[:7], 0],
        embedded_order=4,
        dense=dense,
        dense_order=4,
    )
