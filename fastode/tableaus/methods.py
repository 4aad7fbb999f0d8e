"""The coefficients of the methods that come with fastode, as exact fractions or published decimals."""

from __future__ import annotations

from fractions import Fraction

from fastode.tableaus.base import Tableau
from fastode.tableaus.dense import hermite_interpolant


def _rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


def _dense(b: str, correction: str) -> list[list[Fraction]]:
    """Hermite interpolation plus theta^2 (1 - theta)^2 (u_i0 + u_i1 theta + ...), one stage per line."""
    return hermite_interpolant([Fraction(x) for x in b.split()], [[Fraction(x) for x in u] for u in _rows(correction)])


def euler() -> Tableau:
    """Explicit Euler method, order 1 (Euler 1768)."""
    return Tableau("euler", [0], [[]], [1], 1)


def midpoint() -> Tableau:
    """Explicit midpoint rule, order 2 (Runge 1895)."""
    return Tableau("midpoint", [0, "1/2"], [[], ["1/2"]], [0, 1], 2)


def heun2() -> Tableau:
    """Heun's method, also called the explicit trapezoidal rule, order 2 (Heun 1900)."""
    return Tableau("heun2", [0, 1], [[], [1]], ["1/2", "1/2"], 2)


def heun3() -> Tableau:
    """Heun's third-order method (Heun 1900)."""
    return Tableau("heun3", [0, "1/3", "2/3"], [[], ["1/3"], ["0", "2/3"]], ["1/4", 0, "3/4"], 3)


def rk4() -> Tableau:
    """The 3/8 rule, order 4 (Kutta 1901): the method that torchdiffeq calls rk4."""
    a = [[], ["1/3"], ["-1/3", "1"], ["1", "-1", "1"]]
    return Tableau("rk4", [0, "1/3", "2/3", 1], a, ["1/8", "3/8", "3/8", "1/8"], 4)


def rk4_classic() -> Tableau:
    """The classic Runge-Kutta method, order 4 (Kutta 1901)."""
    a = [[], ["1/2"], ["0", "1/2"], ["0", "0", "1"]]
    return Tableau("rk4_classic", [0, "1/2", "1/2", 1], a, ["1/6", "1/3", "1/3", "1/6"], 4)


def bosh3() -> Tableau:
    """Bogacki-Shampine pair, orders 3(2), FSAL (Bogacki and Shampine 1989, Appl. Math. Lett. 2, 321-325)."""
    a = [[], ["1/2"], ["0", "3/4"], ["2/9", "1/3", "4/9"]]
    embedded = ["7/24", "1/4", "1/3", "1/8"]
    return Tableau("bosh3", [0, "1/2", "3/4", 1], a, ["2/9", "1/3", "4/9", 0], 3, b_embedded=embedded, embedded_order=2)


def fehlberg2() -> Tableau:
    """Fehlberg's pair RK1(2), here with local extrapolation: orders 2(1) (Fehlberg 1969, NASA TR R-315)."""
    a = [[], ["1/2"], ["1/256", "255/256"]]
    b, embedded = ["1/512", "255/256", "1/512"], ["1/256", "255/256", "0"]
    return Tableau("fehlberg2", [0, "1/2", 1], a, b, 2, b_embedded=embedded, embedded_order=1)


def adaptive_heun() -> Tableau:
    """Heun's second-order method with Euler's as its embedded method: orders 2(1)."""
    return Tableau("adaptive_heun", [0, 1], [[], [1]], ["1/2", "1/2"], 2, b_embedded=[1, 0], embedded_order=1)


