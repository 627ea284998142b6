/* attention.c -- bindings of ops/attention.c. */
#include "python.h"
#include "../ops/attention.h"

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
static void check_keys(const struct pm_attention *a)
{
    for (ptrdiff_t b = 0; !PyErr_Occurred() && b < a->B; b++) {
        const int64_t queries = a->cu_seqlens[b + 1] - a->cu_seqlens[b],
                      room = a->cu_seqlens_k[b + 1] - a->cu_seqlens_k[b];
        const int64_t keys = a->key_lengths ? a->key_lengths[b] : room,
                      least = a->causal ? queries : queries > 0;
        if (keys < least || keys > room)
            PyErr_Format(PyExc_ValueError, "%s: expected %lld to %lld keys in example %zd, got %lld",
                         a->key_lengths ? "key_lengths" : "cu_seqlens_k", (long long)least, (long long)room,
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

/* What both directions take. tensors: q, k, v. args: cu_seqlens, cu_seqlens_k, key_lengths, n_heads, n_kv_heads, scale, causal,
 * position_bias. D, Dkv: columns of q, and of k and v. Python's error is set when something is wrong. */
static struct pm_attention read_attention(PyObject *const *tensors, PyObject *const *args, int type,
                                          ptrdiff_t *D, ptrdiff_t *Dkv)
{
    struct pm_attention a = { .N = -1, .Nk = -1 };
    ptrdiff_t offsets = -1;
    a.q = pm_in(tensors[0], "q", type, 2, &a.N, D);
    a.k = pm_in(tensors[1], "k", type, 2, &a.Nk, Dkv);
    a.v = pm_in(tensors[2], "v", type, 2, &a.Nk, Dkv);
    a.cu_seqlens = pm_in(args[0], "cu_seqlens", NPY_INT64, 1, &offsets);
    a.cu_seqlens_k = pm_in(args[1], "cu_seqlens_k", NPY_INT64, 1, &offsets);
    a.B = offsets - 1;
    a.key_lengths = pm_in_or_none(args[2], "key_lengths", NPY_INT64, 1, &a.B);
    pm_check_cu_seqlens(a.cu_seqlens, a.B, a.N);
    pm_check_offsets(a.cu_seqlens_k, a.B, a.Nk, "cu_seqlens_k");
    a.H = pm_int(args[3], "n_heads");
    a.Hkv = pm_int(args[4], "n_kv_heads");
    check_heads(*D, a.H, *Dkv, a.Hkv);
    a.scale = pm_double(args[5], "scale");
    a.causal = pm_int(args[6], "causal") != 0;
    check_keys(&a);
    a.position_bias = read_bias(args[7], type, a.H, &a.W);
    if (!PyErr_Occurred()) a.d = *D / a.H;
    return a;
}

static PyObject *py_attention_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 13, "attention_fwd")) return NULL;
    ptrdiff_t D = -1, Dkv = -1;
    const int t = pm_real(args[0], "q");
    struct pm_attention a = read_attention(args, args + 3, t, &D, &Dkv);
    void *out = pm_out(args[11], "out", t, 2, &a.N, &D), *lse = pm_out(args[12], "lse", t, 2, &a.H, &a.N);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_attention_fwd, &a, out, lse);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_attention_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 17, "attention_bwd")) return NULL;
    ptrdiff_t D = -1, Dkv = -1;
    const int t = pm_real(args[0], "dout");
    struct pm_attention a = read_attention(args + 1, args + 6, t, &D, &Dkv);
    const void *dout = pm_in(args[0], "dout", t, 2, &a.N, &D), *out = pm_in(args[4], "out", t, 2, &a.N, &D),
               *lse = pm_in(args[5], "lse", t, 2, &a.H, &a.N);
    void *dq = pm_out(args[14], "dq", t, 2, &a.N, &D), *dk = pm_out(args[15], "dk", t, 2, &a.Nk, &Dkv),
         *dv = pm_out(args[16], "dv", t, 2, &a.Nk, &Dkv);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, t, pm_attention_bwd, &a, dout, out, lse, dq, dk, dv);
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
