/* attention.c -- bindings of ops/attention.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                                 \
    int pm_attention_fwd_##DT(ptrdiff_t B, ptrdiff_t N, ptrdiff_t H, ptrdiff_t Hkv, ptrdiff_t d,          \
                              ptrdiff_t W, const int64_t *cu_seqlens, const int64_t *cu_seqlens_k,        \
                              const int64_t *key_lengths, const real *q, const real *k, const real *v,    \
                              const real *position_bias, double scale, int causal, real *out, real *lse); \
    int pm_attention_bwd_##DT(ptrdiff_t B, ptrdiff_t N, ptrdiff_t H, ptrdiff_t Hkv, ptrdiff_t d,          \
                              ptrdiff_t W, const int64_t *cu_seqlens, const int64_t *cu_seqlens_k,        \
                              const int64_t *key_lengths, const real *dout, const real *q, const real *k, \
                              const real *v, const real *position_bias, const real *out, const real *lse, \
                              double scale, int causal, real *dq, real *dk, real *dv);
DECLARE(float, f32)
DECLARE(double, f64)

/* Sets an error unless q [N,D] is H heads, and k and v [N,Dkv] are Hkv heads of the same size that divide them. */
static void check_heads(ptrdiff_t D, ptrdiff_t H, ptrdiff_t Dkv, ptrdiff_t Hkv)
{
    if (PyErr_Occurred()) return;
    if (H < 1 || D % H)
        PyErr_Format(PyExc_ValueError, "n_heads: expected a number of heads that divides %zd, got %zd",
                     (Py_ssize_t)D, (Py_ssize_t)H);
    else if (Hkv < 1 || H % Hkv)
        PyErr_Format(PyExc_ValueError, "n_kv_heads: expected a divisor of n_heads = %zd, got %zd",
                     (Py_ssize_t)H, (Py_ssize_t)Hkv);
    else if (Dkv != Hkv * (D / H))
        PyErr_Format(PyExc_ValueError, "k: expected %zd columns (%zd heads of %zd), got %zd",
                     (Py_ssize_t)(Hkv * (D / H)), (Py_ssize_t)Hkv, (Py_ssize_t)(D / H), (Py_ssize_t)Dkv);
}

/* Sets an error unless every example's keys fit their rows of k, and a query has a key to look at: where causal, its own. */
static void check_keys(const int64_t *cu_seqlens, const int64_t *cu_seqlens_k, const int64_t *key_lengths,
                       ptrdiff_t B, int causal)
{
    for (ptrdiff_t b = 0; !PyErr_Occurred() && b < B; b++) {
        const int64_t queries = cu_seqlens[b + 1] - cu_seqlens[b],
                      room = cu_seqlens_k[b + 1] - cu_seqlens_k[b];
        const int64_t keys = key_lengths ? key_lengths[b] : room, least = causal ? queries : queries > 0;
        if (keys < least || keys > room)
            PyErr_Format(PyExc_ValueError, "%s: expected %lld to %lld keys in example %zd, got %lld",
                         key_lengths ? "key_lengths" : "cu_seqlens_k", (long long)least, (long long)room,
                         (Py_ssize_t)b, (long long)keys);
    }
}

/* The table [H, 2 W + 1] or NULL for None, and its W. Sets an error for an even number of columns. */
static const void *read_bias(PyObject *o, int type, ptrdiff_t H, ptrdiff_t *W)
{
    ptrdiff_t columns = -1;
    const void *bias = pm_in_or_none(o, "position_bias", type, 2, &H, &columns);
    if (bias && columns % 2 == 0)
        PyErr_Format(PyExc_ValueError, "position_bias: expected an odd number of columns, got %zd",
                     (Py_ssize_t)columns);
    *W = columns / 2;
    return bias;
}

