/* lowrank.h -- sums over tokens (the gradient of a factor, or of a dense weight and its bias), and weights in the rank space.
 *   outer:       dP[r,d] = (accumulate ? dP[r,d] : 0) + sum_n h[n,r] * x[n,d]     h [N,R]  x [N,D]  dP [R,D], row strides ld.
 *   add_rows:    out[d] += sum_n x[n,d]
 *   combine_fwd: u[n,s,r] = weights[s] * m[n,r]     m[n,r] = sum_s weights[s] * h[n,s,r]     h, u [N,S,R] row strides ld., may be one.
 *   combine_bwd: dh[n,s,r] = scale * weights[s] * dm[n,r]    dm[n,r] = sum_s weights[s] * du[n,s,r]    (dh takes the place of du)
 *                dweights[s] = sum_{n,r} du[n,s,r] * m[n,r] + dm[n,r] * h[n,s,r] */

PM_INLINE void FN(outer_tile)(const int rows, const int vecs, ptrdiff_t N, const real *restrict h, ptrdiff_t ldh, const real *restrict x,
                              ptrdiff_t ldx, int accumulate, real *restrict dP, ptrdiff_t ldp)
{
    vec acc[TILE_ROWS][TILE_VECS];
    PM_UNROLL for (int r = 0; r < rows; r++)
        PM_UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = accumulate ? *(const vec *)(dP + r * ldp + v * LANES) : (vec){ 0 };
    for (ptrdiff_t n = 0; n < N; n++, h += ldh, x += ldx) {
        vec xv[TILE_VECS];
        PM_UNROLL for (int v = 0; v < vecs; v++) xv[v] = *(const vec *)(x + v * LANES);
        PM_UNROLL for (int r = 0; r < rows; r++)
            PM_UNROLL for (int v = 0; v < vecs; v++) acc[r][v] += xv[v] * h[r];
    }
    PM_UNROLL for (int r = 0; r < rows; r++)
        PM_UNROLL for (int v = 0; v < vecs; v++) *(vec *)(dP + r * ldp + v * LANES) = acc[r][v];
}

/* rows of dP, all columns */
PM_INLINE void FN(outer_rows)(const int rows, ptrdiff_t N, ptrdiff_t D, const real *restrict h, ptrdiff_t ldh, const real *restrict x,
                              ptrdiff_t ldx, int accumulate, real *restrict dP, ptrdiff_t ldp)
{
    ptrdiff_t d = 0;
    for (; d + TILE_VECS * LANES <= D; d += TILE_VECS * LANES) FN(outer_tile)(rows, TILE_VECS, N, h, ldh, x + d, ldx, accumulate, dP + d, ldp);
    for (; d + LANES <= D; d += LANES) FN(outer_tile)(rows, 1, N, h, ldh, x + d, ldx, accumulate, dP + d, ldp);
    for (; d < D; d++)
        for (int r = 0; r < rows; r++) {
            real sum = accumulate ? dP[r * ldp + d] : 0;
            for (ptrdiff_t n = 0; n < N; n++) sum += h[n * ldh + r] * x[n * ldx + d];
            dP[r * ldp + d] = sum;
        }
}

static void
FN(outer)(ptrdiff_t N, ptrdiff_t R, ptrdiff_t D, const real *restrict h, ptrdiff_t ldh, const real *restrict x, ptrdiff_t ldx,
          int accumulate, real *restrict dP, ptrdiff_t ldp)
{
    ptrdiff_t r = 0;
    for (; r + TILE_ROWS <= R; r += TILE_ROWS) FN(outer_rows)(TILE_ROWS, N, D, h + r, ldh, x, ldx, accumulate, dP + r * ldp, ldp);
    if (TILE_ROWS > 8 && r + 8 <= R) FN(outer_rows)(8, N, D, h + r, ldh, x, ldx, accumulate, dP + r * ldp, ldp), r += 8;
    if (TILE_ROWS > 4 && r + 4 <= R) FN(outer_rows)(4, N, D, h + r, ldh, x, ldx, accumulate, dP + r * ldp, ldp), r += 4;
    if (r + 2 <= R) FN(outer_rows)(2, N, D, h + r, ldh, x, ldx, accumulate, dP + r * ldp, ldp), r += 2;
    if (r < R) FN(outer_rows)(1, N, D, h + r, ldh, x, ldx, accumulate, dP + r * ldp, ldp);
}

static void FN(add_rows)(ptrdiff_t N, ptrdiff_t D, const real *restrict x, ptrdiff_t ldx, real *restrict out)
{
    for (ptrdiff_t n = 0; n < N; n++)
        for (ptrdiff_t d = 0; d < D; d++) out[d] += x[n * ldx + d];
}

static void FN(combine_fwd)(ptrdiff_t N, ptrdiff_t S, ptrdiff_t R, const real *restrict weights, const real *h, ptrdiff_t ldh,
                            real *u, ptrdiff_t ldu)
{
    for (ptrdiff_t n = 0; n < N; n++)
        for (ptrdiff_t r = 0; r < R; r++) {
            real m = 0;
            for (ptrdiff_t s = 0; s < S; s++) m += weights[s] * h[n * ldh + s * R + r];
            for (ptrdiff_t s = 0; s < S; s++) u[n * ldu + s * R + r] = weights[s] * m;
        }
}

static void FN(combine_bwd)(ptrdiff_t N, ptrdiff_t S, ptrdiff_t R, const real *restrict weights, const real *restrict h, ptrdiff_t ldh,
                            real scale, real *restrict du, ptrdiff_t ldu, real *restrict dweights)
{
    for (ptrdiff_t s = 0; s < S; s++) dweights[s] = 0;
    for (ptrdiff_t n = 0; n < N; n++)
        for (ptrdiff_t r = 0; r < R; r++) {
            const real *h_nr = h + n * ldh + r;
            real *du_nr = du + n * ldu + r, m = 0, dm = 0;
            for (ptrdiff_t s = 0; s < S; s++) {
                m += weights[s] * h_nr[s * R];
                dm += weights[s] * du_nr[s * R];
            }
            for (ptrdiff_t s = 0; s < S; s++) {
                dweights[s] += du_nr[s * R] * m + dm * h_nr[s * R];
                du_nr[s * R] = scale * weights[s] * dm;
            }
        }
}
