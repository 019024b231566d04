// Entropic optimal transport, a handful of problems of one shape side by side, one a vector lane.
//
//   minimise <Z, C> - reg H(Z)  subject to  Z 1 = a,  Z^T 1 = b,  Z >= 0
//
//   M. Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport", NeurIPS 2013.
//   B. Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport problems",
//   SIAM Journal on Scientific Computing 41(3), A1443-A1481 (2019). doi:10.1137/16M1106018
//
// Letters of the second paper: Z = diag(u) K diag(v) with K = exp((f + g - C) / reg), where the dual
// variables f, g absorb the scalings u, v before these leave the range of doubles. C is first reduced
// by its row minima and then by its column minima, which changes no plan: K starts with a 1 in every
// row and column, so no sum is 0; and after an absorption K is the plan of the last step, whose rows
// and columns hold mass again. Masses are scaled to a total of 1, so that no plan entry is above it.
// A problem that never absorbs has run the plain scaling of the first paper.
//
// Where a plan nearly falls apart into blocks, scaling moves mass between them by tiny amounts and
// needs tens of thousands of steps. A problem that is not done after some steps therefore gets a
// Newton step on the dual before each further one:
//
//   C. Brauer, C. Clason, D. Lorenz and B. Wirth, "A Sinkhorn-Newton method for entropic optimal
//   transport", arXiv:1710.06635 (2017).
//
// A lane never looks at its neighbours: the plan of a problem does not depend on its batch.

#include "sinkhorn_kernel.hpp"

#include "simd.hpp"

