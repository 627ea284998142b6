/* linear.c -- bindings of ops/linear.c. */
#include "python.h"
#include "../ops/linear.h"

/* lora_A, lora_B are None: neither may there be weights. */
static void read_no_term(PyObject *const *args, struct pm_term *t)
{
    if (args[1] != Py_None)
        PyErr_SetString(PyExc_TypeError, "lora_A: expected an array to go with lora_B, got None");
    else if (t->weights)
        PyErr_SetString(PyExc_TypeError, "lora_A: expected an array to go with weights, got None");
    *t = (struct pm_term){ .B = 1 };
}

/* What weights, ids and the form have to do with each other. */
static void check_form(const struct pm_term *t, ptrdiff_t D, ptrdiff_t O)
{
    if (t->R < 1) PyErr_Format(PyExc_ValueError, "lora_A: expected a rank of at least 1, got 0");
    else if (t->Q < 1 || D % t->Q || O % t->Q)
        PyErr_Format(PyExc_ValueError,
                     "weights: expected a number of heads that divides %zd and %zd, got %zd", (Py_ssize_t)D,
                     (Py_ssize_t)O, (Py_ssize_t)t->Q);
    else if (t->form == PM_CONCAT && (!t->weights || t->Q > 1))
        PyErr_SetString(
            PyExc_ValueError,
            "formulation: expected 'mix' or 'auto' (concat needs weights of one head), got 'concat'");
    else if (t->form == PM_OUTPUTS && t->Q > 1)
        PyErr_Format(PyExc_ValueError, "weights: expected one head (outputs are not cut in blocks), got %zd",
                     (Py_ssize_t)t->Q);
}

/* The low-rank term's arguments, shared by forward and backward. R is 0 without one.
 * args: lora_A, lora_B, weights, ids, adapter_ids, cu_seqlens, scale, form. Python's error is set when something is wrong. */
static struct pm_term read_term(PyObject *const *args, int type, ptrdiff_t N, ptrdiff_t D, ptrdiff_t O)
{
    struct pm_term t = { .B = -1, .G = -1, .Q = -1, .S = -1, .k = -1, .R = -1 };
    ptrdiff_t offsets = -1;
    const int sparse = args[3] != Py_None;
    t.lora_A = pm_in_or_none(args[0], "lora_A", type, 3, &t.S, &t.R, &D);
    if (t.lora_A) t.lora_B = pm_in(args[1], "lora_B", type, 3, &t.S, &t.R, &O);
    if (sparse) t.weights = pm_in(args[2], "weights", type, 2, &t.G, &t.k);
    else t.weights = pm_in_or_none(args[2], "weights", type, 3, &t.G, &t.Q, &t.S);
    t.ids = pm_in_or_none(args[3], "ids", NPY_INT64, 2, &t.G, &t.k);
    t.adapter_ids = pm_in_or_none(args[4], "adapter_ids", NPY_INT64, 1, &t.B);
    t.cu_seqlens = pm_in_or_none(args[5], "cu_seqlens", NPY_INT64, 1, &offsets);
    t.scale = pm_double(args[6], "scale");
    const ptrdiff_t form = pm_int(args[7], "form");
    if (PyErr_Occurred()) return t;
    if (form < PM_MIX || form > PM_OUTPUTS || (sparse && form != PM_OUTPUTS)) {
        PyErr_Format(PyExc_ValueError,
                     "form: expected 0 (mix), 1 (concat) or 2 (outputs; with ids alone), got %zd",
                     (Py_ssize_t)form);
        return t;
    }
    if (!t.lora_A) {
        read_no_term(args, &t);
        return t;
    }
    t.form = sparse ? PM_GATHER : t.weights || form == PM_CONCAT ? (enum pm_form)form : PM_MIX;
    t.S_A = t.S;
    if (sparse) t.Q = 1;
    if (!t.weights) t.G = t.S, t.Q = 1;
    pm_check_groups(t.adapter_ids, &t.B, t.cu_seqlens, offsets, N, t.G);
    if (sparse) pm_check_index(t.ids, t.G * t.k, t.S, "ids");
    if (!PyErr_Occurred()) check_form(&t, D, O);
    if (!PyErr_Occurred() && N > 0 && t.G < 1)
        PyErr_Format(PyExc_ValueError, "%s: expected at least one group, got none",
                     t.weights ? "weights" : "lora_A");
    return t;
}

/* args: activation, times [N,D] or None. */
static struct pm_reading read_reading(PyObject *const *args, int type, ptrdiff_t *N, ptrdiff_t *D)
{
    const ptrdiff_t activation = pm_int(args[0], "activation");
    const struct pm_reading reading = { (enum pm_activation)activation,
                                        pm_in_or_none(args[1], "times", type, 2, N, D) };
    if (!PyErr_Occurred() && (activation < PM_IDENTITY || activation >= PM_ACTIVATIONS))
        PyErr_Format(PyExc_ValueError, "activation: expected 0 (none) to %d, got %zd", PM_ACTIVATIONS - 1,
                     (Py_ssize_t)activation);
    if (!PyErr_Occurred() && reading.times && !activation)
        PyErr_SetString(PyExc_TypeError, "times: expected None without an activation, got an array");
    return reading;
}

