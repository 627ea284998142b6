/* attention.h -- softmax attention of one example and one head; query i looks at keys j (j <= i where causal).
 *   S[i,j] = scale <q_i, k_j>    lse_i = log sum_j exp S[i,j]    P = exp(S - lse)    out_i = sum_j P[i,j] v_j
 *   dP[i,j] = <dout_i, v_j>    dS = P (dP - <dout_i, out_i>)    dq = scale dS K    dk = scale dS^T Q    dv = P^T dout
 * q k v out and gradients [L,d], row stride ld   lse [L]. A block of query rows is worked on at a time: its scores live in scratch
 * only and are computed again in backward. Blocks are copied to scratch with columns padded by zeros and rows padded to whole
 * tiles, so that one micro-kernel without edges serves all products; what it computes in the padding is never read. */
#define ROWS ((ptrdiff_t)(TILE_ROWS * TILE_VECS >= 24 ? 8 : 4)) /* tile: ROWS x 2 vectors in registers */
#define COLS (2 * LANES)
#define BLOCK ((ptrdiff_t)32) /* query rows */
#define UP(n, unit) (((n) + (unit) - 1) / (unit) * (unit))

/* C[i,j] (+)= sum_k A(i,k) B[k,j] for a tile. A(i,k) is A[i * lda + k], or A[k * lda + i] when `transposed`. */
PM_INLINE void FN(tile)(const int transposed, ptrdiff_t K, const real *A, ptrdiff_t lda, const real *B,
                        ptrdiff_t ldb, int accumulate, real *C, ptrdiff_t ldc)
{
    vec acc[8][2];
    PM_UNROLLED_FOR (int i = 0; i < ROWS; i++)
        PM_UNROLLED_FOR (int v = 0; v < 2; v++)
            acc[i][v] = accumulate ? *(const vec *)(C + i * ldc + v * LANES) : (vec){ 0 };
    for (ptrdiff_t k = 0; k < K; k++, B += ldb) {
        const vec b0 = *(const vec *)B, b1 = *(const vec *)(B + LANES);
        PM_UNROLLED_FOR (int i = 0; i < ROWS; i++) {
            const real a = transposed ? A[k * lda + i] : A[i * lda + k];
            acc[i][0] += b0 * a;
            acc[i][1] += b1 * a;
        }
    }
    PM_UNROLLED_FOR (int i = 0; i < ROWS; i++)
        PM_UNROLLED_FOR (int v = 0; v < 2; v++) *(vec *)(C + i * ldc + v * LANES) = acc[i][v];
}

/* Whole tiles: C [UP(M, ROWS), UP(N, COLS)]. Strip j of B begins at B + j * strip. */
PM_INLINE void FN(tiles)(const int transposed, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const real *A,
                         ptrdiff_t lda, const real *B, ptrdiff_t ldb, ptrdiff_t strip, int accumulate,
                         real *C, ptrdiff_t ldc)
{
    for (ptrdiff_t j = 0; j < N; j += COLS, B += strip)
        for (ptrdiff_t i = 0; i < M; i += ROWS)
            FN(tile)(transposed, K, A + (transposed ? i : i * lda), lda, B, ldb, accumulate, C + i * ldc + j,
                     ldc);
}

/* C = A B */
static __attribute__((noinline)) void FN(product)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const real *A,
                                                  ptrdiff_t lda, const real *B, ptrdiff_t ldb,
                                                  ptrdiff_t strip, real *C, ptrdiff_t ldc)
{
    FN(tiles)(0, M, N, K, A, lda, B, ldb, strip, 0, C, ldc);
}

/* C += A^T B */
static __attribute__((noinline)) void FN(product_transposed)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                                                             const real *A, ptrdiff_t lda, const real *B,
                                                             ptrdiff_t ldb, ptrdiff_t strip, real *C,
                                                             ptrdiff_t ldc)
{
    FN(tiles)(1, M, N, K, A, lda, B, ldb, strip, 1, C, ldc);
}

