/* gather.h -- rows by index, and means of rows.
 *   gather       y[n,:] = table[ids[n],:]
 *   scatter_add  dtable[v,d] = sum over n with ids[n] = v, in order, of dy[n,d]; columns d0..d1-1 (threads split columns)
 *   mean_rows    y[d] = sum_l x[l,d] / L, zero for L = 0;   dx[l,d] = dy[d] / L */

static void FN(gather)(ptrdiff_t N, ptrdiff_t D, const int64_t *restrict ids, const real *restrict table,
                       real *restrict y)
{
    for (ptrdiff_t n = 0; n < N; n++) memcpy(y + n * D, table + ids[n] * D, (size_t)D * sizeof(real));
}

static void FN(scatter_add)(ptrdiff_t N, ptrdiff_t V, ptrdiff_t D, ptrdiff_t d0, ptrdiff_t d1,
                            const int64_t *restrict ids, const real *restrict dy, real *restrict dtable)
{
    for (ptrdiff_t v = 0; v < V; v++) memset(dtable + v * D + d0, 0, (size_t)(d1 - d0) * sizeof(real));
    for (ptrdiff_t n = 0; n < N; n++) {
        real *row = dtable + ids[n] * D;
        for (ptrdiff_t d = d0; d < d1; d++) row[d] += dy[n * D + d];
    }
}

static void FN(mean_rows_fwd)(ptrdiff_t L, ptrdiff_t D, const real *restrict x, real *restrict y)
{
    memset(y, 0, (size_t)D * sizeof(real));
    for (ptrdiff_t l = 0; l < L; l++)
        for (ptrdiff_t d = 0; d < D; d++) y[d] += x[l * D + d];
    for (ptrdiff_t d = 0; d < D && L > 0; d++) y[d] /= (real)L;
}

static void FN(mean_rows_bwd)(ptrdiff_t L, ptrdiff_t D, const real *restrict dy, real *restrict dx)
{
    for (ptrdiff_t l = 0; l < L; l++)
        for (ptrdiff_t d = 0; d < D; d++) dx[l * D + d] = dy[d] / (real)L;
}
