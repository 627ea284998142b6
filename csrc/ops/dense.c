/* dense.c -- a product with a trainable weight: packed for each call. Gradients of the weight are shared out by blocks of it; each
 * block sums all tokens itself, chunk after chunk. */
#ifndef DT
#define PM_SELF "../ops/dense.c"
#include "dtypes.h"
#else

#define BLOCK_O 64
#define BLOCK_D 512

struct FN(dense) {
    ptrdiff_t N, D, O;
    const real *x, *dy;
    const void *weight;
    int bf16, transpose;
    void *panels;
    real *dweight, *dbias;
};

static void FN(dense_pack_item)(void *ctx, ptrdiff_t panel)
{
    const struct FN(dense) *c = ctx;
    if (c->bf16) K->gemm_pack_bf16(c->O, c->D, panel, panel + 1, c->weight, c->panels);
    else K->gemm_pack(c->O, c->D, panel, panel + 1, c->weight, c->transpose, 1, c->panels);
}

/* weight [O,D], real or bfloat16, as panels; with transpose (of reals) it is stored as [D,O]. */
void FN(pm_pack)(ptrdiff_t O, ptrdiff_t D, const void *weight, int bf16, int transpose, void *panels)
{
    struct FN(dense)
        c = { .O = O, .D = D, .weight = weight, .bf16 = bf16, .transpose = transpose, .panels = panels };
    const ptrdiff_t panel = bf16 ? PM_BF16_COLUMNS : PM_ALIGN / sizeof(real);
    pm_parallel((O + panel - 1) / panel, 4.0 * O * D, FN(dense_pack_item), &c);
}

static void FN(dense_transpose_item)(void *ctx, ptrdiff_t panel)
{
    const struct FN(dense) *c = ctx;
    if (c->bf16) K->panels_transpose_bf16(c->O, c->D, panel, panel + 1, c->weight, c->panels);
    else K->panels_transpose(c->O, c->D, panel, panel + 1, c->weight, c->panels);
}

/* The panels of a weight [O,D] as those of its transpose. */
void FN(pm_transpose)(ptrdiff_t O, ptrdiff_t D, const void *panels, int bf16, void *out)
{
    struct FN(dense) c = { .O = O, .D = D, .weight = panels, .bf16 = bf16, .panels = out };
    const ptrdiff_t panel = bf16 ? PM_BF16_COLUMNS : PM_ALIGN / sizeof(real);
    pm_parallel((D + panel - 1) / panel, 4.0 * O * D, FN(dense_transpose_item), &c);
}

static void FN(dense_bwd_weight_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(dense) *c = ctx;
    const ptrdiff_t N = c->N, D = c->D, O = c->O, blocks = (D + BLOCK_D - 1) / BLOCK_D;
    const ptrdiff_t o = item / blocks * BLOCK_O, d = item % blocks * BLOCK_D;
    const ptrdiff_t height = O - o < BLOCK_O ? O - o : BLOCK_O, width = D - d < BLOCK_D ? D - d : BLOCK_D;
    ptrdiff_t n = 0;
    do {    /* once when there are no tokens: then the gradient is 0 */
        const ptrdiff_t rows = N - n < PM_CHUNK ? N - n : PM_CHUNK;
        if (c->dweight)
            K->outer(rows, height, width, NULL, c->dy + n * O + o, O, c->x + n * D + d, D, n > 0,
                     c->dweight + o * D + d, D);
        n += PM_CHUNK;
    } while (n < N);
    if (c->dbias && d == 0) {
        memset(c->dbias + o, 0, sizeof(real) * height);
        K->add_rows(N, height, c->dy + o, O, c->dbias + o);
    }
}

/* dweight, dbias may be NULL; x may be when dweight is. */
void FN(pm_dense_bwd_weight)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, const real *dy, const real *x,
                             real *dweight, real *dbias)
{
    struct FN(dense) c = { .N = N, .D = D, .O = O, .x = x, .dy = dy, .dweight = dweight, .dbias = dbias };
    const ptrdiff_t items = (O + BLOCK_O - 1) / BLOCK_O * ((D + BLOCK_D - 1) / BLOCK_D);
    pm_parallel(items, 2.0 * N * D * O, FN(dense_bwd_weight_item), &c);
}

#undef BLOCK_O
#undef BLOCK_D
#endif
