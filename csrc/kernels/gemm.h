/* gemm.h -- the product with a packed weight, on one block of staged tokens; bias and low-rank term are its epilogue.
 *   y[n,o] = base[n,o] + bias[o] + sum_d xs[n,d] * weight[o,d] + sum_r h[n,r] * P[r,o]
 * xs [N,D] staged, row stride PM_STRIDE   weight [O,D] as panels (pack.h), panel_stride apart
 * base [N,O] or NULL, row stride ldy, may be y   bias [O] or NULL   h [N,R] row stride ldh   P [R,O] row stride ldp
 * y [N,O] row stride ldy   N <= PM_CHUNK   R = 0: no term
 *
 * gemm_bf16: the weight is bfloat16, its panels hold rows in pairs. Where the instruction set multiplies pairs (PM_BF16_DOT), xs is
 * rounded to bfloat16 too; elsewhere rows are widened in registers, which costs a tile nothing beside its multiply-adds, or, where
 * those are too few (IN_PAIRS), panel by panel. The low-rank term, the sums and y stay as they are.   scratch [PM_CHUNK*PM_STRIDE/2] */
struct FN(gemm_job) {
    ptrdiff_t D, panel_stride, R, ldh, ldp, ldy;
    const real *xs, *panel, *base, *bias, *h,
        *P; /* bfloat16: D and panel_stride count pairs, each as wide as a float; so does xs where they are multiplied */
    real *y;
    const real *next; /* where the strip after this one begins */
    ptrdiff_t advance; /* bytes of it for each step of a tile */
};

/* What a tile asks memory for. NEAR: with few rows reading the weight takes longest, and the hardware asks for a panel late: lines
 * are asked for FETCH_AHEAD of them ahead, the next strip's at the end of one. FAR: of a weight larger than an L2 cache every tile
 * asks for its part of the next strip, spread over its steps: asking for a line several times costs nothing, for many at once it
 * does. */
enum FN(gemm_fetching) { FN(NOTHING), FN(NEAR), FN(FAR) };
#define FEW_ROWS ((ptrdiff_t)32)
#define FETCH_AHEAD ((ptrdiff_t)32)
#define LARGE ((ptrdiff_t)1 << 20) /* bytes of a weight */
PM_INLINE void FN(gemm_fetch)(const int vecs, const int fetching, ptrdiff_t n, ptrdiff_t d,
                              const struct FN(gemm_job) * j, const real *panel)
{
    const ptrdiff_t panels = (vecs * LANES + PANEL - 1) / PANEL, end = d + FETCH_AHEAD >= j->D;
    const real *line = panel + FETCH_AHEAD * PANEL + end * (panels * j->panel_stride - j->D * PANEL);
    if (fetching == FN(FAR))
        line = (const real *)((const char *)j->next + (n / TILE_ROWS * j->D + d) * j->advance);
    PM_UNROLLED_FOR (ptrdiff_t p = 0; fetching && p < panels; p++)
        __builtin_prefetch(line + p * j->panel_stride, 0, 2);
}

/* A vector of a panel: plain instruction sets multiply with memory only where it is aligned. */
typedef real FN(panel_vec) __attribute__((vector_size(VBYTES), aligned(VBYTES), may_alias));

/* acc[i][v] -= the product of a block of D: rows n and up, the strip that `panel` starts. Sums have the other sign until they are
 * stored, which changes no bit of them: where multiply and add are two instructions, gcc keeps an accumulator of `-=` in its
 * register, and moves one of `+=` from register to register, a fifth of all instructions. */
PM_INLINE void FN(gemm_sum)(const int rows, const int vecs, const int fetching, const struct FN(gemm_job) * j,
                            ptrdiff_t n, vec acc[TILE_ROWS][TILE_VECS])
{
    const real *xs = j->xs + n * PM_STRIDE, *panel = j->panel;
    const ptrdiff_t D = j->D, panel_stride = j->panel_stride;
    for (ptrdiff_t d = 0; d < D; d++, panel += PANEL) {
        vec w[TILE_VECS];
        FN(gemm_fetch)(vecs, fetching, n, d, j, panel);
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++)
            w[v] = *(const FN(panel_vec) *)(panel + v * LANES / PANEL * panel_stride + v * LANES % PANEL);
        PM_UNROLLED_FOR (int i = 0; i < rows; i++)
            PM_UNROLLED_FOR (int v = 0; v < vecs; v++) acc[i][v] -= w[v] * xs[i * PM_STRIDE + d];
    }
}

