/* attention.h -- softmax attention of one example and one head of keys, which M heads of queries share; the L queries look at
 * Lk keys; where causal, they are the last of those Lk tokens, and query i looks at keys j <= i + Lk - L.
 *   S[i,j] = scale <q_i, k_j> + bias[W + clip(j - i - (Lk - L), -W, W)]    lse_i = log sum_j exp S[i,j]    P = exp(S - lse)    out_i = sum_j P[i,j] v_j
 *   dP[i,j] = <dout_i, v_j>    dS = P (dP - <dout_i, out_i>)    dq = scale dS K    dk = scale dS^T Q    dv = P^T dout
 * q out dq dout [L,M,d], row stride ld   k v dk dv [L,d], row stride ldkv   lse [M,L], row stride ldlse. dk and dv are sums
 * over the M heads, in their order. bias [M, 2 W + 1] (NULL: none) goes by how far a key stands behind its query (before it:
 * below W) and has no gradient. A block of query rows is worked on at a time: its scores live in scratch
 * only and are computed again in backward. The products are those of tile.h. */
#define BLOCK ((ptrdiff_t)32) /* query rows */

/* Values of scratch: the sum of the cuts in the two kernels. Rows of scores are a line longer than the keys, so that
 * they do not lie powers of two apart. */
static void FN(attention_scratch)(ptrdiff_t Lk, ptrdiff_t d, int backward, ptrdiff_t *restrict values)
{
    const ptrdiff_t keys = ROUND_UP(Lk, TILE_WIDTH), wide = ROUND_UP(d, TILE_WIDTH), ldS = keys + PANEL;
    *values = backward ? 2 * keys * d + 3 * keys * wide + BLOCK * (3 * wide + 2 * ldS)
                       : keys * (d + wide) + BLOCK * (2 * wide + ldS);
}

/* s[j] += bias[W + clip(j - at, -W, W)], j < n */
static void FN(add_bias)(ptrdiff_t n, ptrdiff_t W, ptrdiff_t at, const real *restrict bias, real *restrict s)
{
    const ptrdiff_t low = at - W < n ? at - W : n, high = at + W < n ? at + W : n;
    const ptrdiff_t from = low > 0 ? low : 0, to = high > 0 ? high : 0; /* between: each key its own value */
    for (ptrdiff_t j = 0; j < from; j++) s[j] += bias[0];
    for (ptrdiff_t j = from; j < to; j++) s[j] += bias[W + j - at];
    for (ptrdiff_t j = to; j < n; j++) s[j] += bias[2 * W];
}

static void FN(attention_fwd)(ptrdiff_t L, ptrdiff_t Lk, ptrdiff_t d, ptrdiff_t M, ptrdiff_t W, ptrdiff_t ld,
                              ptrdiff_t ldkv, ptrdiff_t ldlse, const real *restrict q, const real *restrict k,
                              const real *restrict v, const real *restrict bias, real scale, int causal,
                              real *restrict scratch, real *restrict out, real *restrict lse)
{
    const ptrdiff_t keys = ROUND_UP(Lk, TILE_WIDTH), wide = ROUND_UP(d, TILE_WIDTH), ldS = keys + PANEL;
    const ptrdiff_t before = Lk - L; /* keys that come before the first query */
    real *KT = scratch, *V = KT + keys * d;
    real *Q = V + keys * wide, *O = Q + BLOCK * wide, *S = O + BLOCK * wide;
    FN(fetch_first)(Lk, d, ldkv, k);
    FN(fetch_first)(Lk, d, ldkv, v);
    FN(copy_transposed)(Lk, d, ldkv, k, KT);
    FN(copy_rows)(Lk, d, wide, ldkv, v, 1, V);
    for (ptrdiff_t h = 0; h < M; h++, q += d, out += d, lse += ldlse) {
        FN(fetch_first)(L, d, ld, q);
        for (ptrdiff_t i0 = 0; i0 < L; i0 += BLOCK) {
            const ptrdiff_t m = L - i0 < BLOCK ? L - i0 : BLOCK, n = causal ? before + i0 + m : Lk;
            real inverse[BLOCK];
            FN(copy_rows)(m, d, wide, ld, q + i0 * ld, scale, Q);
            FN(product)(m, n, d, Q, wide, KT, TILE_WIDTH, d * TILE_WIDTH, S, ldS);
            for (ptrdiff_t i = 0; i < m; i++) {
                real *s = S + i * ldS;
                if (bias) FN(add_bias)(n, W, before + i0 + i, bias + h * (2 * W + 1), s);
                vec top = FN(splat)(-INFINITY), sum = { 0 };
                for (ptrdiff_t j = causal ? before + i0 + i + 1 : n; j < ROUND_UP(n, LANES); j++)
                    s[j] = -INFINITY;
                for (ptrdiff_t j = 0; j < n; j += LANES) top = FN(vmax)(*(const vec *)(s + j), top);
                const real highest = FN(vtop)(top);
                for (ptrdiff_t j = 0; j < n; j += LANES) {
                    const vec p = FN(vexp_below)(*(const vec *)(s + j) - highest);
                    sum += p;
                    *(vec *)(s + j) = p;
                }
                const real total = FN(vsum)(sum);
                inverse[i] = 1 / total;
                lse[i0 + i] = highest + (real)log((double)total);
            }
            FN(product)(m, d, n, S, ldS, V, wide, TILE_WIDTH, O, wide);
            for (ptrdiff_t i = 0; i < m; i++)
                for (ptrdiff_t c = 0; c < wide; c += LANES) *(vec *)(O + i * wide + c) *= inverse[i];
            FN(write_rows)(m, d, wide, O, ld, out + i0 * ld);
        }
    }
}

