/* mix.h -- mix S skills into one adapter, head by head. Head q owns the q-th block of D/Q columns.
 *   out[r,d]      = scale * sum_s weights[q(d),s] * bank[s,r,d]
 *   dweights[q,s] = scale * sum_{r, d in q} dout[r,d] * bank[s,r,d]
 *   dbank[s,r,d]  = scale * sum_g weights[g,q(d),s] * dout[g,r,d]
 * weights [Q,S] of one group ([G,Q,S] in dbank)   bank, dbank [S,R,D]   out, dout [R,D] of one group ([G,R,D] in dbank) */

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
                    real *restrict dweights)
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
            dweights[q * S + s] = sum * scale;
        }
}

/* Row (s, i = rank row) of dbank: rows are the unit that threads share out. */
static void
FN(mix_bwd_bank)(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, ptrdiff_t s, ptrdiff_t i, const real *restrict dout,
                 const real *restrict weights, real scale, real *restrict dbank)
{
    const ptrdiff_t block = D / Q;
    for (ptrdiff_t q = 0; q < Q; q++) {
        real *dbank_q = dbank + (s * R + i) * D + q * block;
        const real *dout_q = dout + i * D + q * block, *w = weights + q * S + s;
        ptrdiff_t d = 0;
        for (; d + LANES <= block; d += LANES) {
            vec acc = { 0 };
            for (ptrdiff_t g = 0; g < G; g++) acc += *(const vec *)(dout_q + g * R * D + d) * w[g * Q * S];
            *(vec *)(dbank_q + d) = acc * scale;
        }
        for (; d < block; d++) {
            real acc = 0;
            for (ptrdiff_t g = 0; g < G; g++) acc += dout_q[g * R * D + d] * w[g * Q * S];
            dbank_q[d] = acc * scale;
        }
    }
}
