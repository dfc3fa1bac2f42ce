/* Eqs. 1-4 for all tensors of all groups, and the squared norms of what was written.
 *
 * Every rounding is that of torch's fused kernel as GCC compiles it for AVX2: which product enters
 * which sum unrounded (FMA) is written out, and differs for the entries beyond the last whole
 * vector. kernels/adamw.py tries it out before it is used.
 */
#include <math.h>
#include <string.h>

#include "sums.h"

#define FUSED(x, y, z) _Generic((x), float: fmaf, double: fma)(x, y, z) /* xy + z, rounded once */

typedef struct {
    double lr, weight_decay, beta1, beta2, eps;
} Rule;

typedef struct {
    REAL decay, beta1_rest, beta2, beta2_rest, root, eps, step_size;
} Numbers;

static Numbers numbers(Rule r, double step) {
    return (Numbers){
        .decay = r.weight_decay ? fma(-r.lr, r.weight_decay, 1) : 1,
        .beta1_rest = 1 - r.beta1,
        .beta2 = r.beta2,
        .beta2_rest = 1 - r.beta2,
        .root = sqrt(1 - pow(r.beta2, step)),
        .eps = r.eps,
        .step_size = -(r.lr / (1 - pow(r.beta1, step))),
    };
}

/* One entry; `last`: beyond the last whole vector, where Eq. 2 is rounded in another order. */
INLINE void update(Numbers c, REAL *param, REAL grad, REAL *exp_avg, REAL *exp_avg_sq, int last) {
    REAL m = *exp_avg, v = *exp_avg_sq;
    m = c.beta1_rest < (REAL)0.5 ? FUSED(c.beta1_rest, grad - m, m) /* Eq. 1, as lerp does: */
                                 : FUSED(c.beta1_rest - 1, grad - m, grad); /* the nearer end */
    v = last ? FUSED(v, c.beta2, c.beta2_rest * grad * grad) /* Eq. 2 */
             : FUSED(c.beta2_rest * grad, grad, v * c.beta2);
    *exp_avg = m;
    *exp_avg_sq = v;
    *param = *param * c.decay + c.step_size * m / (SQRT(v) / c.root + c.eps); /* Eqs. 3 and 4 */
}

/* n entries, those from `whole` on `last`; adds the squares of param and exp_avg_sq, in the order of
 * `dot`. */
INLINE void block(Numbers c, REAL *restrict param, const REAL *restrict grad,
                  REAL *restrict exp_avg, REAL *restrict exp_avg_sq, int64_t whole, int64_t n,
                  double *squares) {
    REAL params[LANES] = {0}, exp_avg_sqs[LANES] = {0}, sums[2] = {0, 0};
    int64_t even = n / LANES * LANES;
    for (int64_t i = 0; i < even; i += LANES)
#pragma omp simd
        for (int j = 0; j < LANES; j++) {
            update(c, param + i + j, grad[i + j], exp_avg + i + j, exp_avg_sq + i + j, 0);
            params[j] += param[i + j] * param[i + j];
            exp_avg_sqs[j] += exp_avg_sq[i + j] * exp_avg_sq[i + j];
        }
    for (int64_t i = even; i < n; i++) {
        update(c, param + i, grad[i], exp_avg + i, exp_avg_sq + i, i >= whole);
        sums[0] += param[i] * param[i];
        sums[1] += exp_avg_sq[i] * exp_avg_sq[i];
    }
    for (int j = 0; j < LANES; j++) sums[0] += params[j], sums[1] += exp_avg_sqs[j];
    squares[0] += sums[0], squares[1] += sums[1];
}

FOR_EVERY_PROCESSOR
static void part(Numbers c, REAL *param, const REAL *grad, REAL *exp_avg, REAL *exp_avg_sq,
                 Task task, int64_t whole, double *squares) {
    squares[0] = squares[1] = 0;
    for (int64_t at = task.begin; at < task.end; at += BLOCK)
        block(c, param + at, grad + at, exp_avg + at, exp_avg_sq + at, whole - at,
              task.end - at < BLOCK ? task.end - at : BLOCK, squares);
}

/* A few entries of every tensor, and its address, mixed into one number. */
void samples(int64_t tensors, const int64_t *numel, const REAL *const *values, uint64_t *result) {
    enum { ENTRIES = 8 };
    for (int64_t t = 0; t < tensors; t++) {
        result[t] = (uint64_t)(uintptr_t)values[t];
        for (int64_t k = 0; k < ENTRIES && numel[t]; k++) {
            uint64_t bits = 0;
            memcpy(&bits, values[t] + k * (numel[t] - 1) / (ENTRIES - 1), sizeof(REAL));
            result[t] = (result[t] ^ bits) * UINT64_C(0x9e3779b97f4a7c15);
            result[t] ^= result[t] >> 32;
        }
    }
}

/* lanes: entries of torch's vectors. squares[tensor][2] and marks, the samples of param afterwards,
 * or NULL. Returns 0; 1: no memory, and nothing has changed. */
int adamw(int64_t tensors, const int64_t *numel, REAL *const *param, const REAL *const *grad,
          REAL *const *exp_avg, REAL *const *exp_avg_sq, float *const *step, const Rule *rules,
          int64_t lanes, double *squares, uint64_t *marks) {
    int64_t number;
    Task *tasks = cut(tensors, numel, &number);
    Numbers *constants = malloc((tensors + 1) * sizeof *constants);
    double(*sums)[2] = malloc((number + 1) * sizeof *sums);
    int failed = !tasks || !constants || !sums;
    if (!failed) {
        for (int64_t t = 0; t < tensors; t++) constants[t] = numbers(rules[t], *step[t] += 1);
#pragma omp parallel for schedule(static) if (number > 1)
        for (int64_t k = 0; k < number; k++) {
            int64_t t = tasks[k].tensor;
            part(constants[t], param[t], grad[t], exp_avg[t], exp_avg_sq[t], tasks[k],
                 numel[t] - numel[t] % lanes, sums[k]);
        }
        if (squares) memset(squares, 0, 2 * tensors * sizeof *squares);
        for (int64_t k = 0; squares && k < number; k++)
            for (int i = 0; i < 2; i++) squares[2 * tasks[k].tensor + i] += sums[k][i];
        if (marks) samples(tensors, numel, (const REAL *const *)param, marks);
    }
    free(tasks);
    free(constants);
    free(sums);
    return failed;
}