static void FN(attention_bwd)(ptrdiff_t L, ptrdiff_t Lk, ptrdiff_t d, ptrdiff_t M, ptrdiff_t W, ptrdiff_t ld,
                              ptrdiff_t ldkv, ptrdiff_t ldlse, const real *restrict q, const real *restrict k,
                              const real *restrict v, const real *restrict bias, const real *restrict out,
                              const real *restrict lse, const real *restrict dout, real scale, int causal,
                              real *restrict scratch, real *restrict dq, real *restrict dk, real *restrict dv)
{
    const ptrdiff_t keys = ROUND_UP(Lk, TILE_WIDTH), wide = ROUND_UP(d, TILE_WIDTH), ldS = keys + PANEL;
    const ptrdiff_t before = Lk - L; /* keys that come before the first query */
    real *KT = scratch, *VT = KT + keys * d;
    real *Kr = VT + keys * d, *dK = Kr + keys * wide, *dV = dK + keys * wide;
    real *Q = dV + keys * wide, *dO = Q + BLOCK * wide, *dQ = dO + BLOCK * wide;
    real *P = dQ + BLOCK * wide, *dS = P + BLOCK * ldS;
    FN(fetch_first)(Lk, d, ldkv, k);
    FN(fetch_first)(Lk, d, ldkv, v);
    FN(copy_transposed)(Lk, d, ldkv, k, KT);
    FN(copy_transposed)(Lk, d, ldkv, v, VT);
    FN(copy_rows)(Lk, d, wide, ldkv, k, scale, Kr);
    memset(dK, 0, (size_t)(2 * keys * wide) * sizeof(real));
    for (ptrdiff_t h = 0; h < M; h++, q += d, out += d, lse += ldlse, dout += d, dq += d) {
        for (ptrdiff_t i0 = 0; i0 < L; i0 += BLOCK) {
            const ptrdiff_t m = L - i0 < BLOCK ? L - i0 : BLOCK, n = causal ? before + i0 + m : Lk;
            FN(fetch_first)(m, d, ld, out + i0 * ld);
            FN(copy_rows)(m, d, wide, ld, q + i0 * ld, scale, Q);
            FN(copy_rows)(m, d, wide, ld, dout + i0 * ld, 1, dO);
            FN(product)(m, n, d, Q, wide, KT, TILE_WIDTH, d * TILE_WIDTH, P, ldS);
            FN(product)(m, n, d, dO, wide, VT, TILE_WIDTH, d * TILE_WIDTH, dS, ldS);
            for (ptrdiff_t i = 0; i < m; i++) {
                real *p = P + i * ldS, *ds = dS + i * ldS;
                const real *out_i = out + (i0 + i) * ld, *dout_i = dO + i * wide;
                if (m - i > AHEAD) FN(fetch_row)(d, out_i + AHEAD * ld);
                if (bias) FN(add_bias)(n, W, before + i0 + i, bias + h * (2 * W + 1), p);
                vec products = { 0 };
                real rest = 0;
                ptrdiff_t c = 0;
                for (; c + LANES <= d; c += LANES)
                    products += *(const vec *)(dout_i + c) * *(const vec *)(out_i + c);
                for (; c < d; c++) rest += dout_i[c] * out_i[c];
                const real delta = FN(vsum)(products) + rest;
                for (ptrdiff_t j = 0; j < n; j += LANES) {
                    const vec e = FN(vexp_below)(*(const vec *)(p + j) - lse[i0 + i]);
                    *(vec *)(p + j) = e;
                    *(vec *)(ds + j) = e * (*(const vec *)(ds + j) - delta);
                }
                /* to the end of the last tile: the keys in it that come later are summed by the next block */
                for (ptrdiff_t j = before + i0 + i + 1; causal && j < ROUND_UP(n, TILE_HEIGHT); j++)
                    p[j] = ds[j] = 0;
            }
            FN(product)(m, d, n, dS, ldS, Kr, wide, TILE_WIDTH, dQ, wide);
            FN(product_transposed)(n, d, m, P, ldS, dO, wide, TILE_WIDTH, dV, wide);
            FN(product_transposed)(n, d, m, dS, ldS, Q, wide, TILE_WIDTH, dK, wide);
            FN(write_rows)(m, d, wide, dQ, ld, dq + i0 * ld);
        }
    }
    FN(write_rows)(Lk, d, wide, dK, ldkv, dk);
    FN(write_rows)(Lk, d, wide, dV, ldkv, dv);
}
#undef BLOCK
