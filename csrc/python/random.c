/* random.c -- binding of ops/random.c. */
#include "python.h"
#define DECLARE(real, DT)                                                                       \
    void pm_uniform_##DT(ptrdiff_t B, ptrdiff_t n, uint64_t key0, uint64_t key1, uint64_t step, \
                         const int64_t *examples, real *out);
DECLARE(float, f32)
DECLARE(double, f64)

static uint64_t read_uint64(PyObject *o, const char *name)
{
    if (PyErr_Occurred()) return 0;
    if (!PyLong_Check(o)) {
        PyErr_Format(PyExc_TypeError, "%s: expected an integer, got %s", name, Py_TYPE(o)->tp_name);
        return 0;
    }
    const unsigned long long value = PyLong_AsUnsignedLongLong(o);
    if (PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "%s: expected an integer from 0 to 2**64 - 1, got %R", name, o);
    return value;
}

static PyObject *py_uniform(PyObject *Py_UNUSED(m), PyObject *const *args, Py_ssize_t nargs)
{
    if (pm_nargs(nargs, 5, "uniform")) return NULL;
    ptrdiff_t B = -1, n = -1;
    const uint64_t key0 = read_uint64(args[0], "seed"), key1 = read_uint64(args[1], "key"),
                   step = read_uint64(args[2], "step");
    const int64_t *examples = pm_in(args[3], "example_ids", NPY_INT64, 1, &B);
    const int t = pm_real(args[4], "out");
    void *out = pm_out(args[4], "out", t, 2, &B, &n);
    if (PyErr_Occurred()) return NULL;
    PM_CALL(t, pm_uniform, B, n, key0, key1, step, examples, out);
    Py_RETURN_NONE;
}

PyMethodDef pm_methods_random[] = {
    PM_METHOD(uniform, "uniform(seed, key, step, example_ids, out, /)\n--\n\nFill out [B, n] with numbers in "
                       "(0, 1), keyed by all the others."),
    { NULL, NULL, 0, NULL },
};
