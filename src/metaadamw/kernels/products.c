/* Inner products of the columns of a Layout, tensor by tensor.
 *
 * Memory is read once: a block of every column is in the first-level cache while all pairs are
 * taken. REAL is float or double; a library is built for each.
 */
#include <math.h>
#include <string.h>

#include "sums.h"

enum { MOST = 8 };

/* What an online step asks for, of gradient g, parameter p, moments m and v, direction d. */
enum { GG, GM, MM, PP, VV, GD, DD, PD, GP, TOGETHER };

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

/* All products of an online step, entry by entry: each entry is loaded once, and the divisions of the
 * directions hide behind the sums. Adds to sums. */
INLINE void together(Quotient q, const REAL *restrict grad, const REAL *restrict param,
                     int64_t start, int64_t n, double *sums) {
    enum { SIDE = 8 }; /* more would not fit into the registers */
    const REAL multiply = q.multiply, add = q.add;
    const REAL *restrict exp_avg = q.exp_avg + start, *restrict exp_avg_sq = q.exp_avg_sq + start;
    REAL side[TOGETHER][SIDE] = {{0}};
    int64_t whole = n / SIDE * SIDE;
#define TAKE(i, j)                                                         \
    do {                                                                   \
        const REAL g = grad[i], p = param[i], m = exp_avg[i], v = exp_avg_sq[i]; \
        const REAL d = m / (SQRT(v) * multiply + add);                     \
        side[GG][j] += g * g, side[GM][j] += g * m, side[MM][j] += m * m;  \
        side[PP][j] += p * p, side[VV][j] += v * v, side[GD][j] += g * d;  \
        side[DD][j] += d * d, side[PD][j] += p * d, side[GP][j] += g * p;  \
    } while (0)
    for (int64_t i = 0; i < whole; i += SIDE)
        for (int j = 0; j < SIDE; j++) TAKE(i + j, j);
    for (int64_t i = whole; i < n; i++) TAKE(i, i - whole);
#undef TAKE
    for (int k = 0; k < TOGETHER; k++) {
        REAL sum = 0;
        for (int j = 0; j < SIDE; j++) sum += side[k][j];
        sums[k] += sum;
    }
}

FOR_EVERY_PROCESSOR
static void online_part(Quotient quotient, const REAL *grad, const REAL *param, Task task,
                        const int64_t *wanted, int64_t count, double *sums) {
    double all[TOGETHER] = {0};
    for (int64_t start = task.begin; start < task.end; start += BLOCK)
        together(quotient, grad + start, param + start, start,
                 task.end - start < BLOCK ? task.end - start : BLOCK, all);
    for (int64_t k = 0; k < count; k++) sums[k] = all[wanted[k]];
}

/* A column that is NULL counts as zeros. The column `direction` is made here. */
FOR_EVERY_PROCESSOR
static void part(const REAL *const *columns, int64_t width, int64_t direction, Quotient quotient,
                 Task task, Pairs pairs, double *sums) {
    REAL made[BLOCK];
    const REAL *at[MOST];
    memset(sums, 0, pairs.count * sizeof *sums);
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

/* result[tensor][pair]. online: which of the products of an online step the pairs are, NULL
 * if there are others; grad_column, param_column: the columns of g and p.
 * Returns 0, or 1 when there is no memory or the table is too wide. */
int products(int64_t tensors, const int64_t *numel, int64_t width, const REAL *const *columns,
             int64_t direction, const REAL *const *exp_avg, const REAL *const *exp_avg_sq,
             const REAL *const *grad, const double (*numbers)[4], int64_t count,
             const int64_t (*pair_columns)[2], const int64_t *online, int64_t grad_column,
             int64_t param_column, double *result) {
    Pairs pairs = {count, pair_columns};
    int64_t number;
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
            if (online && quotient.exp_avg && of[grad_column] && of[param_column])
                online_part(quotient, of[grad_column], of[param_column], tasks[k], online, count,
                            sums + k * count);
            else
                part(of, width, direction, quotient, tasks[k], pairs, sums + k * count);
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
