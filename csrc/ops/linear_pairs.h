/* linear_pairs.h -- the first and the last part of ops/linear.c: the pair of factors of every group is made of the experts, and its
 * gradient becomes theirs. Included once per dtype. */

/* One layer, forward or backward. */
struct FN(linear_pass) {
    ptrdiff_t N, I, O; /* tokens, extents of `in` and `out` */
    const real *in, *onto, *bias; /* [N,I], backward   [N,O] or NULL: what `out` is added to   [O] or NULL */
    struct pm_weight weight; /* [O,I] */
    real *out; /* [N,O] or NULL */
    const struct pm_term *term;
    const real *weights, *down, *up; /* or NULL   [.,.,I] projects   [.,.,O] is the epilogue */
    ptrdiff_t R_down, R_up; /* rows of a pair: columns of h before and after the weights act on it */
    ptrdiff_t k, S,
        S_A; /* rows of a token in the rank space, with PM_BUCKETS its choices, else 1; experts side by side in one */
    ptrdiff_t n_pairs, n_down, n_up; /* 1 of a factor that all pairs share */
    real scale;
    int makes; /* pairs are made: mixed or gathered */
    int aside; /* experts lie side by side: one pair for all groups, weights act on h */
    int by_token; /* every token has weights of its own */
    real *made_down, *made_up; /* makes: [R_down,I] and [R_up,O] of every pair */
    const real *panels_down; /* the packed [R_down,I] of every pair */
    real *packed; /* the same, where it is made here */
    struct pm_segments groups; /* the groups as they lie in the tokens, or sorted */
    struct pm_segments pairs; /* what one pair serves: the same, or with `aside` whole chunks */
    real *saved_h; /* [N,R_down] forward: to be written, or NULL; rows as the segments have them */
    int backward, learns; /* learns: backward, and gradients of the pairs are wanted */
    const real *h; /* [N,R_up] backward: saved by forward */
    real *
        sums; /* [n_slots] pairs of [R_up,O] dup, [R_down,I] ddown, a line further apart than they are long */
    ptrdiff_t pair; /* that distance: a multiple of the cache's would put all of them into few sets */
    real *
        dweights_parts; /* mixed: [2R,G,Q,S], of every row of both factors; gathered: [R,G,K]; aside: [segments,S] */
    real *dweights; /* by_token: every chunk writes its own, or NULL */
};

struct FN(linear_grads) {
    const struct FN(linear_pass) * pass;
    real *dup, *ddown, *dweights;
};

static ptrdiff_t FN(padded)(ptrdiff_t R)
{
    const ptrdiff_t panel = PM_ALIGN / sizeof(real);
    return (R + panel - 1) / panel * panel;
}

/* Row r of both factors of every pair, mixed. */
static void FN(linear_mix_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(linear_pass) *c = ctx;
    const struct pm_term *t = c->term;
    const ptrdiff_t R = t->R, r = item % R;
    if (item < R) K->mix_fwd(t->G, t->Q, t->S, R, c->I, r, c->weights, c->down, 1, c->made_down, R * c->I);
    else if (c->out) K->mix_fwd(t->G, t->Q, t->S, R, c->O, r, c->weights, c->up, 1, c->made_up, R * c->O);
}

/* Row r of both factors of every pair, gathered; the weights go into lora_B. */
static void FN(linear_gather_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(linear_pass) *c = ctx;
    const struct pm_term *t = c->term;
    const ptrdiff_t R = t->k * t->R, r = item % R, k = r / t->R;
    const int is_down = item < R, is_A = is_down != c->backward;
    const ptrdiff_t columns = is_down ? c->I : c->O;
    for (ptrdiff_t g = 0; g < t->G && (is_down || c->out); g++) {
        const ptrdiff_t row = t->ids[g * t->k + k] * t->R + r % t->R;
        real *made = (is_down ? c->made_down : c->made_up) + (g * R + r) * columns;
        K->scale(columns, (is_down ? c->down : c->up) + row * columns, is_A ? 1 : c->weights[g * t->k + k],
                 made);
    }
}

/* The factor of pair g that projects, packed, if the pair has tokens. The scale goes into it, once; with `aside` backward that is
 * left to what weights h, since dweights needs the plain product. */
static void FN(linear_pack_item)(void *ctx, ptrdiff_t g)
{
    const struct FN(linear_pass) *c = ctx;
    const real *down = c->makes ? c->made_down : c->down;
    if (c->n_down < c->n_pairs || c->pairs.next[g] != PM_UNUSED)
        K->proj_pack(c->R_down, c->I, down + g * c->R_down * c->I, c->aside && c->backward ? 1 : c->scale,
                     c->packed + g * FN(padded)(c->R_down) * c->I);
}