/* The same from pairs of rows, where registers are left to widen them in. */
#define IN_PAIRS (PM_SINGLE && TILE_ROWS >= 6)
#if IN_PAIRS
#ifdef PM_BF16_DOT
PM_INLINE void FN(gemm_sum_bf16)(const int rows, const int vecs, const int fetching,
                                 const struct FN(gemm_job) * j, ptrdiff_t n, vec acc[TILE_ROWS][TILE_VECS])
{
    const real *xs = j->xs + n * (PM_STRIDE / 2), *panel = j->panel;
    const ptrdiff_t D = j->D, panel_stride = j->panel_stride;
    for (ptrdiff_t d = 0; d < D; d++, panel += PANEL) {
        vec w[TILE_VECS];
        FN(gemm_fetch)(vecs, fetching, n, d, j, panel);
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) w[v] = *(const vec *)(panel + v * panel_stride);
        PM_UNROLLED_FOR (int i = 0; i < rows; i++)
            PM_UNROLLED_FOR (int v = 0; v < vecs; v++)
                acc[i][v] = PM_BF16_DOT(acc[i][v], w[v], xs + i * (PM_STRIDE / 2) + d);
    }
    PM_UNROLLED_FOR (int i = 0; i < rows; i++)
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) acc[i][v] = (vec){ 0 } - acc[i][v];
}
#else
PM_INLINE void FN(gemm_sum_bf16)(const int rows, const int vecs, const int fetching,
                                 const struct FN(gemm_job) * j, ptrdiff_t n, vec acc[TILE_ROWS][TILE_VECS])
{
    const real *xs = j->xs + n * PM_STRIDE, *panel = j->panel;
    const ptrdiff_t D = j->D, panel_stride = j->panel_stride;
    /* Row by row: of both rows of a pair in one step gcc spills a sum. */
    for (ptrdiff_t d = 0; d < 2 * D; d++, panel += d % 2 ? 0 : PANEL) {
        vec w[TILE_VECS];
        if (d % 2 == 0) FN(gemm_fetch)(vecs, fetching, n, d / 2, j, panel);
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) {
            const vec pairs =
                *(const FN(panel_vec) *)(panel + v * LANES / PANEL * panel_stride + v * LANES % PANEL);
            w[v] = (vec)(d % 2 ? (mask)pairs & -0x10000 : (mask)pairs << 16);
        }
        PM_UNROLLED_FOR (int i = 0; i < rows; i++)
            PM_UNROLLED_FOR (int v = 0; v < vecs; v++) acc[i][v] -= w[v] * xs[i * PM_STRIDE + d];
    }
}
#endif
#endif

/* rows x vecs accumulators in registers: both are constants at every call, and so are bf16 and fetching. */
PM_INLINE void FN(gemm_tile)(const int rows, const int vecs, const int bf16, const int fetching,
                             const struct FN(gemm_job) * j, ptrdiff_t n)
{
    /* Sums of this block of D alone, added to y at the end: one chain over all of a long D rounds three times worse. */
    vec acc[TILE_ROWS][TILE_VECS];
    real *y = j->y + n * j->ldy;
    PM_UNROLLED_FOR (int i = 0; i < rows; i++)
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) {
            acc[i][v] = (vec){ 0 };
            __builtin_prefetch(y + i * j->ldy + v * LANES, 1);
        }
#if IN_PAIRS
    if (bf16) FN(gemm_sum_bf16)(rows, vecs, fetching, j, n, acc);
    else
#else
    (void)bf16;
#endif
        FN(gemm_sum)(rows, vecs, fetching, j, n, acc);
    /* In this order the term may also be added by a call of its own (D = 0, base = y): the bits are the same. */
    PM_UNROLLED_FOR (int i = 0; i < rows; i++)
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) {
            if (j->base) acc[i][v] -= *(const vec *)(j->base + (n + i) * j->ldy + v * LANES);
            if (j->bias) acc[i][v] -= *(const vec *)(j->bias + v * LANES);
        }
    const real *h = j->h + n * j->ldh, *P = j->P;
    const ptrdiff_t ldh = j->ldh;
    for (ptrdiff_t r = 0; r < j->R; r++, P += j->ldp) {
        vec p[TILE_VECS];
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++) p[v] = *(const vec *)(P + v * LANES);
        PM_UNROLLED_FOR (int i = 0; i < rows; i++)
            PM_UNROLLED_FOR (int v = 0; v < vecs; v++) acc[i][v] -= p[v] * h[i * ldh + r];
    }
    PM_UNROLLED_FOR (int i = 0; i < rows; i++)
        PM_UNROLLED_FOR (int v = 0; v < vecs; v++)
            *(vec *)(y + i * j->ldy + v * LANES) = (vec){ 0 } - acc[i][v];
}

