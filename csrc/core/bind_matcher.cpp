// Whether a Python object still refers to what a description of it says, looked at in one go before every solve.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace fastode {
namespace {

enum class Op {
    type,
    is,
    ref,
    equal,
    load,
    attributes,
    item,
    absent,
    keys,
    size,
    empty,
    named,
    at,
    cell,
    empty_cell,
    code,
    closure,
    defaults,
    keyword_defaults,
    globals,
    self,
    function,
    get,
    missing,
    class_attributes,
    tensor,
    same,
    holds,
};

const std::map<std::string, Op>& ops() {
    static const std::map<std::string, Op> names = {
        {"type", Op::type},
        {"is", Op::is},
        {"ref", Op::ref},
        {"equal", Op::equal},
        {"load", Op::load},
        {"attributes", Op::attributes},
        {"item", Op::item},
        {"absent", Op::absent},
        {"keys", Op::keys},
        {"size", Op::size},
        {"empty", Op::empty},
        {"named", Op::named},
        {"at", Op::at},
        {"cell", Op::cell},
        {"empty_cell", Op::empty_cell},
        {"code", Op::code},
        {"closure", Op::closure},
        {"defaults", Op::defaults},
        {"keyword_defaults", Op::keyword_defaults},
        {"globals", Op::globals},
        {"self", Op::self},
        {"function", Op::function},
        {"get", Op::get},
        {"missing", Op::missing},
        {"class_attributes", Op::class_attributes},
        {"tensor", Op::tensor},
        {"same", Op::same},
        {"holds", Op::holds},
    };
    return names;
}

// One statement about slot `a`; some put what they find into slot `out`.
struct Statement {
    Op op;
    size_t a;
    size_t out;
    Py_ssize_t n;
    py::object what;
};

// What a weak reference refers to; null if that is gone.
py::object alive(const py::object& reference) {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject* found = nullptr;
    if (PyWeakref_GetRef(reference.ptr(), &found) < 0) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
#else
    PyObject* found = PyWeakref_GetObject(reference.ptr());
    if (found == nullptr) throw py::error_already_set();
    return found == Py_None ? py::object() : py::reinterpret_borrow<py::object>(found);
#endif
}

bool same_key(PyObject* key, PyObject* known) {
    if (key == known) return true;
    if (Py_TYPE(key) != Py_TYPE(known)) return false;
    const int equal = PyObject_RichCompareBool(key, known, Py_EQ);  // of strings and numbers only
    if (equal < 0) throw py::error_already_set();
    return equal == 1;
}

// Of plain values of one type. Floats by their bits: 0.0 is not -0.0, and NaN is NaN.
bool same_value(PyObject* value, PyObject* known) {
    if (value == known) return true;
    if (Py_TYPE(value) != Py_TYPE(known)) return false;
    if (PyFloat_CheckExact(value)) {
        const double x = PyFloat_AS_DOUBLE(value), y = PyFloat_AS_DOUBLE(known);
        return std::memcmp(&x, &y, sizeof x) == 0;
    }
    if (PyComplex_CheckExact(value)) {
        const Py_complex x = PyComplex_AsCComplex(value), y = PyComplex_AsCComplex(known);
        return std::memcmp(&x, &y, sizeof x) == 0;
    }
    return same_key(value, known);
}

class Matcher {
public:
    Matcher(const std::vector<std::tuple<std::string, size_t, size_t, Py_ssize_t, py::object>>& statements,
            size_t n_slots, std::vector<size_t> distinct)
        : n_slots_(n_slots), distinct_(std::move(distinct)) {
        for (const auto& [name, a, out, n, what] : statements) {
            const auto found = ops().find(name);
            if (found == ops().end()) throw std::invalid_argument("Matcher: no statement is called " + name);
            if (a >= n_slots || out >= n_slots || n < 0 || (found->second == Op::same && size_t(n) >= n_slots)) {
                throw std::invalid_argument("Matcher: a statement is about a slot that does not exist");
            }
            statements_.push_back({found->second, a, out, n, what});
        }
        for (const size_t slot : distinct_) {
            if (slot >= n_slots) throw std::invalid_argument("Matcher: a slot that does not exist");
        }
        for (const char* name : {"dtype", "shape", "device", "layout", "requires_grad"}) {
            names_.push_back(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name)));
        }
    }

    // The tensors found, in the order of their statements, or None if a statement does not hold.
    py::object match(const py::object& root) const {
        std::vector<py::object> slots(n_slots_);
        slots[0] = root;
        py::list tensors;
        for (const Statement& each : statements_) {
            if (!holds(each, slots, tensors)) return py::none();
        }
        std::vector<PyObject*> found;
        found.reserve(distinct_.size());
        for (const size_t slot : distinct_) found.push_back(slots[slot].ptr());
        std::sort(found.begin(), found.end());
        if (std::adjacent_find(found.begin(), found.end()) != found.end()) return py::none();
        return std::move(tensors);
    }

