/* pool.h -- the rows of one example, summed by how well they match a learned query.
 *   score[l] = scale * sum_d x[l,d] query[d]    weights = softmax(score)    y[d] = sum_l weights[l] x[l,d]
 *   dscore[l] = weights[l] (dy . x[l] - sum_m weights[m] dy . x[m])
 *   dx[l,d] = weights[l] dy[d] + scale * dscore[l] query[d]    dquery[d] = scale * sum_l dscore[l] x[l,d]
 * x dx [L,D]   y dy query dquery [D]   weights dscores [L]; dscores is scratch. No rows: y and dquery are 0. */

/* out[l] = scale * x[l] . v */
PM_INLINE void FN(row_dots)(ptrdiff_t L, ptrdiff_t D, const real *restrict x, const real *restrict v,
                            real scale, real *restrict out)
{
    ptrdiff_t l = 0;
    for (; l + 4 <= L; l += 4) FN(mix_dots)(4, D, v, x + l * D, D, scale, out + l);
    for (; l < L; l++) FN(mix_dots)(1, D, v, x + l * D, D, scale, out + l);
}

static void FN(attend_fwd)(ptrdiff_t L, ptrdiff_t D, const real *restrict x, const real *restrict query,
                           real scale, real *restrict weights, real *restrict y)
{
    FN(row_dots)(L, D, x, query, scale, weights);
    if (L) FN(softmax_row)(L, weights, 1, weights);
    FN(mix_rows)(1, L, D, weights, 0, 1, x, D, 1, y, 0);
}

static void FN(attend_bwd)(ptrdiff_t L, ptrdiff_t D, const real *restrict dy, const real *restrict x,
                           const real *restrict query, const real *restrict weights, real scale,
                           real *restrict dscores, real *restrict dx, real *restrict dquery)
{
    real along = 0;
    FN(row_dots)(L, D, x, dy, 1, dscores);
    for (ptrdiff_t l = 0; l < L; l++) along += weights[l] * dscores[l];
    for (ptrdiff_t l = 0; l < L; l++) {
        const real w = weights[l], ds = scale * w * (dscores[l] - along);
        for (ptrdiff_t d = 0; d < D; d++) dx[l * D + d] = w * dy[d] + ds * query[d];
        dscores[l] = ds;
    }
    FN(mix_rows)(1, L, D, dscores, 0, 1, x, D, 1, dquery, 0);
}
