/* Sums over tensors: in REAL over a block, in double beyond it, in an order that depends on neither
 * the number of threads nor the processor. */
#include <stdint.h>
#include <stdlib.h>

#include "targets.h"

enum { LANES = 16, BLOCK = 512, TASK = 32 * BLOCK };

/* A part of a tensor, entries [begin, end): what one thread does in one go. */
typedef struct {
    int64_t tensor, begin, end;
} Task;

/* All tensors cut into tasks; NULL: no memory. */
static inline Task *cut(int64_t tensors, const int64_t *numel, int64_t *count) {
    int64_t next = 0;
    *count = 0;
    for (int64_t t = 0; t < tensors; t++) *count += (numel[t] + TASK - 1) / TASK;
    Task *tasks = malloc((*count + 1) * sizeof *tasks);
    if (!tasks) return NULL;
    for (int64_t t = 0; t < tensors; t++)
        for (int64_t begin = 0; begin < numel[t]; begin += TASK)
            tasks[next++] = (Task){t, begin, numel[t] - begin < TASK ? numel[t] : begin + TASK};
    return tasks;
}

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