namespace matchtir::MATCHTIR_ISA {
namespace {

// Scalings beyond this are absorbed. Products of a scaling, a kernel entry and another scaling stay
// finite with room for the growth of one more step.
constexpr double absorb_above = 1e60;

// A smaller share of the mass counts as none: one step may multiply a scaling by its reciprocal.
constexpr double least_share = 1e-100;

// Stands for the costs of a row or column without mass: no minimum is taken there, and K is 0.
constexpr double forbidden = 1e200;

// exp(x) for x <= 0 to within two units in the last place, 0 below -708; after W. J. Cody and
// W. Waite, "Software Manual for the Elementary Functions", Prentice-Hall (1980), with a Taylor polynomial.
inline Vec exp_of_negative(Vec x) {
    const double log2e = 1.4426950408889634, ln2_high = 0.6931471803691238, ln2_low = 1.9082149292705877e-10;
    const double to_integer = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
    const Mask underflow = x < -708.0;
    x = underflow ? splat(0.0) : x;
    const Vec shifted = x * log2e + to_integer;
    const Vec k = shifted - to_integer;
    const Vec r = (x - k * ln2_high) - k * ln2_low;
    Vec sum = splat(1.0 / 6227020800.0);
    const double coefficients[] = {
        1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
        1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
    for (const double c : coefficients) sum = sum * r + c;
    const Vec power = (Vec)(((Mask)shifted << 52) + 0x3ff0000000000000);
    return underflow ? splat(0.0) : sum * power;
}

// Whether a Newton step follows this one. It costs n^2 (m + n / 3) operations where a scaling step
// costs 4 m n, so larger problems are scaled for longer first. Then it follows every step, until 100
// have not been enough: such a problem is beyond what doubles resolve, and gets them ever more rarely.
bool newton_is_due(std::int64_t iteration, std::int64_t n) {
    const std::int64_t patience = 48 + n * n / 8, after = iteration - patience;
    return n <= most_newton_columns && after >= 0 && (after < 100 || (after & (after - 1)) == 0);
}

struct Group {
    std::int64_t m, n;
    double reg;
    double *C, *K;            // [m * n] vectors
    double *a, *f, *u, *kv;   // [m] vectors; kv = K v
    double *b, *g, *v, *ktu;  // [n] vectors; ktu = K^T u
};

inline Vec get(const double* block, std::int64_t k) { return load(block + k * lanes); }

inline void put(double* block, std::int64_t k, Vec x) { store(block + k * lanes, x); }

// K = exp((f + g - C) / reg) in the chosen lanes.
void form_kernel(const Group& q, Mask chosen) {
    for (std::int64_t i = 0; i < q.m; ++i) {
        for (std::int64_t j = 0; j < q.n; ++j) {
            const std::int64_t k = i * q.n + j;
            const Vec exponent = ((get(q.f, i) + get(q.g, j)) - get(q.C, k)) / q.reg;
            // Rounding can leave a minimum a hair above zero.
            const Vec entry = exp_of_negative(smaller(exponent, splat(0.0)));
            put(q.K, k, chosen ? entry : get(q.K, k));
        }
    }
}

// potential += reg log(scaling), scaling = 1, in the chosen lanes and where there is mass.
void absorb(double* potential, double* scaling, std::int64_t count, double reg, Mask chosen) {
    for (std::int64_t k = 0; k < count; ++k) {
        Vec s = get(scaling, k), p = get(potential, k);
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            if (!chosen[lane] || !(s[lane] > 0)) continue;
            p[lane] += reg * __builtin_log(s[lane]);
            s[lane] = 1.0;
        }
        put(potential, k, p);
        put(scaling, k, s);
    }
}

void multiply_kernel(const Group& q) {  // kv = K v
    for (std::int64_t i = 0; i < q.m; ++i) {
        Vec sum{};
        for (std::int64_t j = 0; j < q.n; ++j) sum += get(q.K, i * q.n + j) * get(q.v, j);
        put(q.kv, i, sum);
    }
}

// Copies marginals [size] into a lane, as shares of their total, which is returned.
double load_shares(const double* given, std::int64_t size, std::int64_t lane, double* out) {
    double total = 0.0;
    for (std::int64_t k = 0; k < size; ++k) total += given ? given[k] : 1.0 / static_cast<double>(size);
    for (std::int64_t k = 0; k < size; ++k) {
        const double share = given ? given[k] / total : 1.0 / static_cast<double>(size);
        out[k * lanes + lane] = share < least_share ? 0.0 : share;
    }
    return given ? total : 1.0;
}

// Loads the problems; returns the mass of each.
Vec start(const Group& q, const SinkhornProblem* problems, std::int64_t count) {
    Vec total{};
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
        const SinkhornProblem& p = problems[lane < count ? lane : 0];  // idle lanes repeat the first
        load_shares(p.b, q.n, lane, q.b);
        total[lane] = load_shares(p.a, q.m, lane, q.a);
        for (std::int64_t i = 0; i < q.m; ++i) {
            for (std::int64_t j = 0; j < q.n; ++j) {
                const bool open = q.a[i * lanes + lane] > 0 && q.b[j * lanes + lane] > 0;
                q.C[(i * q.n + j) * lanes + lane] = open ? p.cost[i * q.n + j] : forbidden;
            }
        }
    }
    for (std::int64_t i = 0; i < q.m; ++i) {
        Vec least = splat(forbidden);
        for (std::int64_t j = 0; j < q.n; ++j) least = smaller(least, get(q.C, i * q.n + j));
        least = get(q.a, i) > 0.0 ? least : splat(0.0);
        for (std::int64_t j = 0; j < q.n; ++j) put(q.C, i * q.n + j, get(q.C, i * q.n + j) - least);
        put(q.f, i, Vec{});
    }
    for (std::int64_t j = 0; j < q.n; ++j) {
        Vec least = splat(forbidden);
        for (std::int64_t i = 0; i < q.m; ++i) least = smaller(least, get(q.C, i * q.n + j));
        least = get(q.b, j) > 0.0 ? least : splat(0.0);
        for (std::int64_t i = 0; i < q.m; ++i) put(q.C, i * q.n + j, get(q.C, i * q.n + j) - least);
        put(q.g, j, Vec{});
        put(q.v, j, get(q.b, j) > 0.0 ? splat(1.0) : splat(0.0));
    }
    form_kernel(q, ~Mask{});
    multiply_kernel(q);
    return total;
}

struct Step {
    Vec violation;  // sum over rows of |Z 1 - a|; the columns are exact
    Mask large;     // a scaling is due for absorption
};

// One update of u and of v; then kv = K v. With N > 0, which must be n, the columns are held in
// registers, which doubles the speed of small problems; N = 0 is for any n.
template <std::int64_t N>
Step iterate(const Group& q) {
    const std::int64_t n = N > 0 ? N : q.n;
    Vec most{}, violation{}, column[N > 0 ? N : 1]{};
    const auto divide = [&most](Vec mass, Vec sum) {
        const Vec scaling = mass > 0.0 ? mass / sum : splat(0.0);
        most = larger(most, scaling);
        return scaling;
    };
    if (N == 0)
        for (std::int64_t j = 0; j < n; ++j) put(q.v, j, Vec{});
    for (std::int64_t i = 0; i < q.m; ++i) {
        const Vec u = divide(get(q.a, i), get(q.kv, i));
        put(q.u, i, u);
        for (std::int64_t j = 0; j < n; ++j) {
            const Vec share = get(q.K, i * n + j) * u;
            if constexpr (N > 0)
                column[j] += share;
            else
                put(q.v, j, get(q.v, j) + share);
        }
    }
    for (std::int64_t j = 0; j < n; ++j) {
        const Vec v = divide(get(q.b, j), N > 0 ? column[N > 0 ? j : 0] : get(q.v, j));
        column[N > 0 ? j : 0] = v;
        put(q.v, j, v);
    }
    for (std::int64_t i = 0; i < q.m; ++i) {
        Vec sum{};
        for (std::int64_t j = 0; j < n; ++j) sum += get(q.K, i * n + j) * (N > 0 ? column[N > 0 ? j : 0] : get(q.v, j));
        put(q.kv, i, sum);
        violation += magnitude(get(q.u, i) * sum - get(q.a, i));
    }
    return {violation, most > absorb_above};
}

using Iterate = Step (*)(const Group&);

Iterate iterate_for(std::int64_t n) {
    constexpr Iterate by_columns[] = {iterate<0>, iterate<1>, iterate<2>, iterate<3>, iterate<4>, iterate<5>,
                                      iterate<6>, iterate<7>, iterate<8>, iterate<9>, iterate<10>};
    return by_columns[n <= 10 ? n : 0];
}

// Solves A x = y in place for a positive definite A [n * n]; false if a pivot is lost to rounding.
bool solve_positive_definite(double* A, double* y, std::int64_t n) {
    for (std::int64_t j = 0; j < n; ++j) {
        double pivot = A[j * n + j];
        const double lost = 1e-17 * pivot;
        for (std::int64_t k = 0; k < j; ++k) pivot -= A[j * n + k] * A[j * n + k];
        if (!(pivot > lost)) return false;
        pivot = __builtin_sqrt(pivot);
        A[j * n + j] = pivot;
        for (std::int64_t i = j + 1; i < n; ++i) {
            double entry = A[i * n + j];
            for (std::int64_t k = 0; k < j; ++k) entry -= A[i * n + k] * A[j * n + k];
            A[i * n + j] = entry / pivot;
        }
    }
    for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t k = 0; k < i; ++k) y[i] -= A[i * n + k] * y[k];
        y[i] /= A[i * n + i];
    }
    for (std::int64_t i = n; i-- > 0;) {
        for (std::int64_t k = i + 1; k < n; ++k) y[i] -= A[k * n + i] * y[k];
        y[i] /= A[i * n + i];
    }
    return true;
}

