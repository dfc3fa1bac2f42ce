/* Eq. 5: the Transformer encoder over the groups, forward and backward.
 *
 * Pre-norm layers with ReLU, as nn.TransformerEncoderLayer(norm_first=True). There are few groups G
 * and fewer features D, so activations are kept feature by feature, [D, G]: every loop runs over
 * the groups side by side. Weights are as torch stores them, stacked over the layers, [L, ...].
 */
#include "encoder.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What a layer computes on the way, for its backward pass. */
typedef struct {
    REAL *unit1, *rstd1, *normed1, *qkv, *weights, *mixed, *middle, *unit2, *rstd2, *normed2, *hidden;
    REAL *memory;
} Activations;

static Activations activations(Shape s) {
    int64_t dg = s.dim * s.groups, g = s.groups;
    int64_t sizes[] = {dg, g, dg, 3 * dg, s.heads * g * g, dg, dg, dg, g, dg, s.hidden * g};
    int64_t total = 0;
    for (int i = 0; i < 11; i++) total += sizes[i];
    Activations a = {.memory = malloc(total * sizeof(REAL))};
    REAL **parts[] = {&a.unit1,  &a.rstd1, &a.normed1, &a.qkv,     &a.weights, &a.mixed,
                      &a.middle, &a.unit2, &a.rstd2,   &a.normed2, &a.hidden};
    REAL *at = a.memory;
    for (int i = 0; i < 11; i++) *parts[i] = at, at += sizes[i];
    return a;
}

/* y[r] = bias[r] + sum_c weight[r][c] x[c] */
FOR_EVERY_PROCESSOR
static void linear(const REAL *weight, const REAL *bias, const REAL *restrict x,
                          REAL *restrict y, int64_t rows, int64_t columns, int64_t groups) {
    for (int64_t r = 0; r < rows; r++) {
        REAL *to = y + r * groups;
#pragma omp simd
        for (int64_t g = 0; g < groups; g++) to[g] = bias[r];
        for (int64_t c = 0; c < columns; c++) {
            const REAL w = weight[r * columns + c], *from = x + c * groups;
#pragma omp simd
            for (int64_t g = 0; g < groups; g++) to[g] += w * from[g];
        }
    }
}

/* dx = weight^T dy; dweight = dy x^T; dbias = sum over the groups of dy */
FOR_EVERY_PROCESSOR
static void linear_backward(const REAL *weight, const REAL *restrict x,
                                   const REAL *restrict dy, REAL *restrict dx, REAL *dweight,
                                   REAL *dbias, int64_t rows, int64_t columns, int64_t groups) {
    memset(dx, 0, columns * groups * sizeof(REAL));
    for (int64_t r = 0; r < rows; r++) {
        const REAL *from = dy + r * groups;
        REAL sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t g = 0; g < groups; g++) sum += from[g];
        dbias[r] = sum;
        for (int64_t c = 0; c < columns; c++) {
            const REAL w = weight[r * columns + c], *other = x + c * groups;
            REAL *to = dx + c * groups, product = 0;
#pragma omp simd reduction(+ : product)
            for (int64_t g = 0; g < groups; g++) {
                product += from[g] * other[g];
                to[g] += w * from[g];
            }
            dweight[r * columns + c] = product;
        }
    }
}

FOR_EVERY_PROCESSOR
static void layer_norm(const REAL *weight, const REAL *bias, const REAL *restrict x,
                              REAL *restrict unit, REAL *restrict rstd, REAL *restrict y,
                              int64_t dim, int64_t groups) {
    for (int64_t g = 0; g < groups; g++) {
        REAL mean = 0, square = 0;
        for (int64_t d = 0; d < dim; d++) mean += x[d * groups + g];
        mean /= dim;
        for (int64_t d = 0; d < dim; d++) {
            const REAL centred = x[d * groups + g] - mean;
            square += centred * centred;
        }
        rstd[g] = 1 / SQRT(square / dim + (REAL)1e-5);
        for (int64_t d = 0; d < dim; d++) {
            unit[d * groups + g] = (x[d * groups + g] - mean) * rstd[g];
            y[d * groups + g] = unit[d * groups + g] * weight[d] + bias[d];
        }
    }
}

/* dx += the gradient of layer_norm's input */
FOR_EVERY_PROCESSOR
static void layer_norm_backward(const REAL *weight, const REAL *restrict unit,
                                       const REAL *restrict rstd, const REAL *restrict dy,
                                       REAL *restrict dx, REAL *dweight, REAL *dbias, int64_t dim,
                                       int64_t groups) {
    memset(dweight, 0, dim * sizeof(REAL));
    memset(dbias, 0, dim * sizeof(REAL));
    for (int64_t g = 0; g < groups; g++) {
        REAL sum = 0, along = 0;
        for (int64_t d = 0; d < dim; d++) {
            const REAL slope = dy[d * groups + g], u = unit[d * groups + g];
            dweight[d] += slope * u;
            dbias[d] += slope;
            sum += slope * weight[d];
            along += slope * weight[d] * u;
        }
        for (int64_t d = 0; d < dim; d++)
            dx[d * groups + g] += rstd[g] * (dy[d * groups + g] * weight[d] - sum / dim -
                                             unit[d * groups + g] * along / dim);
    }
}

