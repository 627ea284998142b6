/* mix.h -- mix S skills into one adapter, head by head. Head q owns the q-th block of D/Q columns.
 *   out[r,d]      = scale * sum_s weights[q(d),s] * bank[s,r,d]
 *   dweights[q,s] = scale * sum_{r, d in q} dout[r,d] * bank[s,r,d]
 *   dbank[s,r,d]  = scale * sum_g weights[g,q(d),s] * dout[g,r,d]
 * weights [Q,S] of one group ([G,Q,S] in dbank)   bank, dbank [S,R,D]   out, dout [R,D] of one group (in dbank: G of
 * them, ldout apart)   accumulate: add to dweights */

static void
FN(mix_fwd)(ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, const real *restrict weights, const real *restrict bank, real scale,
            real *restrict out)
{
    const ptrdiff_t block = D / Q;
    for (ptrdiff_t q = 0; q < Q; q++)
        for (ptrdiff_t r = 0; r < R; r++) {
            real *out_rq = out + r * D + q * block;
            const real *bank_rq = bank + r * D + q * block, *w = weights + q * S;
            ptrdiff_t d = 0;
            for (; d + 2 * LANES <= block; d += 2 * LANES) {
                vec acc0 = { 0 }, acc1 = { 0 };
                for (ptrdiff_t s = 0; s < S; s++) {
                    const real *x = bank_rq + s * R * D + d;
                    acc0 += *(const vec *)x * w[s];
                    acc1 += *(const vec *)(x + LANES) * w[s];
                }
                *(vec *)(out_rq + d) = acc0 * scale;
                *(vec *)(out_rq + d + LANES) = acc1 * scale;
            }
            for (; d < block; d++) {
                real acc = 0;
                for (ptrdiff_t s = 0; s < S; s++) acc += bank_rq[s * R * D + d] * w[s];
                out_rq[d] = acc * scale;
            }
        }
}

static void
FN(mix_bwd_weights)(ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, const real *restrict dout, const real *restrict bank, real scale,
                    int accumulate, real *restrict dweights)
{
    const ptrdiff_t block = D / Q;
    for (ptrdiff_t q = 0; q < Q; q++)
        for (ptrdiff_t s = 0; s < S; s++) {
            vec acc = { 0 };
            real sum = 0;
            for (ptrdiff_t r = 0; r < R; r++) {
                const real *x = dout + r * D + q * block, *y = bank + (s * R + r) * D + q * block;
                ptrdiff_t d = 0;
                for (; d + LANES <= block; d += LANES) acc += *(const vec *)(x + d) * *(const vec *)(y + d);
                for (; d < block; d++) sum += x[d] * y[d];
            }
            for (ptrdiff_t l = 0; l < LANES; l++) sum += acc[l];
            dweights[q * S + s] = (accumulate ? dweights[q * S + s] : 0) + sum * scale;
        }
}

/* Row r of every skill: rows are the unit that threads share out. A pass over dout serves `skills` of them. */
PM_INLINE void
FN(mix_bwd_skills)(const int skills, ptrdiff_t G, ptrdiff_t QS, ptrdiff_t block, ptrdiff_t RD, const real *restrict dout, ptrdiff_t ldout,
                   const real *restrict weights, real scale, real *restrict dbank)
{
    ptrdiff_t d = 0;
    for (; d + 2 * LANES <= block; d += 2 * LANES) {
        vec acc[4][2] = { { { 0 } } };
        for (ptrdiff_t g = 0; g < G; g++) {
            const vec x0 = *(const vec *)(dout + g * ldout + d), x1 = *(const vec *)(dout + g * ldout + d + LANES);
            PM_UNROLL for (int s = 0; s < skills; s++) {
                acc[s][0] += x0 * weights[g * QS + s];
                acc[s][1] += x1 * weights[g * QS + s];
            }
        }
        PM_UNROLL for (int s = 0; s < skills; s++) {
            *(vec *)(dbank + s * RD + d) = acc[s][0] * scale;
            *(vec *)(dbank + s * RD + d + LANES) = acc[s][1] * scale;
        }
    }
    for (; d < block; d++)
        for (int s = 0; s < skills; s++) {
            real acc = 0;
            for (ptrdiff_t g = 0; g < G; g++) acc += dout[g * ldout + d] * weights[g * QS + s];
            dbank[s * RD + d] = acc * scale;
        }
}

static void
FN(mix_bwd_bank)(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, ptrdiff_t r, const real *restrict dout, ptrdiff_t ldout,
                 const real *restrict weights, real scale, real *restrict dbank)
{
    const ptrdiff_t block = D / Q;
    for (ptrdiff_t q = 0; q < Q; q++) {
        const real *dout_rq = dout + r * D + q * block, *w = weights + q * S;
        real *dbank_rq = dbank + r * D + q * block;
        ptrdiff_t s = 0;
        for (; s + 4 <= S; s += 4)
            FN(mix_bwd_skills)(4, G, Q * S, block, R * D, dout_rq, ldout, w + s, scale, dbank_rq + s * R * D);
        for (; s < S; s++) FN(mix_bwd_skills)(1, G, Q * S, block, R * D, dout_rq, ldout, w + s, scale, dbank_rq + s * R * D);
    }
}
