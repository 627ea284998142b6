/* elementwise.c -- add, multiply, scale_by, relu, gelu and silu (kernels/elementwise.h, activation.h); threads split blocks of values. */
#ifndef DT
#define PM_SELF "../ops/elementwise.c"
#include "dtypes.h"
#else
#define BLOCK ((ptrdiff_t)16384) /* values; sums are split here too */
#define BLOCKS(n) (((n) + BLOCK - 1) / BLOCK)

struct FN(elementwise) {
    ptrdiff_t n;
    const real *a, *b;
    real *y;
    real scale;
    int tanh_form;
    double *partial;
};
#define BEGIN                              \
    const struct FN(elementwise) *c = ctx; \
    const ptrdiff_t at = item * BLOCK, n = c->n - at < BLOCK ? c->n - at : BLOCK

static void FN(add_item)(void *ctx, ptrdiff_t item)
{
    BEGIN;
    K->add(n, c->a + at, c->b + at, c->y + at);
}
static void FN(multiply_item)(void *ctx, ptrdiff_t item)
{
    BEGIN;
    K->multiply(n, c->a + at, c->b + at, c->y + at);
}
static void FN(scale_item)(void *ctx, ptrdiff_t item)
{
    BEGIN;
    K->scale(n, c->a + at, c->scale, c->y + at);
}
static void FN(dot_item)(void *ctx, ptrdiff_t item)
{
    BEGIN;
    K->dot(n, c->a + at, c->b + at, c->partial + item);
}
static void FN(relu_item)(void *ctx, ptrdiff_t item)
{
    BEGIN;
    K->relu_fwd(n, c->a + at, c->y + at);
}
static void FN(relu_bwd_item)(void *ctx, ptrdiff_t item)
{
    BEGIN;
    K->relu_bwd(n, c->a + at, c->b + at, c->y + at);
}
static void FN(gelu_item)(void *ctx, ptrdiff_t item)
{
    BEGIN;
    K->gelu_fwd(n, c->tanh_form, c->a + at, c->y + at);
}
static void FN(gelu_bwd_item)(void *ctx, ptrdiff_t item)
{
    BEGIN;
    K->gelu_bwd(n, c->tanh_form, c->a + at, c->b + at, c->y + at);
}
static void FN(silu_item)(void *ctx, ptrdiff_t item)
{
    BEGIN;
    K->silu_fwd(n, c->a + at, c->y + at);
}
static void FN(silu_bwd_item)(void *ctx, ptrdiff_t item)
{
    BEGIN;
    K->silu_bwd(n, c->a + at, c->b + at, c->y + at);
}
#undef BEGIN

void FN(pm_add)(ptrdiff_t n, const real *a, const real *b, real *y)
{
    struct FN(elementwise) c = { .n = n, .a = a, .b = b, .y = y };
    pm_parallel(BLOCKS(n), 12.0 * n, FN(add_item), &c);
}

void FN(pm_multiply)(ptrdiff_t n, const real *a, const real *b, real *y)
{
    struct FN(elementwise) c = { .n = n, .a = a, .b = b, .y = y };
    pm_parallel(BLOCKS(n), 12.0 * n, FN(multiply_item), &c);
}

void FN(pm_scale_by_fwd)(ptrdiff_t n, const real *x, const real *log_scale, real *y)
{
    struct FN(elementwise) c = { .n = n, .a = x, .y = y, .scale = (real)exp((double)*log_scale) };
    pm_parallel(BLOCKS(n), 8.0 * n, FN(scale_item), &c);
}

/* dx = dy exp(log_scale), dlog_scale = <dy, x> exp(log_scale); -1 when memory is out. */
int FN(pm_scale_by_bwd)(ptrdiff_t n, const real *dy, const real *x, const real *log_scale, real *dx,
                        real *dlog_scale)
{
    const double scale = exp((double)*log_scale);
    double sum = 0, *partial = pm_block_get((size_t)BLOCKS(n) * sizeof *partial);
    if (!partial) return -1;
    struct FN(elementwise) c = { .n = n, .a = dy, .b = x, .y = dx, .scale = (real)scale, .partial = partial };
    pm_parallel(BLOCKS(n), 8.0 * n, FN(scale_item), &c);
    pm_parallel(BLOCKS(n), 8.0 * n, FN(dot_item), &c);
    for (ptrdiff_t i = 0; i < BLOCKS(n); i++) sum += partial[i];
    *dlog_scale = (real)(sum * scale);
    pm_block_put(partial);
    return 0;
}

void FN(pm_relu_fwd)(ptrdiff_t n, const real *x, real *y)
{
    struct FN(elementwise) c = { .n = n, .a = x, .y = y };
    pm_parallel(BLOCKS(n), 8.0 * n, FN(relu_item), &c);
}

void FN(pm_relu_bwd)(ptrdiff_t n, const real *y, const real *dy, real *dx)
{
    struct FN(elementwise) c = { .n = n, .a = y, .b = dy, .y = dx };
    pm_parallel(BLOCKS(n), 12.0 * n, FN(relu_bwd_item), &c);
}

void FN(pm_gelu_fwd)(ptrdiff_t n, int tanh_form, const real *x, real *y)
{
    struct FN(elementwise) c = { .n = n, .tanh_form = tanh_form, .a = x, .y = y };
    pm_parallel(BLOCKS(n), 40.0 * n, FN(gelu_item), &c);
}

void FN(pm_gelu_bwd)(ptrdiff_t n, int tanh_form, const real *x, const real *dy, real *dx)
{
    struct FN(elementwise) c = { .n = n, .tanh_form = tanh_form, .a = x, .b = dy, .y = dx };
    pm_parallel(BLOCKS(n), 50.0 * n, FN(gelu_bwd_item), &c);
}

void FN(pm_silu_fwd)(ptrdiff_t n, const real *x, real *y)
{
    struct FN(elementwise) c = { .n = n, .a = x, .y = y };
    pm_parallel(BLOCKS(n), 30.0 * n, FN(silu_item), &c);
}

void FN(pm_silu_bwd)(ptrdiff_t n, const real *x, const real *dy, real *dx)
{
    struct FN(elementwise) c = { .n = n, .a = x, .b = dy, .y = dx };
    pm_parallel(BLOCKS(n), 35.0 * n, FN(silu_bwd_item), &c);
}
#undef BLOCK
#undef BLOCKS
#endif
