/* peak.c -- kernels/peak.h on every thread at once: peak returns the operations of all, read the sum. */
#ifndef DT
#define PM_SELF "../ops/peak.c"
#include "dtypes.h"
#else

struct FN(peak) {
    ptrdiff_t n;
    int bf16;
    double flops[64][8];    /* one cache line for each thread */
    real sums[64];
};

static void FN(peak_item)(void *ctx, ptrdiff_t thread)
{
    struct FN(peak) *c = ctx;
    K->peak(c->n, c->bf16, (real)0.5, 1, c->sums + thread, c->flops[thread]);
}

double FN(pm_peak)(ptrdiff_t n, int bf16)
{
    struct FN(peak) c = { .n = n, .bf16 = bf16 };
    const int threads = pm_get_num_threads() < 64 ? pm_get_num_threads() : 64;
    double flops = 0;
    pm_parallel(threads, 1e9, FN(peak_item), &c);
    for (int t = 0; t < threads; t++) flops += c.flops[t][0];
    return flops;
}

struct FN(read) {
    ptrdiff_t n, threads, times;
    const real *x;
    real sums[64][64 / sizeof(real)];
};

static void FN(read_item)(void *ctx, ptrdiff_t thread)
{
    struct FN(read) *c = ctx;
    const ptrdiff_t first = c->n * thread / c->threads, last = c->n * (thread + 1) / c->threads;
    K->read(last - first, c->times, c->x + first, c->sums[thread]);
}

double FN(pm_read)(ptrdiff_t n, ptrdiff_t times, const real *x)
{
    struct FN(read) c = { .n = n, .times = times, .x = x };
    c.threads = pm_get_num_threads() < 64 ? pm_get_num_threads() : 64;
    double sum = 0;
    pm_parallel(c.threads, 1e9, FN(read_item), &c);
    for (int t = 0; t < c.threads; t++) sum += c.sums[t][0];
    return sum;
}
#endif
