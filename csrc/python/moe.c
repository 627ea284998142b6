/* moe.c -- experts mixed by their outputs, token by token: bindings of forms of ops/linear.c. */
#include "python.h"
#include "../ops/linear.h"

/* args: lora_A, lora_B, weights, ids, scale, buckets. Python's error is set when something is wrong. */
static struct pm_term read_experts(PyObject *const *args, int type, ptrdiff_t N, ptrdiff_t D, ptrdiff_t O)
{
    struct pm_term t = { .S = -1, .S_A = -1, .k = -1, .R = -1 };
    t.lora_A = pm_in(args[0], "lora_A", type, 3, &t.S_A, &t.R, &D);
    t.lora_B = pm_in(args[1], "lora_B", type, 3, &t.S, &t.R, &O);
    t.ids = pm_in_or_none(args[3], "ids", NPY_INT64, 2, &N, &t.k);
    t.weights = pm_in(args[2], "weights", type, 2, &N, args[3] == Py_None ? &t.S : &t.k);
    t.scale = pm_double(args[4], "scale");
    t.form = pm_int(args[5], "buckets") ? PM_BUCKETS : PM_TOKENS;
    if (PyErr_Occurred()) return t;
    pm_check_index(t.ids, N * t.k, t.S, "ids");
    if (PyErr_Occurred()) return t;
    if (pm_check_pair(t.R, D, O)) return t;
    if (t.S_A != t.S && t.S_A != 1)
        PyErr_Format(PyExc_ValueError, "lora_A: expected 1 or %zd experts, got %zd", (Py_ssize_t)t.S,
                     (Py_ssize_t)t.S_A);
    else if (t.S < 1) PyErr_Format(PyExc_ValueError, "lora_B: expected at least one expert, got none");
    else if (t.form == PM_BUCKETS && !t.ids)
        PyErr_SetString(PyExc_TypeError, "ids: expected an array to go with buckets, got None");
    return t;
}

static PyObject *py_moe_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 11, "moe_fwd")) return NULL;
    ptrdiff_t N = -1, D = -1, O = -1;
    const int type = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", type, 2, &N, &D);
    void *y = pm_out(args[9], "y", type, 2, &N, &O);
    const struct pm_weight weight = pm_weight_or_none(args[1], type, O, D);
    const void *bias = pm_in_or_none(args[2], "bias", type, 1, &O);
    const struct pm_term t = read_experts(args + 3, type, N, D, O);
    ptrdiff_t R = pm_ranks(&t);
    void *h = pm_out_or_none(args[10], "h", type, 2, &N, &R);
    if (PyErr_Occurred()) return NULL;
    int failed;
    const struct pm_reading plain = { .activation = PM_IDENTITY };
    const struct pm_layer layer = { .O = O, .weight = weight, .bias = bias, .term = t, .y = y, .h = h };
    PM_TRY(failed, type, pm_linear_fwd, N, D, x, plain, 1, &layer);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_moe_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 15, "moe_bwd")) return NULL;
    ptrdiff_t N = -1, D = -1, O = -1;
    const int type = pm_real(args[2], "x");
    const void *x = pm_in(args[2], "x", type, 2, &N, &D), *dy = pm_in(args[0], "dy", type, 2, &N, &O);
    const struct pm_weight weight = pm_weight_or_none(args[1], type, D, O);
    const struct pm_term t = read_experts(args + 4, type, N, D, O);
    ptrdiff_t R = pm_ranks(&t), S = t.S, S_A = t.S_A, r = t.R, k = t.ids ? t.k : t.S;
    const void *h = pm_in(args[3], "h", type, 2, &N, &R),
               *onto = pm_in_or_none(args[10], "onto", type, 2, &N, &D);
    void *dx = pm_out_or_none(args[11], "dx", type, 2, &N, &D),
         *dlora_A = pm_out_or_none(args[12], "dlora_A", type, 3, &S_A, &r, &D),
         *dlora_B = pm_out_or_none(args[13], "dlora_B", type, 3, &S, &r, &O),
         *dweights = pm_out_or_none(args[14], "dweights", type, 2, &N, &k);
    if (PyErr_Occurred()) return NULL;
    int failed;
    const struct pm_reading plain = { .activation = PM_IDENTITY };
    const struct pm_layer layer = { .O = O,
                                    .weight = weight,
                                    .term = t,
                                    .h = (void *)h,
                                    .dy = dy,
                                    .dlora_A = dlora_A,
                                    .dlora_B = dlora_B,
                                    .dweights = dweights };
    PM_TRY(failed, type, pm_linear_bwd, N, D, x, plain, 1, &layer, onto, dx, NULL);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_moe[] = {
    PM_METHOD(moe_fwd,
              "moe_fwd(x, weight, bias, lora_A, lora_B, weights, ids, scale, buckets, y, h, /)\n--\n\n"
              "y = x W^T + bias + scale * sum_k weights[n,k] (x A_e^T) B_e, e = ids[n,k]; weight is packed."),
    PM_METHOD(moe_bwd,
              "moe_bwd(dy, weight, x, h, lora_A, lora_B, weights, ids, scale, buckets, onto, dx, dlora_A, "
              "dlora_B, dweights, /)\n--\n\nGradients of moe_fwd; weight is the packed transpose."),
    { NULL, NULL, 0, NULL },
};