/* How many of N rows whole tiles do. Where tiles have six rows and two are left over, tiles of four do the last eight: one of two would
 * wait for its own sums. */
PM_INLINE ptrdiff_t FN(whole_tiles)(ptrdiff_t N)
{
    return TILE_ROWS == 6 && N % 6 == 2 && N > 2 ? N - 8 : N - N % TILE_ROWS;
}

/* All N rows of a strip of vecs vectors. */
PM_INLINE void FN(gemm_strip)(const int vecs, const int bf16, const int fetching,
                              const struct FN(gemm_job) * j, ptrdiff_t N)
{
    ptrdiff_t n = 0;
    for (; n < FN(whole_tiles)(N); n += TILE_ROWS) FN(gemm_tile)(TILE_ROWS, vecs, bf16, fetching, j, n);
    if (TILE_ROWS > 8 && n + 8 <= N) FN(gemm_tile)(8, vecs, bf16, fetching, j, n), n += 8;
    for (; TILE_ROWS > 4 && n + 4 <= N; n += 4) FN(gemm_tile)(4, vecs, bf16, fetching, j, n);
    if (n + 2 <= N) FN(gemm_tile)(2, vecs, bf16, fetching, j, n), n += 2;
    if (n < N) FN(gemm_tile)(1, vecs, bf16, fetching, j, n);
}

#define GEMM_ROWS(name, vecs, bf16, fetching)                                                         \
    static __attribute__((noinline)) void FN(gemm_##name)(const struct FN(gemm_job) * j, ptrdiff_t N) \
    {                                                                                                 \
        FN(gemm_strip)(vecs, bf16, fetching, j, N);                                                   \
    }
GEMM_ROWS(wide, TILE_VECS, 0, FN(NOTHING))
GEMM_ROWS(few, TILE_VECS, 0, FN(NEAR))
GEMM_ROWS(far, TILE_VECS, 0, FN(FAR))
GEMM_ROWS(narrow, 1, 0, FN(NOTHING))
#if IN_PAIRS
GEMM_ROWS(wide_bf16, TILE_VECS, 1, FN(NOTHING))
GEMM_ROWS(few_bf16, TILE_VECS, 1, FN(NEAR))
GEMM_ROWS(far_bf16, TILE_VECS, 1, FN(FAR))
GEMM_ROWS(narrow_bf16, 1, 1, FN(NOTHING))
#endif
#undef GEMM_ROWS

/* tile[n,:] += sum_r h[n,r] * P[r,:], of which there are `width` columns, fewer than LANES   tile [N,LANES] */
PM_INLINE void FN(add_term_part)(ptrdiff_t N, ptrdiff_t width, ptrdiff_t R, const real *h, ptrdiff_t ldh,
                                 const real *P, ptrdiff_t ldp, real *tile)
{
    for (ptrdiff_t r = 0; r < R; r++) {
        const vec p = FN(load_part)(P + r * ldp, width, 0);
        for (ptrdiff_t n = 0; n < N; n++) *(vec *)(tile + n * LANES) += p * h[n * ldh + r];
    }
}

typedef void FN(gemm_rows)(const struct FN(gemm_job) *, ptrdiff_t N);

/* Strip by strip; all is a job but what belongs to a strip: those start at column 0. */
PM_INLINE void FN(gemm_strips)(FN(gemm_rows) * wide, FN(gemm_rows) * few, FN(gemm_rows) * far,
                               FN(gemm_rows) * narrow, const struct FN(gemm_job) * all, ptrdiff_t N,
                               ptrdiff_t O)
{
    const int large = O / PANEL * all->panel_stride * (ptrdiff_t)sizeof(real) > LARGE;
    if (N <= FEW_ROWS) wide = few;
    else if (large) wide = far;
    for (ptrdiff_t o = 0, width; o < O; o += width) {
        struct FN(gemm_job) j = *all;
        width = O - o >= TILE_VECS * LANES ? TILE_VECS * LANES : O - o >= LANES ? LANES : O - o;
        j.panel += o / PANEL * j.panel_stride + o % PANEL;
        j.base = all->base ? all->base + o : NULL;
        j.bias = all->bias ? all->bias + o : NULL;
        j.P = all->P ? all->P + o : NULL;
        j.y += o;
        j.next = o + width < O ? j.panel + width / PANEL * j.panel_stride : all->panel + all->D * PANEL;
        j.advance = (PM_ALIGN * TILE_ROWS + N - 1) / N;
        if (width == TILE_VECS * LANES) wide(&j, N);
        else if (width == LANES) narrow(&j, N);
        else {
            real tile[PM_CHUNK * LANES]; /* less than a vector is left: all goes through a tile of its own */
            struct FN(gemm_job) edge = j;
            edge.base = edge.bias = NULL, edge.R = 0, edge.y = tile, edge.ldy = LANES;
            narrow(&edge, N);
            for (ptrdiff_t n = 0; n < N; n++)
                for (ptrdiff_t c = 0; c < width; c++) {
                    if (j.base) tile[n * LANES + c] += j.base[n * j.ldy + c];
                    if (j.bias) tile[n * LANES + c] += j.bias[c];
                }
            FN(add_term_part)(N, width, j.R, j.h, j.ldh, j.P, j.ldp, tile);
            for (ptrdiff_t n = 0; n < N; n++)
                FN(store_part)(j.y + n * j.ldy, width, *(const vec *)(tile + n * LANES));
        }
    }
}

static void FN(gemm)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, const real *xs, const real *panels,
                     ptrdiff_t panel_stride, const real *base, const real *bias, ptrdiff_t R, const real *h,
                     ptrdiff_t ldh, const real *P, ptrdiff_t ldp, real *y, ptrdiff_t ldy)
{
    const struct FN(gemm_job)
        j = { D, panel_stride, R, ldh, ldp, ldy, xs, panels, base, bias, h, P, y, NULL, 0 };
    FN(gemm_strips)(FN(gemm_wide), FN(gemm_few), FN(gemm_far), FN(gemm_narrow), &j, N, O);
}

