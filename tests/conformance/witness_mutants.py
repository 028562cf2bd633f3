"""Every mutant of the reference's forward: one small change of its source each, made by an operator with a name."""

import ast
import builtins
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import refembed.reference

FOLDER = Path(refembed.reference.__file__).parent
MODULES = ("trace", "config", "operations", "positions", "attention", "layer", "pooling", "model", "quantize")
SOURCE = {module: (FOLDER / f"{module}.py").read_text() for module in MODULES}  # in an order in which they can be run

# What golden/ cannot judge, and why. Statements that only raise are left out too: golden/ holds nothing to be refused.
OUTSIDE = {
    "trace": "it listens to the forward and computes nothing",
    "config.Config": "the released model's numbers; the twin has its own, from its config.json",
    "config.layer_shapes": "what a checkpoint must hold: the forward never asks",
    "config.parameter_shapes": "what a checkpoint must hold: the forward never asks",
    "pooling.POOLING_HEADS": "of the attention pooler, which no released model has",
    "pooling.first_pool": "the released model and the twin take the mean",
    "pooling.last_pool": "the released model and the twin take the mean",
    "pooling.attention_pool": "the released model and the twin take the mean",
    "quantize.FORMS": "the words of an error message",
    "quantize.fake_quantize_gradient": "a gradient, and golden/quantised is of the forward",
    "quantize.int8_vectors": "of embeddings: golden/vectors",
    "quantize.binary_vectors": "of embeddings: golden/vectors",
    "quantize.signs": "of embeddings: golden/vectors",
    "quantize.binary_similarity": "of embeddings: golden/vectors",
}


@dataclass(frozen=True)
class Mutant:
    """One change. id: module.function:operator:count within that function, so that moved lines keep their ids."""

    id: str
    module: str
    line: int
    change: str
    code: CodeType


# ------------------------------------------------------------------------------------ operators: what a node may become
Nodes = Iterator[ast.AST]

ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Pow, ast.MatMult, ast.LShift, ast.RShift)
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.LtE: ast.Lt, ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.In: ast.NotIn,
    ast.Is: ast.IsNot, ast.NotIn: ast.In, ast.GtE: ast.Gt,
}  # fmt: skip
FUNCTIONS = {
    "cos": "sin", "sin": "cos", "sum": "mean", "mean": "sum", "max": "min", "exp": "exp2", "tanh": "arctan",
    "sqrt": "cbrt", "square": "abs", "abs": "square", "rint": "floor", "concatenate": "stack", "repeat": "tile",
    "softmax": "l2_normalize", "l2_normalize": "softmax", "endswith": "startswith", "set": "list", "outer": "multiply",
}  # fmt: skip
NAMES = {
    "query": "key", "key": "value", "value": "key", "cos": "sin", "sin": "cos", "first": "second", "second": "first",
    "turned_first": "turned_second", "turned_second": "turned_first", "gate": "up", "up": "gate", "x": "update",
    "update": "x", "normed": "x", "scores": "mask", "states": "x", "queries": "keys", "keys": "queries", "base": "head",
    "rows": "columns", "columns": "rows", "largest": "nearest", "nearest": "largest", "mean_square": "epsilon",
    "mean_pool": "first_pool", "INT8_BLOCK": "INT4_BLOCK", "INT4_BLOCK": "INT8_BLOCK", "INT8_ROW": "INT4_ROW",
    "INT4_ROW": "INT8_ROW", "halves": "packed", "projected_up": "pooled", "inner": "x", "gated": "up", "output": "x",
}  # fmt: skip
FIELDS = {
    "cos": "sin", "sin": "cos", "pi": "e", "inf": "pi", "sliding_base": "full_base", "full_base": "sliding_base",
    "reach": "context", "head": "heads", "heads": "key_heads", "key_heads": "heads", "width": "mlp", "mlp": "width",
    "dense": "mlp", "dimensions": "dense", "vocabulary": "context", "epsilon": "query_scalar", "query_scalar": "reach",
    "scales": "levels", "levels": "scales",
}  # fmt: skip
WORDS = {
    "q_proj": "k_proj", "k_proj": "v_proj", "v_proj": "k_proj", "o_proj": "q_proj", "q_norm": "k_norm",
    "k_norm": "q_norm", "gate_proj": "up_proj", "up_proj": "gate_proj", "down_proj": "gate_proj",
    "pre_feedforward_layernorm": "input_layernorm", "post_feedforward_layernorm": "post_attention_layernorm",
    "input_layernorm": "pre_feedforward_layernorm", "post_attention_layernorm": "post_feedforward_layernorm",
    "2_Dense": "3_Dense", "3_Dense": "2_Dense", "embed_tokens": "norm",
    "norm.weight": "layers.0.input_layernorm.weight",
    "sliding_attention": "local_attention", "full_attention": "global_attention", "self_attn": "attention",
    "layers.": "layer.", "layer.": "layers.", ".attention": ".attn", ".mlp": ".feed_forward",
    "int8-block": "int4-block", "int4-block": "int8-block", "mixed-channel": "int8-block",
}  # fmt: skip
COUNTS = {"tokens", "dimensions", "reach", "head", "shared", "index", "limit", "bits", "columns", "rows", "size"}
DTYPES = {"float16": "float32", "int8": "uint8", "uint8": "int8", "float32": "float64"}


