/* transpose.h -- blocks, and the panels of a weight [O,D] (pack.h) as those of its transpose: [ceil(D/PANEL)][O][PANEL], of bfloat16
 * [ceil(D/16)][ceil(O/2)][16][2], zero-padded. Panels first..last-1 of the transpose are made: threads share them out. */
/* A block of LANES x LANES is transposed in registers: interleaving the rows of its upper half with those of its lower half moves
 * the first bit of the row behind those of the column; after as many rounds as there are bits, rows are columns. */
#if PM_SINGLE && VBYTES == 64
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif PM_SINGLE && VBYTES == 32
#define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#elif PM_SINGLE
#define ZIP_LOW 0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#else
#define ZIP_LOW 0, 2
#define ZIP_HIGH 1, 3
#endif
PM_INLINE void FN(transpose)(vec rows[LANES])
{
    vec zipped[LANES];
    PM_UNROLLED_FOR (int round = 1; round < LANES; round *= 2) {
        PM_UNROLLED_FOR (int i = 0; i < LANES / 2; i++) {
            zipped[2 * i] = __builtin_shufflevector(rows[i], rows[i + LANES / 2], ZIP_LOW);
            zipped[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + LANES / 2], ZIP_HIGH);
        }
        PM_UNROLLED_FOR (int i = 0; i < LANES; i++) rows[i] = zipped[i];
    }
}
#undef ZIP_LOW
#undef ZIP_HIGH

PM_INLINE void FN(transpose_block)(ptrdiff_t ld, const real *from, ptrdiff_t ldto, real *to)
{
    vec rows[LANES];
    PM_UNROLLED_FOR (int i = 0; i < LANES; i++) rows[i] = *(const vec *)(from + i * ld);
    FN(transpose)(rows);
    PM_UNROLLED_FOR (int i = 0; i < LANES; i++) *(vec *)(to + i * ldto) = rows[i];
}

static void FN(panels_transpose)(ptrdiff_t O, ptrdiff_t D, ptrdiff_t first, ptrdiff_t last,
                                 const real *restrict panels, real *restrict out)
{
    for (ptrdiff_t p = first; p < last; p++) {
        const ptrdiff_t d0 = p * PANEL, n = D - d0 < PANEL ? D - d0 : PANEL;
        real *panel = out + p * O * PANEL;
        if (n < PANEL) memset(panel, 0, sizeof(real) * O * PANEL);
        for (ptrdiff_t o = 0; o < O; o += PANEL) {
            const real *from = panels + o * D + d0 * PANEL; /* [D][PANEL], from row d0 on */
            const ptrdiff_t columns = O - o < PANEL ? O - o : PANEL;
            if (n == PANEL && columns == PANEL)
                for (ptrdiff_t c = 0; c < PANEL; c += LANES)
                    for (ptrdiff_t d = 0; d < PANEL; d += LANES)
                        FN(transpose_block)(PANEL, from + d * PANEL + c, PANEL, panel + (o + c) * PANEL + d);
            else
                for (ptrdiff_t c = 0; c < columns; c++)
                    for (ptrdiff_t d = 0; d < n; d++) panel[(o + c) * PANEL + d] = from[d * PANEL + c];
        }
    }
}

#if PM_SINGLE
/* 16 x 16 values: rows of pairs are widened to rows of floats, transposed, and joined to pairs of the other kind. */
PM_INLINE void FN(transpose_pairs)(const uint16_t *from, uint16_t *to)
{
    typedef uint32_t bits __attribute__((vector_size(VBYTES), aligned(4), may_alias));
    for (ptrdiff_t c = 0; c < PANEL_BF16; c += LANES)
        for (ptrdiff_t d = 0; d < PANEL_BF16; d += LANES) {
            vec rows[LANES];
            PM_UNROLLED_FOR (int i = 0; i < LANES; i += 2) {
                const bits pairs = *(const bits *)(from + (d + i) * PANEL_BF16 + 2 * c);
                rows[i] = (vec)(pairs << 16);
                rows[i + 1] = (vec)(pairs & 0xffff0000u);
            }
            FN(transpose)(rows);
            PM_UNROLLED_FOR (int i = 0; i < LANES; i += 2)
                *(bits *)(to + (c + i) * PANEL_BF16 + 2 * d) = (bits)rows[i] >> 16 | (bits)rows[i + 1];
        }
}
#endif

static void FN(panels_transpose_bf16)(ptrdiff_t O, ptrdiff_t D, ptrdiff_t first, ptrdiff_t last,
                                      const uint16_t *restrict panels, uint16_t *restrict out)
{
    const ptrdiff_t depth = (D + 1) / 2 * 2, height = (O + 1) / 2 * 2;
    for (ptrdiff_t p = first; p < last; p++) {
        const ptrdiff_t d0 = p * PANEL_BF16, n = D - d0 < PANEL_BF16 ? D - d0 : PANEL_BF16;
        uint16_t *panel = out + p * height * PANEL_BF16;
        if (n < PANEL_BF16 || O % 2) memset(panel, 0, sizeof *panel * height * PANEL_BF16);
        for (ptrdiff_t o = 0; o < O; o += PANEL_BF16) {
            const uint16_t *from = panels + o * depth + d0 * PANEL_BF16;
            uint16_t *to = panel + o * PANEL_BF16;
            const ptrdiff_t columns = O - o < PANEL_BF16 ? O - o : PANEL_BF16;
#if PM_SINGLE
            if (n == PANEL_BF16 && columns == PANEL_BF16) {
                FN(transpose_pairs)(from, to);
                continue;
            }
#endif
            for (ptrdiff_t c = 0; c < columns; c++)
                for (ptrdiff_t d = 0; d < n; d++)
                    to[(c / 2 * PANEL_BF16 + d) * 2 + c % 2] = from[(d / 2 * PANEL_BF16 + c) * 2 + d % 2];
        }
    }
}
