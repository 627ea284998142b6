/* rope.c -- rotary positions (kernels/rope.h); threads split chunks of tokens. */
#ifndef DT
#define PM_SELF "../ops/rope.c"
#include "dtypes.h"
#else

struct FN(rope) {
    ptrdiff_t N, H, d;
    const int64_t *positions;
    const real *cosines, *sines, *x;
    int back;
    real *y;
};

static void FN(rope_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(rope) *c = ctx;
    const ptrdiff_t n0 = item * PM_CHUNK, n = c->N - n0 < PM_CHUNK ? c->N - n0 : PM_CHUNK,
                    at = n0 * c->H * c->d;
    K->rope(n, c->H, c->d, c->positions + n0, c->cosines, c->sines, c->back, c->x + at, c->y + at);
}

void FN(pm_rope)(ptrdiff_t N, ptrdiff_t H, ptrdiff_t d, const int64_t *positions, const real *cosines,
                 const real *sines, int back, const real *x, real *y)
{
    struct FN(rope) c = { N, H, d, positions, cosines, sines, x, back, y };
    pm_parallel((N + PM_CHUNK - 1) / PM_CHUNK, 8.0 * N * H * d, FN(rope_item), &c);
}
#endif
