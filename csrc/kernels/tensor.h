/* tensor.h -- rows of a factor as Kronecker products of small leaves: a tree of pairwise products.
 *   v[k, i n2 + j] = a[k,i] b[k,j]                     a [r,n1]  b [r,n2]  v [r,n1 n2], row k
 *   y = (v - mean) rstd                                mean, var (biased) of all of v, rstd = 1/sqrt(var + eps)
 * Products of leaves are normalised, and those above them but for the last: its first d columns are the result.
 * Two leaves have one product, and it is normalised. Backward, with g = dy, zero from column d on:
 *   dv = rstd (g - mean(g) - y mean(g y))              da[k,i] = sum_j dv b[k,j]   db[k,j] = sum_i dv a[k,i]
 * v is never stored: what is needed of it are sums over rows of a and b, and of g along them.
 * leaves [r, order m], leaf o of a row beside leaf o - 1; inner products lie in `scratch`, level by level: order/2 [r,m^2], ... */

/* mean and rstd of the product, from sum_ij a_i b_j = sum_i a_i sum_j b_j and the same of squares; float64. */
static void FN(kron_moments)(ptrdiff_t r, ptrdiff_t n1, ptrdiff_t n2, const real *a, ptrdiff_t lda,
                             const real *b, ptrdiff_t ldb, double eps, double *mean, double *rstd)
{
    double sum = 0, square = 0;
    const double n = (double)(r * n1 * n2);
    for (ptrdiff_t k = 0; k < r; k++) {
        double a1 = 0, a2 = 0, b1 = 0, b2 = 0;
        for (ptrdiff_t i = 0; i < n1; i++) {
            const double x = a[k * lda + i];
            a1 += x;
            a2 += x * x;
        }
        for (ptrdiff_t j = 0; j < n2; j++) {
            const double x = b[k * ldb + j];
            b1 += x;
            b2 += x * x;
        }
        sum += a1 * b1;
        square += a2 * b2;
    }
    *mean = sum / n;
    const double var = square / n - *mean * *mean;
    *rstd = 1 / sqrt((var > 0 ? var : 0) + eps);
}

/* Columns 0..d-1 of the product, normalised or not, to out [r,d]. */
static void FN(kron_fwd)(ptrdiff_t r, ptrdiff_t n1, ptrdiff_t n2, ptrdiff_t d, const real *restrict a,
                         ptrdiff_t lda, const real *restrict b, ptrdiff_t ldb, int normalise, double eps,
                         real *restrict out)
{
    double mean = 0, rstd = 1;
    if (normalise) FN(kron_moments)(r, n1, n2, a, lda, b, ldb, eps, &mean, &rstd);
    const real shift = (real)mean, scale = (real)rstd;
    for (ptrdiff_t k = 0; k < r; k++)
        for (ptrdiff_t i = 0; i * n2 < d; i++) {
            const ptrdiff_t n = d - i * n2 < n2 ? d - i * n2 : n2;
            const real *b_k = b + k * ldb, a_i = a[k * lda + i];
            real *y = out + k * d + i * n2;
            for (ptrdiff_t j = 0; j < n; j++) y[j] = (a_i * b_k[j] - shift) * scale;
        }
}

/* da and db [as a and b] of g [r,d]. */
static void FN(kron_bwd)(ptrdiff_t r, ptrdiff_t n1, ptrdiff_t n2, ptrdiff_t d, const real *restrict a,
                         ptrdiff_t lda, const real *restrict b, ptrdiff_t ldb, int normalise, double eps,
                         const real *restrict g, real *restrict da, real *restrict db)
{
    double sum = 0, along = 0; /* of g, and of g v */
    for (ptrdiff_t k = 0; k < r; k++) {
        const real *b_k = b + k * ldb;
        real *db_k = db + k * ldb;
        memset(db_k, 0, (size_t)n2 * sizeof(real));
        for (ptrdiff_t i = 0; i < n1; i++) {
            const ptrdiff_t left = d - i * n2, n = left < 0 ? 0 : left < n2 ? left : n2;
            const real *g_i = g + k * d + i * n2, a_i = a[k * lda + i];
            vec g_sum = { 0 }, g_b = { 0 };
            real rest = 0, rest_b = 0;
            ptrdiff_t j = 0;
            for (; j + LANES <= n; j += LANES) {
                const vec x = *(const vec *)(g_i + j);
                g_sum += x;
                g_b += x * *(const vec *)(b_k + j);
                *(vec *)(db_k + j) += x * a_i;
            }
            for (; j < n; j++) {
                rest += g_i[j];
                rest_b += g_i[j] * b_k[j];
                db_k[j] += g_i[j] * a_i;
            }
            const real da_i = rest_b + FN(vsum)(g_b);
            da[k * lda + i] = da_i;
            sum += (double)(rest + FN(vsum)(g_sum));
            along += (double)a_i * (double)da_i;
        }
    }
    if (!normalise) return;
    double mean, rstd;
    FN(kron_moments)(r, n1, n2, a, lda, b, ldb, eps, &mean, &rstd);
    /* dv = rstd (g - shift - v slope), with slope = rstd mean(g y) */
    const double n = (double)(r * n1 * n2), slope = rstd * rstd * (along - mean * sum) / n,
                 shift = sum / n - mean * slope;
    for (ptrdiff_t k = 0; k < r; k++) {
        const real *a_k = a + k * lda, *b_k = b + k * ldb;
        double a1 = 0, a2 = 0, b1 = 0, b2 = 0;
        for (ptrdiff_t i = 0; i < n1; i++) a1 += (double)a_k[i], a2 += (double)a_k[i] * (double)a_k[i];
        for (ptrdiff_t j = 0; j < n2; j++) b1 += (double)b_k[j], b2 += (double)b_k[j] * (double)b_k[j];
        for (ptrdiff_t i = 0; i < n1; i++) {
            real *to = da + k * lda + i;
            *to = (real)(rstd * ((double)*to - shift * b1 - slope * b2 * (double)a_k[i]));
        }
        for (ptrdiff_t j = 0; j < n2; j++) {
            real *to = db + k * ldb + j;
            *to = (real)(rstd * ((double)*to - shift * a1 - slope * a2 * (double)b_k[j]));
        }
    }
}

