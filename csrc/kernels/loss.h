/* loss.h -- losses of one example.
 *   cross entropy over the columns c in [start, end) of one row of logits:
 *     lse = log sum_c exp(logits[c])    loss = lse - logits[label]    dlogits[c] = dloss (exp(logits[c] - lse) - [c = label]), else 0
 *   squared error: loss = (prediction - target)^2, written in the op. */

static void FN(cross_entropy_fwd)(ptrdiff_t start, ptrdiff_t end, ptrdiff_t label,
                                  const real *restrict logits, real *restrict loss, real *restrict lse)
{
    const ptrdiff_t n = end - start, whole = n / LANES * LANES;
    const real *x = logits + start;
    const vec rest = FN(load_part)(x + whole, n - whole, -INFINITY);
    vec tops = rest, acc = { 0 };
    for (ptrdiff_t c = 0; c < whole; c += LANES) tops = FN(vmax)(*(const vec *)(x + c), tops);
    const real top = FN(vtop)(tops);
    for (ptrdiff_t c = 0; c < whole; c += LANES) acc += FN(vexp)(*(const vec *)(x + c) - top);
    acc += FN(vexp)(rest - top);
    *lse = top + (real)log((double)FN(vsum)(acc));
    *loss = *lse - logits[label];
}

static void FN(cross_entropy_bwd)(ptrdiff_t C, ptrdiff_t start, ptrdiff_t end, ptrdiff_t label,
                                  const real *restrict logits, real lse, real dloss, real *restrict dlogits)
{
    const ptrdiff_t whole = start + (end - start) / LANES * LANES;
    memset(dlogits, 0, (size_t)start * sizeof(real));
    for (ptrdiff_t c = start; c < whole; c += LANES)
        *(vec *)(dlogits + c) = FN(vexp)(*(const vec *)(logits + c) - lse) * dloss;
    FN(store_part)(dlogits + whole, end - whole,
                   FN(vexp)(FN(load_part)(logits + whole, end - whole, 0) - lse) * dloss);
    memset(dlogits + end, 0, (size_t)(C - end) * sizeof(real));
    dlogits[label] -= dloss;
}