/* -1 when memory is out. */
static int FN(linear_make_pairs)(struct FN(linear_pass) * c)
{
    const ptrdiff_t n_pairs = c->n_pairs, pair = c->R_down * c->I + c->R_up * c->O;
    if (c->panels_down) return 0; /* they were made before */
    c->panels_down = c->packed = pm_block_get(sizeof(real) * c->n_down * FN(padded)(c->R_down) * c->I);
    if (!c->packed) return -1;
    if (c->makes) {
        c->made_down = pm_block_get(sizeof(real) * n_pairs * pair);
        if (!c->made_down) return -1;
        c->made_up = c->made_down + n_pairs * c->R_down * c->I;
        const int gathers = c->term->form == PM_GATHER;
        pm_parallel(2 * c->R_down, 2.0 * (gathers ? 1 : c->term->S) * n_pairs * pair,
                    gathers ? FN(linear_gather_item) : FN(linear_mix_item), c);
    }
    pm_parallel(c->n_down, 4.0 * c->n_down * c->R_down * c->I, FN(linear_pack_item), c);
    return 0;
}

/* The sum of what the chunks have for row r of one factor of pair g, in the order of tokens, in the place of the first. */
static real *FN(linear_fold)(const struct FN(linear_pass) * c, ptrdiff_t g, ptrdiff_t r, int is_up)
{
    const ptrdiff_t columns = is_up ? c->O : c->I;
    real *row = c->sums + (is_up ? 0 : c->R_up * c->O) + r * columns, *sum = row + g * c->pair;
    if (c->pairs.next[g] == PM_UNUSED) memset(sum, 0, sizeof(real) * columns);
    else
        for (ptrdiff_t slot = c->pairs.next[g]; slot >= 0; slot = c->pairs.next[slot])
            K->add_rows(1, columns, row + slot * c->pair, columns, sum);
    return sum;
}

/* One row of one factor, the first R_up items of `up`, the others of `down`. The sum is a gradient by itself, or one of the mixed
 * pair. */
static void FN(linear_fold_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(linear_grads) *grads = ctx;
    const struct FN(linear_pass) *c = grads->pass;
    const struct pm_term *t = c->term;
    const int is_up = item < c->R_up;
    const ptrdiff_t R = is_up ? c->R_up : c->R_down, r = is_up ? item : item - c->R_up,
                    columns = is_up ? c->O : c->I, n_pairs = c->n_pairs, n = is_up ? c->n_up : c->n_down;
    real *sums = c->sums + (is_up ? 0 : c->R_up * c->O), *dfactor = is_up ? grads->dup : grads->ddown;
    for (ptrdiff_t g = 0; g < n_pairs; g++) {
        const real *sum = FN(linear_fold)(c, g, r, is_up);
        if (c->makes || !dfactor) continue;
        if (g < n) memcpy(dfactor + (g * R + r) * columns, sum, sizeof(real) * columns);
        else K->add_rows(1, columns, sum, columns, dfactor + r * columns);
    }
    if (c->makes && dfactor)
        K->mix_bwd_bank(n_pairs, t->Q, t->S, R, columns, r, c->weights, sums, c->pair, 1, dfactor);
    if (c->makes && grads->dweights)
        K->mix_bwd_weights(n_pairs, t->Q, t->S, R, columns, r, is_up ? c->up : c->down, sums, c->pair, 1,
                           c->dweights_parts + item * t->G * t->Q * t->S);
}

/* The same for gathered pairs: row r of every expert's `up`, then `down` (backward: lora_A, lora_B). Experts that no group has get 0. */
static void FN(linear_scatter_item)(void *ctx, ptrdiff_t item)
{
    const struct FN(linear_grads) *grads = ctx;
    const struct FN(linear_pass) *c = grads->pass;
    const struct pm_term *t = c->term;
    const ptrdiff_t R = t->R, r = item % R;
    const int is_A = item < R;
    const ptrdiff_t columns = is_A ? c->O : c->I;
    real *dfactor = is_A ? grads->dup : grads->ddown;
    for (ptrdiff_t s = 0; s < t->S && dfactor; s++)
        memset(dfactor + (s * R + r) * columns, 0, sizeof(real) * columns);
    for (ptrdiff_t i = 0; i < t->G * t->k; i++) { /* choice k of group g */
        const ptrdiff_t row = t->ids[i] * R + r;
        const real *sum = FN(linear_fold)(c, i / t->k, i % t->k * R + r, is_A);
        if (dfactor) K->axpy(columns, is_A ? 1 : c->weights[i], sum, dfactor + row * columns);
        if (is_A || !grads->dweights) continue;
        double dot;
        K->dot(columns, sum, c->down + row * columns, &dot);
        c->dweights_parts[r * t->G * t->k + i] = (real)dot;
    }
}
