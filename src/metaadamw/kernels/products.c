/* Inner products of the columns of a Layout, tensor by tensor.
 *
 * Memory is read once: a block of every column is in the first-level cache while all pairs are
 * taken. REAL is float or double; a library is built for each.
 */
#include <math.h>
#include <string.h>

#include "sums.h"

enum { MOST = 8 };

/* Products that can be taken entry by entry, of gradient g, moments m and v, parameter p, direction d.
 * A step asks for the first ones, an online step for all. */
enum { GG, GM, MM, FIRST, PP = FIRST, VV, GD, DD, PD, GP, ALL };

/* columns[k] = {x, y}: columns to multiply; y < 0: count the zeros of x instead. */
typedef struct {
    int64_t count;
    const int64_t (*columns)[2];
} Pairs;

INLINE int64_t zeros(const REAL *x, int64_t n) {
    int64_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = 0; i < n; i++) count += x[i] == 0;
    return count;
}

/* A direction by its parts: exp_avg / (sqrt(exp_avg_sq) * multiply + add), the moments brought
 * forward by grad if there is one (Eqs. 1 and 2). */
typedef struct {
    const REAL *exp_avg, *exp_avg_sq, *grad;
    double multiply, add, beta1, beta2;
} Quotient;

INLINE void make(Quotient q, int64_t start, int64_t n, REAL *restrict made) {
    const REAL *m = q.exp_avg + start, *v = q.exp_avg_sq + start;
    const REAL multiply = q.multiply, add = q.add, keep = q.beta2;
    const REAL take = 1 - q.beta1, take_sq = 1 - q.beta2;
    if (!q.grad) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) made[i] = m[i] / (SQRT(v[i]) * multiply + add);
        return;
    }
    const REAL *g = q.grad + start;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const REAL next = m[i] + take * (g[i] - m[i]);
        const REAL next_sq = v[i] * keep + take_sq * g[i] * g[i];
        made[i] = next / (SQRT(next_sq) * multiply + add);
    }
}

INLINE REAL total(const REAL *side, int n) {
    REAL sum = 0;
    for (int j = 0; j < n; j++) sum += side[j];
    return sum;
}

/* Each entry is loaded once, from all tensors at the same time: twice as fast as one product after
 * another where memory has to be waited for, and the divisions hide behind the sums. */
INLINE void first(const REAL *restrict grad, const REAL *restrict exp_avg, int64_t n, double *sums) {
    REAL gg[LANES] = {0}, gm[LANES] = {0}, mm[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            const REAL g = grad[i + j], m = exp_avg[i + j];
            gg[j] += g * g, gm[j] += g * m, mm[j] += m * m;
        }
    sums[GG] += total(gg, LANES), sums[GM] += total(gm, LANES), sums[MM] += total(mm, LANES);
}

INLINE void all(Quotient q, const REAL *restrict grad, const REAL *restrict param,
                const REAL *restrict exp_avg, const REAL *restrict exp_avg_sq, int64_t n,
                double *sums) {
    enum { SIDE = LANES / 2 }; /* more would not fit into the registers */
    const REAL multiply = q.multiply, add = q.add;
    REAL gg[SIDE] = {0}, gm[SIDE] = {0}, mm[SIDE] = {0}, pp[SIDE] = {0}, vv[SIDE] = {0};
    REAL gd[SIDE] = {0}, dd[SIDE] = {0}, pd[SIDE] = {0}, gp[SIDE] = {0};
    for (int64_t i = 0; i < n; i += SIDE)
        for (int j = 0; j < SIDE; j++) {
            const REAL g = grad[i + j], p = param[i + j], m = exp_avg[i + j], v = exp_avg_sq[i + j];
            const REAL d = m / (SQRT(v) * multiply + add);
            gg[j] += g * g, gm[j] += g * m, mm[j] += m * m, pp[j] += p * p, vv[j] += v * v;
            gd[j] += g * d, dd[j] += d * d, pd[j] += p * d, gp[j] += g * p;
        }
    sums[GG] += total(gg, SIDE), sums[GM] += total(gm, SIDE), sums[MM] += total(mm, SIDE);
    sums[PP] += total(pp, SIDE), sums[VV] += total(vv, SIDE), sums[GD] += total(gd, SIDE);
    sums[DD] += total(dd, SIDE), sums[PD] += total(pd, SIDE), sums[GP] += total(gp, SIDE);
}