private:
    bool holds(const Statement& each, std::vector<py::object>& slots, py::list& tensors) const {
        PyObject* const value = slots[each.a].ptr();
        PyObject* const what = each.what.ptr();
        if (value == nullptr && each.op != Op::load) throw std::logic_error("Matcher: an empty slot");
        const auto put = [&slots, &each](PyObject* found) {
            slots[each.out] = py::reinterpret_borrow<py::object>(found);
            return true;
        };
        const auto put_new = [&slots, &each](PyObject* found) {
            slots[each.out] = py::reinterpret_steal<py::object>(found);
            return true;
        };
        switch (each.op) {
            case Op::type: return alive(each.what).ptr() == reinterpret_cast<PyObject*>(Py_TYPE(value));
            case Op::is: return value == what;
            case Op::ref: return value == alive(each.what).ptr();
            case Op::equal: return same_value(value, what);
            case Op::load: {
                const py::object found = alive(each.what);
                return found && put(found.ptr());
            }
            case Op::attributes: {
                PyObject* dict = PyObject_GenericGetDict(value, nullptr);
                if (dict == nullptr) return PyErr_Clear(), false;
                return put_new(dict);
            }
            case Op::item: {
                PyObject* found = PyDict_GetItemWithError(value, what);
                if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
                return found != nullptr && put(found);
            }
            case Op::absent: {
                const int found = PyDict_Contains(value, what);
                if (found < 0) throw py::error_already_set();
                return found == 0;
            }
            case Op::keys: {
                if (PyDict_GET_SIZE(value) != PyTuple_GET_SIZE(what)) return false;
                Py_ssize_t at = 0, n = 0;
                PyObject *key, *item;
                while (PyDict_Next(value, &at, &key, &item)) {
                    if (!same_key(key, PyTuple_GET_ITEM(what, n++))) return false;
                }
                return true;
            }
            case Op::size:
                if (PyDict_Check(value)) return PyDict_GET_SIZE(value) == each.n;
                if (PyList_Check(value)) return PyList_GET_SIZE(value) == each.n;
                return PyTuple_Check(value) && PyTuple_GET_SIZE(value) == each.n;
            case Op::empty:
                for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(what); ++i) {
                    PyObject* found = PyDict_GetItemWithError(value, PyTuple_GET_ITEM(what, i));
                    if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
                    if (found == nullptr || !PyDict_Check(found) || PyDict_GET_SIZE(found) != 0) return false;
                }
                return true;
            case Op::named: {
                // Mostly the keys are the very ones that they were.
                PyObject *keys = PyTuple_GET_ITEM(what, 0), *names = PyTuple_GET_ITEM(what, 1);
                Py_ssize_t at = 0, n = 0, same = 0;
                PyObject *key, *item;
                if (PyDict_GET_SIZE(value) == PyTuple_GET_SIZE(keys)) {
                    while (PyDict_Next(value, &at, &key, &item) && key == PyTuple_GET_ITEM(keys, same)) ++same;
                    if (same == PyTuple_GET_SIZE(keys)) return true;
                }
                for (at = 0; PyDict_Next(value, &at, &key, &item);) {
                    const int found = PySet_Contains(names, key);
                    if (found < 0) throw py::error_already_set();
                    n += found;
                }
                return n == each.n;
            }
            case Op::at:
                if (PyList_Check(value)) return each.n < PyList_GET_SIZE(value) && put(PyList_GET_ITEM(value, each.n));
                return put(PyTuple_GET_ITEM(value, each.n));
            case Op::cell: return PyCell_GET(value) != nullptr && put(PyCell_GET(value));
            case Op::empty_cell: return PyCell_GET(value) == nullptr;
            case Op::code: return PyFunction_GET_CODE(value) == what;
            case Op::closure: return put(PyTuple_GET_ITEM(PyFunction_GET_CLOSURE(value), each.n));
            case Op::defaults: {
                PyObject* found = PyFunction_GET_DEFAULTS(value);
                return put(found == nullptr ? Py_None : found);
            }
            case Op::keyword_defaults: {
                PyObject* found = PyFunction_GET_KW_DEFAULTS(value);
                return put(found == nullptr ? Py_None : found);
            }
            case Op::globals: return put(PyFunction_GET_GLOBALS(value));
            case Op::self: return put(PyMethod_GET_SELF(value));
            case Op::function: return put(PyMethod_GET_FUNCTION(value));
            case Op::get: {
                PyObject* found = PyObject_GetAttr(value, what);  // members of C types and slots: no code of a user's
                if (found == nullptr) return PyErr_Clear(), false;
                return put_new(found);
            }
            case Op::missing: {
                const py::object found = py::reinterpret_steal<py::object>(PyObject_GetAttr(value, what));
                if (!found) PyErr_Clear();
                return !found;
            }
            case Op::class_attributes:
#if PY_VERSION_HEX >= 0x030C0000
                return put_new(PyType_GetDict(reinterpret_cast<PyTypeObject*>(value)));
#else
                return put(reinterpret_cast<PyTypeObject*>(value)->tp_dict);
#endif
            case Op::tensor: {
                for (size_t i = 0; i < names_.size(); ++i) {
                    const py::object found =
                        py::reinterpret_steal<py::object>(PyObject_GetAttr(value, names_[i].ptr()));
                    if (!found) throw py::error_already_set();
                    PyObject* known = PyTuple_GET_ITEM(what, static_cast<Py_ssize_t>(i));
                    if (found.ptr() == known) continue;
                    const int equal = PyObject_RichCompareBool(found.ptr(), known, Py_EQ);
                    if (equal < 0) throw py::error_already_set();
                    if (equal == 0) return false;
                }
                tensors.append(slots[each.a]);
                return true;
            }
            case Op::same: return value == slots[static_cast<size_t>(each.n)].ptr();
            case Op::holds: return py::cast<bool>(each.what(slots[each.a]));
        }
        return false;
    }

    std::vector<Statement> statements_;
    size_t n_slots_;
    std::vector<size_t> distinct_;
    std::vector<py::object> names_;
};

}  // namespace

void bind_matcher(py::module_& m) {
    py::class_<Matcher>(m, "Matcher", "Statements about the objects that an object refers to (program/describe.py).")
        .def(py::init<const std::vector<std::tuple<std::string, size_t, size_t, Py_ssize_t, py::object>>&, size_t,
                      std::vector<size_t>>(),
             py::arg("statements"), py::arg("n_slots"), py::arg("distinct"))
        .def("match", &Matcher::match, py::arg("root"),
             "The tensors found, or None if a statement does not hold of this object.");
}

}  // namespace fastode
