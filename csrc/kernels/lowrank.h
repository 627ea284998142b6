/* lowrank.h -- what the low-rank term needs beside the product: projection, sums over tokens.
 *   proj:        h[n,r] = (accumulate ? h[n,r] : 0) + sum_d xs[at[n],d] * factor[r,d]     d from d0 on, D columns of D_all; xs staged
 *   outer:       dP[r,d] = (accumulate ? dP[r,d] : 0) + sum_n h[n,r] * x[at[n],d]     h [N,R]  x [N,D]  dP [R,D], row strides ld.
 *   expand:      y[at[n],d] += sum_r h[n,r] * P[r,d]     P [R,D]; no two at[n] are equal; N <= PM_CHUNK
 *   at: N rows, or NULL: they are 0..N-1 (proj with at: N <= PM_CHUNK, and room for so many staged rows in `gathered`)
 *   add_rows:    out[d] += sum_n x[n,d] */

/* A factor is packed like a weight, except that few ranks would leave most of a panel empty. Of up to FEW_RANKS of them the panel is
 * one vector wide, [ceil(D_all/STEP)][FEW_RANKS][STEP]: where a wide register would still be half empty it holds two columns of every rank, and
 * h is the sum of both halves. Staged rows end with a zero for an odd D. */
/* What differs is below: proj_columns, STEP columns of a row as all ranks meet them; proj_ranks, the ranks of a sum;
 * proj_pack_block, FEW_RANKS rows of LANES columns as they lie in a panel. */
#if VBYTES == 64
#define FEW_RANKS ((ptrdiff_t)8)
#define PROJ_ROWS TILE_ROWS
typedef long long FN(pair)
    __attribute__((aligned(sizeof(real)), may_alias)); /* two columns of a staged row */
typedef long long FN(pairs) __attribute__((vector_size(VBYTES)));
typedef real FN(ranks) __attribute__((vector_size(VBYTES / 2), aligned(sizeof(real)), may_alias));

PM_INLINE vec FN(proj_columns)(const real *x) { return (vec)((FN(pairs)){ 0 } + *(const FN(pair) *)x); }

