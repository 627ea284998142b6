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
    if (pm_check_pair(t->R, D, O)) return;
    if (t->Q < 1 || D % t->Q || O % t->Q)
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
 * args: lora_A, lora_B, weights, ids, adapter_ids, cu_seqlens, scale, form; forward: panels. Python's error is set when something is wrong. */
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

/* The n arguments of one layer, a tuple. NULL with an error that is set. */
static PyObject *const *read_layer(PyObject *layer, Py_ssize_t n)
{
    if (PyErr_Occurred()) return NULL;
    if (PyTuple_CheckExact(layer) && PyTuple_GET_SIZE(layer) == n) return PySequence_Fast_ITEMS(layer);
    PyErr_Format(PyExc_TypeError, "layers: expected tuples of %zd arguments, got another", n);
    return NULL;
}

static int check_layers(Py_ssize_t n, const char *name)
{
    if (n >= 1 && n <= PM_LAYERS) return 0;
    PyErr_Format(PyExc_TypeError, "%s: expected 1 to %d layers, got %zd", name, PM_LAYERS, n < 0 ? 0 : n);
    return -1;
}

/* lora_A may come packed, by pm_factor_pack. */
static void read_panels(PyObject *o, int type, ptrdiff_t D, struct pm_term *t)
{
    const struct pm_panels p = pm_panels_of(type, t->R, D);
    ptrdiff_t R = p.n * p.width;
    t->panels = pm_in_or_none(o, "panels", type, 3, &t->G, &R, &D);
    const ptrdiff_t beyond = (uintptr_t)t->panels % PM_ALIGN;
    if (!t->panels || PyErr_Occurred()) return;
    if (t->form != PM_MIX || t->weights || t->scale != 1)
        PyErr_SetString(PyExc_ValueError, "panels: expected None with weights or a scale, got an array");
    else if (beyond)
        PyErr_Format(PyExc_ValueError,
                     "panels: expected panels at a multiple of %d bytes, got %zd beyond one", PM_ALIGN,
                     (Py_ssize_t)beyond);
}

static PyObject *py_factor_pack(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 2, "factor_pack")) return NULL;
    ptrdiff_t G = -1, R = -1, D = -1;
    const int type = pm_real(args[0], "factor");
    const void *factor = pm_in(args[0], "factor", type, 3, &G, &R, &D);
    const struct pm_panels p = pm_panels_of(type, R, D);
    ptrdiff_t padded = p.n * p.width;
    void *panels = pm_out(args[1], "panels", type, 3, &G, &padded, &D);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(type, pm_factor_pack, G, R, D, factor, panels);
    Py_RETURN_NONE;
}

static PyObject *py_linear_fwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    const Py_ssize_t n = nargs - 3;
    if (check_layers(n, "linear_fwd")) return NULL;
    ptrdiff_t N = -1, D = -1;
    const int type = pm_real(args[0], "x");
    const void *x = pm_in(args[0], "x", type, 2, &N, &D);
    const struct pm_reading reading = read_reading(args + 1, type, &N, &D);
    struct pm_layer layers[PM_LAYERS];
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *const *a = read_layer(args[3 + i], 13);
        if (!a) return NULL;
        struct pm_layer layer = { .O = -1 };
        layer.y = pm_out(a[11], "y", type, 2, &N, &layer.O);
        layer.weight = pm_weight_or_none(a[0], type, layer.O, D);
        layer.bias = pm_in_or_none(a[1], "bias", type, 1, &layer.O);
        layer.term = read_term(a + 2, type, N, D, layer.O);
        read_panels(a[10], type, D, &layer.term);
        ptrdiff_t R = pm_ranks(&layer.term);
        layer.h = pm_out_or_none(a[12], "h", type, 2, &N, &R);
        if (PyErr_Occurred()) return NULL;
        if (!layer.weight.panels && !layer.term.lora_A)
            return PyErr_Format(PyExc_TypeError, "weight: expected an array where lora_A is None, got None");
        layers[i] = layer;
    }
    int failed;
    PM_TRY(failed, type, pm_linear_fwd, N, D, x, reading, n, layers);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* The layer of args: dy, weight, h, a term, dlora_A, dlora_B, dweights. dx, x: whether there are such. */
