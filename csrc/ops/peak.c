/* peak.c -- kernels/peak.h once on every thread; returns the operations done by all. */
#ifndef DT
#define PM_SELF "../ops/peak.c"
#include "dtypes.h"
#else

struct FN(peak) {
    ptrdiff_t n;
    double flops[64][8];    /* one cache line for each thread */
    real sums[64];
};

static void FN(peak_item)(void *ctx, ptrdiff_t thread)
{
    struct FN(peak) *c = ctx;
    K->peak(c->n, (real)0.5, 1, c->sums + thread, c->flops[thread]);
}

double FN(pm_peak)(ptrdiff_t n)
{
    struct FN(peak) c = { .n = n };
    const int threads = pm_get_num_threads() < 64 ? pm_get_num_threads() : 64;
    double flops = 0;
    pm_parallel(threads, 1e9, FN(peak_item), &c);
    for (int t = 0; t < threads; t++) flops += c.flops[t][0];
    return flops;
}
#endif
