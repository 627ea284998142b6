/* weigh.h -- weights of experts that lie side by side, in the rank space.
 *   combine_fwd: u[n,s,r] = weights[s] * m[n,r]     m[n,r] = sum_s weights[s] * h[n,s,r]     h, u [N,S,R] row strides ld., may be one.
 *   combine_bwd: dh[n,s,r] = scale * weights[s] * dm[n,r]    dm[n,r] = sum_s weights[s] * du[n,s,r]    (dh takes the place of du)
 *                dweights[s] = sum_{n,r} du[n,s,r] * m[n,r] + dm[n,r] * h[n,s,r]
 *   weigh_fwd:   u[n,s,r] = weights[n,s] * h[n,s,r]     shared: h [N,R] is one for all s, and u another array
 *   weigh_bwd:   dweights[n,s] += sum_r du[n,s,r] * h[n,s,r]    dh[n,s,r] = scale * weights[n,s] * du[n,s,r], shared: summed over s.
 *                Row strides ldw and lddw are 0 where tokens have one row of weights in common. (dh takes the place of du) */

static void FN(combine_fwd)(ptrdiff_t N, ptrdiff_t S, ptrdiff_t R, const real *restrict weights,
                            const real *h, ptrdiff_t ldh, real *u, ptrdiff_t ldu)
{
    for (ptrdiff_t n = 0; n < N; n++)
        for (ptrdiff_t r = 0; r < R; r++) {
            real m = 0;
            for (ptrdiff_t s = 0; s < S; s++) m += weights[s] * h[n * ldh + s * R + r];
            for (ptrdiff_t s = 0; s < S; s++) u[n * ldu + s * R + r] = weights[s] * m;
        }
}

static void FN(combine_bwd)(ptrdiff_t N, ptrdiff_t S, ptrdiff_t R, const real *restrict weights,
                            const real *restrict h, ptrdiff_t ldh, real scale, real *restrict du,
                            ptrdiff_t ldu, real *restrict dweights)
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

static void FN(weigh_fwd)(ptrdiff_t N, ptrdiff_t S, ptrdiff_t R, int shared, const real *restrict weights,
                          ptrdiff_t ldw, const real *h, ptrdiff_t ldh, real *u, ptrdiff_t ldu)
{
    for (ptrdiff_t n = 0; n < N; n++)
        for (ptrdiff_t s = 0; s < S; s++) {
            const real w = weights[n * ldw + s], *h_s = h + n * ldh + (shared ? 0 : s * R);
            for (ptrdiff_t r = 0; r < R; r++) u[n * ldu + s * R + r] = w * h_s[r];
        }
}

static void FN(weigh_bwd)(ptrdiff_t N, ptrdiff_t S, ptrdiff_t R, int shared, const real *restrict weights,
                          ptrdiff_t ldw, const real *restrict h, ptrdiff_t ldh, real scale, real *restrict du,
                          ptrdiff_t ldu, real *restrict dweights, ptrdiff_t lddw)
{
    for (ptrdiff_t n = 0; n < N; n++, h += ldh, du += ldu)
        for (ptrdiff_t s = 0; s < S; s++) {
            const real w = scale * weights[n * ldw + s], *h_s = h + (shared ? 0 : s * R);
            real *du_s = du + s * R, along = 0;
            for (ptrdiff_t r = 0; r < R; r++) along += du_s[r] * h_s[r];
            dweights[n * lddw + s] += along;
            for (ptrdiff_t r = 0; r < R; r++)
                if (shared && s > 0) du[r] += w * du_s[r];
                else du_s[r] *= w;
        }
}