static void FN(gemm_bf16)(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, const real *xs, const uint16_t *panels,
                          ptrdiff_t panel_stride, const real *base, const real *bias, ptrdiff_t R,
                          const real *h, ptrdiff_t ldh, const real *P, ptrdiff_t ldp, real *y, ptrdiff_t ldy,
                          real *scratch)
{
#if IN_PAIRS
#ifdef PM_BF16_DOT
    for (ptrdiff_t n = 0; n < N; n++) /* a zero follows a row of odd D */
        for (ptrdiff_t d = 0; d < D; d += 2 * LANES)
            PM_BF16_ROUND(xs + n * PM_STRIDE + d, scratch + n * (PM_STRIDE / 2) + d / 2);
    xs = scratch;
#else
    (void)scratch;
#endif
    const ptrdiff_t pairs = (D + 1) / 2, stride = panel_stride / 2;
    const real *first = (const real *)panels;
    const struct FN(gemm_job)
        j = { pairs, stride, R, ldh, ldp, ldy, xs, first, base, bias, h, P, y, NULL, 0 };
    FN(gemm_strips)(FN(gemm_wide_bf16), FN(gemm_few_bf16), FN(gemm_far_bf16), FN(gemm_narrow_bf16), &j, N, O);
#else
    for (ptrdiff_t o = 0; o < O; o += PANEL_BF16, panels += panel_stride) {
        const ptrdiff_t width = O - o < PANEL_BF16 ? O - o : PANEL_BF16;
        for (ptrdiff_t d = 0; d < D; d++)
            for (ptrdiff_t c = 0; c < PANEL_BF16; c++) {
                const uint32_t bits = (uint32_t)panels[(d / 2 * PANEL_BF16 + c) * 2 + d % 2] << 16;
                float value;
                memcpy(&value, &bits, sizeof value);
                scratch[c / PANEL * D * PANEL + d * PANEL + c % PANEL] = value;
            }
        FN(gemm)(N, D, width, xs, scratch, D * PANEL, base ? base + o : NULL, bias ? bias + o : NULL, R, h,
                 ldh, P ? P + o : NULL, ldp, y + o, ldy);
    }
#endif
}
