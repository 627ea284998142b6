/* tile.h -- products of small row-major blocks in scratch, without edges: columns are padded by zeros to whole strips and rows to
 * whole tiles, and what is computed in the padding is never read. (A product with a packed weight is gemm.h.) */
#define TILE_HEIGHT \
    ((ptrdiff_t)(TILE_ROWS * TILE_VECS >= 24 ? 8 : 4)) /* tile: TILE_HEIGHT x 2 vectors in registers */
#define TILE_WIDTH (2 * LANES)

/* C[i,j] (+)= sum_k A(i,k) B[k,j] for a tile. A(i,k) is A[i * lda + k], or A[k * lda + i] when `transposed`. */
PM_INLINE void FN(tile)(const int transposed, ptrdiff_t K, const real *A, ptrdiff_t lda, const real *B,
                        ptrdiff_t ldb, int accumulate, real *C, ptrdiff_t ldc)
{
    vec acc[8][2];
    PM_UNROLLED_FOR (int i = 0; i < TILE_HEIGHT; i++)
        PM_UNROLLED_FOR (int v = 0; v < 2; v++)
            acc[i][v] = accumulate ? *(const vec *)(C + i * ldc + v * LANES) : (vec){ 0 };
    for (ptrdiff_t k = 0; k < K; k++, B += ldb) {
        const vec b0 = *(const vec *)B, b1 = *(const vec *)(B + LANES);
        PM_UNROLLED_FOR (int i = 0; i < TILE_HEIGHT; i++) {
            const real a = transposed ? A[k * lda + i] : A[i * lda + k];
            acc[i][0] += b0 * a;
            acc[i][1] += b1 * a;
        }
    }
    PM_UNROLLED_FOR (int i = 0; i < TILE_HEIGHT; i++)
        PM_UNROLLED_FOR (int v = 0; v < 2; v++) *(vec *)(C + i * ldc + v * LANES) = acc[i][v];
}

/* Whole tiles: C [ROUND_UP(M, TILE_HEIGHT), ROUND_UP(N, TILE_WIDTH)]. Strip j of B begins at B + j * strip. */
PM_INLINE void FN(tiles)(const int transposed, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const real *A,
                         ptrdiff_t lda, const real *B, ptrdiff_t ldb, ptrdiff_t strip, int accumulate,
                         real *C, ptrdiff_t ldc)
{
    for (ptrdiff_t j = 0; j < N; j += TILE_WIDTH, B += strip)
        for (ptrdiff_t i = 0; i < M; i += TILE_HEIGHT)
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

/* The rows of a head lie too far apart for the hardware to fetch them ahead: the first ones are asked for at the start, then
 * each row asks for the one AHEAD of it. */
#define AHEAD ((ptrdiff_t)16)
PM_INLINE void FN(fetch_row)(ptrdiff_t d, const real *row)
{
    for (ptrdiff_t c = 0; c < d; c += PANEL) __builtin_prefetch(row + c);
}
PM_INLINE void FN(fetch_first)(ptrdiff_t L, ptrdiff_t d, ptrdiff_t ld, const real *rows)
{
    for (ptrdiff_t i = 0; i < L && i < AHEAD; i++) FN(fetch_row)(d, rows + i * ld);
}

/* to [n, d] = scale * from, rows far apart in `to`: each asks for the one AHEAD of it, for a store that waits for its line holds up
 * those behind it. Asking vector by vector also keeps compilers from calling memcpy for rows this short. */
PM_INLINE void FN(write_rows)(ptrdiff_t n, ptrdiff_t d, ptrdiff_t wide, const real *restrict from,
                              ptrdiff_t ld, real *restrict to)
{
    for (ptrdiff_t i = 0; i < n; i++, from += wide, to += ld) {
        const ptrdiff_t ahead = n - i > AHEAD ? AHEAD * ld : 0;
        ptrdiff_t c = 0;
        for (; c + LANES <= d; c += LANES) {
            __builtin_prefetch(to + ahead + c, 1);
            *(vec *)(to + c) = *(const vec *)(from + c);
        }
        for (; c < d; c++) to[c] = from[c];
    }
}

/* to [ROUND_UP(n, TILE_HEIGHT), wide] = scale * from [n, d], zeros around it. */
static void FN(copy_rows)(ptrdiff_t n, ptrdiff_t d, ptrdiff_t wide, ptrdiff_t ld, const real *restrict from,
                          real scale, real *restrict to)
{
    for (ptrdiff_t i = 0; i < n; i++, from += ld, to += wide) {
        const ptrdiff_t ahead = n - i > AHEAD ? AHEAD * ld : 0;
        ptrdiff_t c = 0;
        for (; c + LANES <= d; c += LANES) {
            __builtin_prefetch(from + ahead + c);
            *(vec *)(to + c) = *(const vec *)(from + c) * scale;
        }
        for (; c < d; c++) to[c] = from[c] * scale;
        for (; c < wide; c++) to[c] = 0;
    }
    memset(to, 0, (size_t)((ROUND_UP(n, TILE_HEIGHT) - n) * wide) * sizeof(real));
}

/* to = strips [ROUND_UP(L, TILE_WIDTH) / TILE_WIDTH][d][TILE_WIDTH] of the transpose of from [L, d]; the columns L and up are zeros. */
static void FN(copy_transposed)(ptrdiff_t L, ptrdiff_t d, ptrdiff_t ld, const real *restrict from,
                                real *restrict to)
{
    for (ptrdiff_t j0 = 0; j0 < L; j0 += TILE_WIDTH, to += d * TILE_WIDTH) {
        const ptrdiff_t n = L - j0 < TILE_WIDTH ? L - j0 : TILE_WIDTH;
        if (n < TILE_WIDTH) memset(to, 0, (size_t)(d * TILE_WIDTH) * sizeof(real));
        ptrdiff_t j = 0;
        for (; j + LANES <= n; j += LANES, from += LANES * ld) {
            for (ptrdiff_t i = 0; i < LANES && i < L - j0 - j - AHEAD; i++)
                FN(fetch_row)(d, from + (AHEAD + i) * ld);
            ptrdiff_t c = 0;
            for (; c + LANES <= d; c += LANES)
                FN(transpose_block)(ld, from + c, TILE_WIDTH, to + c * TILE_WIDTH + j);
            for (; c < d; c++)
                for (ptrdiff_t i = 0; i < LANES; i++) to[c * TILE_WIDTH + j + i] = from[i * ld + c];
        }
        for (; j < n; j++, from += ld)
            for (ptrdiff_t c = 0; c < d; c++) to[c * TILE_WIDTH + j] = from[c];
    }
}
