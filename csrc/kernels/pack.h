/* pack.h -- what the products read: weights as panels, rows staged.
 *   gemm_pack:      panels [ceil(O/PANEL)][D][PANEL] of scale * weight [O,D], zero-padded
 *   gemm_pack_bf16: panels [ceil(O/PANEL_BF16)][ceil(D/2)][PANEL_BF16][2] of a bfloat16 weight: two rows in pairs, half the bytes
 *   stage:          xs[n,d] = x[n,d], row stride PM_STRIDE
 * A panel is one cache line wide whatever the instruction set, so a packed weight outlives a change of it. With transpose a weight
 * of reals is [D,O]. Only panels first..last-1 are made: threads share them out. */
#define ROUND_UP(n, unit) (((n) + (unit) - 1) / (unit) * (unit))
#define PANEL ((ptrdiff_t)(PM_ALIGN / sizeof(real)))
#define PANEL_BF16 PM_BF16_COLUMNS

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

static void FN(gemm_pack_bf16)(ptrdiff_t O, ptrdiff_t D, ptrdiff_t first, ptrdiff_t last,
                               const uint16_t *restrict weight, uint16_t *restrict panels)
{
    const ptrdiff_t pairs = (D + 1) / 2;
    for (ptrdiff_t p = first; p < last; p++) {
        uint16_t *panel = panels + p * pairs * 2 * PANEL_BF16;
        const ptrdiff_t o = p * PANEL_BF16, columns = O - o < PANEL_BF16 ? O - o : PANEL_BF16;
        if (columns < PANEL_BF16 || D % 2) memset(panel, 0, sizeof *panel * pairs * 2 * PANEL_BF16);
        for (ptrdiff_t d0 = 0; d0 < D; d0 += 16) /* as in gemm_pack: few lines of either are open */
            for (ptrdiff_t c = 0; c < columns; c++) {
                const ptrdiff_t end = d0 + 16 < D ? d0 + 16 : D;
                for (ptrdiff_t d = d0; d < end; d++)
                    panel[(d / 2 * PANEL_BF16 + c) * 2 + d % 2] = weight[(o + c) * D + d];
            }
    }
}

/* xs = rows of x, a zero behind each (lowrank.h, proj). What is STAGE_AHEAD further on is asked for meanwhile: memory answers late.
 * (Asking for the next chunk during the product instead: a hundredth of a step, for thirty lines.) */
#define STAGE_AHEAD ((ptrdiff_t)(12288 / sizeof(real)))
static void FN(stage)(ptrdiff_t N, ptrdiff_t D, const real *restrict x, ptrdiff_t ldx, real *restrict xs)
{
    const ptrdiff_t ahead = (STAGE_AHEAD + D - 1) / D * ldx;
    for (ptrdiff_t n = 0; n < N; n++, x += ldx, xs += PM_STRIDE) {
        ptrdiff_t d = 0;
        for (; d + PANEL <= D; d += PANEL) {
            __builtin_prefetch(x + d + ahead);
            for (ptrdiff_t l = 0; l < PANEL; l += LANES) *(vec *)(xs + d + l) = *(const vec *)(x + d + l);
        }
        for (; d < D; d++) xs[d] = x[d];
        xs[D] = 0;
    }
}