def dopri5() -> Tableau:
    """Dormand-Prince pair, orders 5(4), FSAL, with Shampine's dense output of order 4.

    Dormand and Prince (1980), J. Comput. Appl. Math. 6, 19-26, method RK5(4)7M; dense output of Shampine (1986), Math.
    Comp. 46, 135-150, in the form of Hairer, Norsett and Wanner (1993), section II.6, code DOPRI5.

    The embedded weights are Shampine's, as in torchdiffeq: his error estimate is 2/3 of that of the 1980 paper (which
    has 5179/57600, 0, 7571/16695, 393/640, -92097/339200, 187/2100, 1/40); both are of order 4.
    """
    c = "0 1/5 3/10 4/5 8/9 1 1"
    b = "35/384 0 500/1113 125/192 -2187/6784 11/84 0"
    a = """
        1/5
        3/40 9/40
        44/45 -56/15 32/9
        19372/6561 -25360/2187 64448/6561 -212/729
        9017/3168 -355/33 46732/5247 49/176 -5103/18656
        35/384 0 500/1113 125/192 -2187/6784 11/84
    """
    embedded = "1951/21600 0 22642/50085 451/720 -12231/42400 649/6300 1/60"
    correction = """
        -12715105075/11282082432
        0
        87487479700/32700410799
        -10690763975/1880347072
        701980252875/199316789632
        -1453857185/822651844
        69997945/29380423
    """
    return Tableau(
        "dopri5",
        c.split(),
        [[], *_rows(a)],
        b.split(),
        5,
        b_embedded=embedded.split(),
        embedded_order=4,
        dense=_dense(b, correction),
        dense_order=4,
    )


def tsit5() -> Tableau:
    """Tsitouras' pair, orders 5(4), FSAL, with his dense output of order 4.

    Tsitouras (2011), Comput. Math. Appl. 62, 770-775: Table 1 and the interpolant that follows it, to which its leading
    coefficients (the correction below) belong. The paper prints about 16 digits of numbers that are roots of the
    order conditions; here c, a, b and b_embedded have 22 digits, with which their conditions hold to 2e-20. The dense
    output has the published digits, with which its conditions hold to 1e-16.
    """
    c = "0 0.161 0.327 0.9 0.9800255409045096857298 1 1"
    b = (
        "0.09646076681806522951817 0.01 0.4798896504144995747752 1.379008574103741893192 -3.290069515436080679901 "
        "2.324710524099773982415 0"
    )
    a = """
        0.161
        -0.008480655492356988544427 0.3354806554923569885444
        2.89715305710549343213 -6.359448489975074843148 4.362295432869581411018
        5.325864828439256604429 -11.74888356406282787775 7.495539342889836208305 -0.0924950663617552492565
        5.861455442946420028659 -12.92096931784710929171 8.15936789857615864318 -0.07158497328140099722453 \
        -0.028269050394068382909
        0.09646076681806522951817 0.01 0.4798896504144995747752 1.379008574103741893192 -3.290069515436080679901 \
        2.324710524099773982415
    """
    embedded = (
        "0.09468075576583945807479 0.009183565540343253096776 0.4877705284247615707856 1.234297566930478985655 "
        "-2.707712349983525454881 1.866628418170587035754 1/66"
    )
    correction = """
        -1.0530884977290216
        0.1017
        2.490627285651252793
        -16.54810288924490272
        47.37952196281928122
        -34.87065786149660974
        2.5
    """
    return Tableau(
        "tsit5",
        c.split(),
        [[], *_rows(a)],
        b.split(),
        5,
        b_embedded=embedded.split(),
        embedded_order=4,
        dense=_dense(b, correction),
        dense_order=4,
    )