static struct pm_layer read_layer_bwd(PyObject *const *a, int type, ptrdiff_t *N, ptrdiff_t *D, int dx, int x)
{
    struct pm_layer layer = { .O = -1 };
    layer.dy = pm_in(a[0], "dy", type, 2, N, &layer.O);
    layer.weight = pm_weight_or_none(dx ? a[1] : Py_None, type, *D, layer.O);
    layer.term = read_term(a + 3, type, *N, *D, layer.O);
    const struct pm_term *t = &layer.term;
    ptrdiff_t R = pm_ranks(t), S = t->S, r = t->R, G = t->G, Q = t->Q, k = t->k;
    const int learns = a[11] != Py_None || a[12] != Py_None || a[13] != Py_None;
    if (learns || t->form == PM_CONCAT || t->form == PM_OUTPUTS)
        layer.h = (void *)pm_in(a[2], "h", type, 2, N, &R);
    layer.dlora_A = pm_out_or_none(a[11], "dlora_A", type, 3, &S, &r, D);
    layer.dlora_B = pm_out_or_none(a[12], "dlora_B", type, 3, &S, &r, &layer.O);
    layer.dweights = t->ids ? pm_out_or_none(a[13], "dweights", type, 2, &G, &k)
                            : pm_out_or_none(a[13], "dweights", type, 3, &G, &Q, &S);
    if (PyErr_Occurred()) return layer;
    if (learns && !(t->lora_A && x))
        PyErr_Format(PyExc_TypeError, "%s: expected a numpy array, got NoneType", x ? "lora_A" : "x");
    else if (layer.dweights && !t->weights)
        PyErr_Format(PyExc_TypeError, "weights: expected a numpy array, got NoneType");
    else if (dx && !layer.weight.panels && !t->lora_A)
        PyErr_Format(PyExc_TypeError, "weight: expected an array where lora_A is None, got None");
    return layer;
}

static PyObject *py_linear_bwd(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    const Py_ssize_t n = nargs - 6;
    if (check_layers(n, "linear_bwd")) return NULL;
    PyObject *const *first = read_layer(args[6], 14);
    if (!first) return NULL;
    ptrdiff_t N = -1, D = -1;
    const int i = args[0] != Py_None ? 0 : 4; /* what every array must be like: x, dx or dy */
    const int type = args[i] != Py_None ? pm_real(args[i], i ? "dx" : "x") : pm_real(first[0], "dy");
    const void *x = pm_in_or_none(args[0], "x", type, 2, &N, &D);
    void *dx = pm_out_or_none(args[4], "dx", type, 2, &N, &D);
    const struct pm_reading reading = read_reading(args + 1, type, &N, &D);
    const void *onto = pm_in_or_none(args[3], "onto", type, 2, &N, &D);
    void *dtimes = pm_out_or_none(args[5], "dtimes", type, 2, &N, &D);
    struct pm_layer layers[PM_LAYERS];
    for (Py_ssize_t j = 0; j < n; j++) {
        PyObject *const *a = read_layer(args[6 + j], 14);
        if (!a) return NULL;
        layers[j] = read_layer_bwd(a, type, &N, &D, dx != NULL, x != NULL);
        if (PyErr_Occurred()) return NULL;
    }
    if (reading.activation && !x)
        return PyErr_Format(PyExc_TypeError, "x: expected a numpy array, got NoneType");
    if (dtimes && !(dx && reading.times))
        return PyErr_Format(PyExc_TypeError, "%s: expected a numpy array, got NoneType", dx ? "times" : "dx");
    if (onto && reading.activation)
        return PyErr_Format(PyExc_TypeError, "onto: expected None with an activation, got an array");
    int failed;
    PM_TRY(failed, type, pm_linear_bwd, N, D, x, reading, n, layers, onto, dx, dtimes);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_linear[] = {
    PM_METHOD(
        factor_pack,
        "factor_pack(factor, panels, /)\n--\n\nA factor [G,R,D] as linear_fwd reads it, R in whole panels."),
    PM_METHOD(linear_fwd,
              "linear_fwd(x, activation, times, /, *layers)\n--\n\n"
              "y = x W^T + bias + h B_g with h = scale * x A_g^T, for each layer (weight, bias, lora_A, "
              "lora_B, weights, "
              "ids, adapter_ids, cu_seqlens, scale, form, panels, y, h); weight is packed. form: 0 mix, 1 "
              "concat, 2 outputs. activation: 0 none, 1 relu, 2 gelu, 3 gelu_tanh, 4 silu; then x stands "
              "for activation(x) * times."),
    PM_METHOD(linear_bwd,
              "linear_bwd(x, activation, times, onto, dx, dtimes, /, *layers)\n--\n\nGradients of "
              "linear_fwd, for each layer (dy, weight, h, lora_A, lora_B, weights, ids, adapter_ids, "
              "cu_seqlens, scale, "
              "form, dlora_A, dlora_B, dweights); weight is the packed transpose. dx is their sum."),
    { NULL, NULL, 0, NULL },
};
