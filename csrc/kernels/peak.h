/* peak.h -- as many multiply-adds as the registers allow, and no memory: what the products are measured against.
 *   a_i = a_i * b + c, n times, for PEAK_CHAINS independent vectors a_i     sum [] of all     flops [] done */
#define PEAK_CHAINS 12 /* more than latency times units, fewer than the registers of any instruction set */

static void FN(peak)(ptrdiff_t n, real b, real c, real *restrict sum, double *restrict flops)
{
    vec a[PEAK_CHAINS], total = { 0 };
    PM_UNROLLED_FOR (int i = 0; i < PEAK_CHAINS; i++) a[i] = (vec){ 0 } + (real)i;
    const vec bs = (vec){ 0 } + b, cs = (vec){ 0 } + c;
    for (ptrdiff_t k = 0; k < n; k++)
        PM_UNROLLED_FOR (int i = 0; i < PEAK_CHAINS; i++) a[i] = a[i] * bs + cs;
    PM_UNROLLED_FOR (int i = 0; i < PEAK_CHAINS; i++) total += a[i];
    *sum = 0;
    for (ptrdiff_t l = 0; l < LANES; l++) *sum += total[l];
    *flops = 2.0 * n * PEAK_CHAINS * LANES;
}
