/* Python values from C ones: see py_values.h. */
#include "python/py_values.h"

void lmd_py_list_put(PyObject **list, Py_ssize_t i, PyObject *item) {
    if (*list && item) {
        PyList_SET_ITEM(*list, i, item);
        return;
    }
    Py_XDECREF(item);
    Py_CLEAR(*list);
}

void lmd_py_dict_put(PyObject **dict, const char *key, PyObject *item) {
    if (*dict && (!item || PyDict_SetItemString(*dict, key, item) < 0)) Py_CLEAR(*dict);
    Py_XDECREF(item);
}

PyObject *lmd_py_text_or_none(const char *text) {
    if (!text) Py_RETURN_NONE;
    return PyUnicode_FromString(text);
}
