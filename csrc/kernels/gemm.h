/* gemm.h -- the product with a packed weight, on one block of staged tokens; bias and low-rank term are its epilogue.
 *   y[n,o] = (accumulate ? y[n,o] : bias[o]) + sum_d xs[n,d] * weight[o,d] + sum_r h[n,r] * P[r,o]
 * xs [N,D] staged, row stride PM_STRIDE   weight [O,D] as panels [ceil(O/PANEL)][D][PANEL], zero-padded, panel_stride apart
 * bias [O] or NULL   h [N,R] row stride ldh   P [R,O] row stride ldp   y [N,O] row stride ldy   N <= PM_CHUNK   R = 0: no term
 * A panel is one cache line wide whatever the instruction set, so a packed weight outlives a change of it. */
#define PANEL ((ptrdiff_t)(PM_ALIGN / sizeof(real)))

/* panels of scale * weight, or of its transpose: then weight is [D,O]. Panels first..last-1 only: threads share them out. */
static void FN(gemm_pack)(ptrdiff_t O, ptrdiff_t D, ptrdiff_t first, ptrdiff_t last,
                          const real *restrict weight, int transpose, real scale, real *restrict panels)
{
    for (ptrdiff_t p = first; p < last; p++) {
        real *panel = panels + p * D * PANEL;
        const ptrdiff_t columns = O - p * PANEL < PANEL ? O - p * PANEL : PANEL;
        if (columns < PANEL) memset(panel, 0, sizeof(real) * D * PANEL);
        if (transpose)
            for (ptrdiff_t d = 0; d < D; d++)
                for (ptrdiff_t c = 0; c < columns; c++)
                    panel[d * PANEL + c] = scale * weight[d * O + p * PANEL + c];
        else /* eight of a row at a time: a whole line is read while it is in cache, few lines of the panel are open */
            for (ptrdiff_t d0 = 0; d0 < D; d0 += 8)
                for (ptrdiff_t c = 0; c < columns; c++) {
                    const real *row = weight + (p * PANEL + c) * D;
                    const ptrdiff_t end = d0 + 8 < D ? d0 + 8 : D;
                    for (ptrdiff_t d = d0; d < end; d++) panel[d * PANEL + c] = scale * row[d];
                }
    }
}

struct FN(gemm_job) {
    ptrdiff_t D, panel_stride, R, ldh, ldp, ldy;
    const real *xs, *panel, *bias, *h, *P;
    real *y;
    int accumulate;
};

/* rows x vecs accumulators in registers: both are constants at every call. */
PM_INLINE void FN(gemm_tile)(const int rows, const int vecs, const struct FN(gemm_job) * j, ptrdiff_t n)
{
    /* Sums of this block of D alone, added to y at the end: one chain over all of a long D rounds three times worse. */
    vec acc[TILE_ROWS][TILE_VECS];
    real *y = j->y + n * j->ldy;
    PM_UNROLLED_FOR (int i = 0; i < rows; i++)
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) acc[i][v] = (vec){ 0 };
    const real *xs = j->xs + n * PM_STRIDE, *panel = j->panel;
    const ptrdiff_t D = j->D, panel_stride = j->panel_stride;
    PM_UNROLLED_FOR (int i = 0; i < rows; i++)
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) __builtin_prefetch(y + i * j->ldy + v * LANES, 1);
    for (ptrdiff_t d = 0; d < D; d++, panel += PANEL) {
        vec w[TILE_VECS];
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++)
            w[v] = *(const vec *)(panel + v * LANES / PANEL * panel_stride + v * LANES % PANEL);
        PM_UNROLLED_FOR (int i = 0; i < rows; i++)
            PM_UNROLLED_FOR (int v = 0; v < vecs; v++) acc[i][v] += w[v] * xs[i * PM_STRIDE + d];
    }
    const real *h = j->h + n * j->ldh, *P = j->P;
    const ptrdiff_t ldh = j->ldh;
    for (ptrdiff_t r = 0; r < j->R; r++, P += j->ldp) {
        vec p[TILE_VECS];
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) p[v] = *(const vec *)(P + v * LANES);
        PM_UNROLLED_FOR (int i = 0; i < rows; i++)
            PM_UNROLLED_FOR (int v = 0; v < vecs; v++) acc[i][v] += p[v] * h[i * ldh + r];
    }
    PM_UNROLLED_FOR (int i = 0; i < rows; i++)
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) {
            vec *y_iv = (vec *)(y + i * j->ldy + v * LANES);
            if (j->accumulate) acc[i][v] += *y_iv;
            else if (j->bias) acc[i][v] += *(const vec *)(j->bias + v * LANES);
            *y_iv = acc[i][v];
        }
}