/* The rows of a head lie too far apart for the hardware to fetch them ahead. */
PM_INLINE void FN(prefetch)(ptrdiff_t rows_left, ptrdiff_t d, ptrdiff_t ld, const real *row)
{
    if (rows_left > 16)
        for (ptrdiff_t c = 0; c < d; c += PANEL) __builtin_prefetch(row + 16 * ld + c);
}

/* to [UP(n, ROWS), wide] = scale * from [n, d], zeros around it. */
static void FN(copy_rows)(ptrdiff_t n, ptrdiff_t d, ptrdiff_t wide, ptrdiff_t ld, const real *restrict from,
                          real scale, real *restrict to)
{
    for (ptrdiff_t i = 0; i < n; i++, from += ld, to += wide) {
        ptrdiff_t c = 0;
        FN(prefetch)(n - i, d, ld, from);
        for (; c + LANES <= d; c += LANES) *(vec *)(to + c) = *(const vec *)(from + c) * scale;
        for (; c < d; c++) to[c] = from[c] * scale;
        for (; c < wide; c++) to[c] = 0;
    }
    memset(to, 0, (size_t)((UP(n, ROWS) - n) * wide) * sizeof(real));
}

/* to = strips [UP(L, COLS) / COLS][d][COLS] of the transpose of from [L, d]; the columns L and up are zeros. */
static void FN(copy_transposed)(ptrdiff_t L, ptrdiff_t d, ptrdiff_t ld, const real *restrict from,
                                real *restrict to)
{
    for (ptrdiff_t j0 = 0; j0 < L; j0 += COLS, to += d * COLS) {
        const ptrdiff_t n = L - j0 < COLS ? L - j0 : COLS;
        if (n < COLS) memset(to, 0, (size_t)(d * COLS) * sizeof(real));
        for (ptrdiff_t j = 0; j < n; j++, from += ld) {
            FN(prefetch)(L - j0 - j, d, ld, from);
            for (ptrdiff_t c = 0; c < d; c++) to[c * COLS + j] = from[c];
        }
    }
}

/* Values of scratch: the sum of the cuts in the two kernels. Rows of scores are a line longer than the keys, so that
 * they do not lie powers of two apart. */
static void FN(attention_scratch)(ptrdiff_t L, ptrdiff_t d, int backward, ptrdiff_t *restrict values)
{
    const ptrdiff_t keys = UP(L, COLS), wide = UP(d, COLS), ldS = keys + PANEL;
    *values = backward ? 2 * keys * d + 3 * keys * wide + BLOCK * (3 * wide + 2 * ldS)
                       : keys * (d + wide) + BLOCK * (2 * wide + ldS);
}

static void FN(attention_fwd)(ptrdiff_t L, ptrdiff_t d, ptrdiff_t ld, const real *restrict q,
                              const real *restrict k, const real *restrict v, real scale, int causal,
                              real *restrict scratch, real *restrict out, real *restrict lse)
{
    const ptrdiff_t keys = UP(L, COLS), wide = UP(d, COLS), ldS = keys + PANEL;
    real *KT = scratch, *V = KT + keys * d;
    real *Q = V + keys * wide, *O = Q + BLOCK * wide, *S = O + BLOCK * wide;
    FN(copy_transposed)(L, d, ld, k, KT);
    FN(copy_rows)(L, d, wide, ld, v, 1, V);
    for (ptrdiff_t i0 = 0; i0 < L; i0 += BLOCK) {
        const ptrdiff_t m = L - i0 < BLOCK ? L - i0 : BLOCK, n = causal ? i0 + m : L;
        real inverse[BLOCK];
        FN(copy_rows)(m, d, wide, ld, q + i0 * ld, scale, Q);
        FN(product)(m, n, d, Q, wide, KT, COLS, d * COLS, S, ldS);
        for (ptrdiff_t i = 0; i < m; i++) {
            real *s = S + i * ldS;
            vec top = FN(splat)(-INFINITY), sum = { 0 };
            for (ptrdiff_t j = causal ? i0 + i + 1 : n; j < UP(n, LANES); j++) s[j] = -INFINITY;
            for (ptrdiff_t j = 0; j < n; j += LANES) top = FN(vmax)(*(const vec *)(s + j), top);
            const real highest = FN(vtop)(top);
            for (ptrdiff_t j = 0; j < n; j += LANES) {
                const vec p = FN(vexp)(*(const vec *)(s + j) - highest);
                sum += p;
                *(vec *)(s + j) = p;
            }
            const real total = FN(vsum)(sum);
            inverse[i] = 1 / total;
            lse[i0 + i] = highest + (real)log((double)total);
        }
        FN(product)(m, d, n, S, ldS, V, wide, COLS, O, wide);
        for (ptrdiff_t i = 0; i < m; i++)
            for (ptrdiff_t c = 0; c < d; c++) out[(i0 + i) * ld + c] = O[i * wide + c] * inverse[i];
    }
}

