/* args.c -- readers of arguments: `name: expected X, got Y`. */
#include "python.h"
#include <stdarg.h>

static PyObject *dtype_name(int type)
{
    PyArray_Descr *d = PyArray_DescrFromType(type);
    PyObject *s = PyObject_Str((PyObject *)d);
    Py_XDECREF(d);
    return s;
}

static PyArrayObject *as_array(PyObject *o, const char *name)
{
    if (PyErr_Occurred()) return NULL;
    if (!PyArray_Check(o)) {
        PyErr_Format(PyExc_TypeError, "%s: expected a numpy array, got %s", name, Py_TYPE(o)->tp_name);
        return NULL;
    }
    return (PyArrayObject *)o;
}

int pm_real(PyObject *o, const char *name)
{
    PyArrayObject *a = as_array(o, name);
    if (!a) return -1;
    const int type = PyArray_TYPE(a);
    if (type == NPY_FLOAT32 || type == NPY_FLOAT64) return type;
    PyErr_Format(PyExc_TypeError, "%s: expected dtype float32 or float64, got %S", name,
                 (PyObject *)PyArray_DESCR(a));
    return -1;
}

static void wrong_shape(PyArrayObject *a, const char *name, int ndim, ptrdiff_t *const *extents)
{
    PyObject *expected = PyUnicode_FromString("("), *got = PyObject_GetAttrString((PyObject *)a, "shape");
    for (int i = 0; i < ndim && expected; i++) {
        PyObject *part = *extents[i] < 0 ? PyUnicode_FromString("any")
                                         : PyUnicode_FromFormat("%zd", (Py_ssize_t)*extents[i]);
        PyObject *next = part ? PyUnicode_FromFormat("%U%U%s", expected, part,
                                                     i + 1 < ndim ? ", "
                                                     : ndim == 1  ? ","
                                                                  : "")
                              : NULL;
        Py_XDECREF(part);
        Py_SETREF(expected, next);
    }
    if (expected && got)
        PyErr_Format(PyExc_ValueError, "%s: expected shape %U), got %S", name, expected, got);
    Py_XDECREF(expected);
    Py_XDECREF(got);
}

static void *read_array(PyObject *o, const char *name, int type, int ndim, int writeable, va_list ap)
{
    PyArrayObject *a = as_array(o, name);
    ptrdiff_t *extents[8];
    for (int i = 0; i < ndim; i++) extents[i] = va_arg(ap, ptrdiff_t *);
    if (!a) return NULL;
    if (PyArray_TYPE(a) != type || !PyArray_ISNOTSWAPPED(a)) {
        PyObject *expected = dtype_name(type);
        if (expected)
            PyErr_Format(PyExc_TypeError, "%s: expected dtype %U, got %S", name, expected,
                         (PyObject *)PyArray_DESCR(a));
        Py_XDECREF(expected);
        return NULL;
    }
    int same = PyArray_NDIM(a) == ndim;
    for (int i = 0; same && i < ndim; i++) same = *extents[i] < 0 || *extents[i] == PyArray_DIM(a, i);
    if (!same) {
        wrong_shape(a, name, ndim, extents);
        return NULL;
    }
    if (!PyArray_IS_C_CONTIGUOUS(a) || !PyArray_ISALIGNED(a)) {
        PyErr_Format(PyExc_ValueError, "%s: expected a C-contiguous array, got strides that are not", name);
        return NULL;
    }
    if (writeable && !PyArray_ISWRITEABLE(a)) {
        PyErr_Format(PyExc_ValueError, "%s: expected a writeable array, got a read-only one", name);
        return NULL;
    }
    for (int i = 0; i < ndim; i++) *extents[i] = PyArray_DIM(a, i);
    return PyArray_DATA(a);
}

#define READER(result, fn, none, writeable)                           \
    result fn(PyObject *o, const char *name, int type, int ndim, ...) \
    {                                                                 \
        if (none && o == Py_None) return NULL;                        \
        va_list ap;                                                   \
        va_start(ap, ndim);                                           \
        void *data = read_array(o, name, type, ndim, writeable, ap);  \
        va_end(ap);                                                   \
        return data;                                                  \
    }
READER(const void *, pm_in, 0, 0)
READER(const void *, pm_in_or_none, 1, 0)
READER(void *, pm_out, 0, 1)
READER(void *, pm_out_or_none, 1, 1)

