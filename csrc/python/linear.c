/* linear.c -- bindings of ops/linear.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                                   \
    int pm_linear_fwd_##DT(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, ptrdiff_t B, ptrdiff_t G, ptrdiff_t Q,    \
                           ptrdiff_t S, ptrdiff_t R, const real *x, const real *panels, const real *bias,   \
                           const real *lora_A, const real *lora_B, const real *weights,                     \
                           const int64_t *adapter_ids, const int64_t *cu_seqlens, double scale, int concat, \
                           real *y, real *h);                                                               \
    int pm_linear_bwd_##DT(ptrdiff_t N, ptrdiff_t D, ptrdiff_t O, ptrdiff_t B, ptrdiff_t G, ptrdiff_t Q,    \
                           ptrdiff_t S, ptrdiff_t R, const real *dy, const real *panels, const real *x,     \
                           const real *h, const real *lora_A, const real *lora_B, const real *weights,      \
                           const int64_t *adapter_ids, const int64_t *cu_seqlens, double scale, int concat, \
                           real *dx, real *dlora_A, real *dlora_B, real *dweights);
DECLARE(float, f32)
DECLARE(double, f64)

/* The low-rank term's arguments, shared by forward and backward. R is 0 without one. */
struct term {
    ptrdiff_t B, G, Q, S, R;
    const void *lora_A, *lora_B, *weights, *adapter_ids, *cu_seqlens;
    double scale;
    int concat;
};

/* args: lora_A, lora_B, weights, adapter_ids, cu_seqlens, scale, concat. Python's error is set when something is wrong. */
static struct term read_term(PyObject *const *args, int type, ptrdiff_t N, ptrdiff_t D, ptrdiff_t O)
{
    struct term t = { .B = -1, .G = -1, .Q = -1, .S = -1, .R = -1 };
    ptrdiff_t offsets = -1;
    t.lora_A = pm_in_or_none(args[0], "lora_A", type, 3, &t.S, &t.R, &D);
    if (t.lora_A) t.lora_B = pm_in(args[1], "lora_B", type, 3, &t.S, &t.R, &O);
    t.weights = pm_in_or_none(args[2], "weights", type, 3, &t.G, &t.Q, &t.S);
    t.adapter_ids = pm_in_or_none(args[3], "adapter_ids", NPY_INT64, 1, &t.B);
    t.cu_seqlens = pm_in_or_none(args[4], "cu_seqlens", NPY_INT64, 1, &offsets);
    t.scale = pm_double(args[5], "scale");
    t.concat = pm_int(args[6], "concat") != 0;
    if (PyErr_Occurred()) return t;
    if (!t.lora_A) {
        if (args[1] != Py_None)
            PyErr_SetString(PyExc_TypeError, "lora_A: expected an array to go with lora_B, got None");
        else if (t.weights)
            PyErr_SetString(PyExc_TypeError, "lora_A: expected an array to go with weights, got None");
        t.concat = 0;
        t.R = t.S = t.G = t.Q = 0;
        t.B = 1;
        return t;
    }
    if (!t.cu_seqlens) offsets = 2;
    if (t.B < 0) t.B = offsets - 1;
    if (!t.weights) t.G = t.S, t.Q = 1;
    if (t.B != offsets - 1)
        PyErr_Format(PyExc_ValueError, "adapter_ids: expected shape (%zd,), got (%zd,)",
                     (Py_ssize_t)(offsets - 1), (Py_ssize_t)t.B);
    pm_check_cu_seqlens(t.cu_seqlens, t.B, N);
    pm_check_index(t.adapter_ids, t.B, t.G, "adapter_ids");
    if (PyErr_Occurred()) return t;
    if (t.R < 1) PyErr_Format(PyExc_ValueError, "lora_A: expected a rank of at least 1, got 0");
    else if (t.Q < 1 || D % t.Q || O % t.Q)
        PyErr_Format(PyExc_ValueError,
                     "weights: expected a number of heads that divides %zd and %zd, got %zd", (Py_ssize_t)D,
                     (Py_ssize_t)O, (Py_ssize_t)t.Q);
    else if (t.concat && (!t.weights || t.Q > 1))
        PyErr_SetString(
            PyExc_ValueError,
            "formulation: expected 'mix' or 'auto' (concat needs weights of one head), got 'concat'");
    else if (N > 0 && t.G < 1)
        PyErr_Format(PyExc_ValueError, "%s: expected at least one group, got none",
                     t.weights ? "weights" : "lora_A");
    return t;
}

