/* vmath.h -- vector mathematics shared by kernels: selection, sums, partial loads, exp, the normal distribution.
 * float32 has its own polynomials (scalar libm would dominate a training step); float64, built for references and gradient
 * checks only, calls libm lane by lane. */
#define PM_SINGLE_f32 1
#define PM_SINGLE_f64 0
#define PM_SINGLE PM_CAT(PM_SINGLE, DT)

typedef __typeof__((vec){ 0 } < (vec){ 0 }) FN(mask);
#define mask FN(mask)

PM_INLINE vec FN(splat)(real x) { return x - (vec){ 0 }; }
PM_INLINE vec FN(select)(mask m, vec yes, vec no) { return (vec)((m & (mask)yes) | (~m & (mask)no)); }
/* A NaN in x stays: every comparison with it is false. */
PM_INLINE vec FN(vmin)(vec x, vec limit) { return FN(select)(x > limit, limit, x); }
PM_INLINE vec FN(vmax)(vec x, vec limit) { return FN(select)(x < limit, limit, x); }
PM_INLINE vec FN(vabs)(vec x) { return (vec)((mask)x & ~(mask)FN(splat)((real)-0.0)); }

PM_INLINE real FN(root)(real x)
{
    return sizeof x == sizeof(float) ? (real)sqrtf((float)x) : (real)sqrt((double)x);
}

/* Sum and maximum over the lanes: by halves down to 16 bytes, then one by one. */
typedef real FN(quad) __attribute__((vector_size(16)));
#define QUADS (VBYTES / 16)

PM_INLINE real FN(vsum)(vec x)
{
    FN(quad) q[QUADS];
    memcpy(q, &x, sizeof q);
    PM_UNROLLED_FOR (int half = QUADS / 2; half > 0; half /= 2)
        PM_UNROLLED_FOR (int i = 0; i < half; i++) q[i] += q[i + half];
    real sum = q[0][0];
    PM_UNROLLED_FOR (size_t l = 1; l < 16 / sizeof(real); l++) sum += q[0][l];
    return sum;
}

PM_INLINE real FN(vtop)(vec x)
{
    FN(quad) q[QUADS];
    memcpy(q, &x, sizeof q);
    PM_UNROLLED_FOR (int half = QUADS / 2; half > 0; half /= 2)
        PM_UNROLLED_FOR (int i = 0; i < half; i++) {
            const __typeof__(q[0] > q[0]) higher = q[i + half] > q[i];
            q[i] =
                (FN(quad))((higher & (__typeof__(higher))q[i + half]) | (~higher & (__typeof__(higher))q[i]));
        }
    real top = q[0][0];
    PM_UNROLLED_FOR (size_t l = 1; l < 16 / sizeof(real); l++) top = q[0][l] > top ? q[0][l] : top;
    return top;
}
#undef QUADS

/* The first n <= LANES elements; the other lanes are `fill`. */
PM_INLINE vec FN(load_part)(const real *x, ptrdiff_t n, real fill)
{
    vec v = FN(splat)(fill);
    memcpy(&v, x, (size_t)n * sizeof(real));
    return v;
}
PM_INLINE void FN(store_part)(real *y, ptrdiff_t n, vec v) { memcpy(y, &v, (size_t)n * sizeof(real)); }

#if PM_SINGLE
/* exp(x) = 2^k exp(r), k = round(x / ln 2), |r| <= ln(2)/2, to 1.01 units in the last place. NaN stays; below -87.7, where results
 * would be subnormal, it is 0, and above 88.4 infinite: 2^k is then the zero or the infinity that its exponent bits spell.
 * Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. Coefficients: our own minimax fit of
 * (exp(r) - 1 - r) / r^2, relative error 3e-9 of the result. */
PM_INLINE vec FN(vexp_below)(vec x) /* of x <= 88 */
{
    x = FN(vmax)(x, FN(splat)(-88.0f));
    const vec shifted = x * 1.44269504f + 12582912.0f, k = shifted - 12582912.0f;
    const vec r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
    vec p = r * 1.38145401e-3f + 8.36874536e-3f;
    p = p * r + 4.16683908e-2f;
    p = p * r + 1.66665204e-1f;
    p = p * r + 4.99999934e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (vec)(((mask)shifted - (0x4b400000 - 127)) << 23);
}
PM_INLINE vec FN(vexp)(vec x) { return FN(vexp_below)(FN(vmin)(x, FN(splat)(88.5f))); }
#else
PM_INLINE vec FN(vexp)(vec x)
{
    for (ptrdiff_t l = 0; l < LANES; l++) x[l] = exp(x[l]);
    return x;
}
PM_INLINE vec FN(vexp_below)(vec x) { return FN(vexp)(x); }
#endif

/* Phi(-a) for a >= 0 (the upper tail of the normal distribution), given e = exp(-a^2 / 2), which the density needs too.
 * float32: Phi(-a) / e is a polynomial in t = 1 / (1 + 0.23 a) (our own minimax fit, relative error 5e-8 up to a = 6). */
PM_INLINE vec FN(normal_tail)(vec a, vec e)
{
#if PM_SINGLE
    const vec t = 1.0f / (1.0f + 0.23f * a);
    vec p = t * -7.59978051e-2f + 2.78013562e-1f;
    p = p * t - 2.51505333e-1f;
    p = p * t + 2.69617343e-1f;
    p = p * t - 9.72929912e-3f;
    p = p * t + 1.09019443e-1f;
    p = p * t + 8.86388248e-2f;
    p = p * t + 9.19432677e-2f;
    return p * t * e;
#else
    (void)e;
    for (ptrdiff_t l = 0; l < LANES; l++) a[l] = 0.5 * erfc(a[l] * 0.70710678118654752440);
    return a;
#endif
}