static PyObject *py_attention_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 13, "attention_fwd")) return NULL;
    ptrdiff_t N = -1, Nk = -1, D = -1, Dkv = -1, offsets = -1, B = -1, W = 0;
    const int t = pm_real(args[0], "q");
    const void *q = pm_in(args[0], "q", t, 2, &N, &D), *k = pm_in(args[1], "k", t, 2, &Nk, &Dkv),
               *v = pm_in(args[2], "v", t, 2, &Nk, &Dkv);
    const int64_t *cu_seqlens = pm_in(args[3], "cu_seqlens", NPY_INT64, 1, &offsets),
                  *cu_seqlens_k = pm_in(args[4], "cu_seqlens_k", NPY_INT64, 1, &offsets);
    B = offsets - 1;
    const int64_t *key_lengths = pm_in_or_none(args[5], "key_lengths", NPY_INT64, 1, &B);
    pm_check_cu_seqlens(cu_seqlens, B, N);
    pm_check_offsets(cu_seqlens_k, B, Nk, "cu_seqlens_k");
    ptrdiff_t H = pm_int(args[6], "n_heads"), Hkv = pm_int(args[7], "n_kv_heads");
    check_heads(D, H, Dkv, Hkv);
    const double scale = pm_double(args[8], "scale");
    const int causal = pm_int(args[9], "causal") != 0;
    check_keys(cu_seqlens, cu_seqlens_k, key_lengths, B, causal);
    const void *bias = read_bias(args[10], t, H, &W);
    void *out = pm_out(args[11], "out", t, 2, &N, &D), *lse = pm_out(args[12], "lse", t, 2, &H, &N);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_attention_fwd, B, N, H, Hkv, D / H, W, cu_seqlens, cu_seqlens_k, key_lengths, q, k,
           v, bias, scale, causal, out, lse);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_attention_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 17, "attention_bwd")) return NULL;
    ptrdiff_t N = -1, Nk = -1, D = -1, Dkv = -1, offsets = -1, B = -1, W = 0;
    const int t = pm_real(args[0], "dout");
    const void *dout = pm_in(args[0], "dout", t, 2, &N, &D), *q = pm_in(args[1], "q", t, 2, &N, &D);
    const void *k = pm_in(args[2], "k", t, 2, &Nk, &Dkv), *v = pm_in(args[3], "v", t, 2, &Nk, &Dkv),
               *out = pm_in(args[4], "out", t, 2, &N, &D);
    const int64_t *cu_seqlens = pm_in(args[6], "cu_seqlens", NPY_INT64, 1, &offsets),
                  *cu_seqlens_k = pm_in(args[7], "cu_seqlens_k", NPY_INT64, 1, &offsets);
    B = offsets - 1;
    const int64_t *key_lengths = pm_in_or_none(args[8], "key_lengths", NPY_INT64, 1, &B);
    ptrdiff_t H = pm_int(args[9], "n_heads"), Hkv = pm_int(args[10], "n_kv_heads");
    check_heads(D, H, Dkv, Hkv);
    const void *lse = pm_in(args[5], "lse", t, 2, &H, &N);
    pm_check_cu_seqlens(cu_seqlens, B, N);
    pm_check_offsets(cu_seqlens_k, B, Nk, "cu_seqlens_k");
    const double scale = pm_double(args[11], "scale");
    const int causal = pm_int(args[12], "causal") != 0;
    check_keys(cu_seqlens, cu_seqlens_k, key_lengths, B, causal);
    const void *bias = read_bias(args[13], t, H, &W);
    void *dq = pm_out(args[14], "dq", t, 2, &N, &D), *dk = pm_out(args[15], "dk", t, 2, &Nk, &Dkv),
         *dv = pm_out(args[16], "dv", t, 2, &Nk, &Dkv);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_attention_bwd, B, N, H, Hkv, D / H, W, cu_seqlens, cu_seqlens_k, key_lengths, dout,
           q, k, v, bias, out, lse, scale, causal, dq, dk, dv);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_attention[] = {
    PM_METHOD(attention_fwd,
              "attention_fwd(q, k, v, cu_seqlens, cu_seqlens_k, key_lengths, n_heads, n_kv_heads, scale, "
              "causal, position_bias, out, lse, /)\n--\n\n"
              "Softmax attention inside every example; lse [H, N] is the log-sum-exp of the scores."),
    PM_METHOD(attention_bwd, "attention_bwd(dout, q, k, v, out, lse, cu_seqlens, cu_seqlens_k, key_lengths, "
                             "n_heads, n_kv_heads, scale, "
                             "causal, position_bias, dq, dk, dv, /)\n--\n\n"
                             "Gradients of attention_fwd."),
    { NULL, NULL, 0, NULL },
};
