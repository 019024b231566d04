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
#include "simd_math.hpp"

namespace matchtir::MATCHTIR_ISA {
namespace {

// Scalings beyond this are absorbed. Products of a scaling, a kernel entry and another scaling stay
// finite with room for the growth of one more step.
constexpr double absorb_above = 1e60;

// A smaller share of the mass counts as none: one step may multiply a scaling by its reciprocal.
constexpr double least_share = 1e-100;

// Stands for the costs of a row or column without mass: no minimum is taken there, and K is 0.
constexpr double forbidden = 1e200;

// Whether a Newton step follows this one. It costs n^2 (m / 2 + n / 6) multiplications where a scaling
// step costs 2 m n, so larger problems are scaled for longer first. Then it follows every step, until
// 100 have not been enough: such a problem is beyond what doubles resolve, and gets them ever more rarely.
bool newton_is_due(std::int64_t iteration, std::int64_t n) {
    const std::int64_t patience = 8 + n * n / 8, after = iteration - patience;
    return n <= most_newton_columns && after >= 0 && (after < 100 || (after & (after - 1)) == 0);
}

struct Group {
    std::int64_t m, n;
    double reg;
    double *C, *K;           // [m * n] vectors; C is reduced
    double *a, *f, *u, *kv;  // [m] vectors; kv = K v
    double *b, *g, *v;       // [n] vectors
};

inline Vec get(const double* block, std::int64_t k) { return load(block + k * lanes); }

inline void put(double* block, std::int64_t k, Vec x) { store(block + k * lanes, x); }

// K = exp((f + g - C) / reg) in the chosen lanes.
void form_kernel(const Group& q, Mask chosen) {
    for (std::int64_t i = 0; i < q.m; ++i) {
        for (std::int64_t j = 0; j < q.n; ++j) {
            const std::int64_t k = i * q.n + j;
            const Vec exponent = ((get(q.f, i) + get(q.g, j)) - get(q.C, k)) / q.reg;
            // No plan entry is above 1; rounding can leave an exponent a hair above 0.
            const Vec entry = exponential(smaller(exponent, splat(0.0)));
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

// Solves A x = y in place, lane by lane, for a symmetric A [n * n vectors, lower triangle] and y [n
// vectors] by Cholesky's method. Returns the lanes where A is positive definite as far as doubles tell.
Mask solve_positive_definite(double* A, double* y, std::int64_t n) {
    Mask definite = ~Mask{};
    for (std::int64_t j = 0; j < n; ++j) {
        Vec pivot = get(A, j * n + j);
        const Vec lost = pivot * 1e-17;
        for (std::int64_t k = 0; k < j; ++k) pivot -= get(A, j * n + k) * get(A, j * n + k);
        const Mask positive = pivot > lost;
        definite &= positive;
        pivot = positive ? pivot : splat(1.0);
        Vec root = pivot;
        for (std::int64_t lane = 0; lane < lanes; ++lane) root[lane] = __builtin_sqrt(pivot[lane]);
        const Vec inverse = 1.0 / root;
        put(A, j * n + j, inverse);  // only divided by
        for (std::int64_t i = j + 1; i < n; ++i) {
            Vec entry = get(A, i * n + j);
            for (std::int64_t k = 0; k < j; ++k) entry -= get(A, i * n + k) * get(A, j * n + k);
            put(A, i * n + j, entry * inverse);
        }
    }
    for (std::int64_t i = 0; i < n; ++i) {
        Vec x = get(y, i);
        for (std::int64_t k = 0; k < i; ++k) x -= get(A, i * n + k) * get(y, k);
        put(y, i, x * get(A, i * n + i));
    }
    for (std::int64_t i = n; i-- > 0;) {
        Vec x = get(y, i);
        for (std::int64_t k = i + 1; k < n; ++k) x -= get(A, k * n + i) * get(y, k);
        put(y, i, x * get(A, i * n + i));
    }
    return definite;
}

// One Newton step in the open lanes on the concave dual D = sum_j b_j log v_j - sum_i a_i log (K v)_i,
// whose maximum has the right column sums. With u = a / (K v) the gradient in log v is b - Z^T 1, and
// minus the Hessian is diag(Z^T 1) - Z^T diag(1 / a) Z; it vanishes along the constant vector, which
// changes no plan, so 1 1^T is added. So is a little of the identity: where blocks of the plan have
// lost all touch, D is linear along their difference, and the step then goes far that way. The step is
// halved until D does not fall. `work` holds n * n + 3 n + m vectors.
void newton_step(const Group& q, Mask open, double* work) {
    constexpr double ridge = 1e-11, longest_step = 80.0;
    const std::int64_t m = q.m, n = q.n;
    double *const A = work, *const step = A + n * n * lanes, *const column = step + n * lanes,
                  *const row = column + n * lanes, *const kv = row + n * lanes;
    const Vec zero{}, one = splat(1.0);
    for (std::int64_t j = 0; j < n; ++j) {
        const Vec here = get(q.b, j) > 0.0 ? one : zero;
        for (std::int64_t k = 0; k <= j; ++k) put(A, j * n + k, get(q.b, k) > 0.0 ? here : zero);
        put(column, j, zero);
    }
    for (std::int64_t i = 0; i < m; ++i) {
        const Vec a = get(q.a, i), inverse = a > 0.0 ? 1.0 / get(q.kv, i) : zero;
        for (std::int64_t j = 0; j < n; ++j) {
            const Vec share = get(q.K, i * n + j) * get(q.v, j) * inverse, mass = a * share;
            put(row, j, share);
            put(column, j, get(column, j) + mass);
            for (std::int64_t k = 0; k <= j; ++k) put(A, j * n + k, get(A, j * n + k) - mass * get(row, k));
        }
    }
    Vec longest{}, slope{};
    for (std::int64_t j = 0; j < n; ++j) {
        const Vec b = get(q.b, j);
        put(A, j * n + j, get(A, j * n + j) + (b > 0.0 ? get(column, j) + ridge : one));
        put(step, j, b > 0.0 ? b - get(column, j) : zero);
    }
    open &= solve_positive_definite(A, step, n);
    for (std::int64_t j = 0; j < n; ++j) {
        longest = larger(longest, magnitude(get(step, j)));
        slope += get(q.b, j) * get(step, j);
    }
    Vec length = longest > longest_step ? longest_step / longest : one;  // keeps scalings in the range
    for (int halving = 0; halving < 12 && any(open); ++halving, length *= 0.5) {
        Vec gain = length * slope;
        for (std::int64_t j = 0; j < n; ++j) put(row, j, get(q.v, j) * exponential(length * get(step, j)));
        for (std::int64_t i = 0; i < m; ++i) {
            Vec sum{};
            for (std::int64_t j = 0; j < n; ++j) sum += get(q.K, i * n + j) * get(row, j);
            put(kv, i, sum);
            const Vec a = get(q.a, i);
            gain -= a > 0.0 ? a * logarithm(sum / get(q.kv, i)) : zero;
        }
        const Mask taken = open & (gain >= -1e-15);  // near the maximum the gain is lost in rounding
        for (std::int64_t j = 0; j < n; ++j) put(q.v, j, taken ? get(row, j) : get(q.v, j));
        for (std::int64_t i = 0; i < m; ++i) put(q.kv, i, taken ? get(kv, i) : get(q.kv, i));
        open &= ~taken;
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
    const Group q{m,       n,       options.reg, take(m * n), take(m * n), take(m),
                  take(m), take(m), take(m),     take(n),     take(n),     take(n)};
    double* const work = scratch;
    const Iterate iterate = iterate_for(n);
    const Vec mass = start(q, problems, count);
    const Vec tolerance = options.tolerance / mass;
    Mask open{};
    for (std::int64_t lane = 0; lane < count; ++lane) open[lane] = -1;
    std::int64_t left = count;
    for (std::int64_t iteration = 1;; ++iteration) {
        const Step step = iterate(q);
        const bool last = iteration >= options.max_iterations;
        if (last || any(step.violation <= tolerance)) {
            for (std::int64_t lane = 0; lane < count; ++lane) {
                if (!open[lane] || !(last || step.violation[lane] <= tolerance[lane])) continue;
                open[lane] = 0;
                --left;
                write(q, lane, mass[lane], problems[lane].plan);
                *problems[lane].iterations = iteration;
                *problems[lane].violation = step.violation[lane] * mass[lane];
            }
        }
        if (left == 0) break;
        if (any(step.large)) {
            absorb(q.f, q.u, m, q.reg, step.large);
            absorb(q.g, q.v, n, q.reg, step.large);
            form_kernel(q, step.large);
            multiply_kernel(q);
        }
        if (newton_is_due(iteration, n)) newton_step(q, open, work);
    }
}

}  // namespace matchtir::MATCHTIR_ISA
