/* prior.c -- the Indian buffet prior of a table of logits (kernels/prior.h); threads share out its columns. */
#ifndef DT
#define PM_SELF "../ops/prior.c"
#include "dtypes.h"
#else

struct FN(prior) {
    ptrdiff_t T, C;
    const real *logits;
    double dloss, *terms;
    real *dlogits;
};

static void FN(ibp_fwd_item)(void *ctx, ptrdiff_t column)
{
    const struct FN(prior) *c = ctx;
    K->ibp_fwd(c->T, c->C, column, c->logits, c->terms + column);
}

static void FN(ibp_bwd_item)(void *ctx, ptrdiff_t column)
{
    const struct FN(prior) *c = ctx;
    K->ibp_bwd(c->T, c->C, column, c->logits, c->dloss, c->dlogits);
}

/* The columns' terms are added in order; -1 when memory is out. */
int FN(pm_ibp_loss_fwd)(ptrdiff_t T, ptrdiff_t C, const real *logits, real *loss)
{
    struct FN(prior)
        c = { .T = T, .C = C, .logits = logits, .terms = pm_block_get((size_t)C * sizeof(double)) };
    if (!c.terms) return -1;
    double sum = 0;
    pm_parallel(C, (double)T * C * (20 + C), FN(ibp_fwd_item), &c);
    for (ptrdiff_t i = 0; i < C; i++) sum += c.terms[i];
    *loss = (real)sum;
    pm_block_put(c.terms);
    return 0;
}

void FN(pm_ibp_loss_bwd)(ptrdiff_t T, ptrdiff_t C, const real *dloss, const real *logits, real *dlogits)
{
    struct FN(prior) c = { .T = T, .C = C, .logits = logits, .dloss = (double)*dloss, .dlogits = dlogits };
    pm_parallel(C, 40.0 * T * C, FN(ibp_bwd_item), &c);
}
#endif