/* All N rows of a strip of vecs vectors. */
PM_INLINE void FN(gemm_strip)(const int vecs, const struct FN(gemm_job) * j, ptrdiff_t N)
{
    ptrdiff_t n = 0;
    for (; n + TILE_ROWS <= N; n += TILE_ROWS) FN(gemm_tile)(TILE_ROWS, vecs, j, n);
    if (TILE_ROWS > 8 && n + 8 <= N) FN(gemm_tile)(8, vecs, j, n), n += 8;
    if (TILE_ROWS > 4 && n + 4 <= N) FN(gemm_tile)(4, vecs, j, n), n += 4;
    if (n + 2 <= N) FN(gemm_tile)(2, vecs, j, n), n += 2;
    if (n < N) FN(gemm_tile)(1, vecs, j, n);
}

static __attribute__((noinline)) void FN(gemm_wide)(const struct FN(gemm_job) * j, ptrdiff_t N)
{
    FN(gemm_strip)(TILE_VECS, j, N);
}
static __attribute__((noinline)) void FN(gemm_narrow)(const struct FN(gemm_job) * j, ptrdiff_t N)
{
    FN(gemm_strip)(1, j, N);
}

static void FN(gemm)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, const real *restrict xs,
                     const real *restrict panels, ptrdiff_t panel_stride, int accumulate,
                     const real *restrict bias, ptrdiff_t R, const real *restrict h, ptrdiff_t ldh,
                     const real *restrict P, ptrdiff_t ldp, real *restrict y, ptrdiff_t ldy)
{
    struct FN(gemm_job) j = { .D = D,
                              .panel_stride = panel_stride,
                              .R = R,
                              .ldh = ldh,
                              .ldp = ldp,
                              .ldy = ldy,
                              .xs = xs,
                              .h = h,
                              .accumulate = accumulate };
    for (ptrdiff_t o = 0, width; o < O; o += width) {
        width = O - o >= TILE_VECS * LANES ? TILE_VECS * LANES : O - o >= LANES ? LANES : O - o;
        j.panel = panels + o / PANEL * panel_stride + o % PANEL;
        j.bias = bias ? bias + o : NULL;
        j.P = P ? P + o : NULL;
        j.y = y + o;
        if (width == TILE_VECS * LANES) FN(gemm_wide)(&j, N);
        else if (width == LANES) FN(gemm_narrow)(&j, N);
        else { /* less than a vector is left: the product goes through a local tile, its epilogue is scalar */
            real tile[PM_CHUNK * LANES];
            struct FN(gemm_job) edge = j;
            edge.bias = NULL, edge.R = 0, edge.accumulate = 0, edge.y = tile, edge.ldy = LANES;
            FN(gemm_narrow)(&edge, N);
            for (ptrdiff_t n = 0; n < N; n++)
                for (ptrdiff_t c = 0; c < width; c++) {
                    real sum = tile[n * LANES + c] + (accumulate ? j.y[n * ldy + c] : bias ? j.bias[c] : 0);
                    for (ptrdiff_t r = 0; r < R; r++) sum += h[n * ldh + r] * j.P[r * ldp + c];
                    j.y[n * ldy + c] = sum;
                }
        }
    }
}