/* weights[key][query] = softmax over the keys; mixed = sum over the keys of weight times value */
FOR_EVERY_PROCESSOR
static void attend(const REAL *restrict q, const REAL *restrict k, const REAL *restrict v,
                          REAL *restrict weights, REAL *restrict mixed, int64_t width,
                          int64_t groups) {
    const REAL scale = 1 / SQRT((REAL)width);
    REAL most[groups], total[groups];
    for (int64_t g = 0; g < groups; g++) most[g] = -INFINITY, total[g] = 0;
    for (int64_t key = 0; key < groups; key++) {
        REAL *row = weights + key * groups;
        memset(row, 0, groups * sizeof(REAL));
        for (int64_t c = 0; c < width; c++) {
            const REAL factor = scale * k[c * groups + key], *query = q + c * groups;
#pragma omp simd
            for (int64_t g = 0; g < groups; g++) row[g] += factor * query[g];
        }
#pragma omp simd
        for (int64_t g = 0; g < groups; g++) most[g] = row[g] > most[g] ? row[g] : most[g];
    }
    for (int64_t i = 0; i < groups * groups; i += groups)
        for (int64_t g = 0; g < groups; g++) total[g] += weights[i + g] = EXP(weights[i + g] - most[g]);
    memset(mixed, 0, width * groups * sizeof(REAL));
    for (int64_t key = 0; key < groups; key++) {
        REAL *row = weights + key * groups;
#pragma omp simd
        for (int64_t g = 0; g < groups; g++) row[g] /= total[g];
        for (int64_t c = 0; c < width; c++) {
            const REAL value = v[c * groups + key];
            REAL *to = mixed + c * groups;
#pragma omp simd
            for (int64_t g = 0; g < groups; g++) to[g] += value * row[g];
        }
    }
}

FOR_EVERY_PROCESSOR
static void attend_backward(const REAL *restrict q, const REAL *restrict k,
                                   const REAL *restrict v, const REAL *restrict weights,
                                   const REAL *restrict dmixed, REAL *restrict dq,
                                   REAL *restrict dk, REAL *restrict dv, int64_t width,
                                   int64_t groups) {
    const REAL scale = 1 / SQRT((REAL)width);
    REAL along[groups], slope[groups]; /* sum over the keys of weight times its slope */
    memset(along, 0, sizeof along);
    memset(dq, 0, width * groups * sizeof(REAL));
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t key = 0; key < groups; key++) {
            const REAL *row = weights + key * groups;
            memset(slope, 0, sizeof slope);
            for (int64_t c = 0; c < width; c++) {
                const REAL value = v[c * groups + key], *from = dmixed + c * groups;
#pragma omp simd
                for (int64_t g = 0; g < groups; g++) slope[g] += value * from[g];
            }
            if (pass == 0) {
#pragma omp simd
                for (int64_t g = 0; g < groups; g++) along[g] += row[g] * slope[g];
                continue;
            }
#pragma omp simd
            for (int64_t g = 0; g < groups; g++) slope[g] = scale * row[g] * (slope[g] - along[g]);
            for (int64_t c = 0; c < width; c++) {
                const REAL factor = k[c * groups + key];
                const REAL *query = q + c * groups, *from = dmixed + c * groups;
                REAL *to = dq + c * groups, of_key = 0, of_value = 0;
#pragma omp simd reduction(+ : of_key, of_value)
                for (int64_t g = 0; g < groups; g++) {
                    to[g] += factor * slope[g];
                    of_key += slope[g] * query[g];
                    of_value += row[g] * from[g];
                }
                dk[c * groups + key] = of_key;
                dv[c * groups + key] = of_value;
            }
        }
    }
}

