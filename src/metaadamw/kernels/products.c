/* Inner products of the columns of a Layout, tensor by tensor.
 *
 * Memory is read once: a block of every column is in the first-level cache while all pairs are
 * taken. REAL is float or double; a library is built for each. Sums run in REAL over a block and in
 * double beyond it, in an order that depends on neither the number of threads nor the processor.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "targets.h"

enum { LANES = 16, BLOCK = 512, TASK = 32 * BLOCK, MOST = 8 };

/* pairs[k] = {x, y}: columns to multiply; y < 0: count the zeros of x instead */
typedef struct {
    int64_t count;
    const int64_t (*columns)[2];
} Pairs;

/* Many sums side by side: the processor need not wait for one addition to begin the next. */
INLINE REAL dot(const REAL *restrict x, const REAL *restrict y, int64_t n) {
    REAL sums[LANES] = {0}, sum = 0;
    int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++) sums[j] += x[i + j] * y[i + j];
    for (int64_t i = whole; i < n; i++) sum += x[i] * y[i];
    for (int j = 0; j < LANES; j++) sum += sums[j];
    return sum;
}

INLINE int64_t zeros(const REAL *x, int64_t n) {
    int64_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = 0; i < n; i++) count += x[i] == 0;
    return count;
}

/* Part of a tensor, entries [begin, end); a column that is NULL counts as zeros. The column
 * `direction` is made here: exp_avg / (sqrt(exp_avg_sq) * scale[0] + scale[1]). */
FOR_EVERY_PROCESSOR
static void part(const REAL *const *columns, int64_t width, int64_t direction,
                 const REAL *exp_avg, const REAL *exp_avg_sq, const double *scale,
                 int64_t begin, int64_t end, Pairs pairs, double *sums) {
    REAL made[BLOCK];
    const REAL *at[MOST];
    memset(sums, 0, pairs.count * sizeof *sums);
    for (int64_t start = begin; start < end; start += BLOCK) {
        int64_t n = end - start < BLOCK ? end - start : BLOCK;
        for (int64_t c = 0; c < width; c++) at[c] = columns[c] ? columns[c] + start : NULL;
        if (direction >= 0 && exp_avg) {
            const REAL *m = exp_avg + start, *v = exp_avg_sq + start;
            const REAL multiply = scale[0], add = scale[1];
#pragma omp simd
            for (int64_t i = 0; i < n; i++) made[i] = m[i] / (SQRT(v[i]) * multiply + add);
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

/* result[tensor][pair]. Returns 0, or 1 when there is no memory or the table is too wide. */
int products(int64_t tensors, const int64_t *numel, int64_t width, const REAL *const *columns,
             int64_t direction, const REAL *const *exp_avg, const REAL *const *exp_avg_sq,
             const double (*scale)[2], int64_t count, const int64_t (*pair_columns)[2],
             double *result) {
    Pairs pairs = {count, pair_columns};
    int64_t tasks = 0;
    for (int64_t t = 0; t < tensors; t++) tasks += (numel[t] + TASK - 1) / TASK;
    double *sums = malloc((tasks * count + 1) * sizeof *sums);
    int64_t(*places)[2] = malloc((tasks + 1) * sizeof *places); /* tensor, first entry */
    int failed = width > MOST || !sums || !places;
    if (!failed) {
        int64_t next = 0;
        for (int64_t t = 0; t < tensors; t++)
            for (int64_t begin = 0; begin < numel[t]; begin += TASK, next++)
                places[next][0] = t, places[next][1] = begin;
#pragma omp parallel for schedule(static) if (tasks > 1)
        for (int64_t k = 0; k < tasks; k++) {
            int64_t t = places[k][0], begin = places[k][1];
            int64_t end = numel[t] - begin < TASK ? numel[t] : begin + TASK;
            part(columns + t * width, width, direction, direction < 0 ? NULL : exp_avg[t],
                 direction < 0 ? NULL : exp_avg_sq[t], direction < 0 ? NULL : scale[t], begin, end,
                 pairs, sums + k * count);
        }
        memset(result, 0, tensors * count * sizeof *result);
        for (int64_t k = 0; k < tasks; k++)
            for (int64_t p = 0; p < count; p++)
                result[places[k][0] * count + p] += sums[k * count + p];
    }
    free(sums);
    free(places);
    return failed;
}
