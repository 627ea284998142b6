/* norm.c -- layer norm, RMS norm and row normalisation (kernels/norm.h); threads split chunks of rows. */
#ifndef DT
#define PM_SELF "../ops/norm.c"
#include "dtypes.h"
#else

struct FN(norm) {
    ptrdiff_t N, D;
    const real *x, *residual, *weight, *bias, *inverse, *dy, *y;
    real eps, *out, *mean, *rstd;
    real *dweight, *dbias;    /* [chunks, D] partial sums, or NULL */
};
#define CHUNK                       \
    const struct FN(norm) *c = ctx; \
    const ptrdiff_t D = c->D, n0 = item * PM_CHUNK, n = c->N - n0 < PM_CHUNK ? c->N - n0 : PM_CHUNK
#define CHUNKS(N) (((N) + PM_CHUNK - 1) / PM_CHUNK)
#define ROWS(a) ((a) ? (a) + n0 * D : NULL)

static void FN(layer_norm_fwd_item)(void *ctx, ptrdiff_t item)
{
    CHUNK;
    K->layer_norm_fwd(n, D, ROWS(c->x), ROWS(c->residual), c->weight, c->bias, c->eps, ROWS(c->out),
                      c->mean + n0, c->rstd + n0);
}

void FN(pm_layer_norm_fwd)(ptrdiff_t N, ptrdiff_t D, const real *x, const real *residual, const real *weight,
                           const real *bias, real eps, real *y, real *mean, real *rstd)
{
    struct FN(norm) c = { .N = N,
                          .D = D,
                          .x = x,
                          .residual = residual,
                          .weight = weight,
                          .bias = bias,
                          .eps = eps,
                          .out = y,
                          .mean = mean,
                          .rstd = rstd };
    pm_parallel(CHUNKS(N), 12.0 * N * D, FN(layer_norm_fwd_item), &c);
}

static void FN(layer_norm_bwd_item)(void *ctx, ptrdiff_t item)
{
    CHUNK;
    real *dweight = c->dweight ? c->dweight + item * D : NULL, *dbias = c->dbias ? c->dbias + item * D : NULL;
    if (dweight) memset(dweight, 0, (size_t)D * sizeof(real));
    if (dbias) memset(dbias, 0, (size_t)D * sizeof(real));
    K->layer_norm_bwd(n, D, ROWS(c->dy), ROWS(c->x), ROWS(c->residual), c->weight, c->bias, c->inverse,
                      c->mean + n0, c->rstd + n0, ROWS(c->out), dweight, dbias);
}

/* out[d] = sum of the chunks' partial sums, in order. */
static void FN(fold)(ptrdiff_t chunks, ptrdiff_t D, const real *partial, real *out)
{
    if (!out) return;
    memset(out, 0, (size_t)D * sizeof(real));
    for (ptrdiff_t i = 0; i < chunks; i++)
        for (ptrdiff_t d = 0; d < D; d++) out[d] += partial[i * D + d];
}

/* residual, inverse, dweight, dbias may be NULL, and bias without inverse. -1 when memory is out. */
int FN(pm_layer_norm_bwd)(ptrdiff_t N, ptrdiff_t D, const real *dy, const real *x, const real *residual,
                          const real *weight, const real *bias, const real *inverse, const real *mean,
                          const real *rstd, real *dx, real *dweight, real *dbias)
{
    const ptrdiff_t part = CHUNKS(N) * D;
    real *partial = pm_block_get((size_t)(2 * part) * sizeof(real));
    if (!partial) return -1;
    struct FN(norm) c = { .N = N,
                          .D = D,
                          .dy = dy,
                          .x = x,
                          .residual = residual,
                          .weight = weight,
                          .bias = bias,
                          .inverse = inverse,
                          .mean = (real *)mean,
                          .rstd = (real *)rstd,
                          .out = dx,
                          .dweight = dweight ? partial : NULL,
                          .dbias = dbias ? partial + part : NULL };
    pm_parallel(CHUNKS(N), 20.0 * N * D, FN(layer_norm_bwd_item), &c);
    FN(fold)(CHUNKS(N), D, c.dweight, dweight);
    FN(fold)(CHUNKS(N), D, c.dbias, dbias);
    pm_block_put(partial);
    return 0;
}

