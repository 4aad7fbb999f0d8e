"""What may run while a field is recorded: which code's reads are known, and which C functions depend on nothing else.

A program replaces the user's code, so whatever that code reads has to be an input of the program or part of its key.
Code falls into three kinds:

* *trusted* code (torch's functions and modules, numpy, a few modules of Python, this package) computes with its
  arguments only; what torch does with tensors is recorded besides;
* *known effects* (hooks on gradients, custom gradients, printing of tensors) have no place in a program;
* all other code is the *user's*: ``describe`` has to find it, and everything that it can reach.

C functions that the user's code calls must be in the lists below. What is in no list is not assumed to be harmless.
"""

from __future__ import annotations

import builtins
import functools
import os
import sysconfig
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

USER, TRUSTED = "user", "trusted"

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_FIELDS = (_PACKAGE + "fields.py", _PACKAGE + "models" + os.sep)  # these count as the user's
_TORCH = os.path.dirname(torch.__file__) + os.sep
_NUMPY = os.path.dirname(np.__file__) + os.sep
_STDLIB = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
_SITE = tuple({sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib")})

_TORCH_FILES = (
    "nn/",
    "functional.py",
    "_tensor.py",
    "overrides.py",
    "autograd/__init__.py",
    "autograd/grad_mode.py",
    "autograd/forward_ad.py",
    "autograd/functional.py",
    "_functorch/",
    "func/",
    "utils/_pytree.py",
    "utils/_cxx_pytree.py",
    "utils/_contextlib.py",
    "utils/_python_dispatch.py",
    "utils/_device.py",
    "_ops.py",
    "_jit_internal.py",
    "_decomp/",
    "_refs/",
    "_prims/",
    "_prims_common/",
    "_meta_registrations.py",
    "_library/",
    "library.py",
    "special/",
    "linalg/",
    "fft/",
    "_lowrank.py",
    "_vmap_internals.py",
    "_linalg_utils.py",
    "_utils.py",
    "_VF.py",
    "types.py",
    "return_types.py",
    "_classes.py",
    "__init__.py",
    "__future__.py",
    "compiler/__init__.py",
    "fx/traceback.py",
    "fx/experimental/_config.py",
    "_compile.py",
    "_dynamo/eval_frame.py",
    "_dynamo/external_utils.py",
    "jit/_trace.py",
    "jit/_script.py",
)
_TORCH_MODULES = (
    "torch.nn",
    "torch.functional",
    "torch._tensor",
    "torch.autograd.grad_mode",
    "torch._C",
    "torch._ops",
    "torch.func",
    "torch._functorch",
    "torch._dynamo.eval_frame",
    "torch.utils._contextlib",
    "torch.return_types",
)
_STDLIB_FILES = (
    "functools.py",
    "contextlib.py",
    "collections/",
    "_collections_abc.py",
    "typing.py",
    "types.py",
    "enum.py",
    "numbers.py",
    "operator.py",
    "abc.py",
    "_weakrefset.py",
    "keyword.py",
    "reprlib.py",
    "re/",
    "string.py",
)
_STDLIB_MODULES = {
    "builtins",
    "functools",
    "contextlib",
    "collections",
    "typing",
    "types",
    "enum",
    "numbers",
    "operator",
    "_operator",
    "abc",
    "math",
    "cmath",
    "itertools",
    "re",
    "string",
    "dataclasses",
    "__future__",
}
_EFFECTS = {
    ("_tensor.py", "register_hook"): "it puts a hook on a gradient",
    ("_tensor.py", "register_post_accumulate_grad_hook"): "it puts a hook on a gradient",
    ("_tensor.py", "backward"): "it calls backward()",
    ("_tensor.py", "__reduce_ex__"): "it copies or pickles a tensor",
    ("_tensor.py", "__deepcopy__"): "it copies or pickles a tensor",
    ("_tensor.py", "__repr__"): "it turns a tensor's values into text",
    ("_tensor.py", "__format__"): "it turns a tensor's values into text",
    ("_tensor.py", "__array__"): "it brings a tensor's values to numpy",
    ("_tensor.py", "__dlpack__"): "it hands a tensor's memory to another library",
    ("autograd/__init__.py", "backward"): "it calls backward()",
    ("autograd/function.py", "apply"): "an autograd.Function has a gradient of its own",
    ("nn/parallel/distributed.py", "forward"): "a DistributedDataParallel module has hooks on its gradients",
}


@functools.lru_cache(maxsize=8192)
def verdict(code: types.CodeType) -> str:
    """``USER``, ``TRUSTED``, or why the code has no place in a program."""
    file, name = code.co_filename, code.co_name
    if file.startswith(_PACKAGE):
        return USER if file.startswith(_FIELDS) else TRUSTED
    if file.startswith(_TORCH):
        inner = file[len(_TORCH) :].replace(os.sep, "/")
        effect = _EFFECTS.get((inner, name))
        if effect is not None:
            return effect
        if inner == "utils/hooks.py":
            return "a module has hooks on its gradients"
        return TRUSTED if inner.startswith(_TORCH_FILES) else USER
    if file.startswith(_NUMPY):
        return USER if file.startswith(_NUMPY + "random") else TRUSTED
    if file.startswith(_SITE):
        return USER
    for folder in _STDLIB:
        if file.startswith(folder):
            return TRUSTED if file[len(folder) :].replace(os.sep, "/").startswith(_STDLIB_FILES) else USER
    return TRUSTED if file in ("<frozen abc>", "<frozen _collections_abc>") else USER


def is_of_compiled_function(code: types.CodeType) -> bool:
    """Whether code is that of a function returned by ``torch.compile``, which holds the one given as ``fn``."""
    return code.co_name == "compile_wrapper" and code.co_filename == os.path.join(_TORCH, "_dynamo", "eval_frame.py")


def is_of_torch_or_python(code: types.CodeType) -> bool:
    """Whether code belongs to torch or to Python's own library, imports included."""
    file = code.co_filename
    return file.startswith((_TORCH, "<frozen")) or (file.startswith(_STDLIB) and not file.startswith(_SITE))


def module_of(kind: type) -> str:
    """Name of the module that a class belongs to, '' where it does not say."""
    name = kind.__module__
    return name if isinstance(name, str) else ""


def is_trusted_class(kind: type) -> bool:
    """Whether a class's own code is trusted, so that it need not be looked into."""
    name = module_of(kind)
    top = name.split(".")[0]
    if top == "fastode":
        return not name.startswith(("fastode.fields", "fastode.models"))
    if top == "torch":
        return name == "torch" or name.startswith(_TORCH_MODULES)
    return top in _STDLIB_MODULES or top == "numpy"


def is_library(module: types.ModuleType) -> bool:
    """Whether what a module of Python holds is taken not to change: torch, numpy and a few others."""
    name = module.__name__
    top = name.split(".")[0]
    if top == "fastode":
        return not name.startswith(("fastode.fields", "fastode.models"))
    if top == "torch":
        return not name.startswith(("torch.backends", "torch.optim", "torch.distributions", "torch.utils.data"))
    return top in _STDLIB_MODULES or (top == "numpy" and not name.startswith("numpy.random"))


_BUILTINS = {
    "abs", "all", "any", "ascii", "bin", "callable", "chr", "delattr", "dir", "divmod", "format", "getattr", "hasattr",
    "hex", "isinstance", "issubclass", "iter", "len", "locals", "max", "min", "next", "oct", "ord", "pow", "repr",
    "round", "setattr", "sorted", "sum", "vars", "__build_class__",
}  # fmt: skip
_PURE_MODULES = {
    "math", "cmath", "_operator", "itertools", "_functools", "_collections", "_abc", "_bisect", "_struct", "numpy",
    "numpy.core._multiarray_umath", "numpy._core._multiarray_umath", "_typing", "_sre",
}  # fmt: skip
_TORCH_C_MODULES = (
    "torch._C._nn",
    "torch._C._linalg",
    "torch._C._fft",
    "torch._C._special",
    "torch._C._nested",
    "torch._C._sparse",
)
_TORCH_FUNCTIONS = {
    "as_tensor", "asarray", "tensor", "from_numpy", "scalar_tensor", "is_tensor", "is_floating_point", "is_complex",
    "is_signed", "is_conj", "is_neg", "is_nonzero", "is_same_size", "is_inference", "promote_types", "result_type",
    "can_cast", "get_default_dtype", "numel", "broadcast_shapes", "finfo", "iinfo", "parse_type", "range",
    "sparse_coo_tensor", "sparse_csr_tensor",
}  # fmt: skip
_TENSOR_METHODS = {
    "dim", "ndimension", "size", "numel", "nelement", "stride", "storage_offset", "is_contiguous", "is_floating_point",
    "is_complex", "is_signed", "is_conj", "is_neg", "is_inference", "is_same_size", "is_set_to", "element_size",
    "get_device", "type", "to", "cpu", "double", "float", "half", "bfloat16", "long", "int", "short", "char", "byte",
    "bool", "cdouble", "cfloat", "new", "new_tensor", "requires_grad_", "item", "has_names", "type_as", "stft",
    "apply_", "map_",
}  # fmt: skip
_NOT_TENSOR_METHODS = {"apply_", "map_", "data_ptr", "numpy", "tolist", "_version", "retain_grad", "record_stream"}
_DATA = (
    list, tuple, dict, set, frozenset, str, bytes, bytearray, int, float, complex, bool, range, slice, type(None),
    np.ndarray, np.generic, torch.Size, torch.dtype, torch.device, types.GeneratorType, types.MappingProxyType,
)  # fmt: skip
"""Types whose methods read and write the object itself only."""


ASKS_FOR_GRADIENT = torch.is_grad_enabled
"""Published flows ask this to keep a graph or not; values that depend on it show when they are compared without one."""


@functools.lru_cache(maxsize=4096)
def _is_operation(name: str) -> bool:
    """Whether torch has an operation of this name on tensors or for making one, as opposed to settings of torch."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return any("Tensor" in str(part.type) for schema in schemas for part in (*schema.arguments, *schema.returns))


def is_tensor_method(name: str) -> bool:
    """Whether a method of a tensor is an operation, which is recorded, or tells about its shape and type only."""
    return name not in _NOT_TENSOR_METHODS and (name in _TENSOR_METHODS or _is_operation(name))


def is_pure(function: Any) -> bool:
    """Whether a C function depends on nothing but its arguments and changes nothing else."""
    if function is ASKS_FOR_GRADIENT:
        return True
    name = function.__name__
    kind = getattr(function, "__objclass__", None)
    if kind is not None:  # a method that is called through its class
        return is_tensor_method(name) if issubclass(kind, torch._C.TensorBase) else issubclass(kind, _DATA)
    owner = getattr(function, "__self__", None)
    if owner is builtins or (owner is None and function.__module__ == "builtins"):
        return name in _BUILTINS
    if owner is None or isinstance(owner, types.ModuleType):
        module = owner.__name__ if owner is not None else (function.__module__ or "")
        if module.startswith(_TORCH_C_MODULES):
            return True
        if module.startswith("torch"):
            return name in _TORCH_FUNCTIONS or _is_operation(name)
        return module in _PURE_MODULES
    if isinstance(owner, type):
        if owner.__name__ == "_VariableFunctionsClass":
            return name in _TORCH_FUNCTIONS or _is_operation(name)
        return issubclass(owner, _DATA) or name in ("__new__", "__init_subclass__", "__subclasshook__")
    if isinstance(owner, Tensor):
        return is_tensor_method(name)
    return isinstance(owner, _DATA) or type(owner).__module__ in ("re", "collections", "itertools", "functools")


_PURE_TYPES_OF = _STDLIB_MODULES | {"numpy", "torch"}
"""Modules whose C types may be called."""


def is_pure_type(kind: type) -> bool:
    """Whether making an object of a C type depends on nothing but the arguments."""
    return module_of(kind).split(".")[0] in _PURE_TYPES_OF and not issubclass(kind, torch.Generator)


HOOKS_OF_ALL_MODULES = tuple(
    n for n, v in vars(nn.modules.module).items() if n.startswith("_global_") and isinstance(v, dict)
)
"""Names in ``torch.nn.modules.module`` of the hooks on all modules."""
