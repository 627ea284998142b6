/* linear_chunk.h -- what ops/linear.c does with one chunk of tokens: the layers of one x take turns with the rows that are staged.
 * Included once per dtype. */

#define COLUMNS \
    ((ptrdiff_t)64) /* parts of the columns begin at multiples: whole panels and strips of any instruction set */
#define SHORT 16 /* tokens of a segment: fewer do not fill the tiles of a product */

/* Layers that read the same x, and what comes of it. */
struct FN(linear_layers) {
    ptrdiff_t N, D, n;
    struct FN(linear_pass) pass[PM_LAYERS];
    const real *x;
    enum pm_activation activation;
    const real *times; /* [N,D]: what the activated x is multiplied with, or NULL */
    real *dx, *dtimes; /* backward, or NULL */
    ptrdiff_t parts; /* of the columns of `out` that a chunk is cut in */
    atomic_int failed;
};

/* Which rows of the chunk a segment has (NULL: those from its start on), and the first staged one. */
static const ptrdiff_t *FN(linear_rows)(const struct FN(linear_chunk) * c, const struct pm_segment *s,
                                        const real **staged)
{
    const ptrdiff_t *rows = c->pass->pairs.rows;
    *staged = c->staged + (rows ? 0 : s->start - c->start) * PM_STRIDE;
    return rows ? rows + s->start : NULL;
}

/* A block of columns of `in`, i0 and up, is staged: the projection, and ddown, segment by segment. */
static void FN(linear_project)(const struct FN(linear_chunk) * c, ptrdiff_t i0, ptrdiff_t columns)
{
    const struct FN(linear_pass) *p = c->pass;
    const ptrdiff_t R = p->R_down;
    for (const struct pm_segment *s = c->first; s < c->last; s++) {
        const ptrdiff_t n = s->start - c->low_start, rows = s->end - s->start;
        const real *staged;
        const ptrdiff_t *at = FN(linear_rows)(c, s, &staged);
        K->proj(rows, R, p->I, i0, columns, at, staged,
                p->panels_down + s->group % p->n_down * FN(padded)(R) * p->I, i0 > 0, c->low + n * c->ld,
                c->ld, c->gathered);
        if (p->learns)
            K->outer(rows, R, columns, at, c->u + n * c->ldu, c->ldu, staged, PM_STRIDE, !s->opens,
                     p->sums + s->slot * p->pair + p->R_up * p->O + i0, p->I);
    }
}

/* The [R_up,O] of a group, or NULL where there is none. */
static const real *FN(linear_up)(const struct FN(linear_pass) * p, ptrdiff_t group)
{
    const real *up = p->makes ? p->made_up : p->up;
    return up ? up + group % p->n_up * p->R_up * p->O : NULL;
}

/* Of segment s (NULL: of all rows, without a term): out = onto + bias + staged W + low up, for one block of columns of `in`. The first block
 * brings onto and bias, the last one the term of R. Without `product` the term alone is added to what is there. */
static void FN(linear_product)(const struct FN(linear_chunk) * c, const struct pm_segment *s, ptrdiff_t i0,
                               ptrdiff_t columns, int product, ptrdiff_t R)
{
    const struct FN(linear_pass) *p = c->pass;
    const ptrdiff_t I = p->I, O = p->O, n = s ? s->start - c->start : 0,
                    rows = s ? s->end - s->start : c->rows, at = (c->start + n) * O + c->o0;
    const real *up = FN(linear_up)(p, s ? s->group : 0), *staged = c->staged + n * PM_STRIDE,
               *low = c->meets + n * c->ld;
    real *out = p->out + at;
    const int first = product && (!p->weight.panels || i0 == 0);
    const real *base = !first    ? out
                       : p->onto ? p->onto + at
                                 : NULL,
               *bias = first && p->bias ? p->bias + c->o0 : NULL;
    if (up) up += c->o0;
    if (product && p->weight.bf16) {
        const ptrdiff_t stride = (I + 1) / 2 * 2 * PM_BF16_COLUMNS;
        K->gemm_bf16(rows, columns, c->columns, staged,
                     (const uint16_t *)p->weight.panels + c->o0 / PM_BF16_COLUMNS * stride +
                         i0 * PM_BF16_COLUMNS,
                     stride, base, bias, R, low, c->ld, up, O, out, O, c->widened);
    } else {
        const ptrdiff_t panel = product && p->weight.panels ? PM_ALIGN / sizeof(real) : 0;
        const real *panels = panel ? (const real *)p->weight.panels + (c->o0 * I + i0 * panel) : staged;
        K->gemm(rows, panel ? columns : 0, c->columns, staged, panels, I * panel, base, bias, R, low, c->ld,
                up, O, out, O);
    }
}