static void FN(rms_norm_fwd_item)(void *ctx, ptrdiff_t item)
{
    CHUNK;
    K->rms_norm_fwd(n, D, ROWS(c->x), c->weight, c->eps, ROWS(c->out), c->rstd + n0);
}

void FN(pm_rms_norm_fwd)(ptrdiff_t N, ptrdiff_t D, const real *x, const real *weight, real eps, real *y,
                         real *rstd)
{
    struct FN(norm) c = { .N = N, .D = D, .x = x, .weight = weight, .eps = eps, .out = y, .rstd = rstd };
    pm_parallel(CHUNKS(N), 8.0 * N * D, FN(rms_norm_fwd_item), &c);
}

static void FN(rms_norm_bwd_item)(void *ctx, ptrdiff_t item)
{
    CHUNK;
    real *dweight = c->dweight ? c->dweight + item * D : NULL;
    if (dweight) memset(dweight, 0, (size_t)D * sizeof(real));
    K->rms_norm_bwd(n, D, ROWS(c->dy), ROWS(c->x), c->weight, c->inverse, c->rstd + n0, ROWS(c->out),
                    dweight);
}

/* inverse and dweight may be NULL. -1 when memory is out. */
int FN(pm_rms_norm_bwd)(ptrdiff_t N, ptrdiff_t D, const real *dy, const real *x, const real *weight,
                        const real *inverse, const real *rstd, real *dx, real *dweight)
{
    real *partial = NULL;
    if (dweight && !(partial = pm_block_get((size_t)(CHUNKS(N) * D) * sizeof(real)))) return -1;
    struct FN(norm) c = { .N = N,
                          .D = D,
                          .dy = dy,
                          .x = x,
                          .weight = weight,
                          .inverse = inverse,
                          .rstd = (real *)rstd,
                          .out = dx,
                          .dweight = partial };
    pm_parallel(CHUNKS(N), 14.0 * N * D, FN(rms_norm_bwd_item), &c);
    FN(fold)(CHUNKS(N), D, partial, dweight);
    pm_block_put(partial);
    return 0;
}

static void FN(l2_normalize_fwd_item)(void *ctx, ptrdiff_t item)
{
    CHUNK;
    K->l2_normalize_fwd(n, D, ROWS(c->x), c->eps, ROWS(c->out), c->mean + n0);
}

static void FN(l2_normalize_bwd_item)(void *ctx, ptrdiff_t item)
{
    CHUNK;
    K->l2_normalize_bwd(n, D, ROWS(c->dy), ROWS(c->y), c->mean + n0, ROWS(c->out));
}

void FN(pm_l2_normalize_fwd)(ptrdiff_t N, ptrdiff_t D, const real *x, real eps, real *y, real *norm)
{
    struct FN(norm) c = { .N = N, .D = D, .x = x, .eps = eps, .out = y, .mean = norm };
    pm_parallel(CHUNKS(N), 8.0 * N * D, FN(l2_normalize_fwd_item), &c);
}

void FN(pm_l2_normalize_bwd)(ptrdiff_t N, ptrdiff_t D, const real *dy, const real *y, const real *norm,
                             real *dx)
{
    struct FN(norm) c = { .N = N, .D = D, .dy = dy, .y = y, .mean = (real *)norm, .out = dx };
    pm_parallel(CHUNKS(N), 12.0 * N * D, FN(l2_normalize_bwd_item), &c);
}
#undef CHUNK
#undef CHUNKS
#undef ROWS
#endif
