/* gather.c -- embedding and mean pooling (kernels/gather.h); threads split tokens, columns (scatter) or examples (pooling). */
#ifndef DT
#define PM_SELF "../ops/gather.c"
#include "dtypes.h"
#else
#define COLUMNS ((ptrdiff_t)64) /* of one item: whole cache lines */

struct FN(gather) {
    ptrdiff_t N, V, D;
    const int64_t *index;    /* ids, or cu_seqlens */
    const real *in;
    real *out;
};

static void FN(gather_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(gather) *c = ctx;
    const ptrdiff_t n0 = item * PM_CHUNK, n = c->N - n0 < PM_CHUNK ? c->N - n0 : PM_CHUNK;
    K->gather(n, c->D, c->index + n0, c->in, c->out + n0 * c->D);
}

static void FN(scatter_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(gather) *c = ctx;
    const ptrdiff_t d0 = item * COLUMNS, d1 = c->D < d0 + COLUMNS ? c->D : d0 + COLUMNS;
    K->scatter_add(c->N, c->V, c->D, d0, d1, c->index, c->in, c->out);
}

void FN(pm_embedding_fwd)(ptrdiff_t N, ptrdiff_t D, const int64_t *ids, const real *table, real *y)
{
    struct FN(gather) c = { .N = N, .D = D, .index = ids, .in = table, .out = y };
    pm_parallel((N + PM_CHUNK - 1) / PM_CHUNK, 8.0 * N * D, FN(gather_item), &c);
}

void FN(pm_embedding_bwd)(ptrdiff_t N, ptrdiff_t V, ptrdiff_t D, const int64_t *ids, const real *dy,
                          real *dtable)
{
    struct FN(gather) c = { .N = N, .V = V, .D = D, .index = ids, .in = dy, .out = dtable };
    pm_parallel((D + COLUMNS - 1) / COLUMNS, 4.0 * V * D + 12.0 * N * D, FN(scatter_item), &c);
}

static void FN(mean_pool_fwd_item)(void *ctx, ptrdiff_t b)
{
    const struct FN(gather) *c = ctx;
    const ptrdiff_t n0 = c->index[b];
    K->mean_rows_fwd(c->index[b + 1] - n0, c->D, c->in + n0 * c->D, c->out + b * c->D);
}

static void FN(mean_pool_bwd_item)(void *ctx, ptrdiff_t b)
{
    const struct FN(gather) *c = ctx;
    const ptrdiff_t n0 = c->index[b];
    K->mean_rows_bwd(c->index[b + 1] - n0, c->D, c->in + b * c->D, c->out + n0 * c->D);
}

void FN(pm_mean_pool_fwd)(ptrdiff_t B, ptrdiff_t D, const int64_t *cu_seqlens, const real *x, real *y)
{
    struct FN(gather) c = { .D = D, .index = cu_seqlens, .in = x, .out = y };
    pm_parallel(B, 4.0 * (double)cu_seqlens[B] * D, FN(mean_pool_fwd_item), &c);
}

void FN(pm_mean_pool_bwd)(ptrdiff_t B, ptrdiff_t D, const int64_t *cu_seqlens, const real *dy, real *dx)
{
    struct FN(gather) c = { .D = D, .index = cu_seqlens, .in = dy, .out = dx };
    pm_parallel(B, 4.0 * (double)cu_seqlens[B] * D, FN(mean_pool_bwd_item), &c);
}
#undef COLUMNS
#endif