/* Rows by index: out += low up, group after group, while they are in cache. */
static void FN(linear_expand)(const struct FN(linear_chunk) * c)
{
    const struct FN(linear_pass) *p = c->pass;
    real *out = p->out + c->start * p->O + c->o0;
    if (!p->weight.panels && !p->onto && !p->bias)
        for (ptrdiff_t n = 0; n < c->rows; n++) memset(out + n * p->O, 0, sizeof(real) * c->columns);
    else if (!p->weight.panels) FN(linear_product)(c, NULL, 0, 0, 1, 0);
    for (const struct pm_segment *s = c->first; s < c->last; s++)
        K->expand(s->end - s->start, p->R_up, c->columns, p->pairs.rows + s->start,
                  c->meets + (s->start - c->low_start) * c->ld, c->ld, FN(linear_up)(p, s->group) + c->o0,
                  p->O, out, p->O);
}

/* Columns of `in` that are staged together: blocks of equal size, a multiple of the panel, so that none is much smaller than the others. */
static ptrdiff_t FN(linear_block)(ptrdiff_t I)
{
    const ptrdiff_t n_blocks = (I + PM_STAGE - 1) / PM_STAGE, panel = PM_ALIGN / sizeof(real);
    return ((I + n_blocks - 1) / n_blocks + panel - 1) / panel * panel;
}

/* What a pass makes of one block of columns of `in`, which is staged. */
static void FN(linear_advance)(const struct FN(linear_chunk) * c, ptrdiff_t i0, ptrdiff_t columns)
{
    const struct FN(linear_pass) *p = c->pass;
    const int complete = i0 + columns == p->I;
    const ptrdiff_t R = p->R_up;
    if (R) FN(linear_project)(c, i0, columns);
    for (ptrdiff_t n = 0; complete && c->leads && p->saved_h && n < c->rows * p->k; n++)
        memcpy(p->saved_h + (c->low_start + n) * p->R_down, c->low + n * c->ld, sizeof(real) * p->R_down);
    if (complete && p->aside && p->backward) FN(linear_unweigh)(c);
    else if (complete && p->aside) FN(linear_weigh)(c, c->low, c->ld);
    if (!p->out || !c->columns) return;
    if (c->whole) FN(linear_product)(c, NULL, i0, columns, 1, 0);
    if (p->pairs.rows) {
        if (complete) FN(linear_expand)(c);
        return;
    }
    for (const struct pm_segment *s = c->first; (complete || (p->weight.panels && !c->whole)) && s < c->last;
         s++)
        FN(linear_product)(c, s, i0, columns, !c->whole, complete ? R : 0);
}

/* Rows of x, a block of columns from o on, are staged: the gradient of x from that of its activation, and dup of every pass. */
static void FN(linear_learn)(const struct FN(linear_layers) * l, const struct FN(linear_chunk) * chunks,
                             ptrdiff_t o, ptrdiff_t columns)
{
    const ptrdiff_t rows = chunks->rows, at = chunks->start * l->D + o;
    if (l->activation)
        K->activate(l->activation, rows, columns, l->times ? l->times + at : NULL, l->D, chunks->staged,
                    l->dx ? l->dx + at : NULL, l->dtimes ? l->dtimes + at : NULL);
    for (const struct FN(linear_chunk) *c = chunks; c < chunks + l->n; c++)
        for (const struct pm_segment *s = c->first; c->pass->learns && s < c->last; s++) {
            const struct FN(linear_pass) *p = c->pass;
            const real *staged;
            const ptrdiff_t *which = FN(linear_rows)(c, s, &staged);
            K->outer(s->end - s->start, p->R_up, columns, which, c->low + (s->start - c->low_start) * c->ld,
                     c->ld, staged, PM_STRIDE, !s->opens, p->sums + s->slot * p->pair + o, l->D);
        }
}