def dopri8() -> Tableau:
    """Prince-Dormand pair, orders 8(7), with dense output of order 5 that needs no further stage.

    Prince and Dormand (1981), J. Comput. Appl. Math. 7, 67-75, method RK8(7)13M: Table 2 (fractions that approximate
    irrational numbers; the order conditions hold to 2e-17). f(t + h, y(t + h)) is appended as stage 14.

    Dense output, derived here: with 14 stages the conditions of order 6 have no solution; those of order 5 leave
    b_2 = ... = b_5 = 0 and the five quadrature conditions sum_i b_i(theta) c_i^(k-1) = theta^k / k. Among the
    polynomials of degree 6 that also have the step's values and slopes at both ends, 15 parameters are free; they
    minimise

        sum over the trees of order 6, 7, 8 of  integral_0^1 (residual of the tree's condition / sigma(tree))^2 dtheta,

    which has one solution; the tests compute it again. Measured on the Kepler, van der Pol and a nonautonomous problem
    with end-point errors of 5e-3 to 4e-12, its error inside a step is 8 to 20 times smaller at the largest steps, and
    100 to 600 times smaller at the smallest, than that of the quartic through a midpoint that torchdiffeq uses; it is
    2 to 30 times smaller than with the weights of order 5 that have the smallest norm.
    """
    c = "0 1/18 1/12 1/8 5/16 3/8 59/400 93/200 5490023248/9719169821 13/20 1201146811/1299019798 1 1"
    b = (
        "14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732 "
        "-1041891430/1371343529 760417239/1151165299 118820643/751138087 -528747749/2220607170 1/4"
    )
    a = """
        1/18
        1/48 1/16
        1/32 0 3/32
        5/16 0 -75/64 75/64
        3/80 0 0 3/16 3/20
        29443841/614563906 0 0 77736538/692538347 -28693883/1125000000 23124283/1800000000
        16016141/946692911 0 0 61564180/158732637 22789713/633445777 545815736/2771057229 -180193667/1043307555
        39632708/573591083 0 0 -433636366/683701615 -421739975/2616292301 100302831/723423059 790204164/839813087 \
        800635310/3783071287
        246121993/1340847787 0 0 -37695042795/15268766246 -309121744/1061227803 -12992083/490766935 \
        6005943493/2108947869 393006217/1396673457 123872331/1001029789
        -1028468189/846180014 0 0 8478235783/508512852 1311729495/1432422823 -10304129995/1701304382 \
        -48777925059/3047939560 15336726248/1032824649 -45442868181/3398467696 3065993473/597172653
        185892177/718116043 0 0 -3185094517/667107341 -477755414/1098053517 -703635378/230739211 \
        5731566787/1027545527 5232866602/850066563 -4093664535/808688257 3962137247/1805957418 65686358/487910083
        403863854/491063109 0 0 -5068492393/434740067 -411421997/543043805 652783627/914296604 \
        11173962825/925320556 -13158990841/6184727034 3936647629/1978049680 -160528059/685178525 \
        248638103/1413531060 0
    """
    embedded = (
        "13451932/455176623 0 0 0 0 -808719846/976000145 1757004468/5645159321 656045339/265891186 "
        "-3867574721/1518517206 465885868/322736535 53011238/667516719 2/45 0"
    )
    correction = """
        -4.7685117896923676253 9.0651319018320795631 -5.5177224407749262477
        0 0 0
        0 0 0
        0 0 0
        0 0 0
        -5.1886888679192525771 19.277231112701208664 -3.8831952828585824333
        9.7569461555044380029 -24.340669903142268568 16.082743123362982130
        -6.2999557107076577201 34.937070737952477327 -64.218474208311857825
        10.843557732364328019 -56.684420896616990277 93.820712731231385244
        -4.3782013154992334728 14.611094614519801601 -32.406130965623324347
        -1.6181055997387989656 6.5984752307201860309 -11.831416580881338485
        4.2755561995198780307 -19.289616415604038829 27.531388401649840204
        -4.1456858892084729962 18.925303749384323714 -28.260755459876787077
        1.5230890853771393114 -3.0996001317467792205 8.6828506820826088386
    """
    return Tableau(
        "dopri8",
        c.split(),
        [[], *_rows(a)],
        b.split(),
        8,
        b_embedded=embedded.split(),
        embedded_order=7,
        dense=_dense(b + " 0", correction),
        dense_order=5,
    )