/* The columns of a panel. */
static ptrdiff_t panel(int type) { return PM_ALIGN / (type == NPY_FLOAT32 ? sizeof(float) : sizeof(double)); }

static PyObject *py_linear_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 12, "linear_fwd")) return NULL;
    ptrdiff_t N = -1, D = -1, O = -1;
    const int type = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", type, 2, &N, &D);
    void *y = pm_out(args[10], "y", type, 2, &N, &O);
    ptrdiff_t P = panel(type), n_panels = (O + P - 1) / P;
    const void *panels = pm_in(args[1], "weight", type, 3, &n_panels, &D, &P),
               *bias = pm_in_or_none(args[2], "bias", type, 1, &O);
    struct term t = read_term(args + 3, type, N, D, O);
    ptrdiff_t R = t.concat ? t.S * t.R : t.R;
    void *h = pm_out_or_none(args[11], "h", type, 2, &N, &R);
    if (PyErr_Occurred()) return NULL;
    int failed;
    PM_TRY(failed, type, pm_linear_fwd, N, D, O, t.B, t.G, t.Q, t.S, t.R, x, panels, bias, t.lora_A, t.lora_B,
           t.weights, t.adapter_ids, t.cu_seqlens, t.scale, t.concat, y, h);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_linear_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 15, "linear_bwd")) return NULL;
    ptrdiff_t N = -1, D = -1, O = -1;
    const int i = args[2] != Py_None ? 2 : args[11] != Py_None ? 11 : 0; /* dy must be what the others are */
    const int type = pm_real(args[i], i == 2 ? "x" : i == 11 ? "dx" : "dy");
    const void *dy = pm_in(args[0], "dy", type, 2, &N, &O);
    void *dx = pm_out_or_none(args[11], "dx", type, 2, &N, &D);
    const void *x = pm_in_or_none(args[2], "x", type, 2, &N, &D);
    ptrdiff_t P = panel(type), n_panels = (D + P - 1) / P;
    const void *panels = dx ? pm_in(args[1], "weight", type, 3, &n_panels, &O, &P) : NULL;
    struct term t = read_term(args + 4, type, N, D, O);
    ptrdiff_t R = t.concat ? t.S * t.R : t.R;
    const int learns = args[12] != Py_None || args[13] != Py_None || args[14] != Py_None;
    const void *h = learns ? pm_in(args[3], "h", type, 2, &N, &R) : NULL;
    void *dlora_A = pm_out_or_none(args[12], "dlora_A", type, 3, &t.S, &t.R, &D);
    void *dlora_B = pm_out_or_none(args[13], "dlora_B", type, 3, &t.S, &t.R, &O);
    void *dweights = pm_out_or_none(args[14], "dweights", type, 3, &t.G, &t.Q, &t.S);
    if (PyErr_Occurred()) return NULL;
    if (learns && !(t.lora_A && x))
        return PyErr_Format(PyExc_TypeError, "%s: expected a numpy array, got NoneType", x ? "lora_A" : "x");
    if (dweights && !t.weights)
        return PyErr_Format(PyExc_TypeError, "weights: expected a numpy array, got NoneType");
    int failed;
    PM_TRY(failed, type, pm_linear_bwd, N, D, O, t.B, t.G, t.Q, t.S, t.R, dy, panels, x, h, t.lora_A,
           t.lora_B, t.weights, t.adapter_ids, t.cu_seqlens, t.scale, t.concat, dx, dlora_A, dlora_B,
           dweights);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_linear[] = {
    PM_METHOD(linear_fwd, "linear_fwd(x, weight, bias, lora_A, lora_B, weights, adapter_ids, cu_seqlens, "
                          "scale, concat, y, h, /)\n--\n\n"
                          "y = x W^T + bias + h B_g with h = scale * x A_g^T; weight is packed."),
    PM_METHOD(linear_bwd,
              "linear_bwd(dy, weight, x, h, lora_A, lora_B, weights, adapter_ids, cu_seqlens, scale, concat, "
              "dx, dlora_A, "
              "dlora_B, dweights, /)\n--\n\nGradients of linear_fwd; weight is the packed transpose."),
    { NULL, NULL, 0, NULL },
};
