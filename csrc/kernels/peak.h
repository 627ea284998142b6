/* peak.h -- what a machine can do at most: every kernel is measured against these two.
 * As many multiply-adds as the registers allow, and no memory:
 *   a_i = a_i * b + c, n times, for PEAK_CHAINS independent vectors a_i     sum [] of all     flops [] done
 * bf16: those of gemm_bf16 (gemm.h), a_i += the product of pairs of bfloat16 where the instruction set has it.
 * Nothing but reading, `times` times over the same array:
 *   sum [] = times * sum_i x[i]     x [n] */
#define PEAK_CHAINS 12 /* more than latency times units, fewer than the registers of any instruction set */

static void FN(peak)(ptrdiff_t n, int bf16, real b, real c, real *restrict sum, double *restrict flops)
{
    vec a[PEAK_CHAINS], total = { 0 };
    PM_UNROLLED_FOR (int i = 0; i < PEAK_CHAINS; i++) a[i] = (vec){ 0 } + (real)i;
    const vec bs = (vec){ 0 } + b, cs = (vec){ 0 } + c;
    *flops = 2.0 * n * PEAK_CHAINS * LANES;
#ifdef PM_BF16_DOT
    for (ptrdiff_t k = 0; bf16 && k < n; k++)
        PM_UNROLLED_FOR (int i = 0; i < PEAK_CHAINS; i++) a[i] = PM_BF16_DOT(a[i], bs, &c);
    if (bf16) *flops *= 2, n = 0;
#else
    (void)bf16;
#endif
    for (ptrdiff_t k = 0; k < n; k++)
        PM_UNROLLED_FOR (int i = 0; i < PEAK_CHAINS; i++) a[i] = a[i] * bs + cs;
    PM_UNROLLED_FOR (int i = 0; i < PEAK_CHAINS; i++) total += a[i];
    *sum = 0;
    for (ptrdiff_t l = 0; l < LANES; l++) *sum += total[l];
}

static void FN(read)(ptrdiff_t n, ptrdiff_t times, const real *restrict x, real *restrict sum)
{
    vec a[PEAK_CHAINS] = { 0 }, total = { 0 };
    real rest = 0;
    for (ptrdiff_t t = 0; t < times; t++) {
        ptrdiff_t i = 0;
        for (; i + PEAK_CHAINS * LANES <= n; i += PEAK_CHAINS * LANES)
            PM_UNROLLED_FOR (int j = 0; j < PEAK_CHAINS; j++) a[j] += *(const vec *)(x + i + j * LANES);
        for (; i < n; i++) rest += x[i];
    }
    PM_UNROLLED_FOR (int j = 0; j < PEAK_CHAINS; j++) total += a[j];
    *sum = rest;
    for (ptrdiff_t l = 0; l < LANES; l++) *sum += total[l];
}
