/* multiply.c -- every token's columns times those of its group's row (kernels/elementwise.h). Threads share out chunks of tokens, and
 * columns where tokens are summed. */
#ifndef DT
#define PM_SELF "../ops/multiply.c"
#include "segments.h"
#include "dtypes.h"
#else
#define COLUMNS ((ptrdiff_t)64) /* of one item: whole cache lines */

struct FN(multiply) {
    ptrdiff_t D, G;
    struct pm_segments groups;
    const real *x, *rows, *dy;
    real *out;    /* y, or drows */
};

static void FN(multiply_rows_item)(void *ctx, ptrdiff_t chunk)
{
    const struct FN(multiply) *c = ctx;
    for (ptrdiff_t i = c->groups.first[chunk]; i < c->groups.first[chunk + 1]; i++) {
        const struct pm_segment *s = c->groups.at + i;
        K->multiply_row(s->end - s->start, c->D, c->x + s->start * c->D, c->rows + s->group * c->D,
                        c->out + s->start * c->D);
    }
}

static void FN(multiply_rows_bwd_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(multiply) *c = ctx;
    const ptrdiff_t D = c->D, d0 = item * COLUMNS, d1 = D < d0 + COLUMNS ? D : d0 + COLUMNS;
    for (ptrdiff_t g = 0; g < c->G; g++) memset(c->out + g * D + d0, 0, (size_t)(d1 - d0) * sizeof(real));
    for (ptrdiff_t i = 0; i < c->groups.first[c->groups.n_chunks]; i++) {
        const struct pm_segment *s = c->groups.at + i;
        K->multiply_row_bwd(s->end - s->start, D, d0, d1, c->dy + s->start * D, c->x + s->start * D,
                            c->out + s->group * D);
    }
}

/* y[n] = x[n] * rows[group of n]; adapter_ids and cu_seqlens as in linear. -1 when memory is out. */
int FN(pm_multiply_rows_fwd)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t B, ptrdiff_t G, const real *x,
                             const real *rows, const int64_t *adapter_ids, const int64_t *cu_seqlens, real *y)
{
    struct FN(multiply) c = { .D = D, .G = G, .x = x, .rows = rows, .out = y };
    if (pm_segments_make(&c.groups, N, B, G, cu_seqlens, adapter_ids, 0)) return -1;
    pm_parallel(c.groups.n_chunks, 8.0 * N * D, FN(multiply_rows_item), &c);
    pm_segments_free(&c.groups);
    return 0;
}

/* drows[g] = sum over the tokens of g of dy[n] * x[n]. */
int FN(pm_multiply_rows_bwd)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t B, ptrdiff_t G, const real *dy,
                             const real *x, const int64_t *adapter_ids, const int64_t *cu_seqlens,
                             real *drows)
{
    struct FN(multiply) c = { .D = D, .G = G, .x = x, .dy = dy, .out = drows };
    if (pm_segments_make(&c.groups, N, B, G, cu_seqlens, adapter_ids, 0)) return -1;
    pm_parallel((D + COLUMNS - 1) / COLUMNS, 8.0 * N * D, FN(multiply_rows_bwd_item), &c);
    pm_segments_free(&c.groups);
    return 0;
}
#undef COLUMNS
#endif
