/* Eqs. 5-9, features to factors; and an update by what a gradient has said of the factors: forward,
 * backward and a step of Adam. The work is nothing; as separate operations, each cold after a pass
 * over the model's memory, it took as long as a step of AdamW.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "encoder.h"

enum { OUTPUT_W = TENSORS, OUTPUT_B, GATES, OUTPUTS = 4 };

typedef struct {
    int64_t features, embedding;                          /* F, and E, 0 without one */
    int64_t gated, frozen_gates, log_scale, mean_preserving;
    double ranges[2], weight_decay, gate_sparsity;        /* ranges of alpha and beta */
    double lr, beta1, beta2, eps, t;                      /* Adam, its step t from 1 */
} Settings;

static REAL sigmoid(REAL x) { return 1 / (1 + EXP(-x)); }

/* What the encoder reads, [D, G]: gated features, the group embedding, zeros. */
static void enter(Shape s, Settings c, const REAL *features, const REAL *gates,
                  const REAL *embedding, REAL *x) {
    memset(x, 0, s.dim * s.groups * sizeof(REAL));
    for (int64_t g = 0; g < s.groups; g++) {
        for (int64_t f = 0; f < c.features; f++)
            x[f * s.groups + g] = features[g * c.features + f] * (gates ? sigmoid(gates[f]) : 1);
        for (int64_t e = 0; e < c.embedding; e++)
            x[(c.features + e) * s.groups + g] = embedding[g * c.embedding + e];
    }
}

/* Eqs. 5-6: kept [L + 1, D, G] as in `encoder`, raw outputs [4, G]. Returns 0; 1: no memory. */
static int outputs(Shape s, Settings c, const REAL *features, const REAL *const *weights, REAL *kept,
                   REAL *raw) {
    const REAL *gates = c.gated ? weights[GATES] : NULL;
    const REAL *embedding = c.embedding ? weights[GATES + c.gated] : NULL;
    const REAL *z = kept + s.layers * s.dim * s.groups;
    enter(s, c, features, gates, embedding, kept);
    if (encoder(s, weights, kept)) return 1;
    for (int r = 0; r < OUTPUTS; r++, raw += s.groups) {
        for (int64_t g = 0; g < s.groups; g++) raw[g] = weights[OUTPUT_B][r];
        for (int64_t d = 0; d < s.dim; d++)
            for (int64_t g = 0; g < s.groups; g++)
                raw[g] += weights[OUTPUT_W][r * s.dim + d] * z[d * s.groups + g];
    }
    return 0;
}

/* Eqs. 7-8, and the derivatives: factors and slopes of raw outputs, [G]. */
static void factors_of(Settings c, const REAL *raw, double range, REAL *factors, REAL *slopes,
                       int64_t groups) {
    for (int64_t g = 0; g < groups; g++) {
        const double share = c.log_scale ? (range ? tanh(raw[g] / range) : 0) : sigmoid(raw[g]);
        factors[g] = c.log_scale ? exp(range * share) : 1 + range * (share - 0.5);
        slopes[g] = c.log_scale ? (range ? factors[g] * (1 - share * share) : 0)
                                : range * share * (1 - share);
    }
}

static double geometric_mean(const REAL *factors, int64_t groups) {
    double sum = 0;
    for (int64_t g = 0; g < groups; g++) sum += log(factors[g]);
    return exp(sum / groups);
}

/* From slopes with respect to factors to slopes with respect to raw outputs, [G]. */
static void factors_backward(Settings c, const REAL *raw, double range, int mean_preserving,
                             const REAL *signal, REAL *slope, int64_t groups) {
    REAL factors[groups], slopes[groups];
    factors_of(c, raw, range, factors, slopes, groups);
    for (int64_t g = 0; g < groups; g++) slope[g] = signal[g] * slopes[g];
    if (!mean_preserving) return;
    const double middle = geometric_mean(factors, groups); /* they are divided by it */
    double along = 0;
    for (int64_t g = 0; g < groups; g++) along += signal[g] * factors[g] / groups;
    for (int64_t g = 0; g < groups; g++)
        slope[g] = (signal[g] * factors[g] - along) / middle * slopes[g] / factors[g];
}

/* Features [G, F] to alpha, beta, lambda1 and lambda2, [4, G]. Returns 0; 1: no memory. */
int modulate(Shape s, const Settings *settings, const REAL *features, const REAL *const *weights,
             REAL *result) {
    const Settings c = *settings;
    const int64_t groups = s.groups, size = (s.layers + 1) * s.dim * groups;
    REAL *kept = malloc((size + (OUTPUTS + 1) * groups) * sizeof(REAL));
    REAL *raw = kept + size, *slopes = raw + OUTPUTS * groups;
    int failed = !kept || outputs(s, c, features, weights, kept, raw);
    for (int r = 0; !failed && r < 2; r++)
        factors_of(c, raw + r * groups, c.ranges[r], result + r * groups, slopes, groups);
    if (!failed && c.mean_preserving) {
        const double middle = geometric_mean(result, groups);
        for (int64_t g = 0; g < groups; g++) result[g] /= middle;
    }
    for (int64_t i = 2 * groups; !failed && i < OUTPUTS * groups; i++) result[i] = sigmoid(raw[i]);
    free(kept);
    return failed;
}

