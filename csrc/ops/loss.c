/* loss.c -- cross entropy and squared error, averaged over examples (kernels/loss.h); threads split rows of logits.
 *   loss = sum_b weights[b] per_example[b] / sum_b weights[b], weights 1 where NULL; 0 where the weights sum to 0. */
#ifndef DT
#define PM_SELF "../ops/loss.c"
#include "dtypes.h"
#else
#define ROWS ((ptrdiff_t)16) /* of one item */

struct FN(loss) {
    ptrdiff_t B, C;
    const real *logits, *weights;
    const int64_t *labels, *starts, *ends;
    double dmean;    /* dloss / sum of the weights */
    real *per_example, *lse, *dlogits;
};

static void FN(cross_entropy_fwd_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(loss) *c = ctx;
    for (ptrdiff_t b = item * ROWS; b < c->B && b < (item + 1) * ROWS; b++)
        K->cross_entropy_fwd(c->starts ? c->starts[b] : 0, c->ends ? c->ends[b] : c->C, c->labels[b],
                             c->logits + b * c->C, c->per_example + b, c->lse + b);
}

static void FN(cross_entropy_bwd_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(loss) *c = ctx;
    for (ptrdiff_t b = item * ROWS; b < c->B && b < (item + 1) * ROWS; b++)
        K->cross_entropy_bwd(c->C, c->starts ? c->starts[b] : 0, c->ends ? c->ends[b] : c->C, c->labels[b],
                             c->logits + b * c->C, c->lse[b],
                             (real)(c->dmean * (c->weights ? (double)c->weights[b] : 1)),
                             c->dlogits + b * c->C);
}

static double FN(total)(ptrdiff_t B, const real *weights)
{
    double sum = 0;
    for (ptrdiff_t b = 0; b < B; b++) sum += weights ? (double)weights[b] : 1;
    return sum;
}

static real FN(mean)(ptrdiff_t B, const real *per_example, const real *weights)
{
    double sum = 0;
    const double total = FN(total)(B, weights);
    for (ptrdiff_t b = 0; b < B; b++) sum += (double)per_example[b] * (weights ? (double)weights[b] : 1);
    return total == 0 ? 0 : (real)(sum / total);
}

static double FN(dmean)(ptrdiff_t B, const real *dloss, const real *weights)
{
    const double total = FN(total)(B, weights);
    return total == 0 ? 0 : (double)*dloss / total;
}

void FN(pm_cross_entropy_fwd)(ptrdiff_t B, ptrdiff_t C, const real *logits, const int64_t *labels,
                              const int64_t *starts, const int64_t *ends, const real *weights, real *loss,
                              real *per_example, real *lse)
{
    struct FN(loss) c = { .B = B,
                          .C = C,
                          .logits = logits,
                          .labels = labels,
                          .starts = starts,
                          .ends = ends,
                          .per_example = per_example,
                          .lse = lse };
    pm_parallel((B + ROWS - 1) / ROWS, 20.0 * B * C, FN(cross_entropy_fwd_item), &c);
    *loss = FN(mean)(B, per_example, weights);
}

void FN(pm_cross_entropy_bwd)(ptrdiff_t B, ptrdiff_t C, const real *dloss, const real *logits,
                              const int64_t *labels, const int64_t *starts, const int64_t *ends,
                              const real *weights, const real *lse, real *dlogits)
{
    struct FN(loss) c = { .B = B,
                          .C = C,
                          .logits = logits,
                          .labels = labels,
                          .starts = starts,
                          .ends = ends,
                          .weights = weights,
                          .lse = (real *)lse,
                          .dlogits = dlogits,
                          .dmean = FN(dmean)(B, dloss, weights) };
    pm_parallel((B + ROWS - 1) / ROWS, 20.0 * B * C, FN(cross_entropy_bwd_item), &c);
}

void FN(pm_mse_fwd)(ptrdiff_t B, const real *predictions, const real *targets, const real *weights,
                    real *loss, real *per_example)
{
    for (ptrdiff_t b = 0; b < B; b++)
        per_example[b] = (predictions[b] - targets[b]) * (predictions[b] - targets[b]);
    *loss = FN(mean)(B, per_example, weights);
}

void FN(pm_mse_bwd)(ptrdiff_t B, const real *dloss, const real *predictions, const real *targets,
                    const real *weights, real *dpredictions)
{
    const double dmean = FN(dmean)(B, dloss, weights);
    for (ptrdiff_t b = 0; b < B; b++)
        dpredictions[b] =
            (real)(2 * dmean * (weights ? (double)weights[b] : 1)) * (predictions[b] - targets[b]);
}
#undef ROWS
#endif