/* Columns of the saved h. */
static ptrdiff_t ranks(const struct pm_term *t)
{
    return t->R * (t->form == PM_MIX ? 1 : t->form == PM_GATHER ? t->k : t->S);
}

static PyObject *py_linear_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 15, "linear_fwd")) return NULL;
    ptrdiff_t N = -1, D = -1, O = -1;
    const int type = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", type, 2, &N, &D);
    void *y = pm_out(args[13], "y", type, 2, &N, &O);
    const struct pm_weight weight = pm_weight_or_none(args[1], type, O, D);
    const void *bias = pm_in_or_none(args[2], "bias", type, 1, &O);
    const struct pm_term t = read_term(args + 3, type, N, D, O);
    const struct pm_reading reading = read_reading(args + 11, type, &N, &D);
    ptrdiff_t R = ranks(&t);
    void *h = pm_out_or_none(args[14], "h", type, 2, &N, &R);
    if (PyErr_Occurred()) return NULL;
    if (!weight.panels && !t.lora_A)
        return PyErr_Format(PyExc_TypeError, "weight: expected an array where lora_A is None, got None");
    int failed;
    PM_TRY(failed, type, pm_linear_fwd, N, D, O, x, reading, weight, bias, &t, y, h);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_linear_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 20, "linear_bwd")) return NULL;
    ptrdiff_t N = -1, D = -1, O = -1;
    const int i = args[2] != Py_None ? 2 : args[15] != Py_None ? 15 : 0; /* dy must be what the others are */
    const int type = pm_real(args[i], i == 2 ? "x" : i == 15 ? "dx" : "dy");
    const void *dy = pm_in(args[0], "dy", type, 2, &N, &O);
    void *dx = pm_out_or_none(args[15], "dx", type, 2, &N, &D);
    const void *x = pm_in_or_none(args[2], "x", type, 2, &N, &D),
               *onto = pm_in_or_none(args[14], "onto", type, 2, &N, &D);
    const struct pm_weight weight = pm_weight_or_none(dx ? args[1] : Py_None, type, D, O);
    const struct pm_term t = read_term(args + 4, type, N, D, O);
    const struct pm_reading reading = read_reading(args + 12, type, &N, &D);
    void *dtimes = pm_out_or_none(args[16], "dtimes", type, 2, &N, &D);
    ptrdiff_t R = ranks(&t), S = t.S, r = t.R;
    const int learns = args[17] != Py_None || args[18] != Py_None || args[19] != Py_None;
    const void *h =
        learns || t.form == PM_CONCAT || t.form == PM_OUTPUTS ? pm_in(args[3], "h", type, 2, &N, &R) : NULL;
    void *dlora_A = pm_out_or_none(args[17], "dlora_A", type, 3, &S, &r, &D);
    void *dlora_B = pm_out_or_none(args[18], "dlora_B", type, 3, &S, &r, &O);
    ptrdiff_t G = t.G, Q = t.Q, k = t.k;
    void *dweights = t.ids ? pm_out_or_none(args[19], "dweights", type, 2, &G, &k)
                           : pm_out_or_none(args[19], "dweights", type, 3, &G, &Q, &S);
    if (PyErr_Occurred()) return NULL;
    if ((learns && !(t.lora_A && x)) || (reading.activation && !x))
        return PyErr_Format(PyExc_TypeError, "%s: expected a numpy array, got NoneType", x ? "lora_A" : "x");
    if (dweights && !t.weights)
        return PyErr_Format(PyExc_TypeError, "weights: expected a numpy array, got NoneType");
    if (dx && !weight.panels && !t.lora_A)
        return PyErr_Format(PyExc_TypeError, "weight: expected an array where lora_A is None, got None");
    if (dtimes && !(dx && reading.times))
        return PyErr_Format(PyExc_TypeError, "%s: expected a numpy array, got NoneType", dx ? "times" : "dx");
    if (onto && reading.activation)
        return PyErr_Format(PyExc_TypeError, "onto: expected None with an activation, got an array");
    int failed;
    PM_TRY(failed, type, pm_linear_bwd, N, D, O, dy, weight, x, reading, h, &t, onto, dx, dtimes, dlora_A,
           dlora_B, dweights);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_linear[] = {
    PM_METHOD(linear_fwd,
              "linear_fwd(x, weight, bias, lora_A, lora_B, weights, ids, adapter_ids, cu_seqlens, "
              "scale, form, activation, times, y, h, /)\n--\n\n"
              "y = x W^T + bias + h B_g with h = scale * x A_g^T; weight is packed. form: 0 mix, 1 "
              "concat, 2 outputs. activation: 0 none, 1 relu, 2 gelu, 3 gelu_tanh, 4 silu; then x stands "
              "for activation(x) * times."),
    PM_METHOD(
        linear_bwd,
        "linear_bwd(dy, weight, x, h, lora_A, lora_B, weights, ids, adapter_ids, cu_seqlens, scale, form, "
        "activation, times, onto, dx, dtimes, dlora_A, dlora_B, dweights, /)\n--\n\nGradients of "
        "linear_fwd; weight is the packed transpose."),
    { NULL, NULL, 0, NULL },
};
