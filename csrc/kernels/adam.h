/* adam.h -- AdamW on n values (Loshchilov and Hutter 2019, arXiv 1711.05101), in torch.optim.AdamW's order:
 *   g = grad * grad_scale    data *= 1 - lr * weight_decay    m += (1 - beta1) (g - m)    v = beta2 v + (1 - beta2) g^2
 *   data -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
 * The caller folds the constants in float64: keep = 1 - lr weight_decay, rate = lr / (1 - beta1^step), root = sqrt(1 - beta2^step). */

static void FN(adamw)(ptrdiff_t n, double keep, double rate, double root, double beta1, double beta2,
                      double eps, double grad_scale, const real *restrict grad, real *restrict data,
                      real *restrict m, real *restrict v)
{
    const real keep_r = (real)keep, rate_r = (real)rate, root_r = (real)root, eps_r = (real)eps,
               scale = (real)grad_scale;
    const real new1 = (real)(1 - beta1), old2 = (real)beta2, new2 = (real)(1 - beta2);
    for (ptrdiff_t i = 0; i < n; i++) {
        const real g = grad[i] * scale;
        m[i] += new1 * (g - m[i]);
        v[i] = old2 * v[i] + new2 * g * g;
        data[i] = data[i] * keep_r - rate_r * m[i] / (FN(root)(v[i]) / root_r + eps_r);
    }
}