/* One layer; y may not be x. */
static void layer(Shape s, const REAL *const *w, const REAL *x, REAL *y, Activations a) {
    int64_t groups = s.groups, dim = s.dim, head = dim / s.heads * groups, dg = dim * groups;
    layer_norm(w[NORM1_W], w[NORM1_B], x, a.unit1, a.rstd1, a.normed1, dim, groups);
    linear(w[IN_W], w[IN_B], a.normed1, a.qkv, 3 * dim, dim, groups);
    for (int64_t h = 0; h < s.heads; h++)
        attend(a.qkv + h * head, a.qkv + dg + h * head, a.qkv + 2 * dg + h * head,
               a.weights + h * groups * groups, a.mixed + h * head, dim / s.heads, groups);
    linear(w[OUT_W], w[OUT_B], a.mixed, a.middle, dim, dim, groups);
    for (int64_t i = 0; i < dg; i++) a.middle[i] += x[i];
    layer_norm(w[NORM2_W], w[NORM2_B], a.middle, a.unit2, a.rstd2, a.normed2, dim, groups);
    linear(w[W1], w[B1], a.normed2, a.hidden, s.hidden, dim, groups);
    for (int64_t i = 0; i < s.hidden * groups; i++) /* not max(0, x): NaN stays NaN */
        a.hidden[i] = a.hidden[i] < 0 ? 0 : a.hidden[i];
    linear(w[W2], w[B2], a.hidden, y, dim, s.hidden, groups);
    for (int64_t i = 0; i < dg; i++) y[i] += a.middle[i];
}

/* dx from dy, both [D, G]; `at` has room for a layer's activations. */
static void layer_backward(Shape s, const REAL *const *w, const REAL *dy, REAL *dx,
                                  REAL *const *dw, Activations a, Activations at) {
    int64_t groups = s.groups, dim = s.dim, head = dim / s.heads * groups, dg = dim * groups;
    linear_backward(w[W2], a.hidden, dy, at.hidden, dw[W2], dw[B2], dim, s.hidden, groups);
    for (int64_t i = 0; i < s.hidden * groups; i++)
        if (a.hidden[i] == 0) at.hidden[i] = 0;
    linear_backward(w[W1], a.normed2, at.hidden, at.normed2, dw[W1], dw[B1], s.hidden, dim, groups);
    memcpy(at.middle, dy, dg * sizeof(REAL));
    layer_norm_backward(w[NORM2_W], a.unit2, a.rstd2, at.normed2, at.middle, dw[NORM2_W],
                        dw[NORM2_B], dim, groups);
    linear_backward(w[OUT_W], a.mixed, at.middle, at.mixed, dw[OUT_W], dw[OUT_B], dim, dim, groups);
    for (int64_t h = 0; h < s.heads; h++)
        attend_backward(a.qkv + h * head, a.qkv + dg + h * head, a.qkv + 2 * dg + h * head,
                        a.weights + h * groups * groups, at.mixed + h * head, at.qkv + h * head,
                        at.qkv + dg + h * head, at.qkv + 2 * dg + h * head, dim / s.heads, groups);
    linear_backward(w[IN_W], a.normed1, at.qkv, at.normed1, dw[IN_W], dw[IN_B], 3 * dim, dim, groups);
    memset(dw[IN_B] + dim, 0, dim * sizeof(REAL)); /* a softmax does not feel the bias of its keys */
    memcpy(dx, at.middle, dg * sizeof(REAL));
    layer_norm_backward(w[NORM1_W], a.unit1, a.rstd1, at.normed1, dx, dw[NORM1_W], dw[NORM1_B], dim,
                        groups);
}

/* kept [L + 1, D, G]: kept[0] is the input, every layer adds its output. Returns 0; 1: no memory. */
int encoder(Shape s, const REAL *const *stacked, REAL *kept) {
    Activations a = activations(s);
    int failed = !a.memory;
    for (int64_t l = 0; !failed && l < s.layers; l++) {
        const REAL *w[TENSORS];
        for (int i = 0; i < TENSORS; i++) w[i] = stacked[i] + l * size_of(s, i);
        layer(s, w, kept + l * s.dim * s.groups, kept + (l + 1) * s.dim * s.groups, a);
    }
    free(a.memory);
    return failed;
}

/* slope [D, G], of the output, becomes that of the input; gradients are written, not added. */
int encoder_backward(Shape s, const REAL *const *stacked, const REAL *kept, REAL *slope,
                     REAL *const *gradients) {
    int64_t dg = s.dim * s.groups;
    Activations a = activations(s), at = activations(s);
    REAL *spare = malloc(dg * sizeof(REAL)); /* an output nobody needs, then the next slope */
    int failed = !a.memory || !at.memory || !spare;
    for (int64_t l = s.layers - 1; !failed && l >= 0; l--) {
        const REAL *w[TENSORS];
        REAL *dw[TENSORS];
        for (int i = 0; i < TENSORS; i++) {
            w[i] = stacked[i] + l * size_of(s, i);
            dw[i] = gradients[i] + l * size_of(s, i);
        }
        layer(s, w, kept + l * dg, spare, a);
        layer_backward(s, w, slope, spare, dw, a, at);
        memcpy(slope, spare, dg * sizeof(REAL));
    }
    free(a.memory);
    free(at.memory);
    free(spare);
    return failed;
}
