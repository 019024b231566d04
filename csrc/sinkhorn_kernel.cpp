// Entropic optimal transport, a handful of problems of one shape side by side, one a vector lane.
//
//   minimise <Z, C> - reg H(Z)  subject to  Z 1 = a,  Z^T 1 = b,  Z >= 0
//
//   M. Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport", NeurIPS 2013.
//   B. Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport problems",
//   SIAM Journal on Scientific Computing 41(3), A1443-A1481 (2019). doi:10.1137/16M1106018
//
// Letters of the second paper: Z = diag(u) K diag(v) with K = exp((f + g - C) / reg), where the dual
// variables f, g absorb the scalings u, v before these leave the range of doubles. With f the row
// minima of C and g the column minima of C - f, K has a 1 in every row and column, so no sum is 0;
// and after an absorption K is the plan of the last step, whose rows and columns hold mass again.
// A problem that never absorbs has run the plain scaling of the first paper.
//
// A lane never looks at its neighbours: the plan of a problem does not depend on its batch.

#include "sinkhorn_kernel.hpp"

#include "simd.hpp"

namespace matchtir::MATCHTIR_ISA {
namespace {

// Scalings beyond this are absorbed. Products of a scaling, a kernel entry and another scaling stay
// finite with room for the growth of one more step.
constexpr double absorb_above = 1e60;

// Less mass than this counts as none: one step may multiply a scaling by 1 / mass.
constexpr double least_mass = 1e-100;

// Stands for the cost of a row or column without mass, so that no minimum is taken there.
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
    const double coefficients[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                   1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,     1.0 / 6,
                                   0.5,             1.0,            1.0};
    for (const double c : coefficients) sum = sum * r + c;
    const Vec power = (Vec)(((Mask)shifted << 52) + 0x3ff0000000000000);
    return underflow ? splat(0.0) : sum * power;
}

struct Group {
    std::int64_t m, n;
    double reg;
    double *C, *K;              // [m * n] vectors
    double *a, *f, *u, *kv;     // [m] vectors; kv = K v
    double *b, *g, *v, *ktu;    // [n] vectors; ktu = K^T u
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

void start(const Group& q, const SinkhornProblem* problems, std::int64_t count) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
        const SinkhornProblem& p = problems[lane < count ? lane : 0];  // idle lanes repeat the first
        const auto mass = [](const double* given, std::int64_t k, std::int64_t count) {
            const double x = given ? given[k] : 1.0 / static_cast<double>(count);
            return x < least_mass ? 0.0 : x;
        };
        for (std::int64_t i = 0; i < q.m; ++i) q.a[i * lanes + lane] = mass(p.a, i, q.m);
        for (std::int64_t j = 0; j < q.n; ++j) q.b[j * lanes + lane] = mass(p.b, j, q.n);
        for (std::int64_t i = 0; i < q.m; ++i) {
            for (std::int64_t j = 0; j < q.n; ++j) {
                const bool open = q.a[i * lanes + lane] > 0 && q.b[j * lanes + lane] > 0;
                q.C[(i * q.n + j) * lanes + lane] = open ? p.cost[i * q.n + j] : forbidden;
            }
        }
    }
    for (std::int64_t i = 0; i < q.m; ++i) {
        Vec least = get(q.C, i * q.n);
        for (std::int64_t j = 1; j < q.n; ++j) least = smaller(least, get(q.C, i * q.n + j));
        put(q.f, i, least);
    }
    for (std::int64_t j = 0; j < q.n; ++j) {
        Vec least = get(q.C, j) - get(q.f, 0);
        for (std::int64_t i = 1; i < q.m; ++i) least = smaller(least, get(q.C, i * q.n + j) - get(q.f, i));
        put(q.g, j, least);
        put(q.v, j, get(q.b, j) > 0.0 ? splat(1.0) : splat(0.0));
    }
    form_kernel(q, ~Mask{});
    multiply_kernel(q);
}

struct Step {
    Vec violation;  // sum over rows of |Z 1 - a|; the columns are exact
    Mask large;     // a scaling is due for absorption
};

Step iterate(const Group& q) {
    Vec most{}, violation{};
    for (std::int64_t i = 0; i < q.m; ++i) {
        const Vec mass = get(q.a, i);
        const Vec u = mass > 0.0 ? mass / get(q.kv, i) : splat(0.0);
        most = larger(most, u);
        put(q.u, i, u);
    }
    for (std::int64_t j = 0; j < q.n; ++j) {
        Vec sum{};
        for (std::int64_t i = 0; i < q.m; ++i) sum += get(q.K, i * q.n + j) * get(q.u, i);
        const Vec mass = get(q.b, j);
        const Vec v = mass > 0.0 ? mass / sum : splat(0.0);
        most = larger(most, v);
        put(q.v, j, v);
    }
    multiply_kernel(q);
    for (std::int64_t i = 0; i < q.m; ++i) violation += magnitude(get(q.u, i) * get(q.kv, i) - get(q.a, i));
    return {violation, most > absorb_above};
}

void write(const Group& q, std::int64_t lane, double* plan) {
    for (std::int64_t i = 0; i < q.m; ++i)
        for (std::int64_t j = 0; j < q.n; ++j)
            plan[i * q.n + j] = q.u[i * lanes + lane] * q.K[(i * q.n + j) * lanes + lane] * q.v[j * lanes + lane];
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
    start(q, problems, count);
    bool open[lanes];
    for (std::int64_t lane = 0; lane < lanes; ++lane) open[lane] = lane < count;
    std::int64_t left = count;
    for (std::int64_t iteration = 1; left > 0; ++iteration) {
        const Step step = iterate(q);
        const bool last = iteration >= options.max_iterations;
        if (last || any(step.violation <= options.tolerance)) {
            for (std::int64_t lane = 0; lane < count; ++lane) {
                if (!open[lane] || !(last || step.violation[lane] <= options.tolerance)) continue;
                open[lane] = false;
                --left;
                write(q, lane, problems[lane].plan);
                *problems[lane].iterations = iteration;
                *problems[lane].violation = step.violation[lane];
            }
        }
        if (any(step.large)) {
            absorb(q.f, q.u, m, q.reg, step.large);
            absorb(q.g, q.v, n, q.reg, step.large);
            form_kernel(q, step.large);
            multiply_kernel(q);
        }
    }
}

}  // namespace matchtir::MATCHTIR_ISA
