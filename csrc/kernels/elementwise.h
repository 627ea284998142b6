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

/* y[n,d] = x[n,d] * row[d] */
static void FN(multiply_row)(ptrdiff_t N, ptrdiff_t D, const real *restrict x, const real *restrict row,
                             real *restrict y)
{
    for (ptrdiff_t n = 0; n < N; n++)
        for (ptrdiff_t d = 0; d < D; d++) y[n * D + d] = x[n * D + d] * row[d];
}

/* drow[d] += sum_n dy[n,d] x[n,d], for columns d0..d1-1 of D */
static void FN(multiply_row_bwd)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t d0, ptrdiff_t d1,
                                 const real *restrict dy, const real *restrict x, real *restrict drow)
{
    ptrdiff_t d = d0;
    for (; d + 4 * LANES <= d1; d += 4 * LANES) {
        vec acc[4] = { { 0 } };
        for (ptrdiff_t n = 0; n < N; n++)
            PM_UNROLLED_FOR (int i = 0; i < 4; i++)
                acc[i] +=
                    *(const vec *)(dy + n * D + d + i * LANES) * *(const vec *)(x + n * D + d + i * LANES);
        PM_UNROLLED_FOR (int i = 0; i < 4; i++) *(vec *)(drow + d + i * LANES) += acc[i];
    }
    for (; d < d1; d++) {
        real acc = 0;
        for (ptrdiff_t n = 0; n < N; n++) acc += dy[n * D + d] * x[n * D + d];
        drow[d] += acc;
    }
}

/* y[i] = x[i] * scale */
static void FN(scale)(ptrdiff_t n, const real *restrict x, real scale, real *restrict y)
{
    for (ptrdiff_t i = 0; i < n; i++) y[i] = x[i] * scale;
}

/* y[i] += a * x[i] */
static void FN(axpy)(ptrdiff_t n, real a, const real *restrict x, real *restrict y)
{
    for (ptrdiff_t i = 0; i < n; i++) y[i] += a * x[i];
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