def arithmetic_replaced(node: ast.AST) -> Nodes:
    if isinstance(node, ast.BinOp):
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)


def operand_dropped(node: ast.AST) -> Nodes:
    if isinstance(node, ast.BinOp):
        yield from (node.left, node.right)


def operands_swapped(node: ast.AST) -> Nodes:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ORDERED):
        yield ast.BinOp(node.right, node.op, node.left)


def comparison_replaced(node: ast.AST) -> Nodes:
    if isinstance(node, ast.Compare):
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)


def branch_taken(node: ast.AST) -> Nodes:
    """One side of a condition, whatever the condition says."""
    if isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    if isinstance(node, ast.If):
        yield from (ast.If(ast.Constant(always), node.body, node.orelse) for always in (True, False))


def sign_dropped(node: ast.AST) -> Nodes:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand


def constant_changed(node: ast.AST) -> Nodes:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
    if isinstance(node, ast.Constant) and type(node.value) is float:
        yield from (ast.Constant(1.01 * node.value or 1.0), ast.Constant(0.0))


def off_by_one(node: ast.AST) -> Nodes:
    if isinstance(node, ast.Name) and node.id in COUNTS:
        yield ast.BinOp(node, ast.Add(), ast.Constant(1))


def slice_flipped(node: ast.AST) -> Nodes:
    """[:n] for [n:], and [None, :] for [:, None]."""
    if isinstance(node, ast.Slice) and not node.step and (node.lower is None) != (node.upper is None):
        yield ast.Slice(node.upper, node.lower, node.step)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        yield ast.Subscript(node.value, ast.Tuple(node.slice.elts[::-1], ast.Load()), node.ctx)


def axis_changed(node: ast.AST) -> Nodes:
    if isinstance(node, ast.keyword) and node.arg == "axis":
        last = isinstance(node.value, ast.UnaryOp)
        yield ast.keyword("axis", ast.Constant(0 if last else -1))


def keyword_dropped(node: ast.AST) -> Nodes:
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            yield ast.Call(node.func, node.args, [other for other in node.keywords if other is not keyword])


def arguments_swapped(node: ast.AST) -> Nodes:
    if isinstance(node, ast.Call):
        for k in range(len(node.args) - 1):
            if not any(isinstance(one, ast.Starred) for one in node.args[k : k + 2]):
                swapped = [*node.args[:k], node.args[k + 1], node.args[k], *node.args[k + 2 :]]
                yield ast.Call(node.func, swapped, node.keywords)