// One Newton step for one lane on the concave dual D = sum_j b_j log v_j - sum_i a_i log (K v)_i,
// whose maximum has the right column sums. With u = a / (K v) the gradient in log v is b - Z^T 1 and
// minus the Hessian is diag(Z^T 1) - Z^T diag(1 / a) Z; it vanishes along the constant vector, which
// changes no plan, so a multiple of 1 1^T is added. So is a little of the identity: where blocks of the
// plan have lost all touch, D is linear along their difference, and the step then goes far that way.
// The step is halved until D does not fall.
// `work` holds n * n + 3 n + m doubles.
void newton_step(const Group& q, std::int64_t lane, double* work) {
    const std::int64_t m = q.m, n = q.n;
    double *const A = work, *const step = A + n * n, *const column = step + n, *const tried = column + n,
                  *const kv = tried + n;
    const auto at = [lane](const double* block, std::int64_t k) { return block[k * lanes + lane]; };
    constexpr double ridge = 1e-11, longest_step = 80.0;
    double dual = 0.0, mass = 0.0;
    for (std::int64_t k = 0; k < n * n; ++k) A[k] = 0.0;
    for (std::int64_t j = 0; j < n; ++j) column[j] = 0.0;
    for (std::int64_t i = 0; i < m; ++i) {
        const double a = at(q.a, i);
        if (!(a > 0)) continue;
        dual -= a * __builtin_log(at(q.kv, i));
        mass += a;
        for (std::int64_t j = 0; j < n; ++j) {  // tried: the row of Z over a_i
            tried[j] = at(q.K, i * n + j) * at(q.v, j) / at(q.kv, i);
            column[j] += a * tried[j];
            for (std::int64_t k = 0; k <= j; ++k) A[j * n + k] -= a * tried[j] * tried[k];
        }
    }
    for (std::int64_t j = 0; j < n; ++j) {
        const double b = at(q.b, j);
        for (std::int64_t k = 0; k < j; ++k) A[j * n + k] += mass;
        A[j * n + j] += b > 0 ? column[j] + mass * (1.0 + ridge) : 1.0;
        step[j] = b > 0 ? b - column[j] : 0.0;
        if (b > 0) dual += b * __builtin_log(at(q.v, j));
    }
    if (!solve_positive_definite(A, step, n)) return;
    double length = 1.0, longest = 0.0;
    for (std::int64_t j = 0; j < n; ++j)
        longest = __builtin_fabs(step[j]) > longest ? __builtin_fabs(step[j]) : longest;
    if (longest > longest_step) length = longest_step / longest;  // keeps scalings in the range
    for (int halving = 0; halving < 12; ++halving, length *= 0.5) {
        double reached = 0.0;
        for (std::int64_t j = 0; j < n; ++j) {
            tried[j] = at(q.v, j) * __builtin_exp(length * step[j]);
            if (at(q.b, j) > 0) reached += at(q.b, j) * __builtin_log(tried[j]);
        }
        for (std::int64_t i = 0; i < m; ++i) {
            kv[i] = 0.0;
            for (std::int64_t j = 0; j < n; ++j) kv[i] += at(q.K, i * n + j) * tried[j];
            if (at(q.a, i) > 0) reached -= at(q.a, i) * __builtin_log(kv[i]);
        }
        // Near the maximum the gain is lost in rounding.
        if (!(reached >= dual - 1e-15 * (mass + __builtin_fabs(dual)))) continue;
        for (std::int64_t j = 0; j < n; ++j) q.v[j * lanes + lane] = tried[j];
        for (std::int64_t i = 0; i < m; ++i) q.kv[i * lanes + lane] = kv[i];
        return;
    }
}