/* A chunk of one pass; its scratch begins at `scratch`. Returns where it ends. */
static real *FN(linear_chunk_of)(const struct FN(linear_layers) * l, const struct FN(linear_pass) * p,
                                 ptrdiff_t item, real *scratch, struct FN(linear_chunk) * c)
{
    const ptrdiff_t chunk = item / l->parts, part = item % l->parts,
                    widest = p->R_up < p->R_down ? p->R_down : p->R_up, start = chunk * PM_CHUNK;
    *c = (struct FN(linear_chunk)){ .pass = p,
                                    .chunk = chunk,
                                    .start = start,
                                    .low_start = start * p->k,
                                    .rows = l->N - start < PM_CHUNK ? l->N - start : PM_CHUNK,
                                    .leads = part == 0,
                                    .first = p->pairs.at + p->pairs.first[chunk],
                                    .last = p->pairs.at + p->pairs.first[chunk + 1],
                                    .o0 = p->O * part / l->parts / COLUMNS * COLUMNS,
                                    .ld = FN(padded)(widest) };
    const ptrdiff_t o1 = part + 1 < l->parts ? p->O * (part + 1) / l->parts / COLUMNS * COLUMNS : p->O;
    c->columns = o1 - c->o0;
    c->whole = p->weight.panels && p->R_up &&
               (p->pairs.rows || (c->last - c->first > 1 && c->rows < SHORT * (c->last - c->first)));
    c->low = scratch;
    c->weighted = c->low + PM_CHUNK * p->k * c->ld;
    c->spread = c->weighted + PM_CHUNK * p->k * c->ld;
    c->dspread = c->spread + (p->by_token ? PM_CHUNK * p->k * p->S : 0);
    c->gathered = c->dspread + (p->by_token ? PM_CHUNK * p->k * p->S : 0);
    if (p->by_token && p->term->ids) FN(linear_spread)(c);
    c->meets = p->aside && !p->backward ? c->weighted : c->low;
    c->u = p->h ? p->h + c->low_start * p->R_up : NULL;
    c->ldu = p->R_up;
    if (p->learns && p->aside) {
        FN(linear_weigh)(c, c->u, c->ldu);
        c->u = c->weighted, c->ldu = c->ld;
    }
    return c->gathered + (p->pairs.rows ? PM_CHUNK * PM_STRIDE : 0);
}

/* Reals of scratch that a chunk of a pass needs. */
static ptrdiff_t FN(linear_scratch)(const struct FN(linear_pass) * p)
{
    const ptrdiff_t widest = p->R_up < p->R_down ? p->R_down : p->R_up;
    return PM_CHUNK *
           (2 * p->k * (FN(padded)(widest) + (p->by_token ? p->S : 0)) + (p->pairs.rows ? PM_STRIDE : 0));
}

static void FN(linear_chunk_item)(void *ctx, ptrdiff_t item)
{
    struct FN(linear_layers) *l = ctx;
    struct FN(linear_chunk) chunks[PM_LAYERS];
    const struct FN(linear_chunk) *end = chunks + l->n;
    const int backward = l->pass->backward;
    ptrdiff_t widened = 0, reals = 0;
    int learns = backward && l->activation && l->dx;
    for (ptrdiff_t i = 0; i < l->n; i++) {
        reals += FN(linear_scratch)(l->pass + i);
        if (l->pass[i].weight.bf16) widened = PM_STRIDE / 2;
        learns = learns || l->pass[i].learns;
    }
    real *staged = pm_block_get(sizeof(real) * (PM_CHUNK * (PM_STRIDE + widened) + reals));
    if (!staged) {
        atomic_store(&l->failed, 1);
        return;
    }
    real *scratch = staged + PM_CHUNK * (PM_STRIDE + widened);
    for (ptrdiff_t i = 0; i < l->n; i++) {
        scratch = FN(linear_chunk_of)(l, l->pass + i, item, scratch, chunks + i);
        chunks[i].staged = staged;
        chunks[i].widened = staged + PM_CHUNK * PM_STRIDE;
    }
    const ptrdiff_t rows = chunks->rows, start = chunks->start, D = l->D, block = FN(linear_block)(D);
    for (ptrdiff_t d = 0; !backward && d < D; d += block) {
        const ptrdiff_t columns = D - d < block ? D - d : block, at = start * D + d;
        K->stage(rows, columns, l->x + at, D, staged);
        if (l->activation)
            K->activate(l->activation, rows, columns, l->times ? l->times + at : NULL, D, staged, NULL, NULL);
        for (const struct FN(linear_chunk) *c = chunks; c < end; c++) FN(linear_advance)(c, d, columns);
    }
    for (const struct FN(linear_chunk) *c = end; backward && c-- > chunks;) {
        const struct FN(linear_pass) *p = c->pass;
        const ptrdiff_t I = p->I, step = FN(linear_block)(I);
        for (ptrdiff_t i = 0; i < I; i += step) {
            const ptrdiff_t columns = I - i < step ? I - i : step;
            if (p->weight.panels || p->R_up) K->stage(rows, columns, p->in + start * I + i, I, staged);
            FN(linear_advance)(c, i, columns);
        }
    }
    /* x is far away: read it once and in order */
    for (ptrdiff_t o = chunks->o0, o1 = o + chunks->columns; learns && o < o1; o += PM_STAGE) {
        const ptrdiff_t columns = o1 - o < PM_STAGE ? o1 - o : PM_STAGE;
        K->stage(rows, columns, l->x + start * D + o, D, staged);
        FN(linear_learn)(l, chunks, o, columns);
    }
    pm_block_put(staged);
}