PM_INLINE FN(ranks) FN(proj_ranks)(vec sum)
{
    return __builtin_shufflevector(sum, sum, 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(sum, sum, 1, 3, 5, 7, 9, 11, 13, 15);
}

/* Transposed pair by pair, as transpose.h does it value by value. */
PM_INLINE void FN(proj_pack_block)(vec rows[FEW_RANKS])
{
    FN(pairs) zipped[FEW_RANKS];
    PM_UNROLLED_FOR (int round = 1; round < FEW_RANKS; round *= 2) {
        PM_UNROLLED_FOR (int i = 0; i < FEW_RANKS / 2; i++) {
            const FN(pairs) a = (FN(pairs))rows[i], b = (FN(pairs))rows[i + FEW_RANKS / 2];
            zipped[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            zipped[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
        }
        PM_UNROLLED_FOR (int i = 0; i < FEW_RANKS; i++) rows[i] = (vec)zipped[i];
    }
}
#else
#define FEW_RANKS LANES
#define PROJ_ROWS 8 /* sums that hide what a multiply-add takes */
typedef vec FN(ranks);
PM_INLINE vec FN(proj_columns)(const real *x) { return FN(splat)(*x); }
PM_INLINE vec FN(proj_ranks)(vec sum) { return sum; }
PM_INLINE void FN(proj_pack_block)(vec rows[FEW_RANKS]) { FN(transpose)(rows); }
#endif
#define STEP (LANES / FEW_RANKS)

PM_INLINE void FN(proj_tile)(const int rows, const int apart, ptrdiff_t D, const ptrdiff_t *at,
                             const real *restrict xs, const real *restrict panel, int accumulate,
                             real *restrict h, ptrdiff_t ldh)
{
    vec acc[PROJ_ROWS];
    const real *row[PROJ_ROWS];
    PM_UNROLLED_FOR (int i = 0; i < rows; i++) {
        acc[i] = (vec){ 0 };
        row[i] = xs + (apart ? at[i] : i) * PM_STRIDE;
    }
    for (ptrdiff_t d = 0; d < D; d += STEP) {
        const vec w = *(const vec *)(panel + d * FEW_RANKS);
        PM_UNROLLED_FOR (int i = 0; i < rows; i++) acc[i] += w * FN(proj_columns)(row[i] + d);
    }
    PM_UNROLLED_FOR (int i = 0; i < rows; i++) {
        FN(ranks) *out = (FN(ranks) *)(h + i * ldh);
        *out = FN(proj_ranks)(acc[i]) + (accumulate ? *out : (FN(ranks)){ 0 });
    }
}

static void FN(proj_pack)(ptrdiff_t R, ptrdiff_t D, const real *restrict factor, real scale,
                          real *restrict panels)
{
    if (R > FEW_RANKS) {
        FN(gemm_pack)(R, D, 0, (R + PANEL - 1) / PANEL, factor, 0, scale, panels);
        return;
    }
    ptrdiff_t d = 0;
    for (; d + LANES <= D; d += LANES) {
        vec rows[FEW_RANKS];
        PM_UNROLLED_FOR (int i = 0; i < FEW_RANKS; i++) {
            __builtin_prefetch(factor + i * D + d + 8 * LANES);
            rows[i] = (vec){ 0 };
            if (i < R) rows[i] = *(const vec *)(factor + i * D + d) * scale;
        }
        FN(proj_pack_block)(rows);
        PM_UNROLLED_FOR (int i = 0; i < FEW_RANKS; i++)
            *(vec *)(panels + d * FEW_RANKS + i * LANES) = rows[i];
    }
    memset(panels + d * FEW_RANKS, 0, sizeof(real) * ROUND_UP(D - d, STEP) * FEW_RANKS);
    for (; d < D; d++)
        for (ptrdiff_t r = 0; r < R; r++)
            panels[d / STEP * STEP * FEW_RANKS + STEP * r + d % STEP] = scale * factor[r * D + d];
}

/* h has room for whole panels in every row. */
static void FN(proj)(ptrdiff_t N, ptrdiff_t R, ptrdiff_t D_all, ptrdiff_t d0, ptrdiff_t D,
                     const ptrdiff_t *at, const real *restrict xs, const real *restrict panels,
                     int accumulate, real *h, ptrdiff_t ldh, real *gathered)
{
    if (R > FEW_RANKS) {
        if (at) {
            for (ptrdiff_t n = 0; n < N; n++)
                memcpy(gathered + n * PM_STRIDE, xs + at[n] * PM_STRIDE, sizeof(real) * D);
            xs = gathered;
        }
        FN(gemm)(N, D, ROUND_UP(R, PANEL), xs, panels + d0 * PANEL, D_all * PANEL, accumulate ? h : NULL,
                 NULL, 0, NULL, 0, NULL, 0, h, ldh);
        return;
    }
    const real *panel = panels + d0 * FEW_RANKS;
    ptrdiff_t n = 0;
    if (at) {
        for (; n + 8 <= N; n += 8) FN(proj_tile)(8, 1, D, at + n, xs, panel, accumulate, h + n * ldh, ldh);
        for (; n < N; n++) FN(proj_tile)(1, 1, D, at + n, xs, panel, accumulate, h + n * ldh, ldh);
        return;
    }
    for (; n + PROJ_ROWS <= N; n += PROJ_ROWS)
        FN(proj_tile)(PROJ_ROWS, 0, D, NULL, xs + n * PM_STRIDE, panel, accumulate, h + n * ldh, ldh);
    if (PROJ_ROWS > 8 && n + 8 <= N)
        FN(proj_tile)(8, 0, D, NULL, xs + n * PM_STRIDE, panel, accumulate, h + n * ldh, ldh), n += 8;
    if (n + 4 <= N)
        FN(proj_tile)(4, 0, D, NULL, xs + n * PM_STRIDE, panel, accumulate, h + n * ldh, ldh), n += 4;
    for (; n < N; n++) FN(proj_tile)(1, 0, D, NULL, xs + n * PM_STRIDE, panel, accumulate, h + n * ldh, ldh);
}

PM_INLINE void FN(outer_tile)(const int rows, const int vecs, const int apart, const int fetches, ptrdiff_t N,
                              const ptrdiff_t *restrict at, const real *restrict h, ptrdiff_t ldh,
                              const real *restrict x, ptrdiff_t ldx, int accumulate, real *restrict dP,
                              ptrdiff_t ldp)
{
    vec acc[TILE_ROWS][TILE_VECS];
    PM_UNROLLED_FOR (int r = 0; r < rows; r++)
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++)
            acc[r][v] = accumulate ? *(const vec *)(dP + r * ldp + v * LANES) : (vec){ 0 };
    for (ptrdiff_t n = 0; n < N; n++, h += ldh) {
        const real *row = x + (apart ? at[n] : n) * ldx;
        vec xv[TILE_VECS];
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) {
            xv[v] = *(const vec *)(row + v * LANES);
            if (fetches && v * LANES % PANEL == 0) __builtin_prefetch(row + (vecs + v) * LANES);
        }
        PM_UNROLLED_FOR (int r = 0; r < rows; r++)
            PM_UNROLLED_FOR (int v = 0; v < vecs; v++) acc[r][v] += xv[v] * h[r];
    }
    PM_UNROLLED_FOR (int r = 0; r < rows; r++)
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) *(vec *)(dP + r * ldp + v * LANES) = acc[r][v];
}