void write(const Group& q, std::int64_t lane, double mass, double* plan) {
    for (std::int64_t i = 0; i < q.m; ++i) {
        for (std::int64_t j = 0; j < q.n; ++j) {
            const double row = q.u[i * lanes + lane] * q.K[(i * q.n + j) * lanes + lane];
            plan[i * q.n + j] = row * q.v[j * lanes + lane] * mass;
        }
    }
}

}  // namespace

void sinkhorn(const SinkhornProblem* problems, std::int64_t count, std::int64_t m, std::int64_t n,
              const SinkhornOptions& options, double* scratch) {
    const auto take = [&scratch](std::int64_t vectors) {
        double* const block = scratch;
        scratch += vectors * lanes;
        return block;
    };
    const Group q{m,       n,       options.reg, take(m * n), take(m * n), take(m), take(m),
                  take(m), take(m), take(n),     take(n),     take(n),     take(n)};
    double* const work = scratch;
    const Iterate iterate = iterate_for(n);
    const Vec mass = start(q, problems, count);
    const Vec tolerance = options.tolerance / mass;
    bool open[lanes];
    for (std::int64_t lane = 0; lane < lanes; ++lane) open[lane] = lane < count;
    std::int64_t left = count;
    for (std::int64_t iteration = 1; left > 0; ++iteration) {
        const Step step = iterate(q);
        const bool last = iteration >= options.max_iterations;
        if (last || any(step.violation <= tolerance)) {
            for (std::int64_t lane = 0; lane < count; ++lane) {
                if (!open[lane] || !(last || step.violation[lane] <= tolerance[lane])) continue;
                open[lane] = false;
                --left;
                write(q, lane, mass[lane], problems[lane].plan);
                *problems[lane].iterations = iteration;
                *problems[lane].violation = step.violation[lane] * mass[lane];
            }
        }
        if (any(step.large)) {
            absorb(q.f, q.u, m, q.reg, step.large);
            absorb(q.g, q.v, n, q.reg, step.large);
            form_kernel(q, step.large);
            multiply_kernel(q);
        }
        if (newton_is_due(iteration, n))
            for (std::int64_t lane = 0; lane < count; ++lane)
                if (open[lane]) newton_step(q, lane, work);
    }
}

}  // namespace matchtir::MATCHTIR_ISA