static void FN(attention_bwd)(ptrdiff_t L, ptrdiff_t d, ptrdiff_t ld, const real *restrict q,
                              const real *restrict k, const real *restrict v, const real *restrict out,
                              const real *restrict lse, const real *restrict dout, real scale, int causal,
                              real *restrict scratch, real *restrict dq, real *restrict dk, real *restrict dv)
{
    const ptrdiff_t keys = UP(L, COLS), wide = UP(d, COLS), ldS = keys + PANEL;
    real *KT = scratch, *VT = KT + keys * d;
    real *Kr = VT + keys * d, *dK = Kr + keys * wide, *dV = dK + keys * wide;
    real *Q = dV + keys * wide, *dO = Q + BLOCK * wide, *dQ = dO + BLOCK * wide;
    real *P = dQ + BLOCK * wide, *dS = P + BLOCK * ldS;
    FN(copy_transposed)(L, d, ld, k, KT);
    FN(copy_transposed)(L, d, ld, v, VT);
    FN(copy_rows)(L, d, wide, ld, k, scale, Kr);
    memset(dK, 0, (size_t)(2 * keys * wide) * sizeof(real));
    for (ptrdiff_t i0 = 0; i0 < L; i0 += BLOCK) {
        const ptrdiff_t m = L - i0 < BLOCK ? L - i0 : BLOCK, n = causal ? i0 + m : L;
        FN(copy_rows)(m, d, wide, ld, q + i0 * ld, scale, Q);
        FN(copy_rows)(m, d, wide, ld, dout + i0 * ld, 1, dO);
        FN(product)(m, n, d, Q, wide, KT, COLS, d * COLS, P, ldS);
        FN(product)(m, n, d, dO, wide, VT, COLS, d * COLS, dS, ldS);
        for (ptrdiff_t i = 0; i < m; i++) {
            real *p = P + i * ldS, *ds = dS + i * ldS, delta = 0;
            const real *out_i = out + (i0 + i) * ld;
            for (ptrdiff_t c = 0; c < d; c++) delta += dO[i * wide + c] * out_i[c];
            for (ptrdiff_t j = 0; j < n; j += LANES) {
                const vec e = FN(vexp)(*(const vec *)(p + j) - lse[i0 + i]);
                *(vec *)(p + j) = e;
                *(vec *)(ds + j) = e * (*(const vec *)(ds + j) - delta);
            }
            for (ptrdiff_t j = i0 + i + 1; causal && j < n; j++) p[j] = ds[j] = 0;
        }
        FN(product)(m, d, n, dS, ldS, Kr, wide, COLS, dQ, wide);
        FN(product_transposed)(n, d, m, P, ldS, dO, wide, COLS, dV, wide);
        FN(product_transposed)(n, d, m, dS, ldS, Q, wide, COLS, dK, wide);
        for (ptrdiff_t i = 0; i < m; i++) memcpy(dq + (i0 + i) * ld, dQ + i * wide, (size_t)d * sizeof(real));
    }
    for (ptrdiff_t j = 0; j < L; j++) {
        memcpy(dk + j * ld, dK + j * wide, (size_t)d * sizeof(real));
        memcpy(dv + j * ld, dV + j * wide, (size_t)d * sizeof(real));
    }
}
#undef ROWS
#undef COLS
#undef BLOCK
#undef UP
