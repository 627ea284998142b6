/* mix.h -- mix S skills into one adapter for every group, head by head. Head q owns the q-th block of D/Q columns.
 *   out[g,r,d]      = scale * sum_s weights[g,q(d),s] * bank[s,r,d]
 *   dbank[s,r,d]    = scale * sum_g weights[g,q(d),s] * dout[g,r,d]
 *   dweights[g,q,s] = scale * sum_{d in q} dout[g,r,d] * bank[s,r,d]     of one r: the caller sums over r
 * weights, dweights [G,Q,S]   bank, dbank [S,R,D]   out, dout [R,D] of every group, ldout apart
 * All three do row r alone: rows are what threads share out, and a row of every skill stays in cache for all groups. */

/* scale * sum_j w[i,j] x[j,:] for `rows` of i: forward i is a group and j a skill, in dbank the other way round. */
PM_INLINE void FN(mix_rows)(const int rows, ptrdiff_t J, ptrdiff_t n, const real *restrict w, ptrdiff_t w_i,
                            ptrdiff_t w_j, const real *restrict x, ptrdiff_t ldx, real scale,
                            real *restrict out, ptrdiff_t ldout)
{
    ptrdiff_t d = 0;
    for (; d + 2 * LANES <= n; d += 2 * LANES) {
        vec acc[4][2] = { { { 0 } } };
        for (ptrdiff_t j = 0; j < J; j++) {
            const vec x0 = *(const vec *)(x + j * ldx + d), x1 = *(const vec *)(x + j * ldx + d + LANES);
            PM_UNROLLED_FOR (int i = 0; i < rows; i++) {
                acc[i][0] += x0 * w[i * w_i + j * w_j];
                acc[i][1] += x1 * w[i * w_i + j * w_j];
            }
        }
        PM_UNROLLED_FOR (int i = 0; i < rows; i++) {
            *(vec *)(out + i * ldout + d) = acc[i][0] * scale;
            *(vec *)(out + i * ldout + d + LANES) = acc[i][1] * scale;
        }
    }
    for (; d < n; d++)
        for (int i = 0; i < rows; i++) {
            real acc = 0;
            for (ptrdiff_t j = 0; j < J; j++) acc += x[j * ldx + d] * w[i * w_i + j * w_j];
            out[i * ldout + d] = acc * scale;
        }
}

static void FN(mix_fwd)(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, ptrdiff_t r,
                        const real *restrict weights, const real *restrict bank, real scale,
                        real *restrict out, ptrdiff_t ldout)
{
    const ptrdiff_t block = D / Q;
    for (ptrdiff_t q = 0; q < Q; q++) {
        const real *w = weights + q * S, *x = bank + r * D + q * block;
        real *y = out + r * D + q * block;
        ptrdiff_t g = 0;
        for (; g + 4 <= G; g += 4)
            FN(mix_rows)(4, S, block, w + g * Q * S, Q * S, 1, x, R * D, scale, y + g * ldout, ldout);
        for (; g < G; g++)
            FN(mix_rows)(1, S, block, w + g * Q * S, Q * S, 1, x, R * D, scale, y + g * ldout, ldout);
    }
}

static void FN(mix_bwd_bank)(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, ptrdiff_t r,
                             const real *restrict weights, const real *restrict dout, ptrdiff_t ldout,
                             real scale, real *restrict dbank)
{
    const ptrdiff_t block = D / Q;
    for (ptrdiff_t q = 0; q < Q; q++) {
        const real *w = weights + q * S, *x = dout + r * D + q * block;
        real *y = dbank + r * D + q * block;
        ptrdiff_t s = 0;
        for (; s + 4 <= S; s += 4)
            FN(mix_rows)(4, G, block, w + s, 1, Q * S, x, ldout, scale, y + s * R * D, R * D);
        for (; s < S; s++) FN(mix_rows)(1, G, block, w + s, 1, Q * S, x, ldout, scale, y + s * R * D, R * D);
    }
}

/* dot of x with `rows` rows of y */
PM_INLINE void FN(mix_dots)(const int rows, ptrdiff_t n, const real *restrict x, const real *restrict y,
                            ptrdiff_t ldy, real scale, real *restrict out)
{
    vec acc[4] = { { 0 } };
    ptrdiff_t d = 0;
    for (; d + LANES <= n; d += LANES)
        PM_UNROLLED_FOR (int i = 0; i < rows; i++)
            acc[i] += *(const vec *)(x + d) * *(const vec *)(y + i * ldy + d);
    for (int i = 0; i < rows; i++) {
        real sum = 0;
        for (ptrdiff_t l = 0; l < LANES; l++) sum += acc[i][l];
        for (ptrdiff_t e = d; e < n; e++) sum += x[e] * y[i * ldy + e];
        out[i] = sum * scale;
    }
}

static void FN(mix_bwd_weights)(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, ptrdiff_t r,
                                const real *restrict bank, const real *restrict dout, ptrdiff_t ldout,
                                real scale, real *restrict dweights)
{
    const ptrdiff_t block = D / Q;
    for (ptrdiff_t g = 0; g < G; g++)
        for (ptrdiff_t q = 0; q < Q; q++) {
            const real *x = dout + g * ldout + r * D + q * block, *y = bank + r * D + q * block;
            real *dw = dweights + (g * Q + q) * S;
            ptrdiff_t s = 0;
            for (; s + 4 <= S; s += 4) FN(mix_dots)(4, block, x, y + s * R * D, R * D, scale, dw + s);
            for (; s < S; s++) FN(mix_dots)(1, block, x, y + s * R * D, R * D, scale, dw + s);
        }
}