def call_removed(node: ast.AST) -> Nodes:
    """f(x, ...) and x.f(...) become x."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in ("np", "math"):
            yield node.func.value
        elif node.args and not isinstance(node.args[0], ast.Starred):
            yield node.args[0]


def function_replaced(node: ast.AST) -> Nodes:
    if isinstance(node, ast.Call):
        for func in renamed(node.func, FUNCTIONS, FUNCTIONS):
            yield ast.Call(func, node.args, node.keywords)


def name_replaced(node: ast.AST) -> Nodes:
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield from renamed(node, NAMES, FIELDS)


def renamed(node: ast.AST, names: dict[str, str], fields: dict[str, str]) -> Nodes:
    if isinstance(node, ast.Name) and node.id in names:
        yield ast.Name(names[node.id], ast.Load())
    if isinstance(node, ast.Attribute) and node.attr in fields:
        yield ast.Attribute(node.value, fields[node.attr], ast.Load())


def word_replaced(node: ast.AST) -> Nodes:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for word, other in WORDS.items():
            if node.value.startswith(word) or f".{word}." in node.value:
                yield ast.Constant(node.value.replace(word, other, 1))
                return


def type_replaced(node: ast.AST) -> Nodes:
    if isinstance(node, ast.Attribute) and node.attr in DTYPES:
        yield ast.Attribute(node.value, DTYPES[node.attr], ast.Load())
    if isinstance(node, ast.Call) and node.args and ast.unparse(node.args[-1]).endswith("dtype"):
        half = ast.parse("np.float16", mode="eval").body
        yield ast.Call(node.func, [*node.args[:-1], half], node.keywords)


def order_changed(node: ast.AST) -> Nodes:
    """What is gone through: without its first, without its last, backwards."""
    if isinstance(node, ast.For | ast.comprehension):
        for part in ("[1:]", "[:-1]", "[::-1]"):
            items = ast.parse(f"list({ast.unparse(node.iter)}){part}", mode="eval").body
            changed = {**dict(ast.iter_fields(node)), "iter": items}
            yield type(node)(**changed)


def statement_deleted(node: ast.AST) -> Nodes:
    if is_trace(node) or getattr(node, "again", False):
        yield ast.Pass()


def value_nudged(node: ast.AST) -> Nodes:
    """Added to, since a norm further on would take a factor away again."""
    if isinstance(node, ast.Assign | ast.Return) and isinstance(node.value, ast.BinOp | ast.Call | ast.Subscript):
        name = node.targets[0] if isinstance(node, ast.Assign) else ast.Name("")
        number = not re.match("[A-Z]", ast.unparse(node.value))  # and no tuple with names
        if number and isinstance(name, ast.Name) and name.id not in COUNTS:
            moved = ast.BinOp(node.value, ast.Add(), ast.Constant(0.001))
            yield type(node)(**{**dict(ast.iter_fields(node)), "value": moved})


OPERATORS: dict[str, tuple[Callable[[ast.AST], Nodes], str]] = {
    "arithmetic-replaced": (arithmetic_replaced, "`+` for `-`, `*` for `/`, and so on"),
    "operand-dropped": (operand_dropped, "`a + b` becomes `a`, or `b`"),
    "operands-swapped": (operands_swapped, "`a - b` becomes `b - a`"),
    "comparison-replaced": (comparison_replaced, "`<` for `<=`, `!=` for `==`"),
    "branch-taken": (branch_taken, "one side of a condition, whatever it says"),
    "sign-dropped": (sign_dropped, "`-a` becomes `a`"),
    "constant-changed": (constant_changed, "a whole number one up or down, a fraction 1 % up or 0"),
    "off-by-one": (off_by_one, "a length, size or index one too large"),
    "slice-flipped": (slice_flipped, "`[n:]` for `[:n]`, `[None, :]` for `[:, None]`"),
    "axis-changed": (axis_changed, "the first axis for the last, and back"),
    "keyword-dropped": (keyword_dropped, "a keyword argument left out"),
    "arguments-swapped": (arguments_swapped, "two neighbouring arguments in each other's place"),
    "call-removed": (call_removed, "`f(x)` becomes `x`"),
    "function-replaced": (function_replaced, "`sin` for `cos`, `sum` for `mean`, and so on"),
    "name-replaced": (name_replaced, "a variable, field or constant for another of its kind"),
    "word-replaced": (word_replaced, "a parameter's or stage's name for another"),
    "type-replaced": (type_replaced, "another width or sign of number"),
    "order-changed": (order_changed, "a loop without its first or last turn, or backwards"),
    "statement-deleted": (statement_deleted, "a trace, or a second value for a name, left out"),
    "value-nudged": (value_nudged, "0.001 added to what is kept or returned"),
}


# --------------------------------------------------------------------------------------------------- where they apply
UNCHANGED = {"annotation", "returns", "decorator_list", "format_spec", "targets", "target"}  # types, formats, names set


def is_trace(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith("trace(")


def is_left_out(node: ast.AST) -> bool:
    """Docstrings, and conditions that only raise."""
    words = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return words or (isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise))


def is_whole(node: ast.AST) -> bool:
    """Changed as a whole: a trace, an axis, and -1, which is no number but a word for the last, or for what is left."""
    last = isinstance(node, ast.UnaryOp) and ast.unparse(node) == "-1"
    return last or is_trace(node) or (isinstance(node, ast.keyword) and node.arg == "axis")


def places(parent: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """(parent, field, index in it, node) of everything below that may change, in the source's order."""
    for field, value in ast.iter_fields(parent):
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST) and field not in UNCHANGED and not is_left_out(node):
                yield parent, field, index, node
                if not is_whole(node):
                    yield from places(node)