/* All ranks of a strip of columns, whose part of x stays in L1 meanwhile. The first tile and those of fewer rows ask for the next strip:
 * rows are far apart. */
PM_INLINE void FN(outer_strip)(const int vecs, const int apart, ptrdiff_t N, ptrdiff_t R,
                               const ptrdiff_t *restrict at, const real *restrict h, ptrdiff_t ldh,
                               const real *restrict x, ptrdiff_t ldx, int accumulate, real *restrict dP,
                               ptrdiff_t ldp)
{
#define OUTER(rows, fetches) \
    FN(outer_tile)(rows, vecs, apart, fetches, N, at, h + r, ldh, x, ldx, accumulate, dP + r * ldp, ldp)
    ptrdiff_t r = 0;
    if (FN(whole_tiles)(R)) OUTER(TILE_ROWS, 1), r += TILE_ROWS;
    for (; r < FN(whole_tiles)(R); r += TILE_ROWS) OUTER(TILE_ROWS, 0);
    if (TILE_ROWS > 8 && r + 8 <= R) OUTER(8, 1), r += 8;
    for (; TILE_ROWS > 4 && r + 4 <= R; r += 4) OUTER(4, 1);
    if (r + 2 <= R) OUTER(2, 1), r += 2;
    if (r < R) OUTER(1, 1);
#undef OUTER
}

PM_INLINE void FN(outer_all)(const int apart, ptrdiff_t N, ptrdiff_t R, ptrdiff_t D, const ptrdiff_t *at,
                             const real *restrict h, ptrdiff_t ldh, const real *restrict x, ptrdiff_t ldx,
                             int accumulate, real *restrict dP, ptrdiff_t ldp)
{
    ptrdiff_t d = 0;
    for (; d + TILE_VECS * LANES <= D; d += TILE_VECS * LANES)
        FN(outer_strip)(TILE_VECS, apart, N, R, at, h, ldh, x + d, ldx, accumulate, dP + d, ldp);
    for (; d + LANES <= D; d += LANES)
        FN(outer_strip)(1, apart, N, R, at, h, ldh, x + d, ldx, accumulate, dP + d, ldp);
    for (; d < D; d++)
        for (ptrdiff_t r = 0; r < R; r++) {
            real sum = accumulate ? dP[r * ldp + d] : 0;
            for (ptrdiff_t n = 0; n < N; n++) sum += h[n * ldh + r] * x[(apart ? at[n] : n) * ldx + d];
            dP[r * ldp + d] = sum;
        }
}

