/* random.c -- uniform numbers for every example (kernels/random.h); threads split examples and pieces of them. */
#ifndef DT
#define PM_SELF "../ops/random.c"
#include "dtypes.h"
#else
#define PIECE ((ptrdiff_t)4096) /* values, a multiple of 8 */

struct FN(uniform) {
    ptrdiff_t n, pieces;
    uint64_t key0, key1, step;
    const int64_t *examples;
    real *out;
};

static void FN(uniform_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(uniform) *c = ctx;
    const ptrdiff_t b = item / c->pieces, i = item % c->pieces * PIECE,
                    n = c->n - i < PIECE ? c->n - i : PIECE;
    K->uniform(i / 8, n, c->key0, c->key1, (uint64_t)c->examples[b], c->step, c->out + b * c->n + i);
}

void FN(pm_uniform)(ptrdiff_t B, ptrdiff_t n, uint64_t key0, uint64_t key1, uint64_t step,
                    const int64_t *examples, real *out)
{
    struct FN(uniform) c = { .n = n,
                             .pieces = (n + PIECE - 1) / PIECE,
                             .key0 = key0,
                             .key1 = key1,
                             .step = step,
                             .examples = examples,
                             .out = out };
    pm_parallel(B * c.pieces, 20.0 * B * n, FN(uniform_item), &c);
}
#undef PIECE
#endif
