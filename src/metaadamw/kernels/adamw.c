/* Eqs. 1-4 for all tensors of all groups, and the squared norms of what was written.
 *
 * Every rounding is that of torch, of its fused kernel or of its operations one after another, as
 * GCC compiles them for AVX2: which product enters which sum unrounded (FMA) is written out.
 * kernels/adamw.py tries it out before it is used.
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

/* Square roots of n numbers as torch's `sqrt` has them: MKL's, not always the nearest number. */
typedef void (*Roots)(int32_t n, const REAL *x, REAL *roots, int64_t mode);
enum { MODE = 0x140102 }; /* of MKL: high accuracy, denormal numbers as they are, no errors */

/* How torch rounds. */
typedef struct {
    int64_t lanes; /* entries of a vector of its fused kernel; 0: operations one after another */
    Roots roots;   /* NULL: the nearest numbers */
} Rounding;

static Numbers numbers(Rule r, double step, int fused) {
    double rest = 1 - pow(r.beta2, step);
    return (Numbers){
        .decay = !r.weight_decay ? 1 : fused ? fma(-r.lr, r.weight_decay, 1) : 1 - r.lr * r.weight_decay,
        .beta1_rest = 1 - r.beta1,
        .beta2 = r.beta2,
        .beta2_rest = 1 - r.beta2,
        .root = fused ? sqrt(rest) : pow(rest, 0.5),
        .eps = r.eps,
        .step_size = -(r.lr / (1 - pow(r.beta1, step))),
    };
}

/* Eqs. 1 and 2 of an entry; `last`: beyond the last whole vector, where Eq. 2 is rounded in another
 * order. */
INLINE void moments(Numbers c, REAL grad, REAL *exp_avg, REAL *exp_avg_sq, int last) {
    REAL m = *exp_avg, v = *exp_avg_sq;
    *exp_avg = c.beta1_rest < (REAL)0.5 ? FUSED(c.beta1_rest, grad - m, m) /* as lerp does: */
                                        : FUSED(c.beta1_rest - 1, grad - m, grad); /* the nearer end */
    *exp_avg_sq = last ? FUSED(v, c.beta2, c.beta2_rest * grad * grad)
                       : FUSED(c.beta2_rest * grad, grad, v * c.beta2);
}

/* Eqs. 3 and 4 of an entry. */
INLINE void move(Numbers c, REAL *param, REAL exp_avg, REAL root) {
    *param = *param * c.decay + c.step_size * exp_avg / (root / c.root + c.eps);
}

/* n entries, those from `whole` on `last`; adds the squares of param and exp_avg_sq. */
INLINE void block(Numbers c, REAL *restrict param, const REAL *restrict grad,
                  REAL *restrict exp_avg, REAL *restrict exp_avg_sq, int64_t whole, int64_t n,
                  double *squares) {
    REAL params[LANES] = {0}, exp_avg_sqs[LANES] = {0}, sums[2] = {0, 0}; /* in the order of `dot` */
    int64_t even = n / LANES * LANES;
    for (int64_t i = 0; i < even; i += LANES)
#pragma omp simd
        for (int j = 0; j < LANES; j++) {
            moments(c, grad[i + j], exp_avg + i + j, exp_avg_sq + i + j, 0);
            move(c, param + i + j, exp_avg[i + j], SQRT(exp_avg_sq[i + j]));
            params[j] += param[i + j] * param[i + j];
            exp_avg_sqs[j] += exp_avg_sq[i + j] * exp_avg_sq[i + j];
        }
    for (int64_t i = even; i < n; i++) {
        moments(c, grad[i], exp_avg + i, exp_avg_sq + i, i >= whole);
        move(c, param + i, exp_avg[i], SQRT(exp_avg_sq[i]));
        sums[0] += param[i] * param[i];
        sums[1] += exp_avg_sq[i] * exp_avg_sq[i];
    }
    for (int j = 0; j < LANES; j++) sums[0] += params[j], sums[1] += exp_avg_sqs[j];
    if (squares) squares[0] += sums[0], squares[1] += sums[1];
}

/* The same with square roots that a function takes, of many numbers at once; no entry is `last`. */
INLINE void block_with(Roots roots_of, Numbers c, REAL *restrict param, const REAL *restrict grad,
                       REAL *restrict exp_avg, REAL *restrict exp_avg_sq, int64_t n,
                       double *squares) {
    REAL roots[BLOCK];
    for (int64_t i = 0; i < n; i++) moments(c, grad[i], exp_avg + i, exp_avg_sq + i, 0);
    roots_of((int32_t)n, exp_avg_sq, roots, MODE);
    for (int64_t i = 0; i < n; i++) move(c, param + i, exp_avg[i], roots[i]);
    if (squares) squares[0] += dot(param, param, n), squares[1] += dot(exp_avg_sq, exp_avg_sq, n);
}

FOR_EVERY_PROCESSOR
static void part(Numbers c, Roots roots, REAL *param, const REAL *grad, REAL *exp_avg,
                 REAL *exp_avg_sq, Task task, int64_t whole, double *squares) {
    if (squares) squares[0] = squares[1] = 0;
    for (int64_t at = task.begin; at < task.end; at += BLOCK) {
        int64_t n = task.end - at < BLOCK ? task.end - at : BLOCK;
        if (roots) block_with(roots, c, param + at, grad + at, exp_avg + at, exp_avg_sq + at, n, squares);
        else block(c, param + at, grad + at, exp_avg + at, exp_avg_sq + at, whole - at, n, squares);
    }
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

/* squares[tensor][2] and marks, the samples of param afterwards, or NULL. Returns 0; 1: no memory, and
 * nothing has changed. */
int adamw(int64_t tensors, const int64_t *numel, REAL *const *param, const REAL *const *grad,
          REAL *const *exp_avg, REAL *const *exp_avg_sq, float *const *step, const Rule *rules,
          const Rounding *by, double *squares, uint64_t *marks) {
    int64_t number;
    Task *tasks = cut(tensors, numel, &number);
    Numbers *constants = malloc((tensors + 1) * sizeof *constants);
    double(*sums)[2] = malloc((number + 1) * sizeof *sums);
    int failed = !tasks || !constants || !sums;
    if (!failed) {
        for (int64_t t = 0; t < tensors; t++)
            constants[t] = numbers(rules[t], *step[t] += 1, by->lanes > 0);
#pragma omp parallel for schedule(static) if (number > 1)
        for (int64_t k = 0; k < number; k++) {
            int64_t t = tasks[k].tensor;
            part(constants[t], by->roots, param[t], grad[t], exp_avg[t], exp_avg_sq[t], tasks[k],
                 by->lanes ? numel[t] - numel[t] % by->lanes : numel[t], squares ? sums[k] : NULL);
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