static void FN(outer)(ptrdiff_t N, ptrdiff_t R, ptrdiff_t D, const ptrdiff_t *at, const real *restrict h,
                      ptrdiff_t ldh, const real *restrict x, ptrdiff_t ldx, int accumulate, real *restrict dP,
                      ptrdiff_t ldp)
{
    if (at) FN(outer_all)(1, N, R, D, at, h, ldh, x, ldx, accumulate, dP, ldp);
    else FN(outer_all)(0, N, R, D, NULL, h, ldh, x, ldx, accumulate, dP, ldp);
}

PM_INLINE void FN(expand_tile)(const int rows, const int vecs, ptrdiff_t R, const ptrdiff_t *restrict at,
                               const real *restrict h, ptrdiff_t ldh, const real *restrict P, ptrdiff_t ldp,
                               real *restrict y, ptrdiff_t ldy)
{
    vec acc[TILE_ROWS][TILE_VECS];
    PM_UNROLLED_FOR (int i = 0; i < rows; i++)
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) acc[i][v] = *(const vec *)(y + at[i] * ldy + v * LANES);
    for (ptrdiff_t r = 0; r < R; r++, P += ldp) {
        vec p[TILE_VECS];
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) p[v] = *(const vec *)(P + v * LANES);
        PM_UNROLLED_FOR (int i = 0; i < rows; i++)
            PM_UNROLLED_FOR (int v = 0; v < vecs; v++) acc[i][v] += p[v] * h[i * ldh + r];
    }
    PM_UNROLLED_FOR (int i = 0; i < rows; i++)
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) *(vec *)(y + at[i] * ldy + v * LANES) = acc[i][v];
}

PM_INLINE void FN(expand_strip)(const int vecs, ptrdiff_t N, ptrdiff_t R, const ptrdiff_t *restrict at,
                                const real *restrict h, ptrdiff_t ldh, const real *restrict P, ptrdiff_t ldp,
                                real *restrict y, ptrdiff_t ldy)
{
    ptrdiff_t n = 0;
    for (; n < FN(whole_tiles)(N); n += TILE_ROWS)
        FN(expand_tile)(TILE_ROWS, vecs, R, at + n, h + n * ldh, ldh, P, ldp, y, ldy);
    for (; TILE_ROWS > 4 && n + 4 <= N; n += 4)
        FN(expand_tile)(4, vecs, R, at + n, h + n * ldh, ldh, P, ldp, y, ldy);
    for (; n < N; n++) FN(expand_tile)(1, vecs, R, at + n, h + n * ldh, ldh, P, ldp, y, ldy);
}

static void FN(expand)(ptrdiff_t N, ptrdiff_t R, ptrdiff_t D, const ptrdiff_t *at, const real *h,
                       ptrdiff_t ldh, const real *P, ptrdiff_t ldp, real *y, ptrdiff_t ldy)
{
    ptrdiff_t d = 0;
    for (; d + TILE_VECS * LANES <= D; d += TILE_VECS * LANES)
        FN(expand_strip)(TILE_VECS, N, R, at, h, ldh, P + d, ldp, y + d, ldy);
    for (; d + LANES <= D; d += LANES) FN(expand_strip)(1, N, R, at, h, ldh, P + d, ldp, y + d, ldy);
    if (d == D) return;
    real tile[PM_CHUNK * LANES];
    for (ptrdiff_t n = 0; n < N; n++)
        *(vec *)(tile + n * LANES) = FN(load_part)(y + at[n] * ldy + d, D - d, 0);
    FN(add_term_part)(N, D - d, R, h, ldh, P + d, ldp, tile);
    for (ptrdiff_t n = 0; n < N; n++)
        FN(store_part)(y + at[n] * ldy + d, D - d, *(const vec *)(tile + n * LANES));
}

static void FN(add_rows)(ptrdiff_t N, ptrdiff_t D, const real *restrict x, ptrdiff_t ldx, real *restrict out)
{
    for (ptrdiff_t n = 0; n < N; n++)
        for (ptrdiff_t d = 0; d < D; d++) out[d] += x[n * ldx + d];
}