/* Those `wanted` of a whole number of LANES, all together; param NULL: of the first ones. */
FOR_EVERY_PROCESSOR
static void together(Quotient quotient, const REAL *grad, const REAL *param, const REAL *exp_avg,
                     const REAL *exp_avg_sq, Task task, const int64_t *wanted, int64_t count,
                     double *sums) {
    double found[ALL] = {0};
    for (int64_t at = task.begin; at < task.end; at += BLOCK) {
        int64_t n = task.end - at < BLOCK ? task.end - at : BLOCK;
        if (param)
            all(quotient, grad + at, param + at, exp_avg + at, exp_avg_sq + at, n, found);
        else
            first(grad + at, exp_avg + at, n, found);
    }
    for (int64_t k = 0; k < count; k++) sums[k] += found[wanted[k]];
}

/* A column that is NULL counts as zeros. The column `direction` is made here. */
FOR_EVERY_PROCESSOR
static void part(const REAL *const *columns, int64_t width, int64_t direction, Quotient quotient,
                 Task task, Pairs pairs, double *sums) {
    REAL made[BLOCK];
    const REAL *at[MOST];
    for (int64_t start = task.begin; start < task.end; start += BLOCK) {
        int64_t n = task.end - start < BLOCK ? task.end - start : BLOCK;
        for (int64_t c = 0; c < width; c++) at[c] = columns[c] ? columns[c] + start : NULL;
        if (direction >= 0 && quotient.exp_avg) {
            make(quotient, start, n, made);
            at[direction] = made;
        }
        for (int64_t k = 0; k < pairs.count; k++) {
            const REAL *x = at[pairs.columns[k][0]];
            int64_t second = pairs.columns[k][1];
            if (second < 0)
                sums[k] += x ? zeros(x, n) : n;
            else if (x && at[second])
                sums[k] += dot(x, at[second], n);
        }
    }
}

/* result[tensor][pair]. wanted: which of ALL the pairs are, NULL if there are others; roles: the
 * columns of g, p and m, or -1. Returns 0, or 1 when there is no memory or the table is too wide. */
int products(int64_t tensors, const int64_t *numel, int64_t width, const REAL *const *columns,
             int64_t direction, const REAL *const *exp_avg, const REAL *const *exp_avg_sq,
             const REAL *const *grad, const double (*numbers)[4], int64_t count,
             const int64_t (*pair_columns)[2], const int64_t *wanted,
             const int64_t roles[3], double *result) {
    Pairs pairs = {count, pair_columns};
    int64_t number, last = -1;
    for (int64_t k = 0; wanted && k < count; k++) last = wanted[k] > last ? wanted[k] : last;
    Task *tasks = cut(tensors, numel, &number);
    double *sums = malloc((number * count + 1) * sizeof *sums);
    int failed = width > MOST || !sums || !tasks;
    if (!failed) {
#pragma omp parallel for schedule(static) if (number > 1)
        for (int64_t k = 0; k < number; k++) {
            int64_t t = tasks[k].tensor;
            Quotient quotient = {NULL};
            if (direction >= 0)
                quotient = (Quotient){exp_avg[t],    exp_avg_sq[t], grad[t],      numbers[t][0],
                                      numbers[t][1], numbers[t][2], numbers[t][3]};
            const REAL *const *of = columns + t * width;
            const REAL *role[3];
            for (int r = 0; r < 3; r++) role[r] = roles[r] < 0 ? NULL : of[roles[r]];
            Task whole = tasks[k], rest = tasks[k];
            whole.end -= (whole.end - whole.begin) % LANES;
            double *into = memset(sums + k * count, 0, count * sizeof *sums);
            if (wanted && last < FIRST && role[0] && role[2])
                together(quotient, role[0], NULL, role[2], NULL, whole, wanted, count, into);
            else if (wanted && quotient.exp_avg && !quotient.grad && role[0] && role[1])
                together(quotient, role[0], role[1], quotient.exp_avg, quotient.exp_avg_sq, whole,
                         wanted, count, into);
            else
                whole.end = whole.begin;
            rest.begin = whole.end;
            part(of, width, direction, quotient, rest, pairs, into);
        }
        memset(result, 0, tensors * count * sizeof *result);
        for (int64_t k = 0; k < number; k++)
            for (int64_t p = 0; p < count; p++)
                result[tasks[k].tensor * count + p] += sums[k * count + p];
    }
    free(sums);
    free(tasks);
    return failed;
}
