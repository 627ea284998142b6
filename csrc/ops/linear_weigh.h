/* linear_weigh.h -- what a pass of ops/linear.c has of one chunk of tokens, and what the weights do to it in the rank space. Included once
 * per dtype. */

/* What a pass does with one chunk, and its scratch. */
struct FN(linear_chunk) {
    const struct FN(linear_pass) * pass;
    ptrdiff_t chunk, start, rows; /* its first token, and how many */
    ptrdiff_t low_start; /* of its rows in the rank space, pass->k of a token */
    int leads; /* the first part of its columns: writes what is not cut */
    const struct pm_segment *first, *last; /* what one pair serves */
    int whole; /* all rows are multiplied together, and each segment gets its term afterwards: the same bits (gemm_tile) */
    ptrdiff_t o0, columns; /* the part of `out` */
    real *staged,
        *widened; /* [rows,PM_STRIDE]; a bfloat16 weight: what gemm_bf16 needs. All passes share both */
    real *low, *weighted; /* [rows,ld] h or g before and after the weights */
    real *spread,
        *dspread; /* [rows,S] by token: weights of these rows, if they do not lie so; dweights of a segment */
    real *gathered; /* rows by index: [PM_CHUNK,PM_STRIDE] what proj needs */
    ptrdiff_t ld, ldu;
    const real *meets; /* [rows,ld] what meets `up` */
    const real *u; /* [rows,ldu] backward: what met lora_B in the forward pass */
};

/* Weights by token, from ids: sorted as the choices are, or those of all experts, zero where a token does not use one. */
static void FN(linear_spread)(const struct FN(linear_chunk) * c)
{
    const struct FN(linear_pass) *p = c->pass;
    const ptrdiff_t k = p->term->k, S = p->S, start = c->start * k;
    if (!p->pairs.order) memset(c->spread, 0, sizeof(real) * c->rows * S);
    for (ptrdiff_t i = 0; i < c->rows * k; i++)
        if (p->pairs.order) c->spread[i] = p->weights[p->pairs.order[start + i]];
        else c->spread[i / k * S + p->term->ids[start + i]] += p->weights[start + i];
}

/* The weights of one segment of a group, ldw apart: 0 where its rows share them. */
static const real *FN(linear_weights)(const struct FN(linear_chunk) * c, const struct pm_segment *s,
                                      ptrdiff_t *ldw)
{
    const struct FN(linear_pass) *p = c->pass;
    *ldw = p->by_token ? p->S : 0;
    if (!p->by_token) return p->weights + s->group * p->S;
    return p->term->ids ? c->spread + (s->start - c->low_start) * p->S : p->weights + s->start * p->S;
}

/* What meets B, into `weighted`, from h = scale * x A^T, rows ldh apart. */
static void FN(linear_weigh)(const struct FN(linear_chunk) * c, const real *h, ptrdiff_t ldh)
{
    const struct FN(linear_pass) *p = c->pass;
    const ptrdiff_t R = p->term->R;
    for (ptrdiff_t i = p->groups.first[c->chunk]; i < p->groups.first[c->chunk + 1]; i++) {
        const struct pm_segment *s = p->groups.at + i;
        const ptrdiff_t n = s->start - c->low_start, rows = s->end - s->start;
        real *u = c->weighted + n * c->ld;
        ptrdiff_t ldw;
        const real *weights = FN(linear_weights)(c, s, &ldw);
        if (p->term->form == PM_CONCAT) K->combine_fwd(rows, p->S, R, weights, h + n * ldh, ldh, u, c->ld);
        else K->weigh_fwd(rows, p->S, R, p->S_A < p->S, weights, ldw, h + n * ldh, ldh, u, c->ld);
    }
}

/* dweights by token, of one segment. */
static void FN(linear_unspread)(const struct FN(linear_chunk) * c, const struct pm_segment *s)
{
    const struct FN(linear_pass) *p = c->pass;
    const ptrdiff_t k = p->term->k, S = p->S, rows = s->end - s->start;
    if (!p->term->ids) memcpy(p->dweights + s->start * S, c->dspread, sizeof(real) * rows * S);
    else if (p->pairs.order)
        for (ptrdiff_t i = 0; i < rows; i++) p->dweights[p->pairs.order[s->start + i]] = c->dspread[i];
    else
        for (ptrdiff_t i = 0; i < rows * k; i++)
            p->dweights[s->start * k + i] = c->dspread[i / k * S + p->term->ids[s->start * k + i]];
}

/* g, from dy B^T in its place, and the gradient of the weights. */
static void FN(linear_unweigh)(const struct FN(linear_chunk) * c)
{
    const struct FN(linear_pass) *p = c->pass;
    const ptrdiff_t R = p->term->R, S = p->S, ld = c->ld;
    for (ptrdiff_t i = p->groups.first[c->chunk]; i < p->groups.first[c->chunk + 1]; i++) {
        const struct pm_segment *s = p->groups.at + i;
        const ptrdiff_t rows = s->end - s->start;
        const real *h = p->h + s->start * p->R_up;
        real *g = c->low + (s->start - c->low_start) * ld,
             *dweights = p->by_token ? c->dspread : p->dweights_parts + i * S;
        ptrdiff_t ldw;
        const real *weights = FN(linear_weights)(c, s, &ldw);
        memset(dweights, 0, sizeof(real) * (ldw ? rows * S : S));
        if (p->term->form == PM_CONCAT)
            K->combine_bwd(rows, S, R, weights, h, p->R_up, p->scale, g, ld, dweights);
        else K->weigh_bwd(rows, S, R, p->S_A < S, weights, ldw, h, p->R_up, p->scale, g, ld, dweights, ldw);
        if (p->by_token && p->dweights) FN(linear_unspread)(c, s);
    }
}
