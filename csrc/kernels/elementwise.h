/* elementwise.h -- what needs no reuse of data: plain loops over n values, vectorised by the compiler. */

/* y[i] = a[i] + b[i] */
static void FN(add)(ptrdiff_t n, const real *restrict a, const real *restrict b, real *restrict y)
{
    for (ptrdiff_t i = 0; i < n; i++) y[i] = a[i] + b[i];
}

/* y[i] = a[i] * b[i] */
static void FN(multiply)(ptrdiff_t n, const real *restrict a, const real *restrict b, real *restrict y)
{
    for (ptrdiff_t i = 0; i < n; i++) y[i] = a[i] * b[i];
}

/* y[i] = x[i] * scale */
static void FN(scale)(ptrdiff_t n, const real *restrict x, real scale, real *restrict y)
{
    for (ptrdiff_t i = 0; i < n; i++) y[i] = x[i] * scale;
}

/* out = sum_i a[i] b[i] in float64; eight sums side by side, so that the compiler may use vectors. */
static void FN(dot)(ptrdiff_t n, const real *restrict a, const real *restrict b, double *restrict out)
{
    double acc[8] = { 0 };
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int l = 0; l < 8; l++) acc[l] += (double)a[i + l] * (double)b[i + l];
    for (; i < n; i++) acc[i % 8] += (double)a[i] * (double)b[i];
    *out = ((acc[0] + acc[4]) + (acc[1] + acc[5])) + ((acc[2] + acc[6]) + (acc[3] + acc[7]));
}