struct pm_panels pm_panels_of(int type, ptrdiff_t O, ptrdiff_t D)
{
    if (type == NPY_UINT16)
        return (struct pm_panels){ (O + PM_BF16_COLUMNS - 1) / PM_BF16_COLUMNS, (D + 1) / 2,
                                   2 * PM_BF16_COLUMNS };
    const ptrdiff_t columns = PM_ALIGN / (type == NPY_FLOAT32 ? sizeof(float) : sizeof(double));
    return (struct pm_panels){ (O + columns - 1) / columns, D, columns };
}

struct pm_weight pm_weight_or_none(PyObject *o, int type, ptrdiff_t O, ptrdiff_t D)
{
    struct pm_weight w = { .bf16 = PyArray_Check(o) && PyArray_TYPE((PyArrayObject *)o) == NPY_UINT16 };
    if (w.bf16) type = NPY_UINT16;
    struct pm_panels p = pm_panels_of(type, O, D);
    w.panels = pm_in_or_none(o, "weight", type, 3, &p.n, &p.depth, &p.width);
    if ((uintptr_t)w.panels % PM_ALIGN) /* kernels read panels by aligned vectors */
        PyErr_Format(PyExc_ValueError, "weight: expected panels at a multiple of %d bytes, got %d beyond one",
                     PM_ALIGN, (int)((uintptr_t)w.panels % PM_ALIGN));
    return w;
}

ptrdiff_t pm_int(PyObject *o, const char *name)
{
    if (PyErr_Occurred()) return -1;
    if (!PyIndex_Check(o)) {
        PyErr_Format(PyExc_TypeError, "%s: expected an integer, got %s", name, Py_TYPE(o)->tp_name);
        return -1;
    }
    return PyNumber_AsSsize_t(o, PyExc_OverflowError);
}

double pm_double(PyObject *o, const char *name)
{
    if (PyErr_Occurred()) return -1;
    const double v = PyFloat_AsDouble(o);
    if (PyErr_ExceptionMatches(PyExc_TypeError))
        PyErr_Format(PyExc_TypeError, "%s: expected a number, got %s", name, Py_TYPE(o)->tp_name);
    return v;
}

void pm_check_index(const int64_t *index, ptrdiff_t n, ptrdiff_t end, const char *name)
{
    if (PyErr_Occurred() || !index) return;
    for (ptrdiff_t i = 0; i < n; i++)
        if (index[i] < 0 || index[i] >= end) {
            PyErr_Format(PyExc_IndexError, "%s: expected values from 0 to %zd, got %lld at position %zd",
                         name, (Py_ssize_t)(end - 1), (long long)index[i], (Py_ssize_t)i);
            return;
        }
}

void pm_check_offsets(const int64_t *offsets, ptrdiff_t B, ptrdiff_t N, const char *name)
{
    if (PyErr_Occurred() || !offsets) return;
    int good = B >= 0 && offsets[0] == 0 && offsets[B] == N;
    for (ptrdiff_t b = 0; good && b < B; b++) good = offsets[b] <= offsets[b + 1];
    if (!good)
        PyErr_Format(PyExc_ValueError,
                     "%s: expected offsets that start at 0, never fall and end at %zd, got others", name,
                     (Py_ssize_t)N);
}

int pm_check_pair(ptrdiff_t R, ptrdiff_t D, ptrdiff_t O)
{
    if (!PyErr_Occurred() && R < 1)
        PyErr_SetString(PyExc_ValueError, "lora_A: expected a rank of at least 1, got 0");
    if (!PyErr_Occurred() && (D < 1 || O < 1))
        PyErr_Format(PyExc_ValueError, "lora_%c: expected at least one column, got none", D < 1 ? 'A' : 'B');
    return PyErr_Occurred() ? -1 : 0;
}

void pm_check_groups(const int64_t *adapter_ids, ptrdiff_t *B, const int64_t *cu_seqlens, ptrdiff_t offsets,
                     ptrdiff_t N, ptrdiff_t G)
{
    if (PyErr_Occurred()) return;
    const ptrdiff_t examples = cu_seqlens ? offsets - 1 : 1;
    if (!adapter_ids) *B = examples;
    if (*B != examples)
        PyErr_Format(PyExc_ValueError, "adapter_ids: expected shape (%zd,), got (%zd,)", (Py_ssize_t)examples,
                     (Py_ssize_t)*B);
    pm_check_cu_seqlens(cu_seqlens, *B, N);
    pm_check_index(adapter_ids, *B, G, "adapter_ids");
}

int pm_nargs(Py_ssize_t got, Py_ssize_t expected, const char *name)
{
    if (got == expected) return 0;
    PyErr_Format(PyExc_TypeError, "%s: expected %zd arguments, got %zd", name, expected, got);
    return -1;
}