/* The operands of one level: arrays [r,n], array o at `at + o apart`, its rows ld apart; `grad` likewise. */
struct FN(level) {
    real *at, *grad;
    ptrdiff_t count, n, ld, apart;
};

/* Level 0 are the leaves; those above lie in scratch, gradients after all values. Returns the number of levels, at most 3. */
static int FN(tensor_levels)(ptrdiff_t order, ptrdiff_t r, ptrdiff_t m, const real *leaves, real *dleaves,
                             real *scratch, struct FN(level) * levels)
{
    ptrdiff_t inner = 0;
    int n = 1;
    levels[0] = (struct FN(level)){ (real *)leaves, dleaves, order, m, order * m, m };
    for (; levels[n - 1].count > 2; n++) {
        const struct FN(level) *in = levels + n - 1;
        const ptrdiff_t columns = in->n * in->n;
        levels[n] = (struct FN(level)){ scratch + inner, NULL, in->count / 2, columns, columns, r * columns };
        inner += in->count / 2 * r * columns;
    }
    for (int l = 1; l < n; l++) levels[l].grad = levels[l].at + inner;
    return n;
}

static void FN(tensor_inner)(ptrdiff_t r, int n_levels, double eps, const struct FN(level) * levels)
{
    for (const struct FN(level) *in = levels; in < levels + n_levels - 1; in++)
        for (ptrdiff_t o = 0; o < in[1].count; o++)
            FN(kron_fwd)(r, in->n, in->n, in[1].n, in->at + 2 * o * in->apart, in->ld,
                         in->at + (2 * o + 1) * in->apart, in->ld, 1, eps, in[1].at + o * in[1].apart);
}

static void FN(tensor_product_fwd)(ptrdiff_t order, ptrdiff_t r, ptrdiff_t m, ptrdiff_t d,
                                   const real *restrict leaves, double eps, real *restrict scratch,
                                   real *restrict out)
{
    struct FN(level) levels[3];
    const int n = FN(tensor_levels)(order, r, m, leaves, NULL, scratch, levels);
    const struct FN(level) *top = levels + n - 1;
    FN(tensor_inner)(r, n, eps, levels);
    FN(kron_fwd)(r, top->n, top->n, d, top->at, top->ld, top->at + top->apart, top->ld, n == 1, eps, out);
}

static void FN(tensor_product_bwd)(ptrdiff_t order, ptrdiff_t r, ptrdiff_t m, ptrdiff_t d,
                                   const real *restrict leaves, double eps, const real *restrict dout,
                                   real *restrict scratch, real *restrict dleaves)
{
    struct FN(level) levels[3];
    const int n = FN(tensor_levels)(order, r, m, leaves, dleaves, scratch, levels);
    const struct FN(level) *top = levels + n - 1;
    FN(tensor_inner)(r, n, eps, levels);
    FN(kron_bwd)(r, top->n, top->n, d, top->at, top->ld, top->at + top->apart, top->ld, n == 1, eps, dout,
                 top->grad, top->grad + top->apart);
    for (const struct FN(level) *in = top - 1; in >= levels; in--)
        for (ptrdiff_t o = 0; o < in[1].count; o++) {
            const ptrdiff_t left = 2 * o * in->apart, right = left + in->apart;
            FN(kron_bwd)(r, in->n, in->n, in[1].n, in->at + left, in->ld, in->at + right, in->ld, 1, eps,
                         in[1].grad + o * in[1].apart, in->grad + left, in->grad + right);
        }
}