/* Adds the gradient of coefficient * ||w||; none where w = 0. */
static void add_norm_gradient(const REAL *w, REAL *dw, int64_t n, double coefficient) {
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += (double)w[i] * w[i];
    if (square == 0) return;
    const REAL factor = coefficient / sqrt(square);
    for (int64_t i = 0; i < n; i++) dw[i] += factor * w[i];
}

static int all_finite(const REAL *x, int64_t n) {
    REAL sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * 0;
    return sum == 0;
}

/* The gradient of signals' product with the factors, and of the penalties; `weights` and `gradients`,
 * zero at first, in the order of the modulator's parameters. Returns 0; 1: no memory. */
static int gradient(Shape s, Settings c, const REAL *features, const REAL *const *signals,
                    const REAL *const *weights, REAL *const *gradients) {
    const int64_t groups = s.groups, dg = s.dim * groups;
    REAL *kept = malloc(((s.layers + 2) * dg + (OUTPUTS + 1) * groups) * sizeof(REAL));
    if (!kept) return 1;
    REAL *z = kept + s.layers * dg, *slope = z + dg, *raw = slope + dg;
    REAL *outward = raw + OUTPUTS * groups;
    int failed = outputs(s, c, features, weights, kept, raw);
    memset(slope, 0, dg * sizeof(REAL));
    for (int r = 0; r < 2; r++) { /* no signal says anything of the lambdas */
        factors_backward(c, raw + r * groups, c.ranges[r], c.mean_preserving && r == 0, signals[r],
                         outward, groups);
        for (int64_t g = 0; g < groups; g++) gradients[OUTPUT_B][r] += outward[g];
        for (int64_t d = 0; d < s.dim; d++)
            for (int64_t g = 0; g < groups; g++) {
                gradients[OUTPUT_W][r * s.dim + d] += outward[g] * z[d * groups + g];
                slope[d * groups + g] += weights[OUTPUT_W][r * s.dim + d] * outward[g];
            }
    }
    failed = failed || encoder_backward(s, weights, kept, slope, gradients);
    for (int i = 0; i < TENSORS && c.weight_decay != 0; i++)
        for (int64_t l = 0, n = size_of(s, i); l < s.layers; l++)
            add_norm_gradient(weights[i] + l * n, gradients[i] + l * n, n, c.weight_decay);
    if (c.weight_decay != 0)
        add_norm_gradient(weights[OUTPUT_W], gradients[OUTPUT_W], OUTPUTS * s.dim, c.weight_decay);
    for (int64_t f = 0; c.gated && f < c.features; f++) {
        const REAL gate = weights[GATES][f], share = sigmoid(gate);
        REAL along = 0;
        for (int64_t g = 0; g < groups; g++)
            along += slope[f * groups + g] * features[g * c.features + f];
        gradients[GATES][f] = c.gate_sparsity * ((gate > 0) - (gate < 0)) +
                              (c.frozen_gates ? 0 : along * share * (1 - share));
    }
    for (int64_t i = 0; i < c.embedding * groups; i++) /* [G, E] */
        gradients[GATES + c.gated][i] =
            slope[(c.features + i % c.embedding) * groups + i / c.embedding];
    free(kept);
    return failed;
}

/* Returns 0; 1: no memory; 2: something is not finite. Unless 0, nothing has changed. */
int learn(Shape s, const Settings *settings, int64_t count, const int64_t *numel,
          const REAL *features, const REAL *const *signals, REAL *const *weights,
          REAL *const *exp_avgs, REAL *const *exp_avg_sqs) {
    const Settings c = *settings;
    const int64_t own = GATES + c.gated + (c.embedding > 0); /* others get no gradient */
    int64_t total = 0;
    for (int64_t k = 0; k < count; k++) total += numel[k];
    REAL **gradients = malloc((count + 1) * sizeof *gradients);
    REAL *memory = calloc(total + 1, sizeof *memory);
    int failed = !gradients || !memory;
    if (!failed) {
        int64_t at = 0;
        for (int64_t k = 0; k < count; at += numel[k++]) gradients[k] = memory + at;
        failed = count < own ||
                 gradient(s, c, features, signals, (const REAL *const *)weights, gradients);
        if (!failed && !(all_finite(memory, total) && all_finite(signals[0], s.groups) &&
                         all_finite(signals[1], s.groups)))
            failed = 2;
    }
    const double root = sqrt(1 - pow(c.beta2, c.t)), size = c.lr / (1 - pow(c.beta1, c.t));
    for (int64_t k = 0; !failed && k < count; k++)
        for (int64_t i = 0; i < numel[k]; i++) {
            const REAL g = gradients[k][i];
            const REAL m = exp_avgs[k][i] += (1 - c.beta1) * (g - exp_avgs[k][i]);
            const REAL v = exp_avg_sqs[k][i] = c.beta2 * exp_avg_sqs[k][i] + (1 - c.beta2) * g * g;
            weights[k][i] -= size * m / (SQRT(v) / root + c.eps);
        }
    free(gradients);
    free(memory);
    return failed;
}