def put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def units(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Functions, classes and constants of a module, by name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            yield ast.unparse(target).strip("()").split(",")[0], node


def names_of(unit: ast.stmt, tree: ast.Module) -> set[str]:
    """What may be read within a unit: its own names, its module's, and Python's."""
    own = {node.arg for node in ast.walk(unit) if isinstance(node, ast.arg)}
    own |= {node.id for node in ast.walk(unit) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in ast.walk(unit) if isinstance(node, ast.FunctionDef)}
    imported = {node.asname or node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    constants = {
        node.id
        for top in tree.body
        if isinstance(top, ast.Assign)
        for node in ast.walk(top)
        if isinstance(node, ast.Name)
    }
    return own | imported | constants | {name for name, _ in units(tree)} | set(dir(builtins))


def mark_second_values(unit: ast.AST) -> None:
    """Assignments to a name that has a value already: without them the code still runs."""
    known = {node.arg for node in ast.walk(unit) if isinstance(node, ast.arg)}
    for node in ast.walk(unit):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            node.again = node.targets[0].id in known  # type: ignore[attr-defined]
            known.add(node.targets[0].id)


def mutants() -> Iterator[Mutant]:
    """Every mutant, in the order of the source. Two changes that come to the same code are one mutant."""
    for module in MODULES:
        tree = ast.parse(SOURCE[module])
        for name, unit in units(tree):
            if module not in OUTSIDE and f"{module}.{name}" not in OUTSIDE:
                yield from mutants_of(module, name, unit, tree)


def mutants_of(module: str, name: str, unit: ast.stmt, tree: ast.Module) -> Iterator[Mutant]:
    mark_second_values(unit)
    known = names_of(unit, tree)
    seen, counts = {ast.unparse(unit)}, dict.fromkeys(OPERATORS, 0)
    for parent, field, index, node in list(places(unit)):
        for operator, (apply, _) in OPERATORS.items():
            for other in apply(node):
                if not {one.id for one in ast.walk(other) if isinstance(one, ast.Name)} <= known:
                    continue
                put(parent, field, index, other)
                ast.fix_missing_locations(unit)
                text = re.sub(r"\b(\w+) = \1$", "pass", ast.unparse(unit), flags=re.MULTILINE)  # a = a does nothing
                if text not in seen:
                    seen.add(text)
                    line = getattr(node, "lineno", getattr(parent, "lineno", 0))
                    change = f"{shown(node)} → {shown(other)}"
                    code = compile(tree, f"{module}.py", "exec")
                    yield Mutant(f"{module}.{name}:{operator}:{counts[operator]}", module, line, change, code)
                    counts[operator] += 1
                put(parent, field, index, node)


def shown(node: ast.AST) -> str:
    """A node as a reader knows it, on one line."""
    first, *rest = ast.unparse(node).strip().splitlines()
    return f"{first} ..." if rest else first
