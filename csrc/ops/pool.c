/* pool.c -- pooling by attention (kernels/pool.h). An item is an example; dquery is summed over examples in their order. */
#ifndef DT
#define PM_SELF "../ops/pool.c"
#include "dtypes.h"
#else

struct FN(pool) {
    ptrdiff_t D;
    const int64_t *cu_seqlens;
    const real *x, *query, *dy, *saved_weights;
    real scale, *weights, *y, *dscores, *dx, *dquery_parts;
};

static void FN(pool_fwd_item)(void *ctx, ptrdiff_t b)
{
    const struct FN(pool) *c = ctx;
    const ptrdiff_t n = c->cu_seqlens[b], L = c->cu_seqlens[b + 1] - n;
    K->attend_fwd(L, c->D, c->x + n * c->D, c->query, c->scale, c->weights + n, c->y + b * c->D);
}

static void FN(pool_bwd_item)(void *ctx, ptrdiff_t b)
{
    const struct FN(pool) *c = ctx;
    const ptrdiff_t n = c->cu_seqlens[b], L = c->cu_seqlens[b + 1] - n;
    K->attend_bwd(L, c->D, c->dy + b * c->D, c->x + n * c->D, c->query, c->saved_weights + n, c->scale,
                  c->dscores + n, c->dx + n * c->D, c->dquery_parts + b * c->D);
}

void FN(pm_attention_pool_fwd)(ptrdiff_t B, ptrdiff_t D, const int64_t *cu_seqlens, const real *x,
                               const real *query, double scale, real *y, real *weights)
{
    struct FN(pool) c = { .D = D,
                          .cu_seqlens = cu_seqlens,
                          .x = x,
                          .query = query,
                          .scale = (real)scale,
                          .weights = weights,
                          .y = y };
    pm_parallel(B, 4.0 * (double)cu_seqlens[B] * D, FN(pool_fwd_item), &c);
}

/* -1 when memory is out. */
int FN(pm_attention_pool_bwd)(ptrdiff_t B, ptrdiff_t D, const int64_t *cu_seqlens, const real *dy,
                              const real *x, const real *query, const real *weights, double scale, real *dx,
                              real *dquery)
{
    const ptrdiff_t N = cu_seqlens[B];
    real *parts = pm_block_get(sizeof(real) * (B * D + N));
    if (!parts) return -1;
    struct FN(pool) c = { .D = D,
                          .cu_seqlens = cu_seqlens,
                          .x = x,
                          .query = query,
                          .dy = dy,
                          .saved_weights = weights,
                          .scale = (real)scale,
                          .dscores = parts + B * D,
                          .dx = dx,
                          .dquery_parts = parts };
    pm_parallel(B, 8.0 * (double)N * D, FN(pool_bwd_item), &c);
    memset(dquery, 0, sizeof(real) * D);
    K->add_rows(B, D, parts, D, dquery);
    pm_block_put(parts);
    return 0;
}
#endif
