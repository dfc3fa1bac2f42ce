/* The online signal from the groups' inner products; the formulas are explained in online.py. */
#include <float.h>
#include <math.h>
#include <stdint.h>

#include "targets.h"

#define EPSILON(x) _Generic((x), float: FLT_EPSILON, double: DBL_EPSILON)
#define TINY(x) _Generic((x), float: FLT_MIN, double: DBL_MIN)

/* 0 where a norm is 0; dividing twice keeps their product from underflowing. */
static REAL cosine(REAL product, REAL x_norm, REAL y_norm) {
    const REAL tiny = TINY((REAL)0);
    return product / (x_norm < tiny ? tiny : x_norm) / (y_norm < tiny ? tiny : y_norm);
}

static REAL root(REAL square) { return SQRT(square < 0 ? 0 : square); } /* NaN stays NaN */

/* sums [6, G] in the order of ONLINE_PRODUCTS; signals [2, G], for alpha and beta. */
void online_signal(int64_t groups, const REAL *sums, const REAL *rates, const REAL *decays,
                   REAL *signals) {
    for (int64_t g = 0; g < groups; g++) {
        const REAL *of = sums + g, rate = rates[g], decay = decays[g], shrink = 1 - rate * decay;
        const REAL grad_square = of[0], grad_direction = of[groups], direction_square = of[2 * groups];
        const REAL param_direction = of[3 * groups], grad_param = of[4 * groups];
        const REAL param_square = of[5 * groups], grad_norm = SQRT(grad_square);
        /* From the parameters now to those before the step. */
        const REAL grad_previous = (grad_param + rate * grad_direction) / shrink;
        const REAL direction_previous = (param_direction + rate * direction_square) / shrink;
        const REAL previous_square = (param_square + 2 * rate * param_direction +
                                      rate * rate * direction_square) / (shrink * shrink);
        /* From the direction without decay to that with it. */
        const REAL step_square = direction_square + 2 * decay * direction_previous +
                                 decay * decay * previous_square;
        REAL along_step = cosine(grad_direction + decay * grad_previous, grad_norm, root(step_square));
        REAL along_params = cosine(grad_previous, grad_norm, root(previous_square));
        const REAL noise = 64 * EPSILON((REAL)0) / (shrink * shrink);
        if (previous_square <= noise * (param_square + rate * rate * direction_square))
            along_params = 0; /* they were zero: what is left is rounding */
        else
            along_params = along_params < -1 ? -1 : along_params > 1 ? 1 : along_params;
        signals[g] = rate != 0 ? -along_step : 0;
        signals[groups + g] = rate != 0 && decay != 0 ? -along_params : 0;
    }
}
