/* The shape of the encoder, and the order of its stacked tensors, [L, ...]. */
#include <stdint.h>

#include "targets.h"

enum { IN_W, IN_B, OUT_W, OUT_B, NORM1_W, NORM1_B, NORM2_W, NORM2_B, W1, B1, W2, B2, TENSORS };

typedef struct {
    int64_t layers, groups, dim, heads, hidden;
} Shape;

/* Entries of a tensor in one layer. */
static inline int64_t size_of(Shape s, int tensor) {
    switch (tensor) {
        case IN_W: return 3 * s.dim * s.dim;
        case IN_B: return 3 * s.dim;
        case OUT_W: return s.dim * s.dim;
        case W1: case W2: return s.hidden * s.dim;
        case B1: return s.hidden;
        default: return s.dim;
    }
}

int encoder(Shape s, const REAL *const *stacked, REAL *kept);
int encoder_backward(Shape s, const REAL *const *stacked, const REAL *kept, REAL *slope,
                     REAL *const *gradients);
